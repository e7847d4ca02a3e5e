"""Run any number of methods on any number of data sets: one row for each set, method and seed.

A cell is one method on one set with one seed. Finished cells are kept, each in a small file of its own that is written
whole or not at all, so that a run that was stopped goes on where it was. A set or a method that fails is named in its
row, and the rest goes on. Every cell computes with one thread, so that its seconds can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench._cells import OVER, Cell, Limits, batches, measured_in_turn, one_class_split, read
from farout.cards import find
from farout.contract import Detector
from farout.data import Dataset
from farout.errors import UnknownName

__all__ = ["OVER", "PROTOCOLS", "Limits", "Progress", "matrix", "one_class_split", "run"]

Progress = Callable[[str, float], None]

PROTOCOLS = ("unsupervised", "one-class", "split")
SCHEMA = {
    "set": pl.String,
    "method": pl.String,
    "protocol": pl.String,
    "seed": pl.Int64,
    "auroc": pl.Float64,
    "ap": pl.Float64,
    "seconds": pl.Float64,
    "rows": pl.Int64,
    "features": pl.Int64,
    "anomalies": pl.Int64,
    "fitted": pl.Int64,
    "rows_in_set": pl.Int64,
    "error": pl.String,
}


def run(
    sets: Iterable[str | Dataset],
    methods: Iterable[str] | Mapping[str, Detector],
    protocol: str = "unsupervised",
    seeds: Sequence[int] = (0, 1, 2),
    *,
    out: str | Path | None = None,
    n_jobs: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Measure how well methods find the labelled anomalies of data sets.

    Parameters
    ----------
    sets : iterable of str or Dataset
        Names for :func:`farout.data.load`, or data sets with labels 0 and 1.
    methods : iterable of str, or mapping of str to Detector
        Methods of the catalogue with their defaults, or detectors under the names that the table shall show.
    protocol : {"unsupervised", "one-class", "split"}
        ``"unsupervised"``: learn from all rows without their labels, and score the same rows. ``"one-class"``: learn
        from half of the normal rows, and score the other half and all anomalies. ``"split"``: learn from the rows that
        the set names for it (``Dataset.n_train``), and score the others. Numbers of different protocols answer
        different questions and share no table.
    seeds : sequence of int
        For what is drawn: by a method with a ``random_state``, and in ``"one-class"`` the half. Where nothing is drawn,
        only the first seed is run.
    out : path, optional
        A folder that keeps finished cells; a later run with the same folder does only what is missing or had failed.
        Cells are known by set, method, parameters, protocol, seed, limits and version of farout: empty the folder after
        a change of the code.
    n_jobs : int, optional
        Processes, as in joblib; a joblib backend such as Dask's is used when one is set.
    limits : Limits, optional
    progress : callable, optional
        Called with the cell that has finished and the share of cells done.

    Returns
    -------
    polars.DataFrame
        ``set``, ``method``, ``protocol``, ``seed``; ``auroc`` and ``ap``, null where the cell failed; ``seconds`` to
        fit and score; ``rows`` and ``anomalies`` that were scored, ``features``, ``fitted`` rows, ``rows_in_set``
        before any cut; ``error``, null where all went well.

    Raises
    ------
    UnknownName
        A method or the protocol does not exist.

    Examples
    --------
    >>> table = run(["breast_cancer"], ["ecod"])
    >>> table.select("set", "method", "seed", "rows", "fitted", "error").row(0)
    ('breast_cancer', 'ECOD', 0, 569, 569, None)
    >>> round(table["auroc"][0], 3)
    0.652
    """
    from joblib import Parallel, delayed

    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    limits, progress = limits or Limits(), progress or (lambda what, done: None)
    detectors = _detectors(methods)
    records: list[dict[str, Any]] = []
    cells: list[Cell] = []
    order: list[tuple[str, str, int]] = []
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for item in sets:
        data, identity, rows_in_set = read(item, limits.rows)
        name = item if isinstance(item, str) else item.name
        for method, detector in detectors.items():
            for seed in _seeds(detector, protocol, seeds):
                cell = Cell(name, identity, rows_in_set, data, method, detector, protocol, seed, limits)
                order.append((name, method, seed))
                kept = cell.kept(folder)
                records += [kept] if kept else []
                cells += [] if kept else [cell]
    work = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(
        delayed(measured_in_turn)(batch, folder) for batch in batches(cells)
    )
    for record in chain.from_iterable(work):
        records.append(record)
        progress(f"{record['method']} on {record['set']}", len(records) / len(order))
    place = {cell: i for i, cell in enumerate(order)}
    records.sort(key=lambda record: place[record["set"], record["method"], record["seed"]])
    return pl.DataFrame(records, schema=SCHEMA)


def matrix(table: pl.DataFrame, measure: str = "auroc") -> tuple[list[str], list[str], np.ndarray]:
    """Arrange one measure by set and method, the mean over seeds: what :mod:`farout.bench.stats` takes.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`run`, of one protocol.
    measure : str
        A column of numbers.

    Returns
    -------
    sets, methods : list of str
    values : float64 array (n_sets, n_methods)
        NaN where a cell, of whatever seed, failed or was not run.

    Examples
    --------
    >>> cells = [("glass", "LOF", 0.6), ("glass", "ECOD", 0.7), ("wine", "LOF", None)]
    >>> matrix(pl.DataFrame(cells, schema=["set", "method", "auroc"], orient="row"))
    (['glass', 'wine'], ['LOF', 'ECOD'], array([[0.6, 0.7],
           [nan, nan]]))
    """
    sets = table["set"].unique(maintain_order=True).to_list()
    methods = table["method"].unique(maintain_order=True).to_list()
    values = np.full((len(sets), len(methods)), np.nan)
    means = table.group_by("set", "method").agg(pl.col(measure).cast(pl.Float64).fill_null(np.nan).mean())
    for name, method, mean in means.iter_rows():
        values[sets.index(name), methods.index(method)] = mean
    return sets, methods, values


def _detectors(methods: Iterable[str] | Mapping[str, Detector]) -> dict[str, Detector]:
    """Methods by the names that the table shows."""
    if isinstance(methods, Mapping):
        return dict(methods)
    cards = [find(name) for name in methods]
    return {card.name: card.load()() for card in cards}


def _seeds(detector: Detector, protocol: str, seeds: Sequence[int]) -> Iterator[int]:
    """Seeds that make a difference."""
    yield from seeds if protocol == "one-class" or "random_state" in detector.get_params() else seeds[:1]
