"""HalfSpaceTrees: Fast Anomaly Detection for Streaming Data.

Swee Chuan Tan, Kai Ming Ting, Tony Fei Liu, IJCAI 2011 (pages 1511-1516).

Trees that halve random features are drawn once, without looking at data. A window of rows gives each node its mass;
rows of the next window are scored by the mass where they end, few rows in much space being far out; then the new
window takes the place of the old one. A row costs the same however long the stream is.

The paper claims AUROCs and times that compare favourably with those of online Hoeffding trees, in constant memory and
constant amortised time a row, and that the method follows a stream that changes.

Differences from the paper: it takes features in [0, 1] as given; here the least and the largest value of the first
window are 0 and 1, later values may lie outside, and the outermost half-spaces have no end. Its score is low for
anomalies; here it is turned round and brought to a logarithmic scale. Missing numbers take the first window's median;
a category is one column, ``-log(share of the level in the first window)``. Below a node with no more rows than the size
limit no path goes on, so nothing is kept there: scores are those of complete trees.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.kit.columns import Features
from farout.kit.profile import RowSample
from farout.rows import TableDetector
from farout.table._common import Encoder
from farout.table._half_spaces import HalfSpaces, work_space

_DEEPEST = 20  # a tree has 2 ** height - 1 drawn features


@paper(
    "HalfSpaceTrees",
    title="Fast Anomaly Detection for Streaming Data",
    authors="Tan, Ting, Liu",
    url="https://www.ijcai.org/Proceedings/11/Papers/254.pdf",
    year=2011,
    claim="AUROC and time compare favourably with those of online Hoeffding trees, in constant memory and constant "
    "time a row; it follows a stream that changes.",
    differs="The first window sets the range of each feature. The score is turned round and logarithmic. Missing "
    "values and categories are added. It learns by `partial_fit`, in the order of the rows; states do not merge.",
    takes=("numeric", "missing", "category", "date"),
)
class HalfSpaceTrees(TableDetector):
    """``log((1 + t psi 2**h) / (1 + sum_trees r 2**k))``, from 0 (all rows in one leaf) upwards.

    ``r`` is the mass of the node where a row ends, the number of rows of the last whole window in it, and ``k`` that
    node's depth: the first with ``r <= 0.1 psi``, or the leaf at depth h. So ``r 2**k`` is the density around the row,
    and the score falls with its mean over the trees. The order of rows matters: ``fit`` learns them as a stream, and
    what came before the last whole window is forgotten. A first window that is not whole yet is taken as it is.

    The threshold of ``predict`` comes from the rows of the last whole window. Cost a row: a walk down each tree.

    Parameters
    ----------
    n_trees : int
        The paper's t.
    height : int
        Depth of the trees, 1 to 20; the paper's h (maxDepth).
    window_size : int
        Rows in a window; the paper's psi.
    random_state : int, RandomState or None

    Attributes
    ----------
    encoder_ : Encoder
        How a table becomes a matrix, learned from the first window.
    low_, high_ : float64 array (n_trees, d)
        Work space of each tree.
    features_ : int array (n_trees, 2 ** height - 1)
        The column that each node halves, level by level.
    reference_ : HalfSpaces
        Masses of the last whole window.

    Examples
    --------
    >>> import numpy as np
    >>> stream = np.random.default_rng(0).normal(size=(1000, 2))
    >>> trees = HalfSpaceTrees(random_state=0)
    >>> scores = trees.score_partial_fit(stream)  # each row is scored, then learned
    >>> trees.outlier_score([[0.0, 0.0], [6.0, -6.0]]).round(1)
    array([ 6.7, 14.5])
    """

    def __init__(self, n_trees: int = 25, height: int = 15, window_size: int = 250, random_state: Any = None) -> None:
        self.n_trees = n_trees
        self.height = height
        self.window_size = window_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Forget everything, and learn the rows as a stream.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : ignored
        """
        self._stream(self._begun(X), scored=False)
        return self

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return the score (n,) of each row against the last whole window.

        The paper's own protocol, each row against the window before it, is :meth:`score_partial_fit`.
        """
        features = self._begun(X)
        self._stream(features, scored=False)
        return self.reference_.score(self.encoder_.transform(features))

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn more rows of the stream; any cut of it into batches gives the same state.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : ignored
        """
        self._stream(self._continued(X), scored=False)
        return self

    def score_partial_fit(self, X: Any, y: Any = None) -> np.ndarray:
        """Score each row, then learn it, as the paper does; any cut into batches gives the same scores.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : ignored

        Returns
        -------
        float64 array (n,)
            Against the window before the row's own; 0, the least score, for the rows of the first window, from which
            nothing can stand out yet.
        """
        return self._stream(self._continued(X), scored=True)

    def outlier_score(self, X: Any) -> np.ndarray:
        """Score rows against the last whole window, and learn nothing.

        Parameters
        ----------
        X : array or data frame (n, d)

        Returns
        -------
        float64 array (n,)
        """
        features = self._features(X, reset=False)
        return self.reference_.score(self.encoder_.transform(features))

    def _begun(self, X: Any) -> Features:
        """Draw the trees for a table, and return its features."""
        from sklearn.utils import check_random_state

        if self.n_trees < 1 or self.window_size < 1:
            raise BadInput(f"n_trees and window_size are at least 1, not {self.n_trees} and {self.window_size}")
        if not 1 <= self.height <= _DEEPEST:
            raise BadInput(f"height is 1 to {_DEEPEST}, not {self.height}")
        features = self._features(X, reset=True)
        d = len(features.names)
        rng = check_random_state(self.random_state)
        self._centres = rng.uniform(size=(self.n_trees, d))  # s
        nodes = rng.randint(d, size=(self.n_trees, 2**self.height - 1))
        self.features_ = nodes.astype(np.min_scalar_type(d - 1))
        self._opening: RowSample | None = RowSample.of(features.take(np.arange(0)), self.window_size)
        self._latest = np.empty((0, d))
        return features

    def _continued(self, X: Any) -> Features:
        return self._features(X, reset=False) if hasattr(self, "reference_") else self._begun(X)

    def _stream(self, features: Features, scored: bool) -> np.ndarray:
        """Learn rows in order; where asked, return the score of each as it was before it was learned."""
        scores = np.zeros(features.n)
        used = self._open(features)
        if used == features.n:
            return scores
        matrix = self.encoder_.transform(features.take(np.arange(used, features.n)) if used else features)
        if not scored:
            self._learn(matrix)
            return scores
        while used < features.n:
            # masses change at the ends of windows only, so that the rows between are scored together
            piece, matrix = np.split(matrix, [self.window_size - len(self._latest)])
            scores[used : used + len(piece)] = self.reference_.score(piece)
            self._learn(piece)
            used += len(piece)
        return scores

    def _open(self, features: Features) -> int:
        """Learn rows that belong to the first window: ranges, levels and masses; return how many they are."""
        if self._opening is None:
            return 0
        seen = self._opening.seen
        used = min(features.n, self.window_size - seen)
        rows = RowSample.of(features.take(np.arange(used)), self.window_size, start=seen)
        self._opening = self._opening.merge(rows)  # holds all of them, in an order that no cut changes
        window = self._opening.features()
        self.encoder_ = Encoder.fit(window, "surprise", standardize=False)
        matrix = self.encoder_.transform(window)
        self.low_, self.high_ = work_space(matrix, self._centres)
        self._refer_to(matrix)
        if window.n == self.window_size:
            self._opening = None
        return used

    def _learn(self, matrix: np.ndarray) -> None:
        """Add rows to the latest window; of the windows that become whole only the last one is remembered."""
        rows = np.vstack((self._latest, matrix))
        end = len(rows) // self.window_size * self.window_size
        if end:
            self._refer_to(rows[end - self.window_size : end])
        self._latest = rows[end:].copy()

    def _refer_to(self, window: np.ndarray) -> None:
        self.reference_, scores = HalfSpaces.grown(window, self.features_, self.low_, self.high_)
        self._set_offset(scores)
