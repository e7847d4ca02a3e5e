"""Grown trees as plain checked arrays, so that a saved forest runs nothing and cannot reach outside its memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.io.state import saved

_LARGEST = np.finfo(np.float32).max


@saved("trees")
@dataclass
class Trees:
    """The nodes of several trees, one tree after another.

    scikit-learn grows the trees and walks down them, which is faster than numpy can.

    Attributes
    ----------
    starts : int64 array (trees + 1,)
        Where each tree's nodes begin.
    left, right : int64 array (nodes,)
        Children, counted from the tree's first node, and -1 in leaves.
    feature : int64 array (nodes,)
    threshold : float64 array (nodes,)
        Rows at or below it go left.
    rows : int64 array (nodes,)
        Training rows that came by.
    width : int
        Columns of the matrix.

    Raises
    ------
    BadInput
        When a node points to no node after it in its tree or to no column, as only a damaged file can make it.
    """

    starts: np.ndarray
    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    rows: np.ndarray
    width: int
    _grown: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = np.diff(self.starts)
        sound = self.starts[0] == 0 and sizes.min() > 0 and self.starts[-1] == len(self.left)
        sound = sound and len({len(a) for a in (self.left, self.right, self.feature, self.threshold, self.rows)}) == 1
        if sound:
            size = np.repeat(sizes, sizes)
            inner = self.left != -1
            place = np.arange(len(size)) - np.repeat(self.starts[:-1], sizes)
            for child in (self.left, self.right):
                sound = sound and ((child > place) & (child < size))[inner].all() and (child[~inner] == -1).all()
            sound = sound and ((self.feature >= 0) & (self.feature < self.width))[inner].all()
        if not sound:
            raise BadInput("the saved trees are damaged: a node points to no node or column")

    @classmethod
    def of(cls, grown: list[Any], width: int) -> Trees:
        """Read scikit-learn's trees."""
        nodes = [tree.__getstate__()["nodes"] for tree in grown]
        every = np.concatenate(nodes)
        fields = ("left_child", "right_child", "feature", "threshold", "n_node_samples")
        left, right, feature, threshold, rows = (np.ascontiguousarray(every[name]) for name in fields)
        made = cls(np.cumsum([0, *map(len, nodes)]), left, right, feature, threshold, rows, width)
        made._grown = grown
        return made

    @property
    def grown(self) -> list[Any]:
        """scikit-learn's trees."""
        if not self._grown:
            self._grown = [self._regrown(*ends) for ends in zip(self.starts[:-1], self.starts[1:])]
        return self._grown

    def leaves(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield for each tree the leaves, counted from its first node, in which rows (float32, C order) end."""
        for tree in self.grown:
            yield tree.apply(rows)

    def _regrown(self, start: int, stop: int) -> Any:
        """Make a scikit-learn tree out of checked arrays."""
        from sklearn.tree._tree import Tree

        tree = Tree(self.width, np.ones(1, np.intp), 1)
        state = tree.__getstate__()
        nodes = np.zeros(stop - start, state["nodes"].dtype)
        for name, array in (("left_child", self.left), ("right_child", self.right), ("feature", self.feature)):
            nodes[name] = array[start:stop]
        nodes["threshold"], nodes["n_node_samples"] = self.threshold[start:stop], self.rows[start:stop]
        values = np.zeros((stop - start, 1, 1))
        tree.__setstate__({**state, "node_count": stop - start, "nodes": nodes, "values": values})
        return tree


def short(matrix: np.ndarray) -> np.ndarray:
    """Return 32-bit floats, as trees read them; what is too large for them becomes the largest."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(matrix, dtype=np.float32)
    return np.clip(rows, -_LARGEST, _LARGEST, out=rows)
