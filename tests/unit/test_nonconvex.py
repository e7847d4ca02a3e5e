from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.model_selection import KFold

from farout.claims.nonconvex import descend
from farout.errors import BadInput, UnknownName
from farout.table._nonconvex_solver import (
    Logistic,
    Problem,
    Settings,
    Squares,
    minimise,
    path,
    top_eigenvalue,
)
from farout.table._penalties import SHAPES, Penalty, soft
from farout.table.nonconvex import NonconvexClassifier, NonconvexRegressor
from naive.nonconvex import best_alone, concave_slope, iterate, penalty

KINDS = pytest.mark.parametrize("kind", ["scad", "mcp"])


def problem(kind, loss, n=80, p=30, seed=0):
    """Correlated columns, a few of which matter."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) @ (np.eye(p) + 0.3 * rng.normal(size=(p, p)))
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    z = 2 * X[:, 0] - 1.5 * X[:, 1] + X[:, 2]
    if loss is Squares:
        y = z + rng.normal(size=n)
        y -= y.mean()
    else:
        y = (z + rng.logistic(size=n) > 0).astype(float)
    return Problem.of(X, loss(y), Penalty.of(kind, None))


@KINDS
@pytest.mark.parametrize("lam", [0.3, 1.7])
def test_penalties_are_the_formulas_and_their_slopes_the_finite_differences(kind, lam):
    one = Penalty.of(kind, None)
    b = np.linspace(-9, 9, 381) + 0.003  # on no kink
    values = [one.value(np.array([v]), lam) for v in b]
    np.testing.assert_allclose(values, [penalty(v, lam, kind, SHAPES[kind]) for v in b], rtol=1e-12)
    np.testing.assert_allclose(one.slope(b, lam), [concave_slope(v, lam, kind, SHAPES[kind]) for v in b], atol=1e-12)
    h = 1e-6
    concave = [
        (one.value(np.array([v + h]), lam) - lam * abs(v + h) - one.value(np.array([v - h]), lam) + lam * abs(v - h))
        / (2 * h)
        for v in b
    ]
    np.testing.assert_allclose(one.slope(b, lam), concave, atol=1e-6)
    # the slope changes no faster than it says, and as fast somewhere
    rate = np.abs(np.diff(one.slope(b, lam)) / np.diff(b))
    assert rate.max() == pytest.approx(one.curvature, rel=1e-6)
    levels = np.array([0.0, lam])
    assert one.value(np.array([5.0, 1.0]), levels) == pytest.approx(one.value(np.array([1.0]), lam))
    assert one.slope(np.array([5.0, 1.0]), levels)[0] == 0


def test_soft_thresholding_is_the_minimiser():
    tried = np.linspace(-5, 5, 200_001)
    for u in (-3.0, -0.4, 0.0, 0.9, 2.5):
        best = tried[np.argmin((tried - u) ** 2 / 2 + 0.9 * np.abs(tried))]
        assert soft(np.array([u]), 0.9)[0] == pytest.approx(best, abs=1e-4)
    np.testing.assert_array_equal(soft(np.array([3.0, -3.0]), np.array([0.0, 9.0])), [3, 0])


@KINDS
def test_orthogonal_columns_have_the_closed_form(kind):
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(60, 6)))[0] * np.sqrt(60)
    z = np.array([0.2, -0.9, 1.3, -1.9, 2.7, 6.0])
    found = minimise(Problem.of(X, Squares(X @ z), Penalty.of(kind, None)), 0.8, np.zeros(6), Settings(tol=1e-10)).coef
    np.testing.assert_allclose(found, [best_alone(v, 0.8, kind, SHAPES[kind]) for v in z], atol=1e-4)
    assert found[5] == pytest.approx(6)  # what is large is not shrunk
    if kind == "scad":
        np.testing.assert_allclose(found, descend(X, X @ z, 0.8, 1e-10)[0], atol=1e-8)


@KINDS
@pytest.mark.parametrize("scheme", ["accelerated", "original", "proximal"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_iterations_are_those_written_out(kind, scheme, steps):
    one = problem(kind, Squares)
    settings = Settings(scheme, "speed", tol=0, max_iter=steps)
    found = minimise(one, 0.3, np.zeros(30), settings)
    assert (found.n_iter, found.converged) == (steps, False)
    expected, restarts = iterate(one.X, one.loss.y, 0.3, kind, SHAPES[kind], scheme, steps)
    np.testing.assert_allclose(found.coef, expected, atol=1e-10)
    assert (restarts > 1) == (scheme == "accelerated" and steps == 40)


@KINDS
@pytest.mark.parametrize("loss", [Squares, Logistic])
@pytest.mark.parametrize("scheme", ["accelerated", "by speed", "original", "proximal"])
def test_solutions_are_stationary(kind, loss, scheme):
    one = problem(kind, loss)
    lam = 0.25 * np.abs(one.gradient(np.zeros(80))).max()
    settings = Settings("accelerated", "speed") if scheme == "by speed" else Settings(scheme)
    found = minimise(one, lam, np.zeros(30), Settings(settings.solver, settings.restart, 1e-9, 100_000))
    assert found.converged
    b = found.coef
    gradient = one.gradient(one.X @ b) + one.penalty.slope(b, lam)
    some = b != 0
    assert 2 < some.sum() < 30
    np.testing.assert_allclose(gradient[some], -lam * np.sign(b[some]), atol=1e-6)
    assert np.abs(gradient[~some]).max() <= lam + 1e-6
    assert found.objectives[-1] == pytest.approx(one.loss.value(one.X @ b) + one.penalty.value(b, lam), rel=1e-12)


def test_gradients_of_losses_are_finite_differences():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=9), rng.integers(0, 2, 9).astype(float)
    for loss in (Squares(y), Logistic(y)):
        numeric = [(loss.value(z + 1e-6 * e) - loss.value(z - 1e-6 * e)) / 2e-6 for e in np.eye(9)]
        np.testing.assert_allclose(loss.slope(z), numeric, atol=1e-9)


def test_the_objective_never_rises_and_restarts_are_what_keeps_it_down():
    one = problem("scad", Squares, n=60, p=100)
    settings = {way: Settings(*way, tol=1e-9) for way in (("accelerated", "objective"), ("original", "objective"))}
    found = {way[0]: minimise(one, 0.1, np.zeros(100), setting) for way, setting in settings.items()}
    objectives = found["accelerated"].objectives
    assert np.diff(objectives).max() <= 0
    assert found["accelerated"].n_iter > len(objectives) - 1  # some iterates were dropped
    assert np.diff(found["original"].objectives).max() > 0
    assert found["accelerated"].n_iter < 0.6 * found["original"].n_iter


@KINDS
@pytest.mark.parametrize("loss", [Squares, Logistic])
def test_at_the_highest_level_everything_is_zero_and_just_below_it_is_not(kind, loss):
    one = problem(kind, loss)
    highest = np.abs(one.gradient(np.zeros(80))).max()
    assert not minimise(one, highest, np.zeros(30), Settings()).coef.any()
    assert minimise(one, 0.97 * highest, np.zeros(30), Settings()).coef.any()


def test_the_largest_eigenvalue_is_that_of_the_library():
    rng = np.random.default_rng(0)
    for shape in ((30, 50), (700, 600)):
        X = rng.normal(size=shape)
        exact = np.linalg.eigvalsh(X.T @ X / len(X))[-1]
        assert 0.995 * exact < top_eigenvalue(X) < 1.0001 * exact  # steps are 0.99 of what is allowed


@KINDS
@pytest.mark.parametrize("loss", [Squares, Logistic])
def test_the_path_with_the_strong_rule_is_the_path_without(kind, loss, monkeypatch):
    one = problem(kind, loss, n=100, p=60)
    highest = np.abs(one.gradient(np.zeros(100))).max()
    lams = highest * np.geomspace(1, 0.2, 12)
    settings = Settings(tol=1e-9)
    kept, columns = [], Problem.columns
    monkeypatch.setattr(Problem, "columns", lambda self, some: (kept.append(some.sum()), columns(self, some))[1])
    coefs, _, converged = path(one, lams, np.zeros(60, bool), np.zeros(60), settings)
    assert kept[0] <= 2 and np.mean(kept) < 40  # of 60 columns
    start = np.zeros(60)
    for lam, coef in zip(lams, coefs):
        start = minimise(one, lam, start, settings).coef
        np.testing.assert_allclose(coef, start, atol=1e-6)
    assert converged and 2 < (coefs[-1] != 0).sum() < 60


def test_what_the_strong_rule_leaves_out_wrongly_is_taken_back():
    # the first coefficient grows three times as fast as the level falls, and raises the gradient of the second
    C = np.array([[1, -0.9], [-0.9, 1]])
    X = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 3)))[0][:, :2] @ np.linalg.cholesky(C).T * np.sqrt(50)
    y = X @ np.linalg.solve(C, [1.0, 0.9])
    one = Problem.of(X, Squares(y), Penalty.of("mcp", 1.5))
    np.testing.assert_allclose(-one.gradient(np.zeros(50)), [1, 0.9])
    coefs, *_ = path(one, np.array([1.0, 0.96]), np.zeros(2, bool), np.zeros(2), Settings(tol=1e-10))
    assert 0.9 < 2 * 0.96 - 1  # the rule leaves the second out
    b = coefs[1]
    gradient = one.gradient(X @ b)
    assert (b != 0).all()
    np.testing.assert_allclose(gradient + one.penalty.slope(b, 0.96), -0.96 * np.sign(b), atol=1e-8)


@pytest.mark.parametrize("lam", [0.1, 0.5])
def test_an_infinite_shape_is_the_lasso(lam):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 20)) * 3 + 5
    y = X[:, 0] - X[:, 3] + rng.normal(size=80) + 9
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    theirs = Lasso(alpha=lam, tol=1e-10).fit(Z, y)
    for kind in ("scad", "mcp"):
        ours = NonconvexRegressor(kind, lam=lam, shape=np.inf, tol=1e-9).fit(X, y)
        np.testing.assert_allclose(ours.coef_ * X.std(axis=0), theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(ours.predict(X), theirs.predict(Z), atol=1e-5)


def test_strong_coefficients_are_those_of_least_squares_on_the_chosen_columns():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 200))
    y = 5 * X[:, 10] - 4 * X[:, 60] + 3 + 0.5 * rng.normal(size=150)
    for kind in ("scad", "mcp"):
        model = NonconvexRegressor(kind, lam=0.5, tol=1e-9).fit(X, y)
        assert np.flatnonzero(model.coef_).tolist() == [10, 60]
        oracle = LinearRegression().fit(X[:, [10, 60]], y)
        np.testing.assert_allclose(model.coef_[[10, 60]], oracle.coef_, atol=1e-6)
        assert model.intercept_ == pytest.approx(oracle.intercept_, abs=1e-6)
        assert len(model.lambdas_) > 20 and model.lambdas_[-1] == model.lam_ == pytest.approx(0.5)
        assert np.abs(model.coefs_[0]).max() < 1e-12


def test_units_of_columns_and_outcome_do_not_matter():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 12))
    y = X[:, 0] - 2 * X[:, 3] + rng.normal(size=60)
    plain = NonconvexRegressor().fit(X, y)
    units = 10.0 ** np.arange(-6, 6)
    other = NonconvexRegressor().fit(X * units + 3 * units, 1000 * y + 7)
    np.testing.assert_allclose(other.coef_ * units, 1000 * plain.coef_, atol=1e-6)
    assert other.lam_ == pytest.approx(1000 * plain.lam_)


def test_the_intercept_is_not_penalised():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 10)) + 2
    y = rng.random(400) < expit(2 * X[:, 0] - 1)
    model = NonconvexClassifier(lam=0.02, tol=1e-9).fit(X, y)
    assert model.predict_proba(X)[:, 1].mean() == pytest.approx(y.mean(), abs=1e-6)
    nothing = NonconvexClassifier(lam=9.0).fit(X, y)
    assert not nothing.coef_.any()
    assert nothing.predict_proba(X[:1])[0, 1] == pytest.approx(y.mean(), abs=1e-5)
    np.testing.assert_array_equal(model.predict(X), model.decision_function(X) > 0)
    constant = NonconvexRegressor().fit(X, np.full(400, 3.0))
    np.testing.assert_array_equal(constant.predict(X[:3]), 3)


def test_a_large_logistic_coefficient_is_that_without_a_penalty():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 8))
    y = (2 * X[:, 0] + rng.logistic(size=2000) > 0).astype(float)
    model = NonconvexClassifier("mcp", lam=0.05, tol=1e-9).fit(X, y)
    assert np.flatnonzero(model.coef_).tolist() == [0]
    z = model.decision_function(X)
    assert (expit(z) - y) @ X[:, 0] / 2000 == pytest.approx(0, abs=1e-7)  # stationary without the penalty


def test_cross_validation_takes_the_level_with_the_least_held_out_loss():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 15))
    y = X[:, 0] + rng.normal(size=60)
    model = NonconvexRegressor(n_lambdas=10, cv=3).fit(X, y)
    errors = np.zeros(10)
    for train, test in KFold(3).split(X):
        for i, lam in enumerate(model.lambdas_):
            highest = (
                np.abs((y[train] - y[train].mean()) @ ((X[train] - X[train].mean(0)) / X[train].std(0))).max() / 40
            )
            if lam < highest:  # a path of one level down to lam, as the folds' paths are solved from level to level
                one = NonconvexRegressor(lam=lam, tol=1e-8, n_lambdas=50).fit(X[train], y[train])
                errors[i] += ((one.predict(X[test]) - y[test]) ** 2).mean() / 3
            else:
                errors[i] += ((y[train].mean() - y[test]) ** 2).mean() / 3
    np.testing.assert_allclose(model.cv_errors_, errors, rtol=1e-2)
    assert model.lam_ == model.lambdas_[model.cv_errors_.argmin()]
    np.testing.assert_array_equal(model.coef_, model.coefs_[model.cv_errors_.argmin()])


def test_classes_that_a_plane_parts_end_the_search():
    X = np.random.default_rng(0).normal(size=(40, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = NonconvexClassifier(min_ratio=1e-3).fit(X, X[:, 0] > 0)
    assert model.n_iter_ < 20_000
    assert (model.predict(X) == (X[:, 0] > 0)).mean() > 0.95
    with pytest.warns(ConvergenceWarning, match="2 iterations"):
        NonconvexRegressor(lam=0.1, max_iter=2).fit(X, X[:, 0])


def test_wrong_settings_are_refused_by_name():
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20.0)
    for words, match in (({"penalty": "l0"}, "'l0'"), ({"solver": "newton"}, "'newton'"), ({"restart": "x"}, "'x'")):
        with pytest.raises(UnknownName, match=match):
            NonconvexRegressor(**words).fit(X, y)
    for words, match in (({"shape": 1.9}, "above 2"), ({"lam": -1.0}, "positive"), ({"min_ratio": 1.0}, "min_ratio")):
        with pytest.raises(BadInput, match=match):
            NonconvexRegressor(**words).fit(X, y)
    with pytest.raises(BadInput, match="3 classes"):
        NonconvexClassifier().fit(X, np.arange(20) % 3)
