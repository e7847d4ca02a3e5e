"""AWQ and AdaDim written out: scales by trying them in plain loops, ranges token by token, groups number by number."""

from __future__ import annotations

import torch


def clamped(values, bits):
    """Round numbers that share a step: AWQ's quantizer, with the zero point clamped to the codes."""
    low, high = float(values.min()), float(values.max())
    scale = (high - low) / (2**bits - 1)
    zero = min(max(round(-low / scale), 0), 2**bits - 1)
    codes = [min(max(round(float(value) / scale) + zero, 0), 2**bits - 1) for value in values]
    return torch.tensor([scale * (code - zero) for code in codes], dtype=values.dtype)


def rounded(weight, bits, group, along="inputs"):
    """Round a weight (O, I) in groups along the inputs of a row, or along the outputs of a column."""
    if along == "outputs":
        return rounded(weight.T, bits, group).T
    found = weight.clone()
    for o in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            found[o, start : start + group] = clamped(weight[o, start : start + group], bits)
    return found


def losses(weights, x, run, bits, group, ratios=20):
    """Return the error of ``run(weights)`` for each exponent; ``x`` (N, I) is what all the weights read."""
    expected = run(weights)
    mean = x.abs().sum(0) / len(x)
    found = []
    for i in range(ratios):
        s = (mean ** (i / ratios)).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        tried = [rounded(weight * s, bits, group) / s for weight in weights]
        found.append(float((run(tried) - expected).square().mean()))
    return found


def clipped(weight, x, bits, group):
    """Cut each group of each row to the range that serves its own output best, one token after the other."""
    found = weight.clone()
    for o in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            w, seen = weight[o, start : start + group], x[:, start : start + group]
            best, least = None, float("inf")
            for i in range(10):
                m = float(w.abs().max()) * (1 - i / 20)
                q = clamped(w.clamp(-m, m), bits)
                error = sum(float(token @ (q - w)) ** 2 for token in seen)
                if error < least:
                    best, least = m, error
            found[o, start : start + group] = w.clamp(-best, best)
    return found
