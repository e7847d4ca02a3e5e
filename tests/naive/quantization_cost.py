"""The cost of rounding the slow way: numpy in float64, a value at a time where that is clearest."""

from __future__ import annotations

import numpy as np


def nearest(values, bits):
    """Round one group of values that share a scale."""
    most = 2 ** (bits - 1) - 1
    scale = np.abs(values).max() / most
    return values if scale == 0 else np.clip(np.round(values / scale), -most, most) * scale


def rows(matrix, bits):
    return np.array([nearest(row, bits) for row in matrix])


def error(x, weight, rounded_x, rounded_weight):
    y = x @ weight.T
    return ((rounded_x @ rounded_weight.T - y) ** 2).sum() / (y**2).sum()


def plain(x, weight):
    """Errors by scheme; rows of x are tokens, rows of the weight outputs."""
    return {
        "w8a8": error(x, weight, nearest(x, 8), rows(weight, 8)),
        "w4a16": error(x, weight, x, rows(weight, 4)),
        "w4a4": error(x, weight, rows(x, 4), rows(weight, 4)),
    }


def smoothed(x, weight):
    """SmoothQuant at one half: x and the weight with the range moved."""
    scale = np.sqrt(np.abs(x).max(0) / np.abs(weight).max(0))
    return x / scale, weight * scale


def without_columns(x, weight, bits):
    """LLM.int8() with one scale for the rest of the tensor: columns that reach 6 in full."""
    far = (np.abs(x) >= 6).any(0)
    inner = np.where(far, 0, x)
    return np.where(far, x, 0) @ weight.T + nearest(inner, bits) @ rows(weight, bits).T


def divergence(logits, changed):
    """Mean Kullback-Leibler divergence of rows of logits from changed ones."""

    def logs(z):
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    p, q = logs(logits), logs(changed)
    return (np.exp(p) * (p - q)).sum(1).mean()
