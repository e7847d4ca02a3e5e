"""How badly half of a row's features predict the other half, over many random halvings of the features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from farout.io.state import saved
from farout.kit.engine import in_threads
from farout.table._trees import Trees, short

INPUTS, OUTPUTS = 64, 32  # features that a halving reads and predicts at most, so that wide tables stay affordable
_CHUNK = 4096  # rows whose errors are in memory at a time
_FLOOR = 1e-4  # least squared error that is worth telling from none, in squared standard deviations


@saved("halving")
@dataclass
class Halving:
    """Forests that predict some features from others, each grown on half of the rows.

    Attributes
    ----------
    inputs, outputs : int64 array
        Columns that are read and predicted.
    owner : int64 array (outputs,)
        The feature of each predicted column.
    scale : float64 array (outputs,)
        Standard deviations of the predicted columns.
    forests : list of Trees
        Two, each grown on the rows that the other was not.
    values : list of float32 array (leaves, outputs)
        What the leaves of a forest predict, leaf by leaf in the order of its nodes.
    usual : float64 array (d,)
        Squared error of each feature that is usual; NaN for features that are not predicted.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    owner: np.ndarray
    scale: np.ndarray
    forests: list[Trees]
    values: list[np.ndarray]
    usual: np.ndarray

    def surprise(self, matrix: np.ndarray) -> np.ndarray:
        """Return the surprise (n, d) of rows that no forest has seen."""
        return self.judged(self.squared(matrix, None))

    def judged(self, squared: np.ndarray) -> np.ndarray:
        """Return ``log(1 + squared error / usual squared error)`` of each feature (n, d), 0 where none is predicted."""
        return np.where(np.isnan(self.usual), 0.0, np.log1p(squared / self.usual))

    def squared(self, matrix: np.ndarray, unseen: np.ndarray | None) -> np.ndarray:
        """Return the squared error of each feature (n, d), summed over its columns.

        Parameters
        ----------
        matrix : float64 array (n, columns)
        unseen : int array (n,) or None
            Of training rows: the forest that has not seen the row. None takes the mean of both forests.
        """
        each = self.guess(matrix)
        guess = each.mean(axis=0) if unseen is None else each[unseen, np.arange(len(matrix))]
        error = (matrix[:, self.outputs] - guess) / self.scale
        total = np.zeros((len(matrix), len(self.usual)))
        for column, feature in enumerate(self.owner):
            total[:, feature] += error[:, column] ** 2
        return total

    def guess(self, matrix: np.ndarray) -> np.ndarray:
        """Return what each forest predicts (2, n, outputs)."""
        rows = short(matrix[:, self.inputs])
        return np.stack([_predicted(forest, values, rows) for forest, values in zip(self.forests, self.values)])


@saved("halvings")
@dataclass
class Halvings:
    """Many halvings of the features of a table.

    Attributes
    ----------
    members : list of Halving
    """

    members: list[Halving]

    @classmethod
    def grow(
        cls, matrix: np.ndarray, owner: np.ndarray, many: int, trees: int, most: int, seed: int, n_jobs: int | None
    ) -> tuple[Halvings, np.ndarray]:
        """Grow forests for random halvings, and return also the surprise (n, d) of the rows that they grew from.

        Each row's surprise comes from the forest that has not seen it.

        Parameters
        ----------
        matrix : float64 array (n, columns)
        owner : int64 array (columns,)
            The feature that each column belongs to; at least two features.
        many : int
            Halvings.
        trees : int
            Trees of each of the two forests of a halving.
        most : int
            Rows that a forest is grown from.
        seed : int
        n_jobs : int, optional
            Threads; nothing that is returned depends on it.
        """
        seeds = np.random.SeedSequence(seed).spawn(many)
        work = in_threads(lambda one: _grown(matrix, owner, trees, most, one), seeds, n_jobs)
        made, parts = zip(*work)
        halvings = cls(list(made))
        return halvings, _mean(parts, halvings._times)

    def surprise(self, matrix: np.ndarray, n_jobs: int | None) -> np.ndarray:
        """Return the surprise (n, d) of rows that no forest has seen: the mean over halvings, feature by feature."""

        def piece(start: int) -> np.ndarray:
            some = matrix[start : start + _CHUNK]
            return _mean((member.surprise(some) for member in self.members), self._times)

        return np.concatenate(list(in_threads(piece, range(0, len(matrix), _CHUNK), n_jobs)))

    def expected(self, matrix: np.ndarray) -> np.ndarray:
        """Return what the other features let expect (n, columns); NaN for columns that are never predicted."""
        total, times = np.zeros(matrix.shape), np.zeros(matrix.shape[1])
        for member in self.members:
            total[:, member.outputs] += member.guess(matrix).mean(axis=0)
            times[member.outputs] += 1
        return np.where(times > 0, total / np.maximum(times, 1), np.nan)

    @property
    def _times(self) -> np.ndarray:
        """How many halvings predict each feature (d,)."""
        return np.sum([~np.isnan(member.usual) for member in self.members], axis=0)


