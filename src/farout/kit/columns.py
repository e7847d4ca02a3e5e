"""What the columns of a table mean: numbers, categories, dates, or nothing that a detector should read.

:class:`Columns` is fitted on one table and turns any later table of the same columns into :class:`Features`: a float
array for each number, codes for each category; a date becomes elapsed days, the weekday and, where times of day occur,
the hour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from farout.errors import BadInput, nearest
from farout.io.state import saved
from farout.kit.ranks import column_major

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
KINDS = ("numeric", "category", "date", "left out")
_ID_NAME = re.compile(r"(^|[_\s.-])(id|uuid|guid|index|key|rowid|row|unnamed.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Codes:
    """A category column: for each row the position of its level, -1 where it is missing."""

    codes: np.ndarray
    levels: list[str]

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Features:
    """Columns that a detector can read, each a contiguous float64 array or :class:`Codes`.

    Attributes
    ----------
    names : list of str
    columns : sequence of float64 array (n,) or Codes
    n : int
        Rows.
    dates : tuple of str
        Names of the number columns that count days since 1970.
    """

    names: list[str]
    columns: Sequence[np.ndarray | Codes]
    n: int
    dates: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | Codes]]:
        return iter(zip(self.names, self.columns))

    def group(self, start: int, stop: int) -> Sequence[np.ndarray | Codes]:
        """Return the columns ``start:stop``."""
        return self.columns[start:stop]

    def take(self, rows: np.ndarray) -> Features:
        """Return some of the rows."""
        picked = [Codes(c.codes[rows], c.levels) if isinstance(c, Codes) else c[rows] for c in self.columns]
        return Features(self.names, picked, len(rows), self.dates)


class ArrayFeatures(Features):
    """The columns of a float array (n, d), copied into contiguous memory only when they are asked for.

    Parameters
    ----------
    X : float64 array (n, d)
    names : list of str, optional
        ``x0``, ``x1`` ... by default.
    """

    def __init__(self, X: np.ndarray, names: list[str] | None = None) -> None:
        super().__init__(names or [f"x{j}" for j in range(X.shape[1])], _Columns(X), len(X))

    def group(self, start: int, stop: int) -> Sequence[np.ndarray | Codes]:
        """Return the columns ``start:stop``, copied together."""
        return list(column_major(self.columns.array, start, stop))  # type: ignore[attr-defined]

    def take(self, rows: np.ndarray) -> Features:
        """Return some of the rows."""
        return ArrayFeatures(self.columns.array[rows], self.names)  # type: ignore[attr-defined]


class _Columns(Sequence[np.ndarray]):
    """The columns of an array as a sequence of contiguous copies."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return self.array.shape[1]

    def __getitem__(self, column: Any) -> Any:
        return np.ascontiguousarray(self.array[:, column])


@saved("column")
@dataclass(frozen=True)
class Column:
    """One column of the source table.

    Attributes
    ----------
    name : str
    kind : str
        ``"numeric"``, ``"category"``, ``"date"`` or ``"left out"``.
    why : str
        What the guess rests on, or why the column is left out.
    words_missing : bool
        Whether text among numbers is read as missing (guessed columns of mixed type).
    hours : bool
        Whether a date column holds times of day.
    elapsed : bool
        Whether a date's place in time is read; not that of a record's own time stamp, which only says when it was
        written.
    """

    name: str
    kind: str
    why: str = ""
    words_missing: bool = False
    hours: bool = False
    elapsed: bool = True


