"""Mean-shift, row by row."""

from __future__ import annotations

import numpy as np

from naive.neighbours import neighbours, others


def shift(rows, k, times):
    """Move every row to the mean of its k nearest others; all rows at once."""
    for _ in range(times):
        rows = np.array(
            [others(rows, i)[neighbours(row, others(rows, i), k)[1]].mean(axis=0) for i, row in enumerate(rows)]
        )
    return rows


def stages(rows, k, times, step):
    """Rows before each step, and after the last."""
    found = [rows]
    for _ in range(times):
        found.append(step(found[-1], k))
    return found


def among_all(rows, k):
    """One step in which a row is a neighbour of its own."""
    return np.array([rows[neighbours(row, rows, k)[1]].mean(axis=0) for row in rows])


def shift_new(row, before, k):
    """Move a new row to the mean of its k nearest among the training rows as they stood before each step."""
    for rows in before:
        row = rows[neighbours(row, rows, k)[1]].mean(axis=0)
    return row
