"""Slow and obvious: kernel sums over all rows at all grid points, and mutual information cell by cell."""

from __future__ import annotations

import numpy as np

ROOT = np.sqrt(5)


def grid(values, width, size, margin=None):
    """Grid points of an axis."""
    room = ROOT * (width if margin is None else margin)
    return np.linspace(values.min() - room, values.max() + room, size)


def kernel(points, values, width):
    """Epanechnikov kernel of unit variance (points, rows)."""
    u = (points[:, None] - values) / width
    return np.where(np.abs(u) < ROOT, 3 / (4 * ROOT) * (1 - u**2 / 5), 0) / width


def mutual_information(x, y, widths, size):
    """Mutual information of two continuous variables."""
    a, b = (grid(v, w, size) for v, w in zip((x, y), widths))
    joint = kernel(a, x, widths[0]) @ kernel(b, y, widths[1]).T
    joint /= joint.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    return sum(
        joint[i, j] * np.log(joint[i, j] / rows[i] / columns[j])
        for i in range(size)
        for j in range(size)
        if joint[i, j] > 0
    )


def mutual_information_of_classes(x, classes, rule, size):
    """Mutual information of a continuous and a discrete variable; every class has three rows and a spread."""
    parts = {c: x[classes == c] for c in np.unique(classes)}
    margin = max(rule(part) for part in parts.values())
    total, mixture, found = grid(x, 1, size, margin), np.zeros(size), 0.0
    densities = {}
    for c, part in parts.items():
        f = kernel(total, part, rule(part)).sum(axis=1)
        densities[c] = f / f.sum()
        mixture += np.mean(classes == c) * densities[c]
    for c, f in densities.items():
        for i in range(size):
            if f[i] > 0:
                found += np.mean(classes == c) * f[i] * np.log(f[i] / mixture[i])
    return found
