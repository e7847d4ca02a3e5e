"""Detectors that look at the nearest training rows: what kNN and LOF share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.io.state import saved
from farout.table._common import MatrixDetector
from farout.table._neighbour_lists import NeighbourLists

_CELLS = 1 << 16  # numbers in a block of differences: they stay in the cache
_PROBED = 64  # rows whose search is tried on a tree
_WIDEST = 100  # columns, beyond which no tree is tried
# Nanoseconds to look at a row in a tree, and for a pair in a product of matrices; plus so much for each column. Only
# their ratio matters, and only near the point where both searches take as long.
_LOOK, _LOOK_COLUMN = 15.0, 0.3
_PAIR, _PAIR_COLUMN = 1.7, 0.036
_SAME = 1e-13  # relative error of a squared distance that cannot be told from rounding


@saved("neighbours")
@dataclass
class Neighbours:
    """The training rows nearest to a row, in Euclidean distance.

    Three searches, each with distances that are computed from differences, whatever finds the neighbours:

    - a tree, which takes differences itself;
    - products of matrices, ``|x|^2 - 2 x y + |y|^2``, where a tree would look at too many rows. Their rounding drowns
      small distances and depends on the batch. So more candidates are taken than asked for, and a row for which
      rounding could have hidden a neighbour is searched again in a tree;
    - lists of nearby rows, the one search that may miss a neighbour; used only where ``lists`` is given.

    Attributes
    ----------
    rows : float64 array (m, columns)
    lists : NeighbourLists or None
    visits : float
        Mean number of rows at which a tree looks, tried on a few; infinite where there are too many columns to try, NaN
        before the first search.
    """

    rows: np.ndarray
    lists: NeighbourLists | None = None
    visits: float = np.nan
    # never saved, built when they are needed
    _tree: Any = field(default=None, init=False, repr=False, compare=False)
    _products: Any = field(default=None, init=False, repr=False, compare=False)
    _largest: float = field(default=0.0, init=False, repr=False, compare=False)  # squared norm of a row

    def nearest(self, queries: np.ndarray | None, k: int, n_jobs: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and places of the k nearest rows, nearest first.

        Parameters
        ----------
        queries : float64 array (n, columns) or None
            None asks for the neighbours of each training row, itself left out; a single row is its own neighbour.
        k : int
        n_jobs : int, optional

        Returns
        -------
        distances : float64 array (n, k)
        places : int64 array (n, k)
        """
        own = np.arange(len(self.rows)) if queries is None else None
        if own is not None and len(self.rows) == 1:
            return np.zeros((1, 1)), np.zeros((1, 1), np.int64)
        points = self.rows if queries is None else queries
        if self.lists is not None:
            return self._by_lists(points, own, k, n_jobs)
        m, d = self.rows.shape
        if self.looks(k) * (_LOOK + _LOOK_COLUMN * d) < m * (_PAIR + _PAIR_COLUMN * d):
            return self._by_tree(points, own, k, n_jobs)
        return self._by_products(points, own, k, n_jobs)

    def looks(self, k: int) -> float:
        """Return the mean number of rows at which a tree looks to find k neighbours; the first k asked for counts."""
        if np.isnan(self.visits):
            m, d = self.rows.shape
            self.visits = np.inf
            if d <= _WIDEST:
                from sklearn.neighbors import KDTree

                tree = KDTree(self.rows)
                tried = np.unique(np.linspace(0, m - 1, _PROBED).astype(np.int64))
                tree.query(self.rows[tried], min(k + 1, m), return_distance=False)
                self.visits = tree.get_n_calls() / len(tried)
        return self.visits

    def _by_tree(
        self, points: np.ndarray, own: np.ndarray | None, k: int, n_jobs: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search a tree: exact, and no row of the call matters for another."""
        from joblib import effective_n_jobs

        if self._tree is None:
            from scipy.spatial import KDTree

            self._tree = KDTree(self.rows)
        ranks = np.arange(1, k + 1 + (own is not None))
        distances, places = self._tree.query(points, ranks, workers=effective_n_jobs(n_jobs))
        return _nearest_first(distances, places, own, k)

    def _by_products(
        self, points: np.ndarray, own: np.ndarray | None, k: int, n_jobs: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search by products, and again in the tree for the rows where rounding could have hidden a neighbour."""
        m, d = self.rows.shape
        if self._products is None:
            from sklearn.neighbors import NearestNeighbors

            self._products = NearestNeighbors(algorithm="brute").fit(self.rows)
            self._largest = np.einsum("md,md->m", self.rows, self.rows).max()
        self._products.set_params(n_jobs=n_jobs)
        about, places = self._products.kneighbors(points, min(m, k + 1 + (own is not None)))
        distances, places = _nearest_first(self._distances(points, places), places, own, k)
        if about.shape[1] == m:
            return distances, places
        # rows that are no candidates are at least as far, by their products, as the last candidate
        error = (d + 3) * np.finfo(float).eps * (np.einsum("nd,nd->n", points, points) + self._largest)
        reached = distances[:, -1] ** 2
        open_ = (reached > about[:, -1] ** 2 - error) & (error > _SAME * reached) & (reached > 0)
        if open_.any():
            again = self._by_tree(points[open_], None if own is None else own[open_], k, n_jobs)
            distances[open_], places[open_] = again
        return distances, places

    def _by_lists(
        self, points: np.ndarray, own: np.ndarray | None, k: int, n_jobs: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search a few lists, and the tree for a row whose lists hold fewer than k others."""
        assert self.lists is not None
        places = self.lists.nearest(self.rows, points, own, k)
        distances, places = _nearest_first(self._distances(points, places), places, own, k)
        short = np.isinf(distances[:, -1])
        if short.any():
            again = self._by_tree(points[short], None if own is None else own[short], k, n_jobs)
            distances[short], places[short] = again
        return distances, places

    def _distances(self, points: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Compute distances (n, k) to rows from differences; infinite where a place is -1."""
        distances = np.empty(places.shape)
        step = max(1, _CELLS // (places.shape[1] * max(self.rows.shape[1], 1)))
        for start in range(0, len(points), step):
            some = slice(start, start + step)
            difference = self.rows[places[some]] - points[some, None]
            np.sqrt(np.einsum("nkd,nkd->nk", difference, difference), out=distances[some])
        distances[places < 0] = np.inf
        return distances


def _nearest_first(
    distances: np.ndarray, places: np.ndarray, own: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sort each row's candidates by distance, leave out the row's own place, and keep k."""
    if own is not None:
        distances = np.where(places == own[:, None], np.inf, distances)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(places, order, axis=1)


class NeighbourDetector(MatrixDetector):
    """A detector whose score comes from the ``n_neighbors`` nearest training rows.

    Attributes
    ----------
    neighbours_ : Neighbours
    n_neighbors_ : int
        Neighbours looked at: fewer than ``n_neighbors`` where there are no more rows.
    """

    _categories = "one_hot"
    n_neighbors: int
    n_jobs: int | None

    def reasons(self, X: Any) -> np.ndarray:
        """Return each feature's squared difference to the mean of the row's neighbours: a ranking, no sum.

        Returns
        -------
        float64 array (n, d)
            In squared standard deviations where the detector standardises.
        """
        matrix = self._matrix(X, reset=False)
        _, places = self._nearest(matrix)
        around = np.zeros_like(matrix)
        for place in places.T:
            around += self.neighbours_.rows[place]
        return self.encoder_.per_feature((matrix - around / self.n_neighbors_) ** 2)

    def _keep(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keep the rows; return distances and places of each one's neighbours among the others."""
        if self.n_neighbors < 1:
            raise BadInput(f"n_neighbors is a number of rows, at least 1, not {self.n_neighbors}")
        self.neighbours_ = Neighbours(np.array(matrix, order="C"))
        self.n_neighbors_ = max(1, min(self.n_neighbors, len(matrix) - 1))
        if self._approximately():
            self.neighbours_.lists = NeighbourLists.of(self.neighbours_.rows)
        return self._nearest(None)

    def _approximately(self) -> bool:
        """Whether neighbours may be missed."""
        return False

    def _nearest(self, queries: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return self.neighbours_.nearest(queries, self.n_neighbors_, self.n_jobs)
