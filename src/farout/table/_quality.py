"""How good the columns of a table are, in one pass; rows with the worst fields; and columns to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from farout.table._coded import column_codes

MISSING = ("", "{}")  # words that stand for nothing, beside missing values
EXACT = 2**18  # values up to which they are counted one by one
BITS = 16  # of a hash, that choose the register of an estimated count: it errs by 0.4 %
LONG = 256  # bytes of a field from which it is over-long
LEVELS = (2, 100, 2_000, 10_000, 50_000)  # of the noise columns
DRAWS = 3  # noise columns of as many levels: one alone would be no yardstick


class Quality:
    """What one column holds; rows are added in pieces.

    Up to ``EXACT`` distinct values they are counted by their hashes. Beyond, their number is estimated (HyperLogLog:
    the longest run of zeros in hashes grows with the logarithm of their number), and rare values are not known.
    """

    def __init__(self) -> None:
        self.rows = self.missing = self.numbers = 0
        self.bytes = self.total = 0.0
        self.low, self.high = np.inf, -np.inf
        self.hashes = np.empty(0, np.uint64)
        self.counts = np.empty(0, np.int64)
        self.registers: np.ndarray | None = None

    def add(self, series: pl.Series) -> None:
        """Read further rows of the column."""
        kind = series.dtype
        text = kind == pl.String
        self.rows += len(series)
        series = series.fill_nan(None) if kind.is_float() else series
        there = series.filter(series.is_not_null() & ~series.is_in(MISSING)) if text else series.drop_nulls()
        self.missing += len(series) - len(there)
        self.bytes += float(there.str.len_bytes().sum()) if text else there.estimated_size()
        if kind.is_numeric() and len(there):
            finite = there.cast(pl.Float64).filter(there.is_finite()) if kind.is_float() else there.cast(pl.Float64)
            self.low, self.high = min(self.low, float(there.min())), max(self.high, float(there.max()))  # type: ignore[arg-type]
            self.total, self.numbers = self.total + float(finite.sum()), self.numbers + len(finite)
        self._count(there.hash(0).to_numpy())

    def _count(self, hashes: np.ndarray) -> None:
        if self.registers is None:
            found, counts = np.unique(hashes, return_counts=True)
            self.hashes, place = np.unique(np.concatenate((self.hashes, found)), return_inverse=True)
            weights = np.concatenate((self.counts, counts))
            self.counts = np.bincount(place, weights=weights, minlength=len(self.hashes)).astype(np.int64)
            if len(self.hashes) <= EXACT:
                return
            self.registers, hashes = np.zeros(2**BITS, np.uint8), self.hashes
            self.hashes, self.counts = self.hashes[:0], self.counts[:0]
        which, rest = hashes >> np.uint64(64 - BITS), hashes << np.uint64(BITS)
        # a float's exponent tells the leading zeros of the upper 53 bits
        zeros = 65 - np.frexp(np.maximum(rest >> np.uint64(11), 1).astype(float))[1] - 11
        np.maximum.at(self.registers, which, zeros.astype(np.uint8))

    @property
    def cardinality(self) -> int:
        """Number of distinct values: exact up to ``EXACT``, else estimated."""
        if self.registers is None:
            return len(self.hashes)
        m = 2**BITS
        return round(0.7213 / (1 + 1.079 / m) * m**2 / float(np.sum(2.0 ** -self.registers.astype(float))))

    def row(self) -> dict[str, Any]:
        """Return the facts of the column; None where one does not apply or is not known."""
        there = self.rows - self.missing
        exact = self.registers is None and len(self.counts)
        return {
            "coverage": there / self.rows if self.rows else None,
            "cardinality": self.cardinality,
            "rare_share": float(np.mean(self.counts == 1)) if exact else None,
            "bytes": self.bytes / there if there else None,
            "min": self.low if self.numbers else None,
            "max": self.high if self.numbers else None,
            "mean": self.total / self.numbers if self.numbers else None,
        }


def controls(labels: pl.Series, row: int, rng: np.random.Generator) -> pl.DataFrame:
    """Make columns whose worth is known, for rows from number ``row`` on: noise of many kinds, and the target itself.

    Parameters
    ----------
    labels : polars.Series (n,)
    row : int
    rng : numpy.random.Generator

    Returns
    -------
    polars.DataFrame (n, 21)
    """
    n = len(labels)
    columns: dict[str, Any] = {
        "constant": np.zeros(n, np.int64),
        "Gaussian": rng.normal(size=n),
        "uniform": rng.random(n),
        **{f"{k:,} levels, {draw}": rng.integers(0, k, n) for k in LEVELS for draw in range(1, DRAWS + 1)},
        "sequence": np.arange(row, row + n),
        "row hash": rng.integers(0, 2**62, n),
        "target": labels,
    }
    return pl.DataFrame({f"control: {name}": values for name, values in columns.items()})


def odd_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rank the rows of a table by the share of their fields that hold nothing of use.

    Parameters
    ----------
    frame : polars.DataFrame (n, d)

    Returns
    -------
    polars.DataFrame (n, 7)
        ``row``; ``score``, the sum of the shares of fields that are ``empty``, ``"{}"`` (``braces``), ``zero`` or
        ``long``; and ``entropy``, the sum over fields of the entropy of their characters, in nats. Worst first; among
        equal scores the row with the least entropy.

    Examples
    --------
    >>> odd_rows(pl.DataFrame({"a": ["x", "", "xy"], "b": [1, None, 0]})).select("row", "score", "entropy").rows()
    [(1, 1.0, 0.0), (2, 0.5, 0.6931471805599453), (0, 0.0, 0.0)]
    """
    n, d = frame.shape
    shares = {name: np.zeros(n) for name in ("empty", "braces", "zero", "long", "entropy")}
    for series in frame:
        # what is said of a value is worked out once a value, not once a row
        at = column_codes(series)
        first = np.full(int(at.max()) + 1, -1)
        first[at[::-1]] = np.arange(n)[::-1]
        known = np.flatnonzero(first >= 0)
        values = series[first[known]].to_list()
        words = ["" if value is None or value != value else str(value) for value in values]
        said = {
            "empty": [word == "" for word in words],
            "braces": [word == "{}" for word in words],
            "zero": [word in ("0", "0.0", "False") for word in words],
            "long": [len(word.encode()) >= LONG for word in words],
            "entropy": [_entropy(word) * d for word in words],
        }
        place = np.zeros(len(first), np.intp)
        place[known] = np.arange(len(known))
        for name, of_value in said.items():
            shares[name] += np.array(of_value, float)[place[at]] / d
    score = shares["empty"] + shares["braces"] + shares["zero"] + shares["long"]
    found = pl.DataFrame({"row": np.arange(n), "score": score, **shares})
    return found.sort(["score", "entropy", "row"], descending=[True, False, False])


def _entropy(word: str) -> float:
    """Entropy of the characters of a word, in nats."""
    if len(word) < 2:
        return 0.0
    counts = np.unique(list(word), return_counts=True)[1]
    return float(-np.sum(counts / len(word) * np.log(counts / len(word))))
