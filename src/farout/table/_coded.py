"""Columns and labels as codes: what a ranker reads of a table."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl

from farout.errors import BadInput
from farout.io.tables import to_polars
from farout.kit.mi import codes

RUNS = 0.1  # excess of neighbours with equal labels, as a share of the largest possible, from which to warn


class Labels:
    """Counts of the classes, and of neighbouring rows that share one."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        self.runs = 0
        self.last: Any = None

    def add(self, labels: pl.Series) -> None:
        """Count the labels of further rows."""
        for label, count in labels.value_counts().iter_rows():
            self.counts[label] = self.counts.get(label, 0) + count
        self.runs += int((labels == labels.shift(1)).sum()) + int(labels[0] == self.last)
        self.last = labels[-1]

    @property
    def shares(self) -> np.ndarray:
        """Share of each class."""
        counts = np.array(list(self.counts.values()))
        return counts / counts.sum()

    @property
    def entropy(self) -> float:
        """Entropy of the labels, in nats."""
        return float(-np.sum(self.shares * np.log(self.shares)))

    def check(self, order_matters: bool) -> None:
        """Refuse labels that cannot rank, and warn where the order of the rows matters and they are sorted."""
        n = sum(self.counts.values())
        if len(self.counts) == 1:
            (label,) = self.counts
            raise BadInput(f"the target has one class only, '{label}', in {n:,} rows; a ranking needs two")
        if len(self.counts) == n:
            raise BadInput(f"the target has {n:,} values, each in one row; a ranking needs classes, so bin it first")
        chance, shared = float(np.sum(self.shares**2)), self.runs / (n - 1)
        noise = (chance * (1 - chance) / n) ** 0.5
        if order_matters and shared - chance > max(RUNS * (1 - chance), 5 * noise):
            warnings.warn(
                f"the rows are sorted: {shared:.0%} of neighbouring rows share their label, {chance:.0%} would by "
                "chance. Batches of sorted rows, and labels from further down, hide signal: shuffle the rows, or take "
                "background='permutation' in one batch",
                stacklevel=5,
            )


def column_codes(series: pl.Series) -> np.ndarray:
    """Code a column (n,) of any type: equal values share a code, and missing ones have their own."""
    import pyarrow as pa

    kind = series.dtype
    if kind.is_nested() or kind == pl.Object:
        raise BadInput(f"column '{series.name}' holds {kind}, which is no value that can repeat; leave it out")
    if kind == pl.Boolean:
        series = series.cast(pl.Int8)
    elif kind.is_float():
        series = series.fill_nan(None) + 0.0  # one zero
    elif kind.is_temporal() or isinstance(kind, pl.Categorical | pl.Enum):
        series = series.to_physical()
    if series.dtype.is_integer() and not series.null_count():
        return codes(series.to_numpy())
    column = series.to_arrow()
    encoded = (column if isinstance(column, pa.Array) else pa.array(column)).dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.intp)


def read_labels(y: Any) -> pl.Series:
    """Read labels; a missing one is refused."""
    series = y if isinstance(y, pl.Series) else to_polars(np.asarray(y).reshape(-1, 1)).to_series()
    series = series.fill_nan(None) if series.dtype.is_float() else series
    if series.null_count():
        row = int(series.is_null().arg_max() or 0)
        raise BadInput(f"the target is missing in {series.null_count():,} rows, the first of them row {row}; drop them")
    return series.rename("target")
