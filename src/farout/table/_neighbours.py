"""Detectors that look at the nearest training rows: what kNN and LOF share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.io.state import saved
from farout.table._common import MatrixDetector

_CELLS = 1 << 22  # numbers in a block of differences


@saved("neighbours")
@dataclass
class Neighbours:
    """The training rows nearest to a row, in Euclidean distance.

    scikit-learn finds the neighbours. In many dimensions it expands ``|x - y|^2`` into products, whose rounding depends
    on the batch and drowns small distances, so the distances are computed anew from differences.

    Attributes
    ----------
    rows : float64 array (m, columns)
    """

    rows: np.ndarray
    _index: Any = field(default=None, init=False, repr=False, compare=False)  # never saved, built when it is needed

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
        if queries is None and len(self.rows) == 1:
            return np.zeros((1, 1)), np.zeros((1, 1), np.int64)
        if self._index is None:
            from sklearn.neighbors import NearestNeighbors

            self._index = NearestNeighbors().fit(self.rows)
        places = self._index.set_params(n_jobs=n_jobs).kneighbors(queries, k, return_distance=False)
        distances = self._distances(self.rows if queries is None else queries, places)
        order = np.argsort(distances, axis=1, kind="stable")
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(places, order, axis=1)

    def _distances(self, queries: np.ndarray, places: np.ndarray) -> np.ndarray:
        distances = np.empty(places.shape)
        step = max(1, _CELLS // (places.shape[1] * max(self.rows.shape[1], 1)))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            difference = self.rows[places[some]] - queries[some, None]
            np.sqrt(np.einsum("nkd,nkd->nk", difference, difference), out=distances[some])
        return distances


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
        return self._nearest(None)

    def _nearest(self, queries: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return self.neighbours_.nearest(queries, self.n_neighbors_, self.n_jobs)
