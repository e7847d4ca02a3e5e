"""Rank the columns of a table against a target, beside columns whose worth is known. ``farout rank`` in Python."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.cards import Card, find
from farout.errors import BadInput, UnknownName, nearest
from farout.io.tables import TableFile, to_polars, write_table
from farout.scoring import versions
from farout.scoring._passes import IN_MEMORY, Progress
from farout.table._quality import Quality, controls, odd_rows
from farout.table.outrank import OutRank

LEAK = 0.9  # share of what a copy of the target scores, from which a column may be the target in disguise
ONCE = 0.95  # distinct values a row from which a column cannot be judged
PAIRED = 12  # columns of which all pairs are measured
HEAD = 2**17  # rows that pairs and odd rows are looked for in


@dataclass(frozen=True)
class Ranking:
    """Columns in the order of what they tell about the target.

    Attributes
    ----------
    name, target : str
        Of the table, and of the column that was ranked against.
    rows : int
    entropy : float
        Of the target, in nats; no column can score more.
    noise : float
        Largest score, of either sign, of a column of pure noise.
    table : polars.DataFrame
        A row a column, best first: ``feature``, corrected mutual information ``score`` and the ``plain`` one in nats,
        ``cardinality``, ``coverage``, ``rare_share`` (of the values, those that occur once), ``bytes`` a value,
        ``min``, ``max``, ``mean`` and ``remark``.
    controls : polars.DataFrame
        ``feature``, ``score`` and ``plain`` of the columns whose worth is known.
    together : list of str
        The best columns in the order of 3MR, which sets back a column that says what others said.
    redundancy : float64 array (p, p)
        Corrected mutual information of two of them, in that order.
    odd_rows : polars.DataFrame
        Rows with the most fields that hold nothing of use; see :func:`farout.table._quality.odd_rows`.
    warnings : tuple of str
    card : Card
    settings : dict
        What would repeat the run.
    """

    name: str
    target: str
    rows: int
    entropy: float
    noise: float
    table: pl.DataFrame
    controls: pl.DataFrame
    together: list[str]
    redundancy: np.ndarray
    odd_rows: pl.DataFrame
    warnings: tuple[str, ...]
    card: Card
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the table (parquet, feather, csv, jsonl), whole or not at all."""
        if Path(path).suffix.lower() in (".html", ".htm"):
            from farout.report.ranking import write_page

            write_page(self, path)
        else:
            write_table(self.table, path)


