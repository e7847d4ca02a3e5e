import warnings

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import farout
from farout.errors import BadInput
from farout.table import KNN, LOF, knn
from farout.table._neighbour_lists import NeighbourLists
from farout.table._neighbours import Neighbours
from naive import neighbours as naive


def measured(points, rows, k, own=False):
    """Distances to the k nearest rows from all differences."""
    distances = np.sqrt(((points[:, None] - rows[None]) ** 2).sum(axis=2))
    if own:
        np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :k]


def searched(rows, looks):
    """Neighbours that search by a tree (looks=0) or by products (looks=infinity)."""
    return Neighbours(rows, visits=looks)


@pytest.mark.parametrize("looks", [0.0, np.inf], ids=["tree", "products"])
@pytest.mark.parametrize("d", [1, 5, 40])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_both_searches_find_the_nearest(looks, d, k):
    rng = np.random.default_rng(0)
    rows, points = rng.normal(size=(150, d)), rng.normal(size=(40, d))
    for asked, other, own in ((None, rows, True), (points, points, False)):
        distances, places = searched(rows, looks).nearest(asked, k, None)
        np.testing.assert_allclose(distances, measured(other, rows, k, own), rtol=1e-13)
        np.testing.assert_allclose(np.linalg.norm(rows[places] - other[:, None], axis=2), distances, rtol=1e-13)
        assert not own or (places != np.arange(150)[:, None]).all()


@pytest.mark.parametrize("looks", [0.0, np.inf], ids=["tree", "products"])
def test_a_row_is_left_out_of_its_own_neighbours_and_its_copies_are_not(looks):
    rows = np.repeat(np.arange(4.0)[:, None] * np.ones(3), 10, axis=0)
    distances, places = searched(rows, looks).nearest(None, 9, None)
    assert (distances == 0).all() and (places != np.arange(40)[:, None]).all()
    assert (searched(rows, looks).nearest(None, 10, None)[0][:, -1] == np.sqrt(3)).all()
    assert all(len(set(row)) == 9 for row in places.tolist())


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e8])
def test_neighbours_that_rounding_hides_are_found(scale):
    # far from the origin, |x|^2 - 2 x y + |y|^2 loses the digits in which neighbours differ
    rng = np.random.default_rng(0)
    rows = scale + rng.normal(size=(400, 30))
    distances, _ = searched(rows, np.inf).nearest(None, 5, None)
    np.testing.assert_allclose(distances, measured(rows, rows, 5, own=True), rtol=1e-12)
    if scale == 1e8:
        products, _ = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(rows).kneighbors()
        assert np.abs(products / distances - 1).max() > 1e-3  # the case is one


