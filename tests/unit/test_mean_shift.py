"""Mean-shift and MOD, against row-by-row versions and exact identities."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from farout.errors import BadInput, UnknownName
from farout.table import MOD
from farout.table._shift import Shift, roles, usual_neighbours
from farout.table.mean_shift import shift
from naive import mean_shift as naive


def made(n=80, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("d", [1, 3, 20])
@pytest.mark.parametrize("times", [0, 1, 3])
def test_every_row_moves_to_the_mean_of_its_neighbours(d, times):
    X = made(d=d)
    before = X.copy()
    np.testing.assert_allclose(shift(X, 5, times), naive.shift(X, 5, times), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(X, before)


def test_two_steps_by_hand():
    # 0, 1, 5 with one neighbour each: 0 and 1 change places and 5 follows 1; then 1, 0, 1 meet
    np.testing.assert_array_equal(shift(np.array([[0.0], [1.0], [5.0]]), 1, 1).ravel(), [1, 0, 1])
    np.testing.assert_array_equal(shift(np.array([[0.0], [1.0], [5.0]]), 1, 2).ravel(), [1, 1, 1])


def test_the_order_of_the_rows_changes_nothing():
    X = made(200)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_allclose(shift(X[order], 10, 3), shift(X, 10, 3)[order], rtol=0, atol=1e-13)
    np.testing.assert_allclose(MOD().fit_score(X[order]), MOD().fit_score(X)[order], rtol=1e-11)


def test_it_turns_moves_and_grows_with_the_rows():
    X = made(150, 4)
    turn = ortho_group.rvs(4, random_state=0)
    moved = 3.5 * X @ turn + np.arange(4)
    np.testing.assert_allclose(shift(moved, 8, 3), 3.5 * shift(X, 8, 3) @ turn + np.arange(4), rtol=0, atol=1e-11)
    raw = MOD(standardize=False)
    np.testing.assert_allclose(raw.fit_score(moved), 3.5 * raw.fit_score(X), rtol=1e-10)


def test_a_row_among_equal_rows_lands_on_them_exactly():
    place = np.array([0.1, 0.7, -1 / 3])
    X = np.vstack(([9.0, 9.0, 9.0], np.tile(place, (8, 1))))
    np.testing.assert_array_equal(shift(X, 7, 1), np.tile(place, (9, 1)))


def test_a_clump_of_more_than_k_outliers_moves_nowhere():
    X = np.vstack((made(100, 2), np.tile([50.0, 50.0], (6, 1))))
    small, large = (MOD(k, standardize=False).fit_score(X) for k in (5, 6))
    assert (small[100:] == 0).all() and (large[100:] > 5).all()


@pytest.mark.parametrize("counts_itself", [False, True])
def test_new_rows_move_towards_training_rows_as_these_stood_before_each_step(counts_itself):
    X, new = made(60), made(12, seed=3) * 2
    step = naive.among_all if counts_itself else lambda rows, k: naive.shift(rows, k, 1)
    *before, after = naive.stages(X, 6, 3, step)
    learned, shifted = Shift.of(X, 6, 3, counts_itself, None)
    np.testing.assert_allclose(shifted, after, rtol=0, atol=1e-13)
    expected = [naive.shift_new(row, before, 6) for row in new]
    np.testing.assert_allclose(learned(new, None), expected, rtol=0, atol=1e-13)
    if counts_itself:  # a training row that comes back goes the way it went
        np.testing.assert_allclose(learned(X, None), shifted, rtol=0, atol=1e-13)


def test_the_score_is_the_distance_moved_and_the_reasons_are_its_squares():
    X, new = made(90), made(10, seed=5)
    detector = MOD(n_neighbors=7, standardize=False)
    np.testing.assert_allclose(detector.fit_score(X), np.linalg.norm(X - naive.shift(X, 7, 3), axis=1), rtol=1e-11)
    scores = detector.outlier_score(new)
    np.testing.assert_allclose(np.sqrt(detector.reasons(new).sum(axis=1)), scores, rtol=1e-12)
    assert detector.n_neighbors_ == 7


def test_how_many_neighbours():
    assert [usual_neighbours(None, n) for n in (1, 19, 57, 300, 9_999)] == [2, 2, 5, 30, 30]
    assert usual_neighbours(44, 50) == 44
    assert MOD(n_neighbors=44).fit(made(20)).n_neighbors_ == 19
    assert Shift.of(made(20), 44, 1, True, None)[0].n_neighbors == 20


def test_no_step_is_no_score():
    assert (MOD(shifts=0).fit_score(made()) == 0).all()


def test_roles():
    rows, shifted = made(3), made(3, seed=1)
    assert roles(rows, shifted, "input") == (shifted, rows) and roles(rows, shifted, "target") == (rows, shifted)
    with pytest.raises(UnknownName, match="'output'"):
        roles(rows, shifted, "output")


def test_what_means_nothing_is_refused():
    with pytest.raises(BadInput, match="at least 0, not -1"):
        MOD(shifts=-1).fit(made())
    with pytest.raises(BadInput, match="at least 1, or None for a tenth of them, not 0"):
        MOD(n_neighbors=0).fit(made())
