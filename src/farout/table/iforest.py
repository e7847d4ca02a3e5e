"""IForest: Isolation Forest.

Fei Tony Liu, Kai Ming Ting, Zhi-Hua Zhou, ICDM 2008 (doi 10.1109/ICDM.2008.17).

Outliers are few and different, so random splits of random features isolate them early: the score falls with the mean
depth at which a row ends in trees grown on small samples.

The paper claims better AUROC and less time than ORCA, LOF and random forests, most of all on large data sets, and that
it works with many irrelevant features and with no outliers among the training rows.

Differences from the paper: scikit-learn grows the trees (on 32-bit floats). Missing numbers take the training median; a
category is one column, ``-log(share of the level)``, so that rare levels lie at its end. A saved forest holds plain
arrays, which are checked when they are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.kit.engine import in_threads
from farout.table._common import MatrixDetector
from farout.table._trees import Trees, short

_DRAWN = 1024  # training rows that the threshold of `predict` comes from, so that `fit` need not score them all
_CHUNK = 8192  # rows that stay in cache while all trees read them


@paper(
    "IForest",
    title="Isolation Forest",
    authors="Liu, Ting, Zhou",
    url="https://doi.org/10.1109/ICDM.2008.17",
    year=2008,
    claim="Better AUROC and less time than ORCA, LOF and random forests, most of all on large data; works with many "
    "irrelevant features and without outliers in training.",
    differs="scikit-learn grows the trees, on 32-bit floats. Missing values and categories are added, and forests are "
    "saved as plain arrays.",
    takes=("numeric", "missing", "category", "date"),
)
class IForest(MatrixDetector):
    """``2 ** (-mean depth / c)``, in (0, 1).

    The depth of a row in a tree is that of its leaf plus ``c(rows in the leaf)``, where ``c(m)`` is the mean depth of
    an unsuccessful search in a binary tree of m rows, and ``c = c(max_samples)``. The threshold of ``predict`` comes
    from 1,024 drawn training rows. Cost: ``O(n_estimators * max_samples * log max_samples)`` to grow, and a walk down
    each tree to score a row.

    Parameters
    ----------
    n_estimators : int
        Trees; the paper's t.
    max_samples : int
        Rows drawn for each tree, or all where there are fewer; the paper's psi.
    random_state : int, RandomState or None
    n_jobs : int, optional
        Threads; scores do not depend on it.

    Attributes
    ----------
    trees_ : Trees

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> forest = IForest(random_state=0).fit(X)
    >>> forest.outlier_score([[0.0, 0.0], [6.0, -6.0]]).round(1)
    array([0.4, 0.7])
    """

    standardize = False  # splits do not depend on scale

    def __init__(
        self, n_estimators: int = 100, max_samples: int = 256, random_state: Any = None, n_jobs: int | None = None
    ) -> None:
        self.n_estimators = n_estimators
        self.max_samples = max_samples
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> IForest:
        """Grow the trees, and score no more rows than the threshold of ``predict`` needs."""
        rows = self._grow(self._matrix(X, reset=True))
        self._set_offset(_score(self.trees_, rows[_drawn(len(rows))], None))
        return self

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return the score of each training row (n,)."""
        rows = self._grow(self._matrix(X, reset=True))
        scores = _score(self.trees_, rows, self.n_jobs)
        self._set_offset(scores[_drawn(len(rows))])
        return scores

    def _score(self, matrix: np.ndarray) -> np.ndarray:
        return _score(self.trees_, short(matrix), self.n_jobs)

    def _grow(self, matrix: np.ndarray) -> np.ndarray:
        """Grow the trees, and return the rows as they read them."""
        from sklearn.ensemble import IsolationForest

        if self.max_samples < 1:
            raise BadInput(f"max_samples is a number of rows, at least 1, not {self.max_samples}")
        rows = short(matrix)
        n = len(rows)
        forest = IsolationForest(
            n_estimators=self.n_estimators,
            max_samples=min(self.max_samples, n),
            random_state=self.random_state,
            n_jobs=self.n_jobs,
        )
        self.trees_ = Trees.of([tree.tree_ for tree in forest.fit(rows).estimators_], rows.shape[1])
        return rows


def _score(trees: Trees, rows: np.ndarray, n_jobs: int | None) -> np.ndarray:
    """Score rows, float32 (n, width) in C order."""
    usual = _mean_depth(trees.rows[:1])[0]  # the root has seen all rows of its tree
    below = np.split(_mean_depth(trees.rows), trees.starts[1:-1])
    lengths = [tree.compute_node_depths() - 1.0 + depth for tree, depth in zip(trees.grown, below)]

    def depth(start: int) -> np.ndarray:
        some = rows[start : start + _CHUNK]
        total = np.zeros(len(some))
        for leaves, length in zip(trees.leaves(some), lengths):
            total += length[leaves]
        return total

    depths = np.concatenate(list(in_threads(depth, range(0, len(rows), _CHUNK), n_jobs)))
    return 2.0 ** -(depths / (len(lengths) * usual) if usual else np.ones(len(depths)))


def _drawn(n: int) -> np.ndarray | slice:
    """Return the places of the rows that set the threshold."""
    return slice(None) if n <= _DRAWN else np.random.default_rng(0).choice(n, _DRAWN, replace=False)


def _mean_depth(m: np.ndarray) -> np.ndarray:
    """``c(m) = 2 H(m - 1) - 2 (m - 1) / m`` with ``H(k) = log k + 0.5772``; ``c(1) = 0`` and ``c(2) = 1``."""
    many = np.maximum(m, 3.0)
    formula = 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many
    return np.where(m > 2, formula, np.where(m == 2, 1.0, 0.0))
