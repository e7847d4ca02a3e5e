"""Half-space trees by numbers: a tree by hand, complete trees one row at a time, any cut into batches, and river."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import farout
from farout.bench.metrics import auroc
from farout.errors import BadInput
from farout.table._half_spaces import HalfSpaces, work_space
from farout.table.half_space_trees import HalfSpaceTrees
from naive import half_space_trees as naive


def stream(n=700, d=3, seed=0):
    """Rows of different scales, some of them copies, some holed, some far beyond the range of the first."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 10.0 ** np.arange(d)
    X[::9] = X[0]
    X[n // 2 :: 50] *= 8
    return X


def mixed(n=160, seed=0):
    rng = np.random.default_rng(seed)
    town = np.array(["Aa", "Bo", "Cu", None])[rng.choice(4, n, p=[0.6, 0.2, 0.1, 0.1])]
    amount = np.where(rng.random(n) < 0.1, np.nan, rng.lognormal(size=n))
    return pl.DataFrame({"amount": amount, "town": town}, schema={"amount": pl.Float64, "town": pl.String})


def small(**parameters):
    return HalfSpaceTrees(**{"n_trees": 4, "height": 6, "window_size": 40, "random_state": 0} | parameters)


def by_definition(fitted):
    """The same trees, slow and obvious."""
    every = zip(fitted.features_.tolist(), fitted.low_.tolist(), fitted.high_.tolist())
    return [naive.HalfSpaceTree(*tree) for tree in every]


def test_a_tree_by_hand():
    # the work space [0, 8) is halved at 4, then at 2 and 6; of 20 rows a node with at most 2 ends every path
    window = np.array([[1.0]] * 15 + [[3.0]] * 3 + [[5.0], [7.0]])
    tree, own = HalfSpaces.grown(window, np.zeros((1, 3), np.uint8), np.array([[0.0]]), np.array([[8.0]]))
    density = {1.0: 15 * 4, 2.0: 3 * 4, 3.0: 3 * 4, -9.0: 15 * 4, 4.0: 2 * 2, 7.0: 2 * 2, 99.0: 2 * 2}
    expected = [np.log((1 + 1 * 20 * 4) / (1 + r)) for r in density.values()]
    np.testing.assert_allclose(tree.score(np.array([[x] for x in density])), expected, rtol=1e-15)
    np.testing.assert_array_equal(own, tree.score(window))
    assert sorted(tree.threshold[np.isfinite(tree.threshold)]) == [2.0, 4.0]  # the right half is not halved again


def test_the_work_space_is_that_of_the_paper():
    window = np.array([[0.0, 10.0, 3.0], [1.0, 30.0, 3.0]])
    low, high = work_space(window, np.array([[0.5, 0.75, 0.0]]))
    # 0.5 -+ 2 * 0.5; 0.75 -+ 2 * 0.75, in units of 20 from 10; a constant column has unit 1 from 3
    np.testing.assert_allclose(low, [[-0.5, 10 - 0.75 * 20, 3 - 2.0]])
    np.testing.assert_allclose(high, [[1.5, 10 + 2.25 * 20, 3 + 2.0]])


@pytest.mark.filterwarnings("ignore:overflow")  # scikit-learn adds up all cells to look for missing ones
def test_the_largest_numbers_of_all_are_told_apart():
    most = np.finfo(float).max
    window = np.array([[-most]] * 30 + [[0.0]] * 5 + [[most]] * 5)
    low, middle, high = small().fit(window).outlier_score([[-most], [0.0], [most]])
    assert low < min(middle, high)


@pytest.mark.parametrize(
    "parameters", [{}, {"height": 15}, {"height": 1}, {"window_size": 7}, {"window_size": 3, "n_trees": 1}]
)
def test_equals_complete_trees_one_row_at_a_time(parameters):
    X = stream(300)
    fast = small(**parameters)
    scores = fast.score_partial_fit(X)
    trees = by_definition(fast)
    slow = naive.stream(trees, X.tolist(), fast.window_size)
    np.testing.assert_allclose(scores, slow, rtol=1e-14, atol=0)
    new = stream(50, seed=1)
    expected = [naive.score(trees, row, fast.window_size) for row in new.tolist()]
    np.testing.assert_allclose(fast.outlier_score(new), expected, rtol=1e-14, atol=0)


def test_sums_of_densities_equal_complete_trees_to_the_bit():
    X = stream(500, 6)
    fast = HalfSpaceTrees(random_state=3).fit(X)
    trees = by_definition(fast)
    for row in X[:250].tolist():
        for tree in trees:
            tree.learn(row)
    for tree in trees:
        tree.end_of_window()
    fast = HalfSpaceTrees(random_state=3).fit(X[:250])
    slow = [sum(tree.density(row, 25) for tree in trees) for row in X.tolist()]
    np.testing.assert_array_equal(fast.reference_._sums(X), slow)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 160), max_size=12), frame=st.booleans())
