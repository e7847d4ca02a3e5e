"""OmniQuant by its formulas, one row or group at a time in float64, and its moves on maps that are named."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(logit):
    return 1.0 / (1.0 + math.exp(-logit))


def clipped(weight, high, low, bits, group=0):
    """Return the rounded weight, codes, and gradients of ``sum(c * rounded)`` as a function of ``c``."""
    outputs, inputs = weight.shape
    group = group or inputs
    rounded, codes = np.zeros_like(weight), np.zeros_like(weight)
    steps, most = {}, 2**bits - 1
    for o in range(outputs):
        for g in range(inputs // group):
            at = slice(g * group, (g + 1) * group)
            w = weight[o, at]
            top, bottom = sigmoid(high[o, g]) * w.max(), sigmoid(low[o, g]) * w.min()
            h = (top - bottom) / most
            z = np.round(-bottom / h)
            q = np.clip(np.round(w / h) + z, 0, most)
            rounded[o, at], codes[o, at], steps[o, g] = h * (q - z), q, (h, z)

    def gradients(c):
        """Straight through the rounding of weights; the zero point is a constant."""
        of_high, of_low, of_weight = np.zeros_like(high), np.zeros_like(low), np.zeros_like(weight)
        for (o, g), (h, z) in steps.items():
            at = slice(g * group, (g + 1) * group)
            w, q = weight[o, at], codes[o, at]
            inside = (np.round(w / h) + z >= 0) & (np.round(w / h) + z <= most)
            of_step = np.sum(c[o, at] * (q - z - np.where(inside, w / h, 0.0)))
            up, down = sigmoid(high[o, g]), sigmoid(low[o, g])
            of_high[o, g] = of_step / most * w.max() * up * (1 - up)
            of_low[o, g] = -of_step / most * w.min() * down * (1 - down)
            of_weight[o, at] = c[o, at] * inside
            of_weight[o, g * group + w.argmax()] += of_step / most * up
            of_weight[o, g * group + w.argmin()] -= of_step / most * down
        return of_high, of_low, of_weight

    return rounded, codes, gradients


def of_token(x, bits):
    """Round each token (row) by its own least and greatest, with a zero point that is free."""
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        h = (row.max() - row.min()) / (2**bits - 1)
        z = np.round(-row.min() / h)
        out[t] = h * (np.clip(np.round(row / h) + z, 0, 2**bits - 1) - z)
    return out


def smooth_start(x, weight, alpha):
    """The scale of each channel of ``x`` (N, I) that a weight (O, I) reads."""
    return np.array(
        [np.abs(x[:, j]).max() ** alpha / np.abs(weight[:, j]).max() ** (1 - alpha) for j in range(x.shape[1])]
    )


def after_norm(gain, offset, consumers, s, d):
    """Return gain and offset of the norm, and (weight, bias) of each map that reads it."""
    moved = [(weight * s[None, :], bias + weight @ d) for weight, bias in consumers]
    return gain / s, (offset - d) / s, moved


def values_to_output(value, output, s, d):
    """Return (weight, bias) of the value map and of the output map, with as many heads of values as of queries."""
    (v, b), (o, c) = value, output
    return (v / s[:, None], (b - d) / s), (o * s[None, :], c + o @ d)
