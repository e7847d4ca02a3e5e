"""kNN and LOF, row by row."""

from __future__ import annotations

import math

import numpy as np


def neighbours(row, rows, k):
    """Distances and places of the k rows nearest to a row, by measuring all."""
    measured = sorted((math.dist(row, other), place) for place, other in enumerate(rows))[:k]
    return np.array([d for d, _ in measured]), [place for _, place in measured]


def others(rows, i):
    """All rows but one."""
    return np.delete(rows, i, axis=0)


def knn(rows, k):
    """Distance from each row to its k-th neighbour among the others."""
    return np.array([neighbours(row, others(rows, i), k)[0][-1] for i, row in enumerate(rows)])


def lof(rows, k):
    """Local outlier factor of each row among the others, in the words of the paper's definitions 3 to 7."""
    n = len(rows)
    near = []
    for i in range(n):
        _, places = neighbours(rows[i], others(rows, i), k)
        near.append([place + (place >= i) for place in places])
    k_distance = knn(rows, k)

    def reachability(p, o):
        return max(k_distance[o], math.dist(rows[p], rows[o]))

    density = [1 / np.mean([reachability(p, o) for o in near[p]]) for p in range(n)]
    return np.array([np.mean([density[o] / density[p] for o in near[p]]) for p in range(n)])