def test_any_cut_into_batches_gives_the_same_scores_and_state(cuts, frame):
    X = mixed() if frame else stream(160)
    whole = small()
    scores = whole.score_partial_fit(X)
    learned, scored, found = small(), small(), []
    ends = sorted({0, 160, *cuts})
    for start, stop in pairwise(ends):
        learned.partial_fit(X[start:stop])
        found.append(scored.score_partial_fit(X[start:stop]))
    np.testing.assert_array_equal(np.concatenate(found), scores)
    fitted = small().fit(X)
    for other in (learned, scored, fitted):
        np.testing.assert_array_equal(other.outlier_score(X), whole.outlier_score(X))
        np.testing.assert_array_equal(other._latest, whole._latest)
        assert other.offset_ == whole.offset_


def test_one_by_one_is_the_same():
    X = stream(130)
    single = small()
    scores = np.concatenate([single.score_partial_fit(row[None]) for row in X])
    np.testing.assert_array_equal(scores, small().score_partial_fit(X))


def test_a_large_first_window_in_batches_is_the_same():
    X = stream(2600)
    X[::3, 1] = np.nan  # medians come from 2,048 drawn rows of the window, which must be the same rows
    parts = small(window_size=2500)
    for part in np.array_split(X, 4):
        parts.partial_fit(part)
    whole = small(window_size=2500).fit(X)
    np.testing.assert_array_equal(parts.encoder_.fills, whole.encoder_.fills)
    np.testing.assert_array_equal(parts.outlier_score(X), whole.outlier_score(X))


def test_masses_change_at_the_end_of_a_window_and_the_old_are_forgotten():
    X = stream(200)
    trees = small().partial_fit(X[:40])
    before = trees.outlier_score(X)
    np.testing.assert_array_equal(trees.partial_fit(X[40:79]).outlier_score(X), before)
    after = trees.partial_fit(X[79:80]).outlier_score(X)
    assert not np.array_equal(after, before)
    # ranges are those of the first window, masses those of the last, and nothing of what was between is left
    other = small().partial_fit(X[:40]).partial_fit(X[120:200]).partial_fit(X[40:80])
    np.testing.assert_array_equal(other.outlier_score(X), after)


def test_the_first_window_scores_nothing_and_serves_before_it_is_whole():
    X = stream(100)
    trees = small()
    assert not trees.score_partial_fit(X[:40]).any()
    assert trees.score_partial_fit(X[40:]).all()
    part = small().fit(X[:20])
    np.testing.assert_array_equal(part.outlier_score(X), small(window_size=20).fit(X[:20]).outlier_score(X))


def test_the_least_score_is_0_and_the_largest_that_of_no_mass():
    trees = small(n_trees=5).fit(np.zeros((40, 1)))
    assert trees.outlier_score([[0.0]])[0] == 0
    assert trees.outlier_score([[99.0]])[0] == pytest.approx(np.log(1 + 5 * 40 * 2**6))


