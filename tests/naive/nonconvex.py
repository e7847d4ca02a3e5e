"""The schemes of accelerated gradients, written out one coefficient at a time."""

from __future__ import annotations

import numpy as np


def penalty(b, lam, kind, shape):
    """The penalty of one coefficient, piece by piece."""
    b = abs(b)
    if kind == "scad":
        if b <= lam:
            return lam * b
        if b <= shape * lam:
            return (2 * shape * lam * b - b**2 - lam**2) / (2 * (shape - 1))
        return lam**2 * (shape + 1) / 2
    return lam * b - b**2 / (2 * shape) if b <= shape * lam else shape * lam**2 / 2


def concave_slope(b, lam, kind, shape):
    """Derivative of the penalty less ``lam |b|``, piece by piece."""
    sign = np.sign(b)
    if kind == "scad":
        if abs(b) <= lam:
            return 0.0
        return (lam * sign - b) / (shape - 1) if abs(b) <= shape * lam else -lam * sign
    return -b / shape if abs(b) <= shape * lam else -lam * sign


def best_alone(z, lam, kind, shape):
    """The minimiser of ``(b - z)^2 / 2 + penalty``, by trying."""
    tried = np.linspace(-abs(z) - 1, abs(z) + 1, 400_001)
    values = 0.5 * (tried - z) ** 2 + np.array([penalty(b, lam, kind, shape) for b in tried])
    return tried[np.argmin(values)]


def iterate(X, y, lam, kind, shape, scheme, steps):
    """The answer for least squares after so many iterations from 0; "accelerated" restarts by speed."""
    n, p = X.shape
    last = 1 / (shape - 1) if kind == "scad" else 1 / shape
    beta = 0.99 / max(np.linalg.eigvalsh(X.T @ X)[-1] / n, last)
    x, ag, md = np.zeros(p), np.zeros(p), np.zeros(p)
    alpha, fresh, restarted, moved, restarts = None, True, 0, 0.0, 0
    for k in range(1, steps + 1):
        if scheme == "proximal":
            alpha, step, x = 1.0, beta, ag
        elif scheme == "original":
            alpha, step = 2 / (k + 1), k * beta / 2
        else:
            alpha = 1.0 if fresh else 2 / (1 + np.sqrt(1 + 4 / alpha**2))
            step = beta / alpha
        before, md = md, (1 - alpha) * ag + alpha * x
        g = X.T @ (X @ md - y) / n + np.array([concave_slope(b, lam, kind, shape) for b in md])
        x, ag = (
            np.array([np.sign(u) * max(abs(u) - length * lam, 0) for u in start - length * g])
            for start, length in ((x, step), (md, beta))
        )
        distance = np.sqrt(((md - before) ** 2).sum())
        fresh = scheme == "accelerated" and distance < moved and k - restarted >= 3
        if fresh:
            x, restarted, restarts = ag, k, restarts + 1
        moved = distance
    return ag, restarts
