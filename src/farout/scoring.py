"""Score a table from beginning to end: guess its columns, fit, score, calibrate, explain. ``farout score`` in Python.

Small tables are read whole. Large ones stream in bounded memory, part by part, twice: once to learn, once to score; a
Dask cluster does the same over the same parts. Beside one batch and the detector's state only 8 bytes a row are held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.base import clone

from farout.alarm import Alarm, check_rate
from farout.cards import Card, find, list_cards
from farout.contract import LABEL_RATE, Detector, load
from farout.errors import BadInput, UnknownName
from farout.io.tables import TableFile, to_polars, write_table
from farout.kit.columns import Codes, Columns, Features, Reading
from farout.kit.engine import Engine
from farout.kit.engine import engine as open_engine
from farout.kit.profile import Profile
from farout.kit.sketch import hashed, smallest

DEFAULT = "ecod"  # needs no tuning, explains itself, streams, and gives the same scores every time
SKETCH = 0.002  # relative rank error of the columns of a table that streams
IN_MEMORY = 500_000_000  # bytes of a table as float64 up to which it is read whole
PART = 64_000_000  # bytes of a part that a worker takes at a time
EXPLAINED = 10_000  # rows, the farthest out, that get reasons
LEFT_OUT = 1_000  # of them, when the method gives no reasons and columns are left out one by one
PICTURED = 2_000  # rows, drawn fairly, that the pictures show
Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done


@dataclass
class Result:
    """The scores of a table, and all that a reader needs to judge them.

    Attributes
    ----------
    name : str
        Of the table.
    scores : float64 array (n,)
        Larger is farther out.
    p_values : float64 array (n,)
        Conformal p-values when normal data was given (``calibrated``), else the share of rows that score as high.
    alarms : bool array (n,)
    rate : float
    calibrated : bool
    columns : Columns
        How each column was read, and which were left out and why.
    detector : Detector
    card : Card
        Of the method.
    profile : Profile
        Where every value stands among the rows that were fitted.
    top_rows : int64 array (k,)
        The rows that got reasons, farthest out first: all that rang, and the top 100, at most 10,000.
    top_frame : polars.DataFrame
        Their values.
    reasons : float64 array (k, features)
        How much each feature adds to their scores.
    usual_reasons : float64 array (features,)
        What each feature adds to nine of ten rows at most; less than this is no reason.
    sample_rows, sample_frame
        A fair sample of all rows, for pictures.
    settings : dict
        What would repeat the run: method, parameters, seeds, versions; and timings.

    Examples
    --------
    >>> from farout.data import load
    >>> result = score(load("wine").X, name="wine")
    >>> len(result.scores), int(result.alarms.sum())
    (178, 1)
    """

    name: str
    scores: np.ndarray
    p_values: np.ndarray
    alarms: np.ndarray
    rate: float
    calibrated: bool
    columns: Columns
    detector: Detector
    card: Card
    profile: Profile
    top_rows: np.ndarray
    top_frame: pl.DataFrame
    reasons: np.ndarray
    usual_reasons: np.ndarray
    sample_rows: np.ndarray
    sample_frame: pl.DataFrame
    settings: dict[str, Any] = field(default_factory=dict)

    def features(self, frame: pl.DataFrame) -> Features:
        """Read rows of ``top_frame`` or ``sample_frame`` as features."""
        return self.columns.features(frame)

    @cached_property
    def _top_features(self) -> Features:
        return self.features(self.top_frame)

    def words(self, place: int, most: int = 3) -> list[str]:
        """Say why the row at ``top_rows[place]`` is far out, the strongest reason first.

        Only features are named that add more than they do to nine of ten rows, and at least 15 % of what the first one
        adds.
        """
        parts = self.reasons[place]
        order = np.argsort(-np.where(parts > self.usual_reasons, parts, 0.0), kind="stable")[:most]
        named = [j for j in order if parts[j] > max(self.usual_reasons[j], 0.15 * parts[order[0]], 0.0)]
        return [self.profile.words(j, _value(self._top_features.columns[j], place)) for j in named]

    def top(self, most: int = 20) -> pl.DataFrame:
        """Return the rows that are farthest out, with reasons in words."""
        places = range(min(most, len(self.top_rows)))
        rows = self.top_rows[: len(places)]
        return pl.DataFrame(
            {
                "row": rows,
                "score": self.scores[rows],
                "p_value": self.p_values[rows],
                "alarm": self.alarms[rows],
                "reasons": ["; ".join(self.words(place)) for place in places],
            }
        )

    def frame(self) -> pl.DataFrame:
        """Return score, p-value, alarm and reasons of every row, in the order of the table.

        Reasons stand at the rows of ``top_rows`` and are empty elsewhere.
        """
        words = np.full(len(self.scores), None, dtype=object)
        for place, row in enumerate(self.top_rows):
            words[row] = "; ".join(self.words(place))
        return pl.DataFrame(
            {
                "row": np.arange(len(self.scores)),
                "score": self.scores,
                "p_value": self.p_values,
                "alarm": self.alarms,
                "reasons": pl.Series(words.tolist(), dtype=pl.String),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the table of scores (parquet, feather, csv, jsonl), whole or not at all."""
        if Path(path).suffix.lower() in (".html", ".htm"):
            from farout.report.scores import write_page

            write_page(self, path)
        else:
            write_table(self.frame(), path)

    def __repr__(self) -> str:
        rang = int(self.alarms.sum())
        return f"<{self.card.name} on '{self.name}': {len(self.scores):,} rows, {rang:,} above the alarm line>\n" + (
            "\n".join(f"  row {row:>8,}  {score:8.3f}  {why}" for row, score, _, _, why in self.top(5).iter_rows())
        )

    def _repr_html_(self) -> str:
        from farout.report.scores import notebook

        return notebook(self)


