"""OutRank's scores as the paper's code computes them: one value of the feature after the other."""

from __future__ import annotations

import numpy as np


def entropy(labels):
    """Entropy of labels, in nats."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return -sum(p * np.log(p) for p in shares)


def mi(x, y):
    """H(Y) - H(Y|X)."""
    return entropy(y) - sum(np.mean(x == v) * entropy(y[x == v]) for v in np.unique(x))


def mi_shifted(x, y):
    """Each value's labels against those as many rows further down as the value has."""
    score, n = 0.0, len(x)
    for value in np.unique(x):
        rows = np.flatnonzero(x == value)
        if len(rows) < 2:
            continue
        other = [y[(row + len(rows)) % n] for row in rows]
        score += len(rows) / n * (entropy(np.array(other)) - entropy(y[rows]))
    return score
