"""Why rows are far out: the detector's own reasons, or, where it has none, what leaving a column out does."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from farout.contract import Detector
from farout.kit.columns import Reading

LEFT_OUT = 1_000  # rows that are explained by leaving columns out


def explained(detector: Any, rows: Reading, features: list[str], sample: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return how much each feature adds to the scores of some rows, and to nine of ten sampled rows at most.

    Parameters
    ----------
    detector : Detector
    rows : Reading
    features : list of str
    sample : polars.DataFrame
        A fair sample of the table.

    Returns
    -------
    reasons : float64 array (rows, features)
    usual : float64 array (features,)
    """
    if not hasattr(detector, "reasons"):
        return _by_leaving_out(detector, rows, features, sample), np.zeros(len(features))
    return detector.reasons(rows), np.quantile(detector.reasons(Reading(sample, rows.columns)), 0.9, axis=0)


def _by_leaving_out(detector: Detector, rows: Reading, features: list[str], sample: pl.DataFrame) -> np.ndarray:
    """Explain any detector: by how much the score falls when one column is set to its most usual value.

    A date's fall stands at its first feature. Only the first ``LEFT_OUT`` rows are explained, since every column costs
    a scoring; the others get zeros.
    """
    parts = np.zeros((len(rows), len(features)))
    rows = rows[np.arange(min(len(rows), LEFT_OUT))]
    base = detector.outlier_score(rows)
    for name in rows.columns.names:
        first = next(j for j, feature in enumerate(features) if feature == name or feature.startswith(f"{name} ("))
        without = rows.frame.with_columns(_usual(sample[name]).alias(name))
        parts[: len(rows), first] = base - detector.outlier_score(Reading(without, rows.columns))
    return parts


def _usual(column: pl.Series) -> pl.Expr:
    """Return the median, or the most frequent level, of the values that are there."""
    there = column.drop_nulls()
    ordered = there.sort() if column.dtype.is_numeric() or column.dtype.is_temporal() else there.mode().sort().head(1)
    return pl.lit(ordered[len(ordered) // 2] if len(ordered) else None, dtype=column.dtype)