def score(
    data: Any,
    method: str | Detector = DEFAULT,
    *,
    fit_on: Any = None,
    saved: str | Path | Detector | None = None,
    rate: float | None = None,
    parameters: dict[str, Any] | None = None,
    kinds: dict[str, str] | None = None,
    seed: int = 0,
    engine: str = "auto",
    scheduler: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Score the rows of a table.

    Parameters
    ----------
    data : path, TableFile, data frame or array (n, d)
    method : str or Detector
        A table method of the catalogue, or a detector to clone.
    fit_on : path, TableFile, data frame or array, optional
        Normal rows to learn from; part of them is held out, and p-values are conformal. Without it the table itself is
        learned from and p-values are ranks.
    saved : path or Detector, optional
        A fitted detector or alarm to score with; ``method`` and ``fit_on`` are then not used.
    rate : float, optional
        Share of rows that may ring: 0.01, or that of a saved alarm, where none is given.
    parameters : dict, optional
        Of the method.
    kinds : dict, optional
        Kinds of columns that the guess should not decide: ``{"zip": "category", "note": "left out"}``.
    seed : int
        For everything that is drawn.
    engine : {"auto", "memory", "stream", "dask"}
        ``"auto"`` reads small tables whole and streams large ones.
    scheduler : str, optional
        Address of a Dask scheduler.
    name : str, optional
        Of the table, for reports.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    Result

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> X[7] = 9.0
    >>> result = score(X)
    >>> result.top(1)["reasons"][0]
    'x0 = 9: above all other rows; x1 = 9: above all other rows'
    """
    started = time.perf_counter()
    known = load(saved) if isinstance(saved, str | Path) else saved
    rate = _rate(known, rate)
    run = _Run(seed, progress or (lambda what, done: None))
    table = _Table.of(data, engine)
    with open_engine("dask" if engine == "dask" else "local", scheduler) as run.engine:
        training = None
        fitted: Detector
        if known is not None:
            fitted, columns = known, _columns_of(known, table.head())
        elif fit_on is not None:
            normal = _Table.of(fit_on, engine)
            columns = _guess(normal, kinds)
            fitted = run.alarm(_detector(method, parameters, seed, normal.streams), normal, columns, rate)
        else:
            columns = _guess(table, kinds)
            fitted, training = run.fit(_detector(method, parameters, seed, table.streams), table, columns)
        fit_seconds = time.perf_counter() - started
        scored = run.scored(fitted, table, columns, training)
        inner: Any = fitted.detector_ if isinstance(fitted, Alarm) else fitted
        profile = getattr(inner, "profile_", None) or Profile.of(columns.features(table.head()), SKETCH)
    p_values = fitted.p_values_of(scored.scores) if isinstance(fitted, Alarm) else _rank_p_values(scored.scores)
    alarms = p_values <= rate
    scored.keep_top(max(100, int(alarms.sum())))
    run.progress("explaining", 0.0)
    rows = Reading(scored.top_frame, columns)
    if hasattr(inner, "reasons"):
        reasons = inner.reasons(rows)
        usual = np.quantile(inner.reasons(Reading(scored.sample_frame, columns)), 0.9, axis=0)
    else:
        reasons = _by_leaving_out(inner, rows, profile.names, scored.sample_frame)
        usual = np.zeros(len(profile.names))
    run.progress("explaining", 1.0)
    card = find(inner.__paper__)
    return Result(
        name=name or table.name,
        scores=scored.scores,
        p_values=p_values,
        alarms=alarms,
        rate=rate,
        calibrated=isinstance(fitted, Alarm),
        columns=columns,
        detector=fitted,
        card=card,
        profile=profile,
        top_rows=scored.top_rows,
        top_frame=scored.top_frame,
        reasons=reasons,
        usual_reasons=usual,
        sample_rows=scored.sample_rows,
        sample_frame=scored.sample_frame,
        settings={
            "data": table.path,
            "rows": len(scored.scores),
            "method": card.slug,
            "parameters": inner.get_params(deep=False),
            "fitted on": "a saved state" if saved is not None else "normal rows" if fit_on is not None else "the table",
            "rate": rate,
            "seed": seed,
            "engine": engine if engine != "auto" else "stream" if table.streams else "memory",
            "seconds": {"fit": round(fit_seconds, 3), "in all": round(time.perf_counter() - started, 3)},
            "versions": versions(),
        },
    )


def fit(
    data: Any,
    method: str | Detector = DEFAULT,
    *,
    rate: float = 0.01,
    parameters: dict[str, Any] | None = None,
    kinds: dict[str, str] | None = None,
    seed: int = 0,
    engine: str = "auto",
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> Alarm:
    """Learn from normal rows and calibrate; the parameters are those of :func:`score`.

    Returns
    -------
    Alarm
        Save it with ``save`` and hand the file to ``score(..., saved=path)``.
    """
    run = _Run(seed, progress or (lambda what, done: None))
    table = _Table.of(data, engine)
    columns = _guess(table, kinds)
    with open_engine("dask" if engine == "dask" else "local", scheduler) as run.engine:
        return run.alarm(_detector(method, parameters, seed, table.streams), table, columns, rate)


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    import platform
    from importlib.metadata import version

    packages = ("farout", "numpy", "scipy", "scikit-learn", "polars")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


@dataclass
class _Table:
    """A table in memory or on disk, as parts; one part is read whole, several stream."""

    name: str
    path: str | None
    parts: list[Any]
    streams: bool

    @classmethod
    def of(cls, data: Any, engine: str) -> _Table:
        if engine not in ("auto", "memory", "stream", "dask"):
            raise UnknownName("engine", engine, ("auto", "memory", "stream", "dask"))
        if not isinstance(data, str | Path | TableFile):
            if engine in ("stream", "dask"):
                raise BadInput(f"the engine '{engine}' reads files; a table in memory needs none")
            return cls("table", None, [_Whole(to_polars(data))], False)
        file = data if isinstance(data, TableFile) else TableFile(data)
        streams = engine in ("stream", "dask") or (engine == "auto" and file.size > IN_MEMORY)
        parts = file.parts(max(1, -(-file.size // PART))) if streams else [_Whole(file.read())]
        return cls(file.name, str(file.path), parts, streams)

    @property
    def numbered(self) -> list[tuple[int, Any]]:
        """The parts with their numbers, which seed what is drawn from them."""
        return list(enumerate(self.parts))

    def head(self) -> pl.DataFrame:
        """Return the whole table, or its first rows where it streams."""
        return next(self.parts[0].batches(200_000))


@dataclass
class _Whole:
    """A table in memory, as the one part of itself."""

    frame: pl.DataFrame

    def batches(self, rows: int = 0) -> Iterator[pl.DataFrame]:
        yield self.frame


@dataclass
class _Scored:
    """Scores of consecutive rows, with the values of the rows farthest out and of a fair sample."""

    scores: np.ndarray
    top_rows: np.ndarray
    top_frame: pl.DataFrame
    sample_rows: np.ndarray
    sample_keys: np.ndarray
    sample_frame: pl.DataFrame

    @classmethod
    def of(cls, frame: pl.DataFrame, scores: np.ndarray, seed: int) -> _Scored:
        keys = hashed(0, len(scores), seed)
        top = smallest(-scores, EXPLAINED)
        drawn = smallest(keys, PICTURED)
        return cls(scores, top, frame[top], drawn, keys[drawn], frame[drawn])

    def join(self, other: _Scored) -> None:
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


class _Run:
    """The passes over a table; each is a map over its parts, and the one that learns ends in a tree of merges."""

    engine: Engine

    def __init__(self, seed: int, progress: Progress) -> None:
        self.seed = seed
        self.progress = progress

    def fit(self, detector: Detector, table: _Table, columns: Columns) -> tuple[Detector, np.ndarray | None]:
        """Fit on all rows; tables read whole also give their training scores."""
        if table.streams:
            fitted, training = self._learn(detector, table, columns, 0.0), None
        else:
            self.progress("learning", 0.0)
            fitted = clone(detector)
            training = fitted.fit_score(Reading(table.head(), columns))
        return fitted, training

    def alarm(self, detector: Detector, table: _Table, columns: Columns, rate: float) -> Alarm:
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

    def scored(self, detector: Detector, table: _Table, columns: Columns, training: np.ndarray | None) -> _Scored:
        """Score all rows."""
        if training is not None:
            return _Scored.of(columns.select(table.head()), training, self.seed)
        pieces = self.engine.map(
            _part_scores, table.numbered, (detector, columns, self.seed), self._counted("scoring", table)
        )
        first = next(pieces)
        for piece in pieces:
            first.join(piece)
        return first

    def _learn(self, detector: Detector, table: _Table, columns: Columns, held_out: float) -> Detector:
        shared = (detector, columns, held_out, self.seed)
        return self.engine.map_reduce(_learned, _merged, table.numbered, shared, self._counted("learning", table))

    def _counted(self, what: str, table: _Table) -> Callable[[], None]:
        """Return a function that reports one more part of the table as done."""
        done = count(1)
        self.progress(what, 0.0)
        return lambda: self.progress(what, next(done) / len(table.parts))


def _learned(shared: tuple[Detector, Columns, float, int], part: tuple[int, Any]) -> Detector:
    """Learn from one part, but for the rows that are held out."""
    detector, columns, held_out, seed = shared
    made: Any = clone(detector)
    for rows, held in _batches(columns, part, held_out, seed):
        if not held.all():
            made.partial_fit(rows[~held] if held_out else rows)
    return made


def _merged(one: Any, other: Any) -> Any:
    """Merge two states into a third; a worker may need the two again when another one dies."""
    return deepcopy(one).merge(other)


def _held_out_scores(shared: tuple[Detector, Columns, float, int], part: tuple[int, Any]) -> np.ndarray:
    detector, columns, held_out, seed = shared
    batches = (rows[held] for rows, held in _batches(columns, part, held_out, seed))
    return np.concatenate([detector.outlier_score(rows) for rows in batches if len(rows)] or [np.empty(0)])


def _part_scores(shared: tuple[Detector, Columns, int], part: tuple[int, Any]) -> _Scored:
    detector, columns, seed = shared
    total: _Scored | None = None
    for place, (rows, _) in enumerate(_batches(columns, part, 0.0, seed)):
        piece = _Scored.of(rows.frame, detector.outlier_score(rows), seed + 1000 * part[0] + place)
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


def _guess(table: _Table, kinds: dict[str, str] | None) -> Columns:
    columns = Columns.guess(table.head(), whole=not table.streams).retyped(kinds or {})
    if not columns.names:
        why = "; ".join(f"'{c.name}': {c.why}" for c in columns.left_out[:5])
        raise BadInput(f"'{table.name}' has no column to score: {why}; say kinds to read them all the same")
    return columns


def _rate(known: Detector | None, rate: float | None) -> float:
    """Return the rate that was asked for, or that of a saved alarm; the alarm must be able to keep it."""
    alarm = known if isinstance(known, Alarm) else None
    if rate is None:
        rate = alarm.rate if alarm else LABEL_RATE
    check_rate(rate, len(alarm.calibration_scores_) if alarm else None)
    return rate


def _columns_of(fitted: Detector, head: pl.DataFrame) -> Columns:
    """Return how a saved detector reads columns; one that was fitted on an array reads all of them by type."""
    known = getattr(fitted, "columns_", None)
    return known or Columns.of(head)


def _detector(method: str | Detector, parameters: dict[str, Any] | None, seed: int, streams: bool) -> Detector:
    """Make an unfitted detector, seeded, on all cores when it has the machine to itself."""
    if isinstance(method, Detector):
        return method.set_params(**(parameters or {}))
    card = find(method)
    made = card.load()()
    if not isinstance(made, Detector) or card.room != "table":
        tables = ", ".join(f"'{c.slug}'" for c in list_cards("table"))
        raise BadInput(f"'{card.slug}' does not score tables ({card.room}); methods that do: {tables}")
    known = made.get_params()
    if streams and not card.streams:
        able = ", ".join(f"'{c.slug}'" for c in list_cards("table") if c.streams)
        raise BadInput(f"'{card.slug}' needs the whole table in memory: say engine 'memory', or take one of {able}")
    defaults = {"random_state": seed, "n_jobs": 1 if streams else -1} | ({"sketch": SKETCH} if streams else {})
    chosen = {name: value for name, value in defaults.items() if name in known} | (parameters or {})
    for name in chosen:
        if name not in known:
            raise UnknownName(f"parameter of '{card.slug}'", name, known)
    return made.set_params(**chosen)


def _rank_p_values(scores: np.ndarray) -> np.ndarray:
    """Return the share of rows that score at least as high."""
    return (len(scores) - np.searchsorted(np.sort(scores), scores, side="left")) / len(scores)


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


def _value(column: np.ndarray | Codes, row: int) -> float | str | None:
    """Return the number, or the level spelled out, of one cell."""
    if isinstance(column, Codes):
        return column.levels[column.codes[row]] if column.codes[row] >= 0 else None
    return float(column[row])
