"""The passes over a table: learn, calibrate, score; over the whole table at once, or over its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.base import clone

from farout.alarm import Alarm
from farout.contract import Detector
from farout.errors import BadInput, UnknownName
from farout.io.tables import TableFile, to_polars
from farout.kit.columns import Columns, Reading
from farout.kit.engine import Engine
from farout.kit.sketch import hashed, smallest

IN_MEMORY = 500_000_000  # bytes of a table as float64 up to which it is read whole
PART = 64_000_000  # bytes of a part that a worker takes at a time
EXPLAINED = 10_000  # rows, the farthest out, that get reasons
PICTURED = 2_000  # rows, drawn fairly, that the pictures show
Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done


@dataclass
class Table:
    """A table in memory or on disk, as parts; one part is read whole, several stream."""

    name: str
    path: str | None
    parts: list[Any]
    streams: bool
    format: str | None = None

    @classmethod
    def of(cls, data: Any, engine: str) -> Table:
        if engine not in ("auto", "memory", "stream", "dask"):
            raise UnknownName("engine", engine, ("auto", "memory", "stream", "dask"))
        if not isinstance(data, str | Path | TableFile):
            if engine in ("stream", "dask"):
                raise BadInput(f"the engine '{engine}' reads files; a table in memory needs none")
            return cls("table", None, [Whole(to_polars(data))], False)
        file = data if isinstance(data, TableFile) else TableFile(data)
        streams = engine in ("stream", "dask") or (engine == "auto" and file.size > IN_MEMORY)
        parts = file.parts(max(1, -(-file.size // PART))) if streams else [Whole(file.read())]
        return cls(file.name, str(file.path), parts, streams, file.format)

    @property
    def numbered(self) -> list[tuple[int, Any]]:
        """The parts with their numbers, which seed what is drawn from them."""
        return list(enumerate(self.parts))

    def head(self) -> pl.DataFrame:
        """Return the whole table, or its first rows where it streams."""
        return next(self.parts[0].batches(200_000))


@dataclass
class Whole:
    """A table in memory, as the one part of itself."""

    frame: pl.DataFrame

    def batches(self, rows: int = 0) -> Iterator[pl.DataFrame]:
        yield self.frame


@dataclass
class Scored:
    """Scores of consecutive rows, with the values of the rows farthest out and of a fair sample."""

    scores: np.ndarray
    top_rows: np.ndarray
    top_frame: pl.DataFrame
    sample_rows: np.ndarray
    sample_keys: np.ndarray
    sample_frame: pl.DataFrame

    @classmethod
    def of(cls, frame: pl.DataFrame, scores: np.ndarray, seed: int) -> Scored:
        keys = hashed(0, len(scores), seed)
        top = smallest(-scores, EXPLAINED)
        drawn = smallest(keys, PICTURED)
        return cls(scores, top, frame[top], drawn, keys[drawn], frame[drawn])

    def join(self, other: Scored) -> None:
        """Append the rows that follow."""
        n = len(self.scores)
        self.scores = np.concatenate((self.scores, other.scores))
        self.top_rows = np.concatenate((self.top_rows, other.top_rows + n))
        self.top_frame = pl.concat((self.top_frame, other.top_frame))
        self.keep_top(EXPLAINED)
        keys = np.concatenate((self.sample_keys, other.sample_keys))
        drawn = smallest(keys, PICTURED)
        self.sample_keys = keys[drawn]
        self.sample_rows = np.concatenate((self.sample_rows, other.sample_rows + n))[drawn]
        self.sample_frame = pl.concat((self.sample_frame, other.sample_frame))[drawn]

    def keep_top(self, most: int) -> None:
        """Keep the rows farthest out, farthest first; equal scores in the order of the table."""
        order = np.lexsort((self.top_rows, -self.scores[self.top_rows]))[:most]
        self.top_rows, self.top_frame = self.top_rows[order], self.top_frame[order]


class Passes:
    """The passes over a table; each is a map over its parts, and the one that learns ends in a tree of merges."""

    def __init__(self, engine: Engine, seed: int, progress: Progress) -> None:
        self.engine = engine
        self.seed = seed
        self.progress = progress

    def fit(self, detector: Detector, table: Table, columns: Columns) -> tuple[Detector, np.ndarray | None]:
        """Fit on all rows; tables read whole also give their training scores."""
        if table.streams:
            fitted, training = self._learn(detector, table, columns, 0.0), None
        else:
            self.progress("learning", 0.0)
            fitted = clone(detector)
            training = fitted.fit_score(Reading(table.head(), columns))
        return fitted, training

    def alarm(self, detector: Detector, table: Table, columns: Columns, rate: float) -> Alarm:
        """Fit on one part of normal rows, calibrate on the rest."""
        alarm = Alarm(detector, rate, random_state=self.seed)
        if table.streams:
            alarm.detector = self._learn(detector, table, columns, alarm.calibration)
            shared = (alarm.detector, columns, alarm.calibration, self.seed)
            pieces = self.engine.map(_held_out_scores, table.numbered, shared, self._counted("calibrating", table))
            alarm.calibrate_scores(np.concatenate(list(pieces)))
        else:
            self.progress("learning", 0.0)
            alarm.fit(Reading(table.head(), columns))
        return alarm

    def scored(self, detector: Detector, table: Table, columns: Columns, training: np.ndarray | None) -> Scored:
        """Score all rows."""
        if training is not None:
            return Scored.of(columns.select(table.head()), training, self.seed)
        pieces = self.engine.map(
            _part_scores, table.numbered, (detector, columns, self.seed), self._counted("scoring", table)
        )
        first = next(pieces)
        for piece in pieces:
            first.join(piece)
        return first

    def _learn(self, detector: Detector, table: Table, columns: Columns, held_out: float) -> Detector:
        shared = (detector, columns, held_out, self.seed)
        fitted = self.engine.map_reduce(_learned, _merged, table.numbered, shared, self._counted("learning", table))
        if fitted is None:
            raise BadInput(f"'{table.name}' has too few rows to hold some out: all of them were")
        return fitted

    def _counted(self, what: str, table: Table) -> Callable[[], None]:
        """Return a function that reports one more part of the table as done."""
        done = count(1)
        self.progress(what, 0.0)
        return lambda: self.progress(what, next(done) / len(table.parts))


def _learned(shared: tuple[Detector, Columns, float, int], part: tuple[int, Any]) -> Detector | None:
    """Learn from one part, but for the rows that are held out; None where all are."""
    detector, columns, held_out, seed = shared
    made: Any = None
    for rows, held in _batches(columns, part, held_out, seed):
        if not held.all():
            made = clone(detector) if made is None else made
            made.partial_fit(rows[~held] if held_out else rows)
    return made


def _merged(one: Any, other: Any) -> Any:
    """Merge two states into a third; a worker may need the two again when another one dies."""
    if one is None or other is None:
        return other if one is None else one
    return deepcopy(one).merge(other)


def _held_out_scores(shared: tuple[Detector, Columns, float, int], part: tuple[int, Any]) -> np.ndarray:
    detector, columns, held_out, seed = shared
    batches = (rows[held] for rows, held in _batches(columns, part, held_out, seed))
    return np.concatenate([detector.outlier_score(rows) for rows in batches if len(rows)] or [np.empty(0)])


def _part_scores(shared: tuple[Detector, Columns, int], part: tuple[int, Any]) -> Scored:
    detector, columns, seed = shared
    total: Scored | None = None
    for place, (rows, _) in enumerate(_batches(columns, part, 0.0, seed)):
        piece = Scored.of(rows.frame, detector.outlier_score(rows), seed + 1000 * part[0] + place)
        if total is None:
            total = piece
        else:
            total.join(piece)
    assert total is not None  # a part has rows
    return total


def _batches(
    columns: Columns, part: tuple[int, Any], held_out: float, seed: int
) -> Iterator[tuple[Reading, np.ndarray]]:
    """Yield batches, and which of their rows are held out: by a fixed hash of part and row, in any order."""
    number, table = part
    start = 0
    for frame in table.batches():
        held = hashed(start, frame.height, seed + 1000 * number) < np.uint64(held_out * (2**64 - 1))
        start += frame.height
        yield Reading(columns.select(frame), columns), held
