"""Score a table from beginning to end: guess its columns, fit, score, calibrate, explain. ``farout score`` in Python.

Small tables are read whole. Large ones stream in bounded memory, part by part, twice: once to learn, once to score; a
Dask cluster does the same over the same parts. Beside one batch and the detector's state only 8 bytes a row are held.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.alarm import Alarm, check_rate
from farout.cards import Card, find, list_cards
from farout.contract import LABEL_RATE, Detector, load
from farout.errors import BadInput, UnknownName
from farout.kit.columns import Columns, Reading
from farout.kit.engine import engine as open_engine
from farout.kit.profile import Profile
from farout.scoring._passes import Passes, Progress, Table
from farout.scoring._reasons import explained
from farout.scoring._result import Result

__all__ = ["DEFAULT", "Result", "default_for", "fit", "score", "versions"]

DEFAULT = "default"
STREAMED = "ecod"  # for tables too large to be read whole: needs no tuning, explains itself, and learns from pieces
# Events: the best of the room by the mean AUROC (0.83; APE 0.81, marginals 0.72) of two kinds of data: authentication
# events with swapped entities, one day learned and the next one scored, and six labelled tables of categories. It needs
# no training, draws nothing and names its pairs. The claims of the room measure on other data.
EVENTS = "pair_surprise"
EVENTS_STREAMED = "marginal_rarity"
LOG = "marginal_rarity"  # the line of which there is one goes together with itself, so that pairs do not see it
MATERIALS = ("table", "events")
ENTITIES = 50  # levels from which a category looks like users, hosts or addresses, of which an event names several
SKETCH = 0.002  # relative rank error of the columns of a table that streams


def score(
    data: Any,
    method: str | Detector | None = None,
    *,
    material: str | None = None,
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
    method : str or Detector, optional
        A method of the catalogue for tables or events, or a detector to clone; what :func:`default_for` says where
        none is given.
    material : {"table", "events"}, optional
        What the rows are, for the choice of a method; told by the columns where it is not said.
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
    'x0 = 9: above all other rows, other columns say 0.204; x1 = 9: above all other rows, other columns say -0.0106'
    """
    started = time.perf_counter()
    tell: Progress = progress or (lambda what, done: None)
    known = load(saved) if isinstance(saved, str | Path) else saved
    rate = _rate(known, rate)
    table = reference = Table.of(data, engine)
    with open_engine("dask" if engine == "dask" else "local", scheduler) as opened:
        passes = Passes(opened, seed, tell)
        training = None
        fitted: Detector
        if known is not None:
            fitted, columns = known, _columns_of(known, table.head())
        elif fit_on is not None:
            reference = Table.of(fit_on, engine)
            columns = _guess(reference, kinds)
            method = method or _default(reference, columns, material)
            fitted = passes.alarm(
                _detector(method, parameters, seed, reference.streams, True), reference, columns, rate
            )
        else:
            columns = _guess(table, kinds)
            method = method or _default(table, columns, material)
            fitted, training = passes.fit(_detector(method, parameters, seed, table.streams, False), table, columns)
        fit_seconds = time.perf_counter() - started
        scored = passes.scored(fitted, table, columns, training)
    inner: Any = fitted.detector_ if isinstance(fitted, Alarm) else fitted
    profile = getattr(inner, "profile_", None) or Profile.of(columns.features(reference.head()), SKETCH)
    p_values = fitted.p_values_of(scored.scores) if isinstance(fitted, Alarm) else _rank_p_values(scored.scores)
    alarms = p_values <= rate
    scored.keep_top(max(100, int(alarms.sum())))
    tell("explaining", 0.0)
    odd = Reading(scored.top_frame, columns)
    reasons, usual = explained(inner, odd, profile.names, scored.sample_frame)
    said = inner.words(odd) if hasattr(inner, "words") else []
    tell("explaining", 1.0)
    card = _card(inner)
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
        said=said,
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
    method: str | Detector | None = None,
    *,
    material: str | None = None,
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
    check_rate(rate)
    table = Table.of(data, engine)
    columns = _guess(table, kinds)
    method = method or _default(table, columns, material)
    with open_engine("dask" if engine == "dask" else "local", scheduler) as opened:
        passes = Passes(opened, seed, progress or (lambda what, done: None))
        return passes.alarm(_detector(method, parameters, seed, table.streams, True), table, columns, rate)


