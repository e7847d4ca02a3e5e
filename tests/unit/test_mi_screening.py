from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from farout.errors import BadInput, UnknownName
from farout.kit import kde
from farout.kit.kde import Axis, histogram_codes, mi_of_axes, mi_of_classes, robust_scaled, scott, silverman
from farout.kit.mi import mi
from farout.table.mi_screening import METHODS, MIScreening
from naive.mi_screening import grid, kernel, mutual_information, mutual_information_of_classes


def pairs(rho, n=5000, seed=0):
    x, e = np.random.default_rng(seed).normal(size=(2, n))
    return x, rho * x + np.sqrt(1 - rho**2) * e


def kernel_mi(x, y, size=300):
    return mi_of_axes(Axis.of(x, silverman(x), size), Axis.of(y, silverman(y), size))


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.5, 0.6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaussian_pairs_have_the_information_of_the_closed_form(rho, seed):
    x, y = pairs(rho, seed=seed)
    exact = -np.log(1 - rho**2) / 2
    assert kernel_mi(x, y) == pytest.approx(exact, abs=0.03)
    score = MIScreening().fit(x[:, None], y)
    assert score.scores_[0] == pytest.approx(exact, abs=0.03)
    assert score.linfoot_[0] == pytest.approx(np.sqrt(1 - np.exp(-2 * score.scores_[0])))
    if rho:
        assert score.linfoot_[0] == pytest.approx(rho, abs=0.04)


def test_densities_by_transform_are_kernel_sums():
    values = np.random.default_rng(0).normal(size=300)
    axis = Axis.of(values, 0.4, 500)
    points = grid(values, 0.4, 500)
    slow = kernel(points, values, 0.4).sum(axis=1)
    step = points[1] - points[0]
    assert slow.sum() * step == pytest.approx(300, rel=1e-4)
    np.testing.assert_allclose(axis.masses(), slow / slow.sum(), atol=3e-6)  # masses are about 2e-3
    assert axis.masses().sum() == pytest.approx(1, abs=1e-12)


def test_the_kernel_has_unit_variance_so_that_a_bandwidth_is_a_gaussians():
    u = np.linspace(-3, 3, 60_001)
    k = kernel(u, np.zeros(1), 1.0)[:, 0]
    assert (k.sum() * 1e-4, (u**2 * k).sum() * 1e-4) == (pytest.approx(1, abs=1e-6), pytest.approx(1, abs=1e-6))
    masses, points = Axis.of(np.zeros(1), 1.0, 501).masses(), grid(np.zeros(1), 1.0, 501)
    assert (points**2 * masses).sum() == pytest.approx(1, abs=1e-3)


def test_mutual_information_by_transform_is_that_of_the_sums():
    x, y = pairs(0.6, 250)
    assert kernel_mi(x, y, 80) == pytest.approx(mutual_information(x, y, (silverman(x), silverman(y)), 80), abs=2e-3)
    classes = (x > 0.3).astype(int) + (x > 1)
    fast = mi_of_classes(y, classes, silverman, 500)
    assert fast == pytest.approx(mutual_information_of_classes(y, classes, silverman, 500), abs=1e-4)


def test_rows_that_are_a_product_have_no_information():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    x, y = (v.ravel() for v in np.meshgrid(a, b))  # every pair once: the product kernel keeps it a product
    assert kernel_mi(x, y) == pytest.approx(0, abs=1e-10)
    assert mi_of_classes(np.tile(a, 3), np.repeat([0, 1, 2], 30), silverman, 500) == pytest.approx(0, abs=1e-12)


def test_classes_that_are_apart_have_the_entropy_of_the_classes():
    c = np.repeat([0, 1, 2], [500, 300, 200])
    x = np.random.default_rng(0).normal(size=1000) + 30 * c
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    for score in (
        MIScreening().fit(x[:, None], c).scores_[0],
        MIScreening().fit(c[:, None], x).scores_[0],
        MIScreening().fit(x[:, None], np.array(["a", "b", "c"])[c]).scores_[0],
    ):
        assert score == pytest.approx(entropy, abs=1e-6)


