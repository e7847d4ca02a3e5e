"""The table benchmark: every method on the classical sets of ADBench, beside published numbers.

Han, Hu, Huang, Jiang, Zhao, ADBench: Anomaly Detection Benchmark, NeurIPS 2022 (arXiv 2206.09426).

Numbers of others come from two tables: the published ones of Livernoche et al. (ICLR 2024), and PyOD's defaults
measured on the same files. On sets that were used whole, the median difference in AUROC is held against ``TOLERANCE``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from farout.bench._adbench_page import write_page
from farout.bench._adbench_words import as_words
from farout.bench._parts import detectors, short
from farout.bench._published import MEASURED, SOURCES, beside, numbers_of_others
from farout.bench.suites import Limits, Progress, run
from farout.cards import list_cards
from farout.data import adbench_names
from farout.errors import BadInput, UnknownName
from farout.io.files import writing
from farout.io.tables import write_table
from farout.scoring import versions

PROTOCOLS = ("unsupervised", "one-class")  # its sets have no split of their own
# Every second one, by rows, of the sets with fewer than 8,000 rows and at most 200,000 values.
SMALL = (
    "adbench/Hepatitis",
    "adbench/Lymphography",
    "adbench/glass",
    "adbench/vertebral",
    "adbench/WDBC",
    "adbench/Pima",
    "adbench/yeast",
    "adbench/cardio",
    "adbench/Cardiotocography",
    "adbench/Wilt",
    "adbench/annthyroid",
)
BUDGETS = {"small": SMALL, "full": tuple(adbench_names())}
TOLERANCE = 0.005  # of the median difference in AUROC from PyOD's; the published numbers differ from PyOD's by as much


def main(
    methods: Iterable[str] | None = None,
    sets: Iterable[str] | None = None,
    protocol: str = "both",
    budget: str = "small",
    out: str | Path = "out/adbench",
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n_jobs: int | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Run the benchmark, print its tables and write its page.

    Parameters
    ----------
    methods : iterable of str, optional
        Names of the catalogue; by default all detectors of tables. ECOD and HBOS are also run as PyOD computes them.
    sets : iterable of str, optional
        Names with or without ``adbench/``; by default those of the budget.
    protocol : {"both", "unsupervised", "one-class"}
    budget : {"small", "full"}
        Eleven small sets chosen by their size alone (under a minute on one core), or all 39.
    out : path
        A folder: ``adbench.csv`` (a row for each set, method and seed), ``agreement.csv``, ``settings.json``,
        ``page.html`` and the finished cells, with which a run that was stopped goes on.
    seeds, n_jobs, limits, progress
        As in :func:`farout.bench.suites.run`.

    Returns
    -------
    polars.DataFrame
        What ``adbench.csv`` holds.

    Raises
    ------
    UnknownName
        A method, a set, the protocol or the budget does not exist.
    BadInput
        No cell could be run; the first error is named.
    """
    chosen = _sets(sets, budget)
    methods = [card.slug for card in list_cards("table", "detector")] if methods is None else methods
    by_name = detectors(methods)
    if protocol not in ("both", *PROTOCOLS):
        raise UnknownName("protocol", protocol, ("both", *PROTOCOLS))
    protocols = PROTOCOLS if protocol == "both" else (protocol,)
    folder, limits = Path(out), limits or Limits()
    tell = progress or (lambda what, done: None)
    frames = [
        run(
            chosen,
            by_name,
            each,
            seeds,
            out=folder / "cells",
            n_jobs=n_jobs,
            limits=limits,
            progress=lambda what, done, i=i: tell(what, (i + done) / len(protocols)),  # type: ignore[misc]
        )
        for i, each in enumerate(protocols)
    ]
    table = pl.concat(frames)
    if table["auroc"].null_count() == len(table):
        raise BadInput(f"none of the {len(table)} cells could be run; the first failed with {table['error'][0]}")
    agreed = agreement(table)
    settings = {
        "sets": chosen,
        "methods": {name: detector.get_params() for name, detector in by_name.items()},
        "protocols": protocols,
        "seeds": list(seeds),
        "limits": asdict(limits),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(as_words(table, agreed, TOLERANCE))
    write_table(table, folder / "adbench.csv")
    write_table(agreed, folder / "agreement.csv")
    with writing(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2, default=repr) + "\n", encoding="utf-8")
    write_page(table, agreed, settings, folder / "page.html")
    return table


def agreement(table: pl.DataFrame) -> pl.DataFrame:
    """Say how far our AUROC is from that of others, by method, over the sets that were used whole.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`farout.bench.suites.run`, of one protocol or both.

    Returns
    -------
    polars.DataFrame
        ``source``, ``protocol``, ``method``, ``sets``, the ``median`` and the ``largest`` absolute difference in AUROC,
        the set ``where`` it is largest, and whether the median is ``within`` ``TOLERANCE`` (null against the published
        numbers, which come from other samples of the rows).
    """
    rows = []
    for source, words in SOURCES.items():
        pairs = beside(table, numbers_of_others(source)).filter("whole").drop_nulls("their_auroc")
        pairs = pairs.with_columns(gap=(pl.col("auroc") - pl.col("their_auroc")).abs())
        for (protocol, method), part in pairs.group_by("protocol", "method", maintain_order=True):
            gap = part["gap"].to_numpy()
            worst = part["set"][int(gap.argmax())]
            median = float(np.median(gap))
            within = median <= TOLERANCE if source == MEASURED else None
            rows.append((words, protocol, method, len(part), median, gap.max(), worst, within))
    schema = {"source": str, "protocol": str, "method": str, "sets": int, "median": float, "largest": float}
    return pl.DataFrame(rows, schema=schema | {"where": str, "within": bool}, orient="row")


def _sets(sets: Iterable[str] | None, budget: str) -> list[str]:
    """Full names of the sets, in the order given."""
    if budget not in BUDGETS:
        raise UnknownName("budget", budget, BUDGETS)
    known = {short(name).lower(): name for name in adbench_names()}
    chosen = list(BUDGETS[budget] if sets is None else sets)
    for name in chosen:
        if short(name).lower() not in known:
            raise UnknownName("set of ADBench", name, known.values())
    return [known[short(name).lower()] for name in chosen]