def default_for(columns: Columns, frame: pl.DataFrame, material: str | None = None, streams: bool = False) -> str:
    """Choose a method by what the rows of a table are.

    Rows are events where three columns or more are categories, these make up three quarters of the columns that are
    read (dates aside), and two of them at least have as many levels as entities do.

    Parameters
    ----------
    columns : Columns
    frame : polars.DataFrame
        The table, or its first rows.
    material : {"table", "events"}, optional
        Said instead of guessed.
    streams : bool
        Whether the table is too large to be read whole.

    Returns
    -------
    str
        A method of the catalogue.

    Examples
    --------
    >>> users, hosts = [f"u{i % 60}" for i in range(600)], [f"h{i % 70}" for i in range(600)]
    >>> events = pl.DataFrame({"user": users, "host": hosts, "outcome": ["ok", "ok", "failed"] * 200})
    >>> default_for(Columns.guess(events), events)
    'pair_surprise'
    >>> sizes = events.select(user=pl.col("user"), size=pl.col("host").str.len_chars())
    >>> default_for(Columns.guess(sizes), sizes) == DEFAULT
    True
    """
    if material not in (None, *MATERIALS):
        raise UnknownName("material", material, MATERIALS)
    if material is None:
        read = [column for column in columns.columns if column.kind in ("numeric", "category")]
        categories = [column.name for column in read if column.kind == "category"]
        entities = [name for name in categories if frame[name].n_unique() >= ENTITIES]
        events = len(categories) >= max(3, 0.75 * len(read)) and len(entities) >= 2
    else:
        events = material == "events"
    whole, streamed = (EVENTS, EVENTS_STREAMED) if events else (DEFAULT, STREAMED)
    return streamed if streams else whole


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    import platform
    from importlib.metadata import version

    packages = ("farout", "numpy", "scipy", "scikit-learn", "polars")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def _default(table: Table, columns: Columns, material: str | None) -> str:
    """Choose a method for a table; logs have one of their own."""
    if table.format == "log" and material is None:
        return LOG
    return default_for(columns, table.head(), material, table.streams)


def _guess(table: Table, kinds: dict[str, str] | None) -> Columns:
    head = table.head()
    columns = Columns.guess(head, whole=not table.streams).retyped(kinds or {}, head)
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


def _detector(
    method: str | Detector, parameters: dict[str, Any] | None, seed: int, streams: bool, normal: bool
) -> Detector:
    """Make an unfitted detector, seeded, told if it learns from normal rows, on all cores if it has them to itself."""
    if isinstance(method, Detector):
        return method.set_params(**(parameters or {}))
    card = find(method)
    if card.kind != "detector" or card.room not in MATERIALS:
        tables = ", ".join(f"'{c.slug}'" for room in MATERIALS for c in list_cards(room, "detector"))
        raise BadInput(f"'{card.slug}' does not score tables ({card.room}); methods that do: {tables}")
    made = card.load()()
    known = made.get_params()
    if streams and not card.streams:
        able = ", ".join(f"'{c.slug}'" for room in MATERIALS for c in list_cards(room, "detector") if c.streams)
        raise BadInput(f"'{card.slug}' needs the whole table in memory: say engine 'memory', or take one of {able}")
    defaults: dict[str, Any] = {"random_state": seed, "n_jobs": 1 if streams else -1, "novelty": normal}
    defaults |= {"sketch": SKETCH} if streams else {}
    chosen = {name: value for name, value in defaults.items() if name in known} | (parameters or {})
    for name in chosen:
        if name not in known:
            raise UnknownName(f"parameter of '{card.slug}'", name, known)
    return made.set_params(**chosen)


def _rank_p_values(scores: np.ndarray) -> np.ndarray:
    """Return the share of rows that score at least as high."""
    return (len(scores) - np.searchsorted(np.sort(scores), scores, side="left")) / len(scores)


def _card(detector: Any) -> Card:
    """Return the detector's card; one of the user's own gets a plain one."""
    if hasattr(detector, "__paper__"):
        return find(detector.__paper__)
    name, module = type(detector).__name__, type(detector).__module__
    return Card(name, "table", name.lower(), name, module)
