from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import f, multivariate_normal, multivariate_t

from farout.errors import BadInput
from farout.table import _tsallis_groups as tsallis
from farout.table._nonconvex_solver import Problem, Settings, Squares, minimise
from farout.table._penalties import Penalty
from farout.table.tsallis_mixed import TsallisMixed

SCAD = Penalty.of("scad", None)


def table(m=30, size=5, p=3, seed=0, slope=0.7):
    """Groups of different sizes with a random intercept and a random slope of the first column."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(m), rng.integers(1, 2 * size, m))
    X = rng.normal(size=(len(groups), p))
    y = X @ np.arange(1.0, p + 1) + 2 + rng.normal(size=m)[groups] + 0.8 * rng.normal(size=len(groups))
    return X, y + slope * rng.normal(size=m)[groups] * X[:, 0], groups


def grouped(X, y, groups, random=2):
    """The same as the fit's own input."""
    fixed = np.column_stack((np.ones(len(X)), X))
    return tsallis.Groups.of(fixed, fixed[:, :random], y, groups)


def model(nu, p=4):
    D = np.array([[1.1, 0.3], [0.3, 0.5]])
    return tsallis.Model(np.linspace(2, -1, p), D, 0.7, nu)


def dense(X, y, groups, one):
    """Residuals and covariance of each group, written out."""
    fixed = np.column_stack((np.ones(len(X)), X))
    for g in np.unique(groups):
        rows = groups == g
        Z = fixed[rows][:, : len(one.D)]
        yield y[rows] - fixed[rows] @ one.coef, Z @ one.D @ Z.T + one.noise * np.eye(rows.sum()), Z


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("nu", [2.5, 7.0, 50.0])
def test_q_gaussian_and_t_are_the_same_density(d, nu):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d)) + 2 * np.eye(d)
    S, y = root @ root.T, rng.normal(size=(20, d)) * 3
    distance = np.einsum("ni,ij,nj->n", y, np.linalg.inv(S), y)
    q = tsallis.tsallis_q(nu, d)
    assert q == pytest.approx((nu + d + 2) / (nu + d)) and 1 < q < 1 + 2 / d
    ours = tsallis.q_gaussian_log_density(distance, np.linalg.slogdet(S)[1], np.array(d), q)
    np.testing.assert_allclose(ours, multivariate_t(shape=S, df=nu).logpdf(y), rtol=0, atol=1e-10)
    gaussian = tsallis.q_gaussian_log_density(
        distance, np.linalg.slogdet(S)[1], np.array(d), tsallis.tsallis_q(np.inf, d)
    )
    np.testing.assert_allclose(gaussian, multivariate_normal(cov=S).logpdf(y), rtol=0, atol=1e-10)


def test_among_densities_of_its_moments_the_q_gaussian_has_the_largest_tsallis_entropy():
    # the entropy of order q in terms of the escort moments that its weights (density to the power q) define
    t = np.linspace(-300, 300, 60_001)
    q = float(tsallis.tsallis_q(3.0, 1))
    step = t[1] - t[0]

    def normed(log_density):
        density = np.exp(log_density)
        return density / (density.sum() * step)

    def entropy(density):
        return (1 - (density**q).sum() * step) / (q - 1)

    def escort_variance(density):
        return (t**2 * density**q).sum() / (density**q).sum()

    best = normed(tsallis.q_gaussian_log_density(t**2, 0.0, 1, np.array(q)))
    spread = escort_variance(best)
    for nu in (4.0, 8.0, np.inf):
        shape = tsallis.q_gaussian_log_density
        low, high = 0.05, 20.0
        for _ in range(40):  # the scale at which the rival has the same escort variance
            scale = np.sqrt(low * high)
            rival = normed(shape((t / scale) ** 2, 0.0, 1, tsallis.tsallis_q(nu, 1)))
            low, high = (scale, high) if escort_variance(rival) < spread else (low, scale)
        assert entropy(rival) < entropy(best) - 1e-4


@pytest.mark.parametrize("nu", [2.5, 6.0, np.inf])
def test_groups_are_measured_as_by_their_whole_covariance(nu):
    X, y, groups = table()
    data, one = grouped(X, y, groups), model(nu)
    found = tsallis.read(data, one)
    total = 0.0
    for i, (r, V, Z) in enumerate(dense(X, y, groups, one)):
        distance = r @ np.linalg.solve(V, r)
        assert found.distances[i] == pytest.approx(distance, rel=1e-9)
        np.testing.assert_allclose(found.effects[i], one.D @ Z.T @ np.linalg.solve(V, r), atol=1e-10)
        assert found.weights[i] == pytest.approx(1 if np.isinf(nu) else (nu + len(r)) / (nu + distance))
        law = multivariate_normal(cov=V) if np.isinf(nu) else multivariate_t(shape=V, df=nu)
        total += law.logpdf(r)
    assert found.log_likelihood == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("nu", [2.5, 6.0, np.inf])
