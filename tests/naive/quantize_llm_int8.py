"""LLM.int8() written out: integers token by token, columns with outliers on their own."""

from __future__ import annotations

import numpy as np


def integers(values):
    """Return the integers of a row and its scale: the largest magnitude, which becomes 127."""
    scale = max((abs(value) for value in values), default=0.0)
    return [round(127 * value / scale) if scale else 0 for value in values], scale


def linear(x, weight, bias, threshold):
    """Return ``x W' + b`` (N, O) of LLM.int8(), the integers and scales of tokens and weights, and the columns in 16
    bits."""
    split = threshold or np.inf
    columns = [j for j in range(x.shape[1]) if any(abs(value) >= split for value in x[:, j])]
    weights = [integers(row) for row in weight.tolist()]
    tokens = []
    for row in x.tolist():
        codes, scale = integers([0.0 if abs(value) >= split else value for value in row])
        tokens.append(([0 if j in columns else code for j, code in enumerate(codes)], scale))
    y = np.zeros((len(x), len(weight)))
    for i, (codes, scale) in enumerate(tokens):
        for o, (of_weight, of_row) in enumerate(weights):
            total = sum(a * b for a, b in zip(codes, of_weight))  # exact: Python's integers
            y[i, o] = total * scale * of_row / 127**2 + bias[o]
            y[i, o] += sum(x[i, j] * of_weight[j] * of_row / 127 for j in columns)
    return y, tokens, weights, columns