def test_tight_groups_far_apart_are_told_apart():
    rng = np.random.default_rng(1)
    rows = 1e7 * rng.normal(size=(20, 1, 25)) + 1e-3 * rng.normal(size=(20, 15, 25))
    rows = rows.reshape(300, 25)
    distances, places = searched(rows, np.inf).nearest(None, 5, None)
    np.testing.assert_allclose(distances, measured(rows, rows, 5, own=True), rtol=1e-12)
    np.testing.assert_array_equal(places // 15, np.arange(300)[:, None] // 15 * np.ones(5))


@pytest.mark.parametrize("looks", [0.0, np.inf], ids=["tree", "products"])
def test_the_rows_beside_it_in_the_call_do_not_matter(looks):
    rng = np.random.default_rng(2)
    search, points = searched(1e6 + rng.normal(size=(500, 20)), looks), 1e6 + rng.normal(size=(300, 20))
    together, _ = search.nearest(points, 5, None)
    alone = np.concatenate([search.nearest(point[None], 5, None)[0] for point in points])
    np.testing.assert_array_equal(alone, together)


def test_the_search_is_chosen_by_how_many_rows_a_tree_looks_at():
    rng = np.random.default_rng(3)
    plane, space = rng.normal(size=(4000, 2)), rng.normal(size=(4000, 40))
    assert Neighbours(plane).looks(5) < 200 and Neighbours(space).looks(5) > 3000
    curve = np.column_stack([np.sin(j * np.linspace(0, 6, 4000)) for j in range(1, 41)])  # many columns, one dimension
    assert Neighbours(curve).looks(5) < 400
    for rows, by_tree in ((plane, True), (curve, True), (space, False)):
        search = Neighbours(rows)
        search.nearest(None, 5, None)
        assert (search._tree is not None) == by_tree
    wide = Neighbours(rng.normal(size=(50, 400)))
    wide.nearest(None, 5, None)
    assert wide.visits == np.inf and wide._tree is None  # nothing is tried


@pytest.mark.parametrize("d", [3, 30])
def test_scores_are_those_of_the_loops(d):
    rows = np.random.default_rng(4).normal(size=(80, d))
    np.testing.assert_allclose(KNN(5, standardize=False).fit_score(rows), naive.knn(rows, 5), rtol=1e-12)
    np.testing.assert_allclose(LOF(6, standardize=False).fit_score(rows), naive.lof(rows, 6), rtol=1e-9)


def test_lists_find_most_neighbours_and_never_a_distance_that_is_too_small():
    rows = np.random.default_rng(5).normal(size=(6000, 8))
    truth, _ = searched(rows, 0.0).nearest(None, 5, None)
    search = Neighbours(rows, NeighbourLists.of(rows))
    found, places = search.nearest(None, 5, None)
    np.testing.assert_allclose(np.linalg.norm(rows[places] - rows[:, None], axis=2), found, rtol=1e-13)
    assert (found >= truth * (1 - 1e-13)).all() and (places != np.arange(6000)[:, None]).all()
    assert 0.9 < np.mean(found <= truth[:, -1:] * (1 + 1e-12)) < 1.0
    assert np.mean(found[:, -1] / truth[:, -1]) < 1.02


def test_lists_hold_every_row_once_in_the_cell_of_its_nearest_centre():
    rows = np.random.default_rng(6).normal(size=(900, 4))
    lists = NeighbourLists.of(rows)
    assert sorted(lists.members.tolist()) == list(range(900)) and len(lists.centres) == 30
    nearest = ((rows[:, None] - lists.centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    for cell, members in enumerate(np.split(lists.members, lists.ends[:-1])):
        assert (nearest[members] == cell).all()


def test_a_crowd_of_copies_is_represented_by_a_part_of_it():
    rng = np.random.default_rng(7)
    rows = np.concatenate((np.zeros((4000, 3)), rng.normal(size=(1000, 3))))
    lists = NeighbourLists.of(rows)
    assert np.diff(lists.ends, prepend=0).max() <= 16 * 5000 // 71
    scores = KNN(5, standardize=False, search="approximate").fit_score(rows)
    assert (scores[:4000] == 0).all() and (scores[4000:] > 0).all()


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_few_rows_and_many_neighbours_are_searched_whole(n):
    rows = np.random.default_rng(8).normal(size=(n, 3))
    for k in (1, 5, 30):
        exact, near = (KNN(k, search=search).fit(rows) for search in ("exact", "approximate"))
        np.testing.assert_allclose(near.outlier_score(rows + 1), exact.outlier_score(rows + 1), rtol=1e-13)
    spread = np.random.default_rng(9).normal(size=(400, 2))
    exact, near = (KNN(399, search=search).fit_score(spread) for search in ("exact", "approximate"))
    np.testing.assert_allclose(near, exact, rtol=1e-13)  # 16 of 20 cells hold fewer


def test_auto_searches_exactly_up_to_a_number_of_rows_and_says_when_it_does_not(monkeypatch, tmp_path):
    rows = np.random.default_rng(10).normal(size=(3000, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = KNN().fit(rows)
        monkeypatch.setattr(knn, "EXACT_UP_TO", 2_000)
        assert KNN().fit(rows[:, :2]).neighbours_.lists is None  # a tree is quick
        monkeypatch.setattr(knn, "QUICK", 500)
        assert KNN(search="exact").fit(rows).neighbours_.lists is None
        assert KNN(search="approximate").fit(rows).neighbours_.lists is not None
    with pytest.warns(UserWarning, match=r"'KNN' searches 3,000 rows approximately.*search='exact'"):
        near = KNN().fit(rows)
    assert exact.neighbours_.lists is None and near.neighbours_.lists is not None
    assert (near.outlier_score(rows + 0.1) >= exact.outlier_score(rows + 0.1) * (1 - 1e-13)).all()
    near.save(tmp_path / "near")
    np.testing.assert_array_equal(farout.load(tmp_path / "near").outlier_score(rows), near.outlier_score(rows))


def test_an_unknown_search_is_refused():
    with pytest.raises(BadInput, match="search is 'auto' or 'exact' or 'approximate', not 'fast'"):
        KNN(search="fast").fit(np.eye(3))
