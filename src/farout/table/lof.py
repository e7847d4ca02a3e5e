"""LOF: Identifying Density-Based Local Outliers.

Markus M. Breunig, Hans-Peter Kriegel, Raymond T. Ng, Jörg Sander, SIGMOD 2000 (doi 10.1145/342009.335388).

A row is an outlier where it lies less densely than its own neighbours do, so that clusters of different density each
have their own measure of far.

The paper claims that a local factor finds meaningful outliers that global notions cannot, and proves that rows deep
inside a cluster have a factor close to 1.

Differences from the paper:

- A neighbourhood has exactly k rows, as in scikit-learn; the paper takes in all rows tied at the k-th distance.
- 1e-10 is added to the mean reachability distance, as in scikit-learn; in the paper k duplicates have infinite density.
- New rows are scored against the training rows, whose densities stay as they are.
- Numbers are standardised (``standardize=False`` is the paper); missing numbers take the training median; categories
  are one-hot.
"""

from __future__ import annotations

import numpy as np

from farout.cards import paper
from farout.table._neighbours import NeighbourDetector


@paper(
    "LOF",
    title="LOF: Identifying Density-Based Local Outliers",
    authors="Breunig, Kriegel, Ng, Sander",
    url="https://doi.org/10.1145/342009.335388",
    year=2000,
    claim="A local factor finds meaningful outliers that global notions miss; rows deep inside a cluster have one "
    "close to 1.",
    differs="Neighbourhoods have exactly k rows (ties are cut) and densities stay finite, as in scikit-learn. New rows "
    "are scored against the training rows. Numbers are standardised; missing values and categories are added.",
    takes=("numeric", "missing", "category", "date"),
    explains=True,
)
class LOF(NeighbourDetector):
    """Mean density of a row's neighbours over its own density.

    With ``r(o)`` the distance from ``o`` to its k-th neighbour and ``N(p)`` the k nearest rows of ``p``::

        reach(p, o) = max(r(o), |p - o|)        density(p) = 1 / mean of reach(p, o) over o in N(p)
        score(p) = mean of density(o) over o in N(p) / density(p)

    ``fit_score`` leaves a training row itself out of its neighbours. Cost: that of the neighbour search.

    Parameters
    ----------
    n_neighbors : int
        The paper's MinPts.
    standardize : bool
        Whether numbers are brought to standard deviation 1 first.
    n_jobs : int, optional
        Threads; scores do not depend on it.

    Attributes
    ----------
    neighbours_ : Neighbours
        The training rows, encoded.
    n_neighbors_ : int
        Neighbours looked at: fewer than ``n_neighbors`` where there are no more rows.
    radii_, densities_ : float64 array (m,)
        ``r`` and ``density`` of the training rows.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0], [20.0]])
    >>> LOF(n_neighbors=2, standardize=False).fit_score(X).round(3)
    array([ 1.   ,  1.   ,  1.   ,  1.   , 11.667])
    """

    def __init__(self, n_neighbors: int = 20, standardize: bool = True, n_jobs: int | None = None) -> None:
        self.n_neighbors = n_neighbors
        self.standardize = standardize
        self.n_jobs = n_jobs

    def _learn(self, matrix: np.ndarray) -> np.ndarray:
        distances, places = self._keep(matrix)
        self.radii_ = distances[:, -1].copy()
        self.densities_ = self._density(distances, places)
        return self.densities_[places].mean(axis=1) / self.densities_

    def _score(self, matrix: np.ndarray) -> np.ndarray:
        distances, places = self._nearest(matrix)
        return self.densities_[places].mean(axis=1) / self._density(distances, places)

    def _density(self, distances: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return one over the mean reachability distance (n,)."""
        return 1 / (np.maximum(distances, self.radii_[places]).mean(axis=1) + 1e-10)