def test_the_likelihood_never_falls_and_ends_where_it_is_flat(nu):
    X, y, groups = table(m=60)
    data, lam = grouped(X, y, groups), np.zeros(4)
    one = replace(tsallis.start(data), nu=nu)
    values = [tsallis.read(data, one).log_likelihood]
    for _ in range(40):
        one, _ = tsallis.fit(data, one, lam, SCAD, 0.0, 1)
        values.append(tsallis.read(data, one).log_likelihood)
    assert np.diff(values).min() > -1e-9
    one, iterations = tsallis.fit(data, one, lam, SCAD, 1e-12, 2000)
    assert iterations < 2000

    def likelihood(v):
        D = np.array([[v[4], v[5]], [v[5], v[6]]])
        return tsallis.read(data, tsallis.Model(v[:4], D, v[7], nu)).log_likelihood

    place = np.concatenate((one.coef, [one.D[0, 0], one.D[0, 1], one.D[1, 1], one.noise]))
    slope = approx_fprime(place, likelihood, 1e-6)
    np.testing.assert_allclose(slope, 0, atol=5e-3)  # of a likelihood that falls by 20 where one of them moves by 0.5
    assert likelihood(place + 0.5 * np.eye(8)[0]) < likelihood(place) - 5


def test_an_infinite_nu_is_the_gaussian_mixed_model_of_statsmodels():
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    X, y, groups = table(m=50)
    for slopes, random in (((), 1), ((0,), 2)):
        fixed = np.column_stack((np.ones(len(X)), X))
        theirs = mixed.MixedLM(y, fixed, groups, fixed[:, :random]).fit(reml=False, method="lbfgs")
        ours = TsallisMixed(nu=np.inf, slopes=slopes, tol=1e-11).fit(X, y, groups)
        np.testing.assert_array_equal(ours.training_.weights, 1)
        np.testing.assert_allclose(np.append(ours.intercept_, ours.coef_), theirs.fe_params, atol=1e-4)
        np.testing.assert_allclose(ours.random_covariance_, theirs.cov_re, atol=2e-3)
        assert ours.noise_ == pytest.approx(theirs.scale, abs=1e-3)
        assert ours.log_likelihood_ == pytest.approx(theirs.llf, abs=1e-5)
        effects = np.array([theirs.random_effects[g] for g in ours.groups_])
        np.testing.assert_allclose(ours.effects_, effects, atol=5e-3)


def test_a_growing_nu_tends_to_the_gaussian_model():
    X, y, groups = table()
    gauss = TsallisMixed(nu=np.inf, tol=1e-10).fit(X, y, groups)
    far = [np.abs(TsallisMixed(nu=nu, tol=1e-10).fit(X, y, groups).coef_ - gauss.coef_).max() for nu in (5, 500, 1e6)]
    assert far[0] > 10 * far[1] > 100 * far[2] and far[2] < 1e-5
    np.testing.assert_allclose(TsallisMixed(nu=1e9).fit(X, y, groups).training_.weights, 1, atol=1e-6)


def test_groups_drawn_from_the_model_give_its_parameters_back():
    rng = np.random.default_rng(3)
    m, size, nu = 3000, 4, 5.0
    groups = np.repeat(np.arange(m), size)
    scale = 1 / np.sqrt(rng.chisquare(nu, m) / nu)[groups]
    X = rng.normal(size=(m * size, 2))
    y = 1 + X @ [2.0, -1.0] + scale * (1.5 * rng.normal(size=m)[groups] + 0.7 * rng.normal(size=m * size))
    one = TsallisMixed().fit(X, y, groups)
    assert one.nu_ in (4.0, 5.0, 7.0) and one.nu_ == max(one.log_likelihoods_, key=one.log_likelihoods_.get)
    one = TsallisMixed(nu=5.0).fit(X, y, groups)
    np.testing.assert_allclose([one.intercept_, *one.coef_], [1, 2, -1], atol=0.1)
    assert one.random_covariance_[0, 0] == pytest.approx(1.5**2, rel=0.1)
    assert one.noise_ == pytest.approx(0.7**2, rel=0.05)
    tails = np.sort(one.training_.p_values)
    assert np.abs(tails - np.arange(1, m + 1) / m).max() < 1.6 / np.sqrt(m)  # uniform, by Kolmogorov and Smirnov
    scores = one.training_
    np.testing.assert_allclose(scores.p_values, f.sf(scores.distances / size, size, 5.0), rtol=1e-12)
    np.testing.assert_allclose(scores.weights, (5 + size) / (5 + scores.distances), rtol=1e-12)


