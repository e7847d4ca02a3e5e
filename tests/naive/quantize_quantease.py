"""QuantEase the slow way: numpy in float64, one weight at a time, each by the formula of its coordinate."""

from __future__ import annotations

import itertools

import numpy as np


def objective(rounded, weight, hessian):
    """Return f = tr((V - W) H (V - W)')."""
    change = rounded - weight
    return float(np.einsum("oi,ij,oj->", change, hessian, change))


def asymmetric_steps(row, bits):
    """Return scale and integer zero point of one row, with 0 inside its range."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    if low == high:
        low, high = -1.0, 1.0
    scale = (high - low) / (2**bits - 1)
    return scale, np.round(-low / scale)


def nearest(value, scale, zero, bits):
    return scale * (np.clip(np.round(value / scale) + zero, 0, 2**bits - 1) - zero)


def clamped(value, scale, zero, bits):
    return min(max(value, scale * (0 - zero)), scale * (2**bits - 1 - zero))


def beta(weight, now, hessian, o, j):
    """Return what the formula of the paper asks of weight (o, j), all others given."""
    wanted = weight[o] @ hessian[:, j]
    others = sum(now[o, k] * hessian[k, j] for k in range(weight.shape[1]) if k != j)
    return (wanted - others) / hessian[j, j]


def sweep(weight, now, hessian, steps, bits, order, plain=True):
    """Visit every weight of every row once; return the new values."""
    now = now.copy()
    for o in range(len(weight)):
        scale, zero = steps[o]
        for j in order:
            aim = beta(weight, now, hessian, o, j) if hessian[j, j] > 0 else weight[o, j]
            now[o, j] = (nearest if plain else clamped)(aim, scale, zero, bits)
    return now


def relaxed(t, sweeps):
    return t % 3 == 1 and t != sweeps - 1 and t <= 25


def quantease(weight, hessian, bits, sweeps=30, relax=True, order=True):
    """Return the best rounded values of each row, and f after each rounded sweep."""
    steps = [asymmetric_steps(row, bits) for row in weight]
    columns = np.argsort(-np.diag(hessian), kind="stable") if order else np.arange(weight.shape[1])
    now, best = weight.copy(), None
    course = []
    for t in range(sweeps):
        plain = not (relax and relaxed(t, sweeps))
        now = sweep(weight, now, hessian, steps, bits, columns, plain)
        if plain:
            course.append(objective(now, weight, hessian))
            if best is None:
                best = now.copy()
            for o in range(len(weight)):
                rows = slice(o, o + 1)
                if objective(now[rows], weight[rows], hessian) < objective(best[rows], weight[rows], hessian):
                    best[o] = now[o]
    return best, course


def best_of_all(row, hessian, scale, zero, bits):
    """Return the least f over all roundings of a short row."""
    levels = [scale * (code - zero) for code in range(2**bits)]
    return min(objective(np.array([point]), row[None], hessian) for point in itertools.product(levels, repeat=len(row)))


def largest(matrix, count):
    """Keep the largest values of a matrix by magnitude."""
    kept = np.zeros_like(matrix)
    for place in np.argsort(-np.abs(matrix), axis=None, kind="stable")[:count]:
        kept.flat[place] = matrix.flat[place]
    return kept


def largest_columns(matrix, count):
    kept = np.zeros_like(matrix)
    for j in np.argsort(-np.linalg.norm(matrix, axis=0), kind="stable")[:count]:
        kept[:, j] = matrix[:, j]
    return kept


def threshold(kept, rounded, weight, hessian, keep, count):
    """Take a step of iterative hard thresholding from H = ``kept``."""
    eta = 1 / (2 * np.linalg.eigvalsh(hessian)[-1])
    return keep(kept - eta * 2 * (kept + rounded - weight) @ hessian, count)


def with_outliers(weight, hessian, bits, ratio, structured, sweeps=30, relax=True):
    """Return what the outlier-aware variant makes of a weight: values on the grid, and what stands beside them."""
    keep = largest_columns if structured else largest
    count = round(ratio * (weight.shape[1] if structured else weight.size))
    kept = keep(weight, count)
    if structured:
        columns = (kept != 0).any(0)
        steps = [asymmetric_steps(row[~columns], bits) for row in weight]
    else:
        cut = round(weight.shape[1] * ratio / 2)
        steps = [asymmetric_steps(np.sort(row)[cut : len(row) - cut], bits) for row in weight]
    order = np.argsort(-np.diag(hessian), kind="stable")
    now, best = weight - kept, None
    for t in range(sweeps):
        plain = not (relax and relaxed(t, sweeps))
        now = sweep(weight - kept, now, hessian, steps, bits, order, plain)
        if plain and (best is None or objective(now + kept, weight, hessian) < objective(sum(best), weight, hessian)):
            best = now, kept
        kept = threshold(kept, now, weight, hessian, keep, count)
    now, kept = best
    return now, threshold(kept, now, weight, hessian, keep, count)
