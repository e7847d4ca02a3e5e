"""RSA and CKA, slowly and plainly: every pair, triple and quadruple of samples in a loop."""

from __future__ import annotations

from itertools import permutations

import numpy as np


def ranks(values):
    """Ranks from 1, the mean rank where values are equal."""
    return [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]


def correlation(x, y):
    x, y = np.subtract(x, np.mean(x)), np.subtract(y, np.mean(y))
    return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


def rsa(X, Y, drawn=None):
    """Of the samples that were drawn, in their order; a sample and its copy are no pair."""
    drawn = range(len(X)) if drawn is None else drawn
    pairs = [(i, j) for place, i in enumerate(drawn) for j in list(drawn)[:place] if i != j]
    x, y = ([np.sqrt(((Z[i] - Z[j]) ** 2).sum()) for i, j in pairs] for Z in (X, Y))
    # distances of copies are the same number, whichever way round they are computed
    return correlation(ranks(np.round(x, 12)), ranks(np.round(y, 12)))


def cka(X, Y):
    """With the centring matrix, as defined."""
    H = np.eye(len(X)) - 1 / len(X)
    K, L = H @ X @ X.T @ H, H @ Y @ Y.T @ H
    return np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L))


def debiased_cka(X, Y, drawn=None):
    """With the mean over all quadruples of distinct samples, each as often as it was drawn."""
    drawn = list(range(len(X)) if drawn is None else drawn)
    often = {i: drawn.count(i) for i in set(drawn)}

    def hsic(A, B):
        K, L = A @ A.T, B @ B.T
        total = count = 0
        for i, j, k, m in permutations(often, 4):
            weight = often[i] * often[j] * often[k] * often[m]
            total += weight * K[i, j] * (L[i, j] - 2 * L[i, k] + L[k, m])
            count += weight
        return total / count

    return hsic(X, Y) / np.sqrt(hsic(X, X) * hsic(Y, Y))


def intervals(X, Y, draws, seed):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = rng.integers(len(X), size=len(X)).tolist()
        found.append((rsa(X, Y, drawn), debiased_cka(X, Y, drawn)))
    return np.quantile(found, (0.025, 0.975), axis=0)