def test_shifted_groups_are_found_and_do_not_move_the_fit():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 3)
    X = rng.normal(size=(240, 2))
    y = X @ [1.0, -2.0] + rng.normal(size=80)[groups] + rng.normal(size=240)
    moved = y + 100 * (groups < 6)
    clean, one, gauss = (
        TsallisMixed(nu=nu).fit(X, values, groups) for nu, values in ((3, y), (3, moved), (np.inf, moved))
    )
    assert abs(gauss.intercept_ - clean.intercept_) > 5
    assert abs(one.intercept_ - clean.intercept_) < 0.5
    scores = one.training_
    assert set(scores.groups[np.argsort(-scores.distances)[:6]]) == set(range(6))
    assert scores.weights[:6].max() < 0.05 < 0.5 < np.median(scores.weights)
    assert scores.p_values[:6].max() < 0.001
    new = one.score_groups(X[:4], X[:4] @ [1.0, -2.0] + [0, 0, 60, 60], ["b", "b", "a", "a"])
    assert new.groups.tolist() == ["a", "b"] and new.sizes.tolist() == [2, 2]
    assert new.p_values[0] < 0.01 < new.p_values[1] and new.distances[0] > 100


def test_rows_are_predicted_with_and_without_random_effects():
    X, y, groups = table()
    named = np.array([f"g{g:02}" for g in groups])
    one = TsallisMixed(nu=5.0, slopes=[0]).fit(X, y, named)
    fixed = X @ one.coef_ + one.intercept_
    np.testing.assert_allclose(one.predict(X), fixed, atol=1e-12)
    by_hand = fixed + one.effects_[groups, 0] + one.effects_[groups, 1] * X[:, 0]
    np.testing.assert_allclose(one.predict(X, named), by_hand, atol=1e-12)
    assert np.mean((y - by_hand) ** 2) < 0.7 * np.mean((y - fixed) ** 2)
    np.testing.assert_allclose(one.predict(X[:2], ["zz", named[1]]), [fixed[0], by_hand[1]], atol=1e-12)


def test_the_order_of_rows_and_the_units_do_not_matter():
    X, y, groups = table()
    one = TsallisMixed(nu=4.0, slopes=(0,), tol=1e-10).fit(X, y, groups)
    order = np.random.default_rng(1).permutation(len(y))
    other = TsallisMixed(nu=4.0, slopes=(0,), tol=1e-10).fit(X[order], y[order], groups[order])
    np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-6)
    np.testing.assert_allclose(other.training_.distances, one.training_.distances, rtol=1e-4)
    units = np.array([100.0, 0.01, 1.0])
    other = TsallisMixed(nu=4.0, slopes=(0,), tol=1e-10).fit(X * units, 50 * y + 7, groups)
    np.testing.assert_allclose(other.coef_ * units, 50 * one.coef_, rtol=1e-4)
    np.testing.assert_allclose(other.training_.distances, one.training_.distances, rtol=1e-3)


def test_without_groups_it_is_regression_with_t_errors():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    y = X @ [1.0, 2.0] + 3 + rng.standard_t(3, 200)
    one = TsallisMixed(nu=3.0, tol=1e-10).fit(X, y)
    assert one.random_covariance_.shape == (0, 0) and one.effects_.shape == (200, 0)

    def cost(v):
        r = y - X @ v[:2] - v[2]
        return np.sum(2 * np.log1p(r**2 / (3 * v[3]))) + 100 * np.log(v[3])

    place = np.array([*one.coef_, one.intercept_, one.noise_])
    np.testing.assert_allclose(approx_fprime(place, cost, 1e-7), 0, atol=2e-2)
    np.testing.assert_allclose(one.training_.distances, (y - one.predict(X)) ** 2 / one.noise_, rtol=1e-9)