@saved("columns")
@dataclass(frozen=True)
class Columns:
    """The columns of a table and how each is read.

    Examples
    --------
    >>> frame = pl.DataFrame({"id": ["a", "b", "c", "d"] * 9, "x": [1.5, 2.0, 0.5, 9.0] * 9, "k": [1] * 36})
    >>> [(c.name, c.kind) for c in Columns.guess(frame).columns]
    [('id', 'category'), ('x', 'numeric'), ('k', 'left out')]
    """

    columns: list[Column]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Columns:
        """Read every column by its type alone: text, categories and booleans are categories."""
        return cls([Column(name, *_by_type(frame[name])) for name in frame.columns])

    @classmethod
    def guess(cls, frame: pl.DataFrame, whole: bool = True) -> Columns:
        """Read columns as a careful person would: identifiers, constants and free text are left out, with the reason.

        Parameters
        ----------
        frame : polars.DataFrame
        whole : bool
            Whether these are all the rows; a column that is constant in the first rows only is no constant.
        """
        guessed = [_guessed(frame[name]) for name in frame.columns]
        return cls(guessed if whole else [_kept(c, frame[c.name]) for c in guessed])

    @property
    def names(self) -> list[str]:
        """Names of the columns that are read."""
        return [c.name for c in self.columns if c.kind != "left out"]

    @property
    def left_out(self) -> list[Column]:
        """Columns that are not read."""
        return [c for c in self.columns if c.kind == "left out"]

    def retyped(self, kinds: dict[str, str], frame: pl.DataFrame) -> Columns:
        """Return the same columns with some kinds set by hand.

        Raises
        ------
        BadInput
            When there is no such column or kind, or the column cannot be read that way.
        """
        known = [c.name for c in self.columns]
        for name, kind in kinds.items():
            if name not in known:
                raise BadInput(f"the table has no column '{name}'; {nearest(name, known)}")
            if kind not in KINDS:
                raise BadInput(f"a column is one of {', '.join(map(repr, KINDS))}, not '{kind}'")
        return Columns([_said(frame[c.name], kinds[c.name]) if c.name in kinds else c for c in self.columns])

    def features(self, frame: pl.DataFrame) -> Features:
        """Read a table.

        Raises
        ------
        BadInput
            When columns are missing, or hold what they did not hold when they were fitted.
        """
        frame = self.select(frame)
        names: list[str] = []
        arrays: list[np.ndarray | Codes] = []
        for column in self.columns:
            if column.kind != "left out":
                for name, array in _read(column, frame[column.name]):
                    names.append(name)
                    arrays.append(array)
        dates = tuple(c.name for c in self.columns if c.kind == "date" and c.elapsed)
        return Features(names, arrays, frame.height, dates)

    def select(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the columns that are read; a table that lacks some is refused by their names."""
        present = set(frame.columns)
        gone = [name for name in self.names if name not in present]
        if gone:
            named = ", ".join(f"'{name}'" for name in gone[:5]) + (" ..." if len(gone) > 5 else "")
            raise BadInput(
                f"{len(gone)} of the {len(self.names)} columns that were fitted are missing: {named}; "
                f"the table has {len(frame.columns)} ({nearest(gone[0], frame.columns)})"
            )
        return frame.select(self.names)


@dataclass(frozen=True)
class Reading:
    """A data frame together with how to read it; detectors take it in the place of the frame."""

    frame: pl.DataFrame
    columns: Columns

    def __len__(self) -> int:
        return self.frame.height

    def __getitem__(self, rows: np.ndarray) -> Reading:
        return Reading(self.frame.filter(rows) if rows.dtype == bool else self.frame[rows], self.columns)

    def features(self) -> Features:
        """Read the frame."""
        return self.columns.features(self.frame)


def _by_type(series: pl.Series) -> tuple[str, str, bool, bool]:
    """Kind, reason, leniency and times of day of a column, from its type."""
    kind = series.dtype
    if kind.is_numeric() or kind == pl.Null:
        return "numeric", str(kind), False, False
    if kind.is_temporal() and kind not in (pl.Time, pl.Duration):
        return "date", str(kind), False, _has_hours(series)
    if kind == pl.Duration:
        return "numeric", "duration in days", False, False
    if kind.is_nested() or kind == pl.Binary or kind == pl.Object:
        raise BadInput(f"column '{series.name}' holds {kind}, which is no number, category or date; leave it out")
    return "category", str(kind), False, False


def _guessed(series: pl.Series) -> Column:
    """Read one column as a careful person would."""
    name, kind = series.name, series.dtype
    if kind.is_nested() or kind == pl.Binary or kind == pl.Object:
        return Column(name, "left out", f"holds {kind}")
    present = series.drop_nulls()
    if kind.is_float():
        present = present.filter(present.is_not_nan())
    n = len(present)
    if n == 0:
        return Column(name, "left out", "no values")
    distinct = present.n_unique()
    if distinct == 1:
        return Column(name, "left out", f"constant: {present[0]!s:.40}")
    if kind.is_integer() and distinct > 0.95 * n and n > 20:
        steps = np.unique(np.diff(present.head(10_000).to_numpy()))
        if len(steps) == 1 and steps[0] != 0:
            return Column(name, "left out", "id-like: counts up in even steps")
        if _ID_NAME.search(name):
            return Column(name, "left out", "id-like: by its name, and nearly every value once")
    if kind == pl.String:
        return _guessed_text(name, present, distinct)
    if kind.is_temporal() and kind not in (pl.Time, pl.Duration):
        return _guessed_date(name, present, f"{kind}".split("(")[0].lower(), False)
    read_as, why, lenient, hours = _by_type(series)
    return Column(name, read_as, why, lenient, hours)


def _guessed_date(name: str, dates: pl.Series, why: str, lenient: bool) -> Column:
    """Read a date; of rows in the order of their time stamps only weekday and hour are read."""
    stamps = len(dates) > 20 and (dates.is_sorted() or dates.is_sorted(descending=True))
    why += ", rows are in its order: weekday and hour" if stamps else ""
    return Column(name, "date", why, lenient, _has_hours(dates), not stamps)


def _said(series: pl.Series, kind: str) -> Column:
    """Read a column as the user says; text that cannot be read so is missing, unless all of it is."""
    column = Column(series.name, kind, "said by you", True)
    if kind == "date":
        return _guessed_date(series.name, _moments_of(column, series).drop_nulls(), "said by you", True)
    if kind == "numeric" and series.dtype == pl.String and np.isnan(_numbers(column, series)).all():
        raise BadInput(f"column '{series.name}' cannot be read as numeric: it holds no number, but '{series[0]}'")
    return column


def _kept(column: Column, series: pl.Series) -> Column:
    """Read a column after all that was left out for what its first rows lack."""
    if column.kind == "left out" and column.why.startswith(("constant", "no values")):
        return Column(column.name, *_by_type(series))
    return column


def _guessed_text(name: str, present: pl.Series, distinct: int) -> Column:
    """Tell numbers with stray words, dates, identifiers, prose and categories apart."""
    n = len(present)
    numbers = n - present.cast(pl.Float64, strict=False).null_count()
    if numbers >= 0.9 * n:
        stray = n - numbers
        return Column(name, "numeric", f"{stray} cells are no numbers: read as missing" if stray else "text", True)
    dates = _dates(present.head(1000))
    if dates is not None and dates.null_count() == 0:
        whole = _dates(present)
        assert whole is not None
        return _guessed_date(name, whole.drop_nulls(), "text", True)
    if distinct > 0.95 * n and n > 20:
        return Column(name, "left out", "id-like: nearly every value occurs once")
    if distinct > 0.5 * n and float(present.str.len_chars().mean() or 0) > 30:  # type: ignore[arg-type]
        return Column(name, "left out", "free text")
    return Column(name, "category", f"{distinct:,} levels")


def _dates(series: pl.Series) -> pl.Series | None:
    """Parse ISO dates; None where polars finds no format."""
    try:
        return series.str.to_datetime(strict=False)
    except pl.exceptions.ComputeError:
        return None


def _has_hours(series: pl.Series | None) -> bool:
    if series is None or not isinstance(series.dtype, pl.Datetime):
        return False
    return bool((series.dt.truncate("1d") != series).any())


def _read(column: Column, series: pl.Series) -> Iterator[tuple[str, np.ndarray | Codes]]:
    """Turn one source column into features."""
    if column.kind == "numeric":
        yield column.name, _numbers(column, series)
    elif column.kind == "category":
        yield column.name, _codes(series)
    else:
        when = _moments_of(column, series)
        if column.elapsed:
            yield column.name, _floats(when.dt.epoch("us").cast(pl.Float64) / 86_400e6)
        weekday = (when.dt.weekday().cast(pl.Int32) - 1).fill_null(-1).to_numpy()
        yield f"{column.name} (weekday)", Codes(weekday, WEEKDAYS)
        if column.hours:
            hour = when.dt.hour().cast(pl.Int32).fill_null(-1).to_numpy()
            yield f"{column.name} (hour)", Codes(hour, [f"{h:02d} h" for h in range(24)])


def _numbers(column: Column, series: pl.Series) -> np.ndarray:
    kind = series.dtype
    if kind == pl.Duration:
        series = series.dt.total_microseconds().cast(pl.Float64) / 86_400e6
    elif kind == pl.String or kind == pl.Categorical:
        numbers = series.cast(pl.String).cast(pl.Float64, strict=False)
        lost = numbers.is_null() & series.is_not_null()
        if lost.any() and not column.words_missing:
            row = int(lost.arg_max() or 0)
            raise BadInput(
                f"column '{column.name}' held numbers when it was fitted and holds text now: "
                f"'{series[row]}' in row {row} (and {int(lost.sum()) - 1} more)"
            )
        series = numbers
    elif not (kind.is_numeric() or kind in (pl.Null, pl.Boolean)):
        raise BadInput(f"column '{column.name}' held numbers when it was fitted and holds {kind} now")
    return _floats(series.cast(pl.Float64))


def _floats(series: pl.Series) -> np.ndarray:
    """Return a contiguous array with NaN for missing values."""
    return np.ascontiguousarray(series.to_numpy(), dtype=float)


def _codes(series: pl.Series) -> Codes:
    text = series.cast(pl.String)
    levels = text.drop_nulls().unique().sort()
    codes = text.replace_strict(levels, range(len(levels)), default=None, return_dtype=pl.Int32)
    return Codes(codes.fill_null(-1).to_numpy(), levels.to_list())


def _moments_of(column: Column, series: pl.Series) -> pl.Series:
    if series.dtype == pl.String:
        parsed = _dates(series)
        bad = series.is_not_null() if parsed is None else parsed.is_null() & series.is_not_null()
        if parsed is None or (bad.any() and not column.words_missing):
            row = int(bad.arg_max() or 0)
            raise BadInput(
                f"column '{column.name}' held dates when it was fitted and holds '{series[row]}' in row {row}"
            )
        return parsed
    if not series.dtype.is_temporal() or series.dtype == pl.Time:
        raise BadInput(f"column '{column.name}' held dates when it was fitted and holds {series.dtype} now")
    return series.cast(pl.Datetime("us"))


def feature_frame(features: Features) -> dict[str, np.ndarray]:
    """Return features as plain columns, levels spelled out and None where they are missing: for words and pictures."""
    return {
        name: np.array([*column.levels, None], dtype=object)[column.codes] if isinstance(column, Codes) else column
        for name, column in features
    }
