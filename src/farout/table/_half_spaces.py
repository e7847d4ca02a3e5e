"""Trees that halve drawn features of a work space, and the mass that a window of rows gives to their nodes.

The trees are complete in principle; only nodes that some row can come to are made. A path ends at the first node with
few rows, and a window of psi rows has, on each level, fewer than ten nodes with more than psi / 10 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farout.errors import BadInput
from farout.io.state import saved

_SIZE_LIMIT = 0.1  # share of the window's rows; a node with no more of them ends every path
_FARTHEST = 1e307  # where a work space ends at the latest, so that its size stays finite
_CHUNK = 512  # rows that stay in cache while they walk down all trees


def work_space(window: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of ``s +- 2 max(s, 1 - s)``, where 0 and 1 are the least and the largest value of the window.

    Parameters
    ----------
    window : float64 array (n, d)
        A column that is constant has unit 1.
    centres : float64 array (trees, d)
        The paper's s, in [0, 1].

    Returns
    -------
    low, high : float64 array (trees, d)
        In the units of the window.
    """
    least, largest = np.clip((window.min(axis=0), window.max(axis=0)), -_FARTHEST, _FARTHEST)
    span = np.where(largest > least, largest - least, 1.0)
    half = 2 * np.maximum(centres, 1 - centres)
    return least + (centres - half) * span, least + (centres + half) * span


@saved("half_spaces")
@dataclass(frozen=True)
class HalfSpaces:
    """The nodes that rows can come to, all trees together, level by level.

    Attributes
    ----------
    feature : int64 array (nodes,)
    threshold : float64 array (nodes,)
        Rows below it go to the first child, others to the one after it. Infinite where paths end.
    child : int64 array (nodes,)
        First child; the node itself where paths end. The roots are the first ``trees`` nodes.
    density : float64 array (nodes,)
        ``r 2**k`` where paths end, else 0: whole numbers, whose sums are exact.
    trees, levels : int
        Trees, and steps to the deepest node.
    peak : float
        The largest sum of densities, ``t psi 2**h``.

    Raises
    ------
    BadInput
        When a node's child is no later node, as only a damaged file can make it.
    """

    feature: np.ndarray
    threshold: np.ndarray
    child: np.ndarray
    density: np.ndarray
    trees: int
    levels: int
    peak: float

    def __post_init__(self) -> None:
        n = len(self.child)
        sound = len({len(a) for a in (self.feature, self.threshold, self.child, self.density)}) == 1
        inner = self.threshold != np.inf
        sound = sound and ((self.child >= np.arange(n) + inner) & (self.child + inner < n)).all()
        if not (sound and 0 < self.trees <= n and 0 <= self.levels <= n and self.feature.min() >= 0):
            raise BadInput("the saved half-space trees are damaged: a node points to no node or column")

    @classmethod
    def grown(
        cls, window: np.ndarray, features: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[HalfSpaces, np.ndarray]:
        """Count a window's rows in the trees.

        Parameters
        ----------
        window : float64 array (n, d)
        features : int array (trees, 2 ** height - 1)
            The column that each node of the complete trees halves, level by level.
        low, high : float64 array (trees, d)
            Work space of each tree.

        Returns
        -------
        HalfSpaces
        float64 array (n,)
            Scores of the window's own rows.
        """
        n, trees, height = len(window), len(features), features.shape[1].bit_length()
        tree, place = np.arange(trees), np.zeros(trees, np.int64)  # of a level's nodes; place counts from the left
        row, node = np.tile(np.arange(n), trees), np.repeat(tree, n)  # of all rows that are on their way
        levels, start, sums = [], 0, np.zeros(n)
        for depth in range(height + 1):
            mass = np.bincount(node, minlength=len(tree))
            halved = (mass > _SIZE_LIMIT * n) & (depth < height)
            density = np.where(halved, 0.0, mass * 2.0**depth)
            sums += np.bincount(row, weights=density[node], minlength=n)

            inner = np.flatnonzero(halved)
            tree, place, low, high = tree[inner], place[inner], low[inner], high[inner]
            own = np.arange(len(inner))
            axis = features[tree, 2**depth - 1 + place].astype(np.int64)
            middle = low[own, axis] / 2 + high[own, axis] / 2  # halved first: the sum might overflow
            feature, threshold = np.zeros(len(mass), np.int64), np.full(len(mass), np.inf)
            feature[inner], threshold[inner] = axis, middle
            child = start + np.arange(len(mass))
            start += len(mass)
            child[inner] = start + 2 * own
            levels.append((feature, threshold, child, density))
            if not len(inner):
                break

            going = halved[node]
            row, node = row[going], node[going]
            node = child[node] - start + (window[row, feature[node]] >= threshold[node])
            tree, place = np.repeat(tree, 2), np.repeat(2 * place, 2)
            place[1::2] += 1
            low, high = np.repeat(low, 2, axis=0), np.repeat(high, 2, axis=0)
            high[2 * own, axis], low[2 * own + 1, axis] = middle, middle
        feature, threshold, child, density = map(np.concatenate, zip(*levels))
        made = cls(feature, threshold, child, density, trees, len(levels) - 1, float(trees * n * 2**height))
        return made, made._scores(sums)

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Score the rows of a matrix (n, d), n at least 1."""
        rows = np.ascontiguousarray(rows)
        return self._scores(np.concatenate([self._sums(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]))

    def _sums(self, rows: np.ndarray) -> np.ndarray:
        """Walk all rows down all trees together, a level at a time; return the sums (n,) of densities."""
        n, d = rows.shape
        cells, first = rows.ravel(), d * np.arange(n)[:, None]
        node = np.tile(np.arange(self.trees), (n, 1))
        for _ in range(self.levels):
            right = cells.take(first + self.feature.take(node)) >= self.threshold.take(node)
            node = self.child.take(node) + right
        return self.density.take(node).sum(axis=1)

    def _scores(self, sums: np.ndarray) -> np.ndarray:
        """``log((1 + t psi 2**h) / (1 + sum))``: 0 where all rows end in one leaf, largest where none does."""
        return np.log((1 + self.peak) / (1 + sums))
