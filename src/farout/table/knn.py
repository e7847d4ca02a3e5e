"""kNN: Efficient Algorithms for Mining Outliers from Large Data Sets.

Sridhar Ramaswamy, Rajeev Rastogi, Kyuseok Shim, SIGMOD 2000 (doi 10.1145/342009.335437).

The score of a row is the distance to its k-th nearest neighbour: no distribution is assumed, and rows can be ranked.

The paper claims that its partition-based algorithm finds the top outliers by this score in time that scales well with
both the number of rows and of dimensions.

Differences from the paper:

- All rows are scored, by SciPy's tree or scikit-learn's products of matrices, whichever a trial on a few rows says is
  quicker; the paper's pruning finds the top n rows only.
- Of more than 200,000 rows in many dimensions a row looks at a part only (``search="auto"``, which then warns), so that
  a distance can come out too large. See :class:`KNN` for by how much.
- Numbers are standardised (``standardize=False`` is the paper's raw distance), so that units do not matter.
- ``distance="mean"`` (Angiulli and Pizzuti 2002) and ``"median"`` are offered beside the paper's ``"largest"``.
- Missing numbers take the training median; categories are one-hot, different levels at distance 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.table._neighbours import NeighbourDetector

_OF_ROW: dict[str, Callable[..., np.ndarray]] = {"largest": np.max, "mean": np.mean, "median": np.median}

_SEARCHES = ("auto", "exact", "approximate")
EXACT_UP_TO = 200_000  # rows
QUICK = 2_000  # rows at which a tree looks in about the time that lists take


@paper(
    "KNN",
    title="Efficient Algorithms for Mining Outliers from Large Data Sets",
    authors="Ramaswamy, Rastogi, Shim",
    url="https://doi.org/10.1145/342009.335437",
    year=2000,
    claim="Ranking rows by the distance to their k-th neighbour finds outliers, and a partition-based algorithm finds "
    "the top ones in time that scales well with rows and dimensions.",
    differs="All rows are scored, without the paper's pruning; above 200,000 approximately, where an exact search "
    "would be slow. Numbers are standardised (standardize=False is the paper). Mean and median distance, missing "
    "values and categories are added.",
    takes=("numeric", "missing", "category", "date"),
    explains=True,
)
class KNN(NeighbourDetector):
    """Distance to the k-th nearest training row.

    ``fit_score`` leaves a training row itself out of its neighbours. Cost: the search, ``O(n log n)`` in few dimensions
    and ``O(n^2 d)`` in many; ``O(n^1.5 d)`` where it is approximate.

    The approximate search returns true distances to true rows, which can be too large and never too small. There is no
    guarantee by how much. Measured with 5 neighbours: of 500,000 normal rows in 10 columns 98 % of the neighbours are
    found, and the distance is 0.2 % too large in the mean; of 200,000 in 30 columns, where no row is near another, 57 %
    and 2.5 %; on celeba and donors 99.9 %, and an AUROC within 0.0001 of the exact one.

    Parameters
    ----------
    n_neighbors : int
        The paper's k.
    distance : {"largest", "mean", "median"}
        Which of the k distances is the score; the paper's is the largest.
    standardize : bool
        Whether numbers are brought to standard deviation 1 first.
    search : {"auto", "exact", "approximate"}
        Whether neighbours may be missed. ``"auto"`` searches exactly up to 200,000 rows, and beyond where a tree is
        quick.
    n_jobs : int, optional
        Threads; scores do not depend on it.

    Attributes
    ----------
    neighbours_ : Neighbours
        The training rows, encoded.
    n_neighbors_ : int
        Neighbours looked at: fewer than ``n_neighbors`` where there are no more rows.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0], [20.0]])
    >>> KNN(n_neighbors=2, standardize=False).fit_score(X)
    array([ 2.,  1.,  1.,  2., 18.])
    >>> KNN(n_neighbors=2, standardize=False).fit(X).outlier_score([[1.5], [9.0]])
    array([0.5, 7. ])
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        distance: str = "largest",
        standardize: bool = True,
        search: str = "auto",
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.distance = distance
        self.standardize = standardize
        self.search = search
        self.n_jobs = n_jobs

    def _learn(self, matrix: np.ndarray) -> np.ndarray:
        if self.distance not in _OF_ROW:
            raise BadInput(f"distance is {' or '.join(map(repr, _OF_ROW))}, not '{self.distance}'")
        if self.search not in _SEARCHES:
            raise BadInput(f"search is {' or '.join(map(repr, _SEARCHES))}, not '{self.search}'")
        return _OF_ROW[self.distance](self._keep(matrix)[0], axis=1)

    def _score(self, matrix: np.ndarray) -> np.ndarray:
        return _OF_ROW[self.distance](self._nearest(matrix)[0], axis=1)

    def _approximately(self) -> bool:
        """Whether to search in lists; said aloud where nobody asked for it."""
        if self.search != "auto":
            return self.search == "approximate"
        m = len(self.neighbours_.rows)
        if m <= EXACT_UP_TO or self.neighbours_.looks(self.n_neighbors_) <= QUICK:
            return False
        warnings.warn(
            f"'KNN' searches {m:,} rows approximately, so that some distances come out a little too large; "
            "search='exact' searches all rows and takes far longer",
            stacklevel=2,
        )
        return True