def test_a_missing_number_is_the_median_of_the_first_window():
    X = stream(100)
    X[40:, 1] += 20
    X[::5, 1] = np.nan
    trees = small().fit(X)
    hole = np.isnan(X)
    scores = trees.outlier_score(X)
    np.testing.assert_array_equal(trees.outlier_score(np.where(hole, np.nanmedian(X[:40], axis=0), X)), scores)
    later = trees.outlier_score(np.where(hole, np.nanmedian(X[40:80], axis=0), X))
    assert (later != scores).any()


def test_a_category_is_the_surprise_of_its_level():
    frame = mixed().filter(pl.col("town").is_not_null())
    counts = dict(frame["town"].value_counts().rows())
    coded = frame.with_columns(pl.col("town").replace_strict({t: -np.log(k) for t, k in counts.items()}))
    # shares are counts over rows, which moves all surprises alike, and the first window's range moves with them
    words, numbers = (small(window_size=len(frame)).fit_score(table) for table in (frame, coded))
    np.testing.assert_allclose(words, numbers, rtol=1e-14)


def test_alarms_end_two_windows_after_a_drift():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6000, 4))
    X[3000:] += 3
    scores = HalfSpaceTrees(random_state=0).score_partial_fit(X)
    alarms = scores > np.quantile(scores[250:2000], 0.99)
    old, during, later = alarms[2000:3000].mean(), alarms[3000:3250].mean(), alarms[3500:].mean()
    assert during > 0.8
    assert later < 0.03 > old


def test_predict_marks_one_in_a_hundred_of_the_last_window():
    X = stream(900, 4)
    trees = HalfSpaceTrees(random_state=0).partial_fit(X)
    assert (trees.predict(X[500:750]) == -1).sum() == 3  # of 250, above the quantile at 0.99


def test_a_loaded_detector_goes_on_with_the_stream(tmp_path):
    for X in (stream(200), mixed()):
        for cut in (25, 110):  # within the first window and after it
            trees = small().partial_fit(X[:cut])
            trees.save(tmp_path / "saved")
            again = farout.load(tmp_path / "saved")
            np.testing.assert_array_equal(again.score_partial_fit(X[cut:]), trees.score_partial_fit(X[cut:]))


@pytest.mark.parametrize("parameters", [{"n_trees": 0}, {"window_size": 0}, {"height": 0}, {"height": 21}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(BadInput, match=str(next(iter(parameters.values())))):
        HalfSpaceTrees(**parameters).fit(stream(10))


def test_damaged_trees_are_refused():
    sound = small().fit(stream(100)).reference_
    fields = {name: getattr(sound, name) for name in sound.__dataclass_fields__}
    for damage in (
        {"child": np.zeros_like(sound.child)},
        {"child": sound.child + len(sound.child)},
        {"feature": sound.feature - 1},
        {"threshold": np.full_like(sound.threshold, -np.inf)},
        {"density": sound.density[1:]},
        {"trees": 0},
    ):
        with pytest.raises(BadInput, match="damaged"):
            HalfSpaces(**fields | damage)


def test_ranks_as_river_does():
    referee = pytest.importorskip("river.anomaly").HalfSpaceTrees
    rng = np.random.default_rng(0)
    y = rng.random(1500) < 0.03
    X = np.where(y[:, None], rng.random((1500, 3)), rng.normal(0.5, 0.08, (1500, 3)))
    X[0], X[1] = 0, 1  # so that both read the same range
    ours, theirs = [], []
    for seed in range(3):
        model = referee(n_trees=10, height=8, window_size=250, seed=seed)
        scores = []
        for row in map(dict, map(enumerate, X.tolist())):
            scores.append(model.score_one(row))
            model.learn_one(row)
        theirs.append(auroc(y[250:], scores[250:]))
        trees = HalfSpaceTrees(n_trees=10, height=8, random_state=seed)
        ours.append(auroc(y[250:], trees.score_partial_fit(X)[250:]))
    assert min(theirs) > 0.9
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.03)
