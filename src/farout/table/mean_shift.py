"""MOD: Mean-shift outlier detection and filtering.

Jiawei Yang, Susanto Rahardja, Pasi Fränti, Pattern Recognition 115 (2021) 107874 (doi 10.1016/j.patcog.2021.107874);
first at FSDM 2018 as "Mean-shift outlier detection".

Move every row to the mean of its k nearest neighbours, three times over. A row in a crowd hardly moves, and an outlier
is drawn towards the crowd: how far a row has moved is its score. The moved rows are a cleaned table for whatever comes
next (:func:`shift`, :class:`farout.table.mss.MSS`).

The paper claims to outperform all methods that it tested, on real numeric data and on made numeric and string data, and
to work whatever the share of outliers. (This is its abstract; its tables could not be read here.)

Differences from the paper and its code:

- All rows move at once. In the official code the copy of the rows is a view of them, so that rows move one after the
  other, later ones towards neighbours that have moved already, and scores depend on the order of the rows.
- ``n_neighbors`` counts neighbours; the official k counts the row itself too, and averages k - 1 others.
- The score stays a number; the paper calls a row an outlier where it is above the standard deviation of all scores.
- New rows are moved towards training rows as these stood before each step. The variant with medoids is left out.
- Numbers are standardised (``standardize=False`` is the paper); missing numbers take the training median; categories
  are one-hot. For strings the paper takes medoids under an edit distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.cards import paper
from farout.table._neighbours import NeighbourDetector
from farout.table._shift import Shift, shift, usual_neighbours

__all__ = ["MOD", "shift"]


@paper(
    "MOD",
    title="Mean-shift outlier detection and filtering",
    authors="Yang, Rahardja, Fränti",
    url="https://doi.org/10.1016/j.patcog.2021.107874",
    year=2021,
    claim="The distance that a row moves under three steps of mean-shift outperforms all methods tested, on real and "
    "made data, whatever the share of outliers.",
    differs="All rows move at once (in the official code one after the other, by an aliased copy). k leaves out the "
    "row itself. No threshold of one standard deviation, no medoids, no strings. New rows move towards the training "
    "rows. Numbers are standardised; missing values and categories are added.",
    takes=("numeric", "missing", "category", "date"),
    explains=True,
)
class MOD(NeighbourDetector):
    """Distance between a row and where mean-shift takes it.

    With ``x(0) = x`` and ``x(m)`` the mean of the k rows nearest to ``x(m - 1)`` among the training rows as they stood
    after m - 1 steps, the score is ``|x - x(shifts)|``. ``fit_score`` leaves a training row itself out of its
    neighbours. An outlier that lies in a clump of more than k rows moves nowhere. Cost: a neighbour search a step.

    Parameters
    ----------
    n_neighbors : int, optional
        The paper's k, without the row itself. None: a tenth of the training rows, between 2 and 30.
    shifts : int
        Steps; the paper takes three.
    standardize : bool
        Whether numbers are brought to standard deviation 1 first.
    n_jobs : int, optional
        Threads; scores do not depend on it.

    Attributes
    ----------
    shift_ : Shift
        The training rows before each step.
    n_neighbors_ : int
        Neighbours averaged: fewer than ``n_neighbors`` where there are no more rows.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0], [20.0]])
    >>> MOD(n_neighbors=2, shifts=1, standardize=False).fit_score(X)
    array([ 1.5,  0. ,  0. ,  1.5, 17.5])
    >>> MOD(n_neighbors=2, shifts=1, standardize=False).fit(X).outlier_score([[1.5], [9.0]])
    array([0. , 6.5])
    """

    n_neighbors: int | None  # type: ignore[assignment]

    def __init__(
        self,
        n_neighbors: int | None = None,
        shifts: int = 3,
        standardize: bool = True,
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.shifts = shifts
        self.standardize = standardize
        self.n_jobs = n_jobs

    def _learn(self, matrix: np.ndarray) -> np.ndarray:
        rows = np.array(matrix, order="C")
        k = usual_neighbours(self.n_neighbors, len(rows))
        self.shift_, shifted = Shift.of(rows, k, self.shifts, counts_itself=False, n_jobs=self.n_jobs)
        self.n_neighbors_ = self.shift_.n_neighbors
        return np.linalg.norm(rows - shifted, axis=1)

    def _score(self, matrix: np.ndarray) -> np.ndarray:
        return np.linalg.norm(matrix - self.shift_(matrix, self.n_jobs), axis=1)

    def reasons(self, X: Any) -> np.ndarray:
        """Return how far the row moved along each feature, squared: a ranking; the root of the sum is the score.

        Returns
        -------
        float64 array (n, d)
            In squared standard deviations where the detector standardises.
        """
        matrix = self._matrix(X, reset=False)
        return self.encoder_.per_feature((matrix - self.shift_(matrix, self.n_jobs)) ** 2)
