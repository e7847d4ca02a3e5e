"""Rows of numbers, as claims hold them: means over like rows, one number of one row, and jobs that are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def means(rows: Iterable[Mapping[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Return the means of fractions over rows that are alike in ``by``; None stays."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        dict(zip(by, key))
        | {
            name: None if value is None else float(np.mean([row[name] for row in group]))
            for name, value in group[0].items()
            if isinstance(value, float | None) and name not in by
        }
        for key, group in found.items()
    ]


def pick(rows: Sequence[Mapping[str, Any]], what: str, **wanted: Any) -> Any:
    """Return a number of the one row that is so."""
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row[what]


def counted(jobs: Sequence[Any], progress: Callable[[str, float], None]) -> Iterable[Any]:
    """Go through jobs and say how far it is."""
    for i, job in enumerate(jobs):
        progress(" ".join(map(str, job)), i / len(jobs))
        yield job