@pytest.mark.parametrize("kind", ["scad", "mcp"])
def test_conjugate_gradients_find_what_proximal_gradients_find(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 25)) @ (np.eye(25) + 0.2 * rng.normal(size=(25, 25)))
    X /= X.std(axis=0)
    y = X[:, 0] * 2 - X[:, 1] + rng.normal(size=90)
    one = Problem.of(X, Squares(y), Penalty.of(kind, None))
    lam = np.full(25, 0.25)
    lam[3] = 0

    def smooth(b):
        return one.loss.value(X @ b) + one.penalty.value(b, lam) - float(lam @ np.abs(b))

    def gradient(b):
        return one.gradient(X @ b) + one.penalty.slope(b, lam)

    heights = []

    def watched(b):
        heights.append(smooth(b) + float(lam @ np.abs(b)))
        return smooth(b)

    ours = tsallis.conjugate_gradients(smooth, gradient, lam, np.zeros(25), 1e-14, 500)
    theirs = minimise(one, lam, np.zeros(25), Settings(tol=1e-10, max_iter=100_000))
    np.testing.assert_allclose(ours, theirs.coef, atol=1e-5)
    assert 2 < np.count_nonzero(ours) < 25 and np.array_equal(ours != 0, theirs.coef != 0)
    few = tsallis.conjugate_gradients(watched, gradient, lam, np.zeros(25), 0.0, 3)
    assert smooth(few) + float(lam @ np.abs(few)) == pytest.approx(min(heights))


def test_directions_are_conjugate():
    scales = np.geomspace(1, 1000, 15)  # of a valley in which steepest descent goes from side to side
    b = tsallis.conjugate_gradients(
        lambda b: float(scales @ b**2) / 2, lambda b: scales * b, np.zeros(15), np.ones(15), -np.inf, 40
    )
    assert scales @ b**2 < 0.1  # steepest descent in the place of the direction: 1.3


def test_variances_that_tend_to_zero_are_reached_soon():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 8)
    X = rng.normal(size=(480, 2))
    e = rng.normal(size=(60, 8))
    y = X @ [1.0, 2.0] + (e - 0.9 * e.mean(axis=1, keepdims=True)).ravel()  # group means vary less than by chance
    one = TsallisMixed(nu=np.inf).fit(X, y, groups)
    assert one.random_covariance_[0, 0] < 1e-3 * one.noise_
    assert one.n_iter_ < 150


def test_a_penalty_keeps_the_columns_that_matter_and_lets_them_be():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    X = rng.normal(size=(240, 40))
    y = 3 * X[:, 5] - 2 * X[:, 20] + 4 + rng.normal(size=60)[groups] + rng.standard_t(3, 240)
    for kind in ("scad", "mcp"):
        one = TsallisMixed(nu=4.0, lam=0.2, penalty=kind).fit(X, y, groups)
        assert np.flatnonzero(one.coef_).tolist() == [5, 20]
        oracle = TsallisMixed(nu=4.0).fit(X[:, [5, 20]], y, groups)
        np.testing.assert_allclose(one.coef_[[5, 20]], oracle.coef_, atol=2e-3)  # too large to be shrunk
        assert one.intercept_ == pytest.approx(oracle.intercept_, abs=2e-3)
        assert one.log_likelihood_ == pytest.approx(oracle.log_likelihood_, abs=1e-3)
    assert not TsallisMixed(nu=4.0, lam=9.0).fit(X, y, groups).coef_.any()


def test_the_penalised_fit_is_stationary_and_its_objective_never_falls():
    X, y, groups = table(p=6)
    data, lam = grouped(X, y, groups), np.append(0, np.full(6, 0.3))
    one = replace(tsallis.start(data), nu=5.0)
    values = []
    for _ in range(15):
        one, _ = tsallis.fit(data, one, lam, SCAD, 0.0, 1)
        values.append(tsallis.read(data, one).log_likelihood - len(y) * SCAD.value(one.coef, lam))
    assert np.diff(values).min() > -1e-8
    one, _ = tsallis.fit(data, one, lam, SCAD, 1e-10, 500)

    def cost(b):
        return -tsallis.read(data, replace(one, coef=b)).log_likelihood / len(y)

    slope = approx_fprime(one.coef, cost, 1e-7) + SCAD.slope(one.coef, lam)
    some = one.coef != 0
    np.testing.assert_allclose(slope[some], -(lam * np.sign(one.coef))[some], atol=1e-4)
    assert (np.abs(slope[~some]) <= lam[~some] + 1e-4).all()


def test_wrong_settings_are_refused_by_name():
    X, y, groups = table()
    for words, match in (({"nu": 2.0}, "above 2"), ({"lam": -1}, "at least 0"), ({"slopes": [3]}, "0 to 2")):
        with pytest.raises(BadInput, match=match):
            TsallisMixed(**words).fit(X, y, groups)
    with pytest.raises(BadInput, match="not of 3"):
        TsallisMixed().fit(X, y, groups[:3])