def test_two_shifted_classes_have_the_information_of_the_integral():
    c = np.arange(20_000) % 2
    x = np.random.default_rng(0).normal(size=20_000) + 1.5 * c
    t = np.linspace(-8, 10, 20_001)
    p, q = norm.pdf(t), norm.pdf(t - 1.5)
    exact = 0.5 * np.trapezoid(p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)), t)
    assert MIScreening().fit(x[:, None], c).scores_[0] == pytest.approx(exact, abs=0.01)


def test_bandwidths_are_the_rules():
    x = np.random.default_rng(0).normal(size=1000)
    low, high = np.quantile(x, (0.25, 0.75))
    spread = min(x.std(ddof=1), (high - low) / (2 * norm.ppf(0.75)))
    assert silverman(x) == pytest.approx((4 / 3000) ** 0.2 * spread)
    assert scott(x) == pytest.approx(1000**-0.2 * spread)
    heavy = np.append(x, 1e6)  # one wild value moves the deviation, and not the range of the middle half
    assert silverman(heavy) == pytest.approx(silverman(x), rel=0.01)


def test_the_improved_sheather_jones_rule_finds_the_best_bandwidth_also_of_two_modes():
    one, two, rough = [], [], []
    for seed in range(15):
        x = np.random.default_rng(seed).normal(size=2000)
        apart = x + np.repeat([0, 20], 1000)
        one.append(kde.isj(x))
        two.append(kde.isj(apart))
        rough.append(silverman(apart))
    best = (4 / 3) ** 0.2 * 2000**-0.2  # minimises the asymptotic error; |f''|^2 is halved by two equal modes
    assert np.mean(one) == pytest.approx(best, rel=0.1)
    assert np.mean(two) == pytest.approx(best * 2**0.2, rel=0.1)
    assert np.mean(rough) > 5 * best
    assert kde.isj(7 * x + 3) == pytest.approx(7 * kde.isj(x), rel=1e-6)
    assert kde.isj(np.ones(9)) == silverman(np.ones(9)) > 0
    assert kde.isj(np.array([0.0, 1.0])) > 0


def test_kdepy_agrees_on_bandwidths_and_density():
    kdepy = pytest.importorskip("KDEpy")
    from KDEpy.bw_selection import scotts_rule, silvermans_rule

    x = np.random.default_rng(3).gamma(2, size=700)
    assert silverman(x) == pytest.approx(silvermans_rule(x[:, None]), rel=1e-6)
    assert scott(x) == pytest.approx(scotts_rule(x[:, None]), rel=1e-6)
    points = grid(x, silverman(x), 500)
    theirs = kdepy.NaiveKDE(kernel="epa", bw=silverman(x)).fit(x).evaluate(points)
    ours = Axis.of(x, silverman(x), 500).masses()
    np.testing.assert_allclose(ours, theirs / theirs.sum(), atol=2e-5)


def test_the_number_of_bins_is_the_best_by_birge_and_rozenholc():
    x = np.random.default_rng(1).normal(size=400)
    worth = {}
    for bins in range(2, 100):
        counts = np.histogram(x, bins)[0]
        inside = sum(c * np.log(c) for c in counts if c)
        worth[bins] = inside + 400 * np.log(bins) - (bins - 1 + np.log(bins) ** 2.5)
    best = max(worth, key=worth.get)
    edges = np.linspace(x.min(), x.max(), best + 1)
    np.testing.assert_array_equal(histogram_codes(x), np.clip(np.searchsorted(edges, x, "right") - 1, 0, best - 1))
    y = x**2 + np.random.default_rng(2).normal(size=400)
    found = MIScreening(method="histogram").fit(x[:, None], y).scores_[0]
    assert found == pytest.approx(mi(histogram_codes(x), histogram_codes(y)))


def test_neighbours_and_correlation_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = X[:, 0] + rng.normal(size=300)
    found = MIScreening(method="knn", random_state=0).fit(X, y).scores_
    np.testing.assert_allclose(found, mutual_info_regression(X, y, random_state=0), atol=0.02)
    classes = (y > 0).astype(int)
    found = MIScreening(method="knn", random_state=0).fit(X, classes).scores_
    np.testing.assert_allclose(found, mutual_info_classif(X, classes, random_state=0), atol=0.02)
    pearson = MIScreening(method="pearson").fit(X, y)
    np.testing.assert_allclose(pearson.scores_, [abs(np.corrcoef(x, y)[0, 1]) for x in X.T], rtol=1e-12)
    np.testing.assert_array_equal(pearson.linfoot_, pearson.scores_)
    named = MIScreening(method="pearson").fit(X, np.array(["no", "yes"])[classes])
    np.testing.assert_allclose(named.scores_, MIScreening(method="pearson").fit(X, classes).scores_, rtol=1e-12)


