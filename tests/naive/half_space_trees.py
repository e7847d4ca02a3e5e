"""Streaming half-space trees by their definition: one row at a time, every node of every tree counts its rows."""

from __future__ import annotations

import math
from collections import Counter


class HalfSpaceTree:
    """One complete tree over its work space; the root is node 1, and node k has the children 2 k and 2 k + 1."""

    def __init__(self, features: list[int], low: list[float], high: list[float]) -> None:
        self.features, self.low, self.high = features, low, high
        self.height = len(features).bit_length()
        self.reference: Counter[int] = Counter()
        self.latest: Counter[int] = Counter()

    def path(self, row: list[float]) -> list[int]:
        """Return all nodes from the root to the leaf."""
        low, high, nodes = list(self.low), list(self.high), [1]
        while len(nodes) <= self.height:
            feature = self.features[nodes[-1] - 1]
            middle = low[feature] / 2 + high[feature] / 2
            right = row[feature] >= middle
            (low if right else high)[feature] = middle
            nodes.append(2 * nodes[-1] + right)
        return nodes

    def learn(self, row: list[float]) -> None:
        """Count a row in all nodes on its path."""
        self.latest.update(self.path(row))

    def end_of_window(self) -> None:
        """Let the latest masses take the place of the reference's."""
        self.reference, self.latest = self.latest, Counter()

    def density(self, row: list[float], size_limit: float) -> float:
        """Return ``r 2**k`` of the first node that is a leaf or has few rows."""
        for depth, node in enumerate(self.path(row)):
            mass = self.reference[node]
            if mass <= size_limit or depth == self.height:
                return float(mass * 2**depth)
        raise AssertionError("a path ends at a leaf")


def score(trees: list[HalfSpaceTree], row: list[float], window: int) -> float:
    """Logarithm of the largest sum of densities over that of the row, with 1 added to both."""
    total = sum(tree.density(row, window / 10) for tree in trees)
    return math.log((1 + len(trees) * window * 2.0 ** trees[0].height) / (1 + total))


def stream(trees: list[HalfSpaceTree], rows: list[list[float]], window: int) -> list[float]:
    """Score each row, then learn it; rows of the first window score 0."""
    scores = []
    for i, row in enumerate(rows):
        scores.append(score(trees, row, window) if i >= window else 0.0)
        for tree in trees:
            tree.learn(row)
        if (i + 1) % window == 0:
            for tree in trees:
                tree.end_of_window()
    return scores
