"""A table in small: for every feature where each value stands, mergeable over batches, threads and machines.

The tail detectors read their scores from it, and every report its words (``"above 99.98 % of rows"``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farout.io.state import saved
from farout.kit.columns import Codes, Features
from farout.kit.sketch import LevelCounts, RankTable, hashed, smallest


@saved("profile")
@dataclass
class Profile:
    """Rank tables and level counts of all features.

    Attributes
    ----------
    names : list of str
    columns : list of RankTable or LevelCounts
    n : int
        Rows.
    dates : tuple of str
        Names of the features that count days since 1970.

    Examples
    --------
    >>> features = Features(["amount"], [np.array([5.0, 7.0, 6.0, 93_200.0])], 4)
    >>> Profile.of(features).words(0, 93_200.0)
    'amount = 93,200: above all other rows'
    """

    names: list[str]
    columns: list[RankTable | LevelCounts]
    n: int
    dates: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Features, eps: float = 0.0) -> Profile:
        """Profile features; ``eps`` is the relative rank gap of the sketch, 0 keeps everything."""
        columns: list[RankTable | LevelCounts] = []
        for _, column in features:
            if isinstance(column, Codes):
                columns.append(LevelCounts.of(column.codes, column.levels))
            else:
                values = np.sort(column[~np.isnan(column)])
                columns.append(RankTable.of(values, features.n - len(values), eps))
        return cls(features.names, columns, features.n, features.dates)

    def merge(self, other: Profile) -> Profile:
        """Return the profile of both sets of rows together."""
        columns = [mine.merge(theirs) for mine, theirs in zip(self.columns, other.columns)]  # type: ignore[arg-type]
        return Profile(self.names, columns, self.n + other.n, self.dates)

    def shown(self, feature: int, value: float | str) -> str:
        """Write a value of a feature: a date as a date, a level as it is."""
        if isinstance(value, str):
            return value
        return _date(value) if self.names[feature] in self.dates else number(value)

    def words(self, feature: int, value: float | str | None) -> str:
        """Say in words where a value of a feature stands.

        Parameters
        ----------
        feature : int
        value : float, str or None
            A number, a level, or None (NaN) for a missing value.
        """
        column, name = self.columns[feature], self.names[feature]
        if value is None or value != value:
            return f"{name} is missing, as in {_percent(column.missing / max(self.n, 1))} of rows"
        if isinstance(column, LevelCounts):
            times = int(column.lookup([str(value)])[0])
            seen = "never seen" if times == 0 else f"in {_percent(times / column.n)} of rows ({times:,})"
            return f"{name} = {value}: {seen}"
        assert not isinstance(value, str)
        left, right = (side.item() for side in column.counts(np.array([value])))
        low, high = ("before", "after") if name in self.dates else ("below", "above")
        shown = self.shown(feature, value)
        if left == 0 or right == 0:
            return f"{name} = {shown}: {low if left == 0 else high} every row seen"
        below, above = column.n - right, column.n - left
        word, count = (high, below) if below >= above else (low, above)
        # with a sketch, counts between kept values are not whole
        place = "all other rows" if count >= column.n - 1 else f"{_percent(count / column.n)} of rows"
        return f"{name} = {shown}: {word} {place}"


@dataclass
class Ladder:
    """Profiles of growing pieces, merged only with their like: n pieces of one size cost log2 n compressions, not n."""

    pieces: list[Profile]

    def push(self, profile: Profile) -> None:
        """Add a piece."""
        self.pieces.append(profile)
        while len(self.pieces) > 1 and self.pieces[-2].n <= 1.5 * self.pieces[-1].n:
            last = self.pieces.pop()
            self.pieces[-1] = self.pieces[-1].merge(last)

    def whole(self) -> Profile:
        """Return the profile of all pieces; they stay one from then on."""
        while len(self.pieces) > 1:
            last = self.pieces.pop()
            self.pieces[-1] = self.pieces[-1].merge(last)
        return self.pieces[0]


@saved("row_sample")
@dataclass
class RowSample:
    """A fair sample of rows: those with the smallest keys among all rows seen; samples of partitions merge.

    Attributes
    ----------
    features : list of float64 arrays, or tuples of codes and levels
    keys : uint64 array
    seen, size : int
        Rows seen, and rows kept at most.
    """

    names: list[str]
    columns: list[np.ndarray]
    keys: np.ndarray
    seen: int
    size: int

    @classmethod
    def of(cls, features: Features, size: int = 2048, start: int = 0) -> RowSample:
        """Sample from features whose first row is row ``start`` of the whole."""
        keys = hashed(start, features.n)
        kept = smallest(keys, size)
        columns = [c if isinstance(c, np.ndarray) else _spelled(c) for c in features.take(kept).columns]
        return cls(features.names, columns, keys[kept], features.n, size)

    def merge(self, other: RowSample) -> RowSample:
        """Return the sample of both sets of rows together."""
        keys = np.concatenate((self.keys, other.keys))
        kept = smallest(keys, self.size)
        columns = [np.concatenate(pair)[kept] for pair in zip(self.columns, other.columns)]
        return RowSample(self.names, columns, keys[kept], self.seen + other.seen, self.size)

    def features(self) -> Features:
        """Return the sampled rows as features."""
        columns = [c if c.dtype.kind == "f" else _coded(c) for c in self.columns]
        return Features(self.names, columns, len(self.keys))


def _spelled(column: Codes) -> np.ndarray:
    return np.array([*column.levels, ""], dtype=object)[column.codes]


def _coded(column: np.ndarray) -> Codes:
    levels = sorted({level for level in column if level})
    code = {level: i for i, level in enumerate(levels)}
    return Codes(np.array([code.get(level, -1) for level in column], dtype=np.int32), levels)


def number(value: float) -> str:
    """Write a number for reading: thousands grouped, five significant digits.

    Examples
    --------
    >>> number(93200.0), number(0.000123456), number(-1.5)
    ('93,200', '0.00012346', '-1.5')
    """
    if value == int(value) if np.isfinite(value) else False:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,.5g}" if 1e-4 <= abs(value) < 1e9 else f"{value:.5g}"


def _percent(share: float) -> str:
    """Write a share as a percentage that never rounds to 0 or 100 unless it is."""
    percent = 100 * share
    for digits in range(16):
        shown = f"{percent:.{digits}f}"
        if share in (0, 1) or (float(shown) not in (0.0, 100.0) and (digits > 0 or 1 <= percent <= 99)):
            return f"{shown} %"
    return f"{percent:.2g} %"


def _date(days: float) -> str:
    moment = np.datetime64(round(days * 86_400), "s")
    return str(moment).replace("T", " ") if days % 1 else str(moment)[:10]