def rank(
    data: Any,
    target: str,
    *,
    parameters: dict[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Rank the columns of a table by what they tell about one of them.

    Parameters
    ----------
    data : path, TableFile, data frame or array (n, d)
        Files that are large stream in bounded memory. All others are read in drawn order, since rows that are sorted
        mislead a ranking by batches.
    target : str
        A column of classes.
    parameters : dict, optional
        Of :class:`farout.table.OutRank`.
    seed : int
        For everything that is drawn.
    name : str, optional
        Of the table.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    Ranking

    Raises
    ------
    BadInput
        There is no such column, it has missing values or one class only, or no other column is there.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> click = rng.random(3000) < 0.3
    >>> frame = pl.DataFrame({"user": rng.integers(0, 2000, 3000), "ad": np.where(click, 1, rng.integers(0, 9, 3000))})
    >>> found = rank(frame.with_columns(click=pl.Series(click)), "click")
    >>> found.table.select("feature", "remark").rows()
    [('ad', ''), ('user', 'no better than noise')]
    """
    started = time.perf_counter()
    tell: Progress = progress or (lambda what, done: None)
    source = TableFile(data) if isinstance(data, str | Path) else data
    ranker = _ranker(parameters, seed)
    rng = np.random.default_rng(seed)
    quality: dict[str, Quality] = {}
    heads: list[pl.DataFrame] = []
    rows = 0
    streams = isinstance(source, TableFile) and source.size > IN_MEMORY
    for frame, share in _pieces(source, streams):
        if rows < HEAD:
            heads.append(frame.head(HEAD - rows))
        if not streams:
            frame = frame[rng.permutation(frame.height)]
        labels, features = _parted(frame, target)
        quality = quality or {column: Quality() for column in features.columns}
        for series in features:
            quality[series.name].add(series)
        ranker.partial_fit(features.hstack(controls(labels, rows, rng)), labels)
        rows += len(labels)
        tell("ranking", share)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores, plain = ranker.scores_, ranker.plain_
    d = len(quality)
    known = pl.DataFrame({"feature": ranker.feature_names_in_[d:].tolist(), "score": scores[d:], "plain": plain[d:]})
    known = known.with_columns(pl.col("feature").str.strip_prefix("control: "))
    copy = float(known.filter(feature="target")["score"][0])
    noise = float(known.filter(pl.col("feature") != "target")["score"].abs().max())  # type: ignore[arg-type]
    facts = pl.DataFrame([column.row() for column in quality.values()], infer_schema_length=None)
    table = pl.DataFrame({"feature": list(quality), "score": scores[:d], "plain": plain[:d]}).hstack(facts)
    remarks = [_remark(row, rows, noise, copy) for row in table.iter_rows(named=True)]
    table = table.with_columns(remark=pl.Series(remarks, dtype=pl.String))
    table = table.sort("score", descending=True, maintain_order=True)
    tell("pairs", 0.0)
    head = pl.concat(heads, how="vertical_relaxed")
    together, redundancy = _pairs(
        head[rng.permutation(head.height)], target, table["feature"].to_list()[:PAIRED], parameters, seed
    )
    odd = odd_rows(head.drop(target)).head(100)
    tell("pairs", 1.0)
    for warning in caught:
        warnings.warn(warning.message, stacklevel=2)
    return Ranking(
        name=name or str(getattr(source, "name", "table")),
        target=target,
        rows=rows,
        entropy=ranker.entropy_,
        noise=noise,
        table=table,
        controls=known,
        together=together,
        redundancy=redundancy,
        odd_rows=odd,
        warnings=tuple(str(warning.message) for warning in caught),
        card=find("outrank"),
        settings={
            "data": str(source.path) if isinstance(source, TableFile) else None,
            "rows": rows,
            "target": target,
            "method": "outrank",
            "parameters": ranker.get_params(),
            "seed": seed,
            "seconds": {"in all": round(time.perf_counter() - started, 3)},
            "versions": versions(),
        },
    )


def _ranker(parameters: dict[str, Any] | None, seed: int) -> OutRank:
    ranker = OutRank(random_state=seed)
    for name in parameters or {}:
        if name not in ranker.get_params():
            raise UnknownName("parameter of 'outrank'", name, ranker.get_params())
    return ranker.set_params(**(parameters or {}))


def _pieces(source: Any, streams: bool) -> Iterator[tuple[pl.DataFrame, float]]:
    """Yield the table, whole or in pieces, with the share of it that is then read."""
    if not streams:
        yield to_polars(source.read() if isinstance(source, TableFile) else source), 1.0
    else:
        total, read = source.n_rows(), 0
        for frame in source.batches():
            read += frame.height
            yield to_polars(frame), read / total if total else 0.5


def _parted(frame: pl.DataFrame, target: str) -> tuple[pl.Series, pl.DataFrame]:
    """Take the target out of the table."""
    if target not in frame.columns:
        raise BadInput(f"the table has no column '{target}' to rank against; {nearest(target, frame.columns)}")
    features = frame.drop(target)
    if not features.columns:
        raise BadInput(f"the table has no column beside '{target}'; there is nothing to rank")
    return frame[target], features


def _remark(row: dict[str, Any], rows: int, noise: float, copy: float) -> str:
    """Say what a score means."""
    if row["cardinality"] < 2 and row["coverage"] in (0.0, 1.0):
        return "constant"
    if row["cardinality"] > ONCE * rows * row["coverage"] and row["coverage"] == 1.0:
        return "a value a row: bin it to have it judged"
    if row["score"] >= LEAK * copy > noise:
        return "leak? tells the target as a copy does"
    return "no better than noise" if row["score"] <= noise else ""


def _pairs(
    head: pl.DataFrame, target: str, names: list[str], parameters: dict[str, Any] | None, seed: int
) -> tuple[list[str], np.ndarray]:
    """Measure all pairs of the best columns; return them in the order of 3MR, with their redundancy."""
    if len(names) < 2:
        return names, np.zeros((1, 1))
    ranker = _ranker({**(parameters or {}), "interaction_order": 2}, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said before
        order = ranker.fit(head.select(names), head[target]).rank_3mr()
    return [names[j] for j in order], ranker.redundancy_[np.ix_(order, order)]