def _mean(parts: Iterable[np.ndarray], times: np.ndarray) -> np.ndarray:
    """Return the mean of each feature over the halvings that predict it."""
    return reduce(np.add, parts) / np.maximum(times, 1)


def _grown(
    matrix: np.ndarray, owner: np.ndarray, trees: int, most: int, seed: np.random.SeedSequence
) -> tuple[Halving, np.ndarray]:
    """Grow the two forests of one halving; return it and the surprise of the rows."""
    from sklearn.tree import ExtraTreeRegressor  # one by one: scikit-learn's forests take a while to import

    rng = np.random.default_rng(seed)
    n, d = len(matrix), int(owner.max()) + 1
    features = rng.permutation(d)
    inputs = np.flatnonzero(np.isin(owner, features[: (d + 1) // 2][:INPUTS]))
    outputs = np.flatnonzero(np.isin(owner, features[(d + 1) // 2 :][:OUTPUTS]))
    deviation = matrix[:, outputs].std(axis=0)
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    side = rng.permutation(n) % 2  # the forest that must not see the row
    read, wanted = short(matrix[:, inputs]), matrix[:, outputs]
    forests, values = [], []
    for forest in (0, 1):
        rows = np.flatnonzero(side != forest)
        rows = rows if len(rows) <= most else rng.choice(rows, most, replace=False)
        wished = wanted[rows] / scale if len(outputs) > 1 else wanted[rows, 0] / scale
        seeds = np.random.RandomState(int(rng.integers(2**31))).randint(2**31 - 1, size=trees)
        grown = [ExtraTreeRegressor(random_state=one).fit(read[rows], wished, check_input=False).tree_ for one in seeds]
        forests.append(Trees.of(grown, len(inputs)))
        leaves = [tree.value[tree.children_left == -1, :, 0] * scale for tree in grown]
        values.append(np.concatenate(leaves).astype(np.float32))
    made = Halving(inputs, outputs, owner[outputs], scale, forests, values, np.full(d, np.nan))
    squared = made.squared(matrix, side)
    told = np.unique(made.owner)
    # the median says what is usual whatever the outliers are; 2.2 is that of a squared Gaussian error, inverted
    made.usual[told] = (2.2 * np.median(squared, axis=0) + 0.05 * squared.mean(axis=0) + _FLOOR)[told]
    return made, made.judged(squared)


def _predicted(forest: Trees, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the mean of the trees' predictions (n, outputs)."""
    place = np.cumsum(forest.left == -1) - 1  # of a node among all leaves, where it is one
    total: np.ndarray | float = 0.0
    for start, leaves in zip(forest.starts, forest.leaves(rows)):
        total = total + values[place[start + leaves]]
    return np.asarray(total, dtype=float) / (len(forest.starts) - 1)