def test_information_finds_what_correlation_misses():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(300, 300))
    X = np.vstack((half, -half))  # so that the correlation with a square is that of the noise, not of a chance
    y = X[:, 70] ** 2 + np.sin(3 * X[:, 200]) + 0.5 * rng.normal(size=600)
    for method in ("kde", "knn"):
        screen = MIScreening(k=2, method=method, random_state=0).fit(X, y)
        assert set(screen.ranking_[:2]) == {70, 200}
        np.testing.assert_array_equal(screen.transform(X), X[:, [70, 200]])
        np.testing.assert_array_equal(screen.get_support(indices=True), [70, 200])
    assert MIScreening(method="pearson").fit(X, y).scores_[70] < 0.1
    assert MIScreening().fit(X, y).linfoot_[70] > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_units_or_threads(method):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = X[:, 0] + 0.5 * rng.normal(size=200)
    plain = MIScreening(method=method, random_state=0, n_permutations=2).fit(X, y)
    moved = MIScreening(method=method, random_state=0, n_permutations=2, n_jobs=2).fit(1e6 * X - 3, 7 - 1e-3 * y)
    np.testing.assert_allclose(moved.scores_, plain.scores_, atol=1e-6 if method != "knn" else 0.02)
    again = MIScreening(method=method, random_state=0, n_permutations=2, n_jobs=2).fit(X, y)
    np.testing.assert_array_equal(again.scores_, plain.scores_)
    np.testing.assert_array_equal(again.null_, plain.null_)


def test_the_null_is_uniform_for_noise_and_small_for_signal():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 50))
    y = X[:, 0] ** 2 + 0.3 * rng.normal(size=150)
    screen = MIScreening(n_permutations=19, random_state=0).fit(X, y)
    assert screen.null_.shape == (19, 50)
    assert screen.p_values_[0] == 1 / 20
    assert np.mean(screen.p_values_[1:]) == pytest.approx(0.5, abs=0.13)  # three standard errors
    assert screen.null_.mean() > 0.02  # few rows: the estimate is biased upward, which is why there is a null


def test_missing_values_are_left_out_of_their_column_only():
    x, y = pairs(0.6, 400)
    X = np.column_stack((x, x, x, np.full(400, 1.0)))
    X[::3, 1] = np.nan
    X[1:, 2] = np.nan
    there = ~np.isnan(X[:, 1])
    found = MIScreening().fit(X, y).scores_
    assert found[0] == pytest.approx(MIScreening().fit(x[:, None], y).scores_[0], abs=1e-12)
    assert found[1] == pytest.approx(MIScreening().fit(x[there, None], y[there]).scores_[0], abs=1e-12)
    assert found[2] == found[3] == 0


def test_a_spread_of_zero_in_the_middle_half_is_scaled_by_the_deviation():
    x = np.append(np.zeros(100), np.arange(1.0, 21))
    np.testing.assert_allclose(robust_scaled(x), x / x.std())
    assert np.isfinite(MIScreening().fit(x[:, None], x**2 + np.arange(120) / 50).scores_).all()


def test_wrong_settings_are_refused_by_name():
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    with pytest.raises(UnknownName, match="'kd'"):
        MIScreening(method="kd").fit(X, y)
    with pytest.raises(UnknownName, match="'silver'"):
        MIScreening(bandwidth="silver").fit(X, y)
    with pytest.raises(BadInput, match="3 classes"):
        MIScreening(method="pearson").fit(X, np.array(list("abc"))[y])
    with pytest.raises(BadInput, match="at least 1"):
        MIScreening(k=0).fit(X, y)
    with pytest.raises(BadInput, match="n_permutations"):
        MIScreening().fit(X, y).p_values_  # noqa: B018
