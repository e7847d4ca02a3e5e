"""MacrOData: New Benchmarks of Thousands of Datasets for Tabular Outlier Detection.

Ding, Kluettermann, Wen, Chen, Akoglu, 2026 (arXiv 2602.09329).

Fifty tables are too few to tell detectors apart. MacrOData brings 2,446, each with its split: a detector learns from
normal rows and scores held-out normal rows and anomalies. This is the runner: any methods on any sets, with the report
that so many sets allow.

The paper claims that with hundreds of tables mean ranks separate that overlap on a few dozen, and that neighbour
methods lead the classical field (kNN 76.3 mean AUROC on OddBench, isolation forest 71.3; from a later paper).

Differences from the paper:

- Its leaderboard with hidden labels is not here. Sets come from a local folder: the part of OddBench and OvrBench
  that is under the data folder, any archives in their format, and sets in the manner of SynBench.
- Detectors run with their defaults; the paper compares many hyper-parameters.
- Rows are standardised by the training rows, and sets above 50,000 rows are cut.
- Elo is the maximum-likelihood rating of :func:`farout.bench.pairs.elo`; how the published one was updated is not said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from farout.bench._macrodata_page import write_page
from farout.bench._macrodata_report import as_words, described, strata, summary
from farout.bench._parts import detectors
from farout.bench.suites import Limits, Progress, run
from farout.cards import list_cards, paper
from farout.data import DataMissing, macrodata_names, synbench
from farout.errors import BadInput, UnknownName
from farout.io.files import writing
from farout.io.tables import write_table
from farout.scoring import versions

# Every fourth, by the number of values, of the 48 smallest of the 95.
SMALL = (
    "macrodata/oddbench/AcademicPerformance",
    "macrodata/ovrbench/wine",
    "macrodata/ovrbench/batch-3390_part-1_i1151",
    "macrodata/oddbench/AttackScenario",
    "macrodata/oddbench/SalesAnomalies",
    "macrodata/ovrbench/batch-3546_part-0_i825",
    "macrodata/ovrbench/jasmine",
    "macrodata/ovrbench/batch-4253_part-3_i1468",
    "macrodata/ovrbench/batch-2353_part-2_i1185",
    "macrodata/oddbench/ClinicalVariantOrigin",
    "macrodata/ovrbench/delta_ailerons",
    "macrodata/oddbench/ObjectShape",
)
BUDGETS = ("small", "full")
PROTOCOL = "split"


@paper(
    "MacrOData",
    title="MacrOData: New Benchmarks of Thousands of Datasets for Tabular Outlier Detection",
    authors="Ding, Kluettermann, Wen, Chen, Akoglu",
    arxiv="2602.09329",
    year=2026,
    claim="With hundreds of tables, detectors that a few dozen tables cannot tell apart are told apart; neighbour "
    "methods lead, and none leads everywhere.",
    differs="Sets come from a local folder (95 of OddBench and OvrBench, any archives of that format, and drawn ones "
    "in the manner of SynBench); there is no leaderboard with hidden labels. Defaults only. Elo by maximum likelihood.",
    kind="benchmark",
)
def main(
    methods: Iterable[str] | None = None,
    sets: Iterable[str] | None = None,
    protocol: str = PROTOCOL,
    budget: str = "small",
    out: str | Path = "out/macrodata",
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
        Names of the catalogue; by default the detectors of tables that need no extra. ECOD and HBOS are also run as
        PyOD computes them.
    sets : iterable of str, optional
        Names with or without ``macrodata/``; ``"oddbench"``, ``"ovrbench"`` for all of them; ``"synbench"`` (one of
        each kind) or ``"synbench/gmm-local-7"``; archives of the format, and folders of them. By default those of the
        budget.
    protocol : {"split"}
        These sets have one: learn from the normal rows of the set's own split, and score the others.
    budget : {"small", "full"}
        Twelve small sets chosen by their size alone, or all that are here.
    out : path
        A folder: ``macrodata.parquet`` (a row for each set and method), ``methods.csv``, ``strata.csv``,
        ``settings.json``, ``page.html`` and the finished cells, with which a run that was stopped goes on.
    seeds, n_jobs, limits, progress
        As in :func:`farout.bench.suites.run`.

    Returns
    -------
    polars.DataFrame
        What ``macrodata.parquet`` holds: ``set``, ``method``, ``protocol``; the means over seeds of ``auroc``, ``ap``
        and ``seconds``, ``ap_normalized`` = (AP - r) / (1 - r) with ``share`` r, and ``auroc_std``; ``seeds``,
        ``fitted``, ``rows``, ``features``, ``anomalies``, ``error``; and what is known of the set: ``suite``,
        ``domain``, ``isotropy``, the authors' ``iforest_auc`` and ``rf_auc``, ``best_column`` (AUROC of the one column
        that tells most) and ``seen`` (share of the anomalies that equal a training row).

    Raises
    ------
    UnknownName
        A method, a set, the protocol or the budget does not exist.
    DataMissing
        The sets of the budget are not here.
    BadInput
        No cell could be run; the first error is named.
    """
    if protocol != PROTOCOL:
        raise UnknownName("protocol of MacrOData", protocol, (PROTOCOL,))
    if budget not in BUDGETS:
        raise UnknownName("budget", budget, BUDGETS)
    chosen = _sets(sets, budget)
    by_name = detectors(
        [c.slug for c in list_cards("table", "detector") if not c.extra] if methods is None else methods
    )
    folder, limits = Path(out), limits or Limits()
    cells = run(
        chosen,
        by_name,
        protocol,
        seeds,
        out=folder / "cells",
        n_jobs=n_jobs,
        limits=limits,
        progress=progress,
    )
    if cells["auroc"].null_count() == len(cells):
        raise BadInput(f"none of the {len(cells)} cells could be run; the first failed with {cells['error'][0]}")
    table = described(cells)
    settings = {
        "sets": chosen,
        "methods": {name: detector.get_params() for name, detector in by_name.items()},
        "protocol": protocol,
        "seeds": list(seeds),
        "limits": asdict(limits),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(as_words(table))
    write_table(table, folder / "macrodata.parquet")
    write_table(summary(table), folder / "methods.csv")
    write_table(strata(table), folder / "strata.csv")
    with writing(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2, default=repr) + "\n", encoding="utf-8")
    write_page(table, settings, folder / "page.html")
    return table


def _sets(sets: Iterable[str] | None, budget: str) -> list[str]:
    """Full names of the sets and paths of the files, in the order given, each once."""
    here = macrodata_names()
    if sets is None and not here:
        raise DataMissing(
            "no set of MacrOData is here; set FAROUT_DATA to the folder that holds 'tabular/macrodata', or name sets: "
            "archives of its format, folders of them, or 'synbench'"
        )
    words = (SMALL if budget == "small" else here) if sets is None else sets
    return list(dict.fromkeys(name for word in words for name in _meant(word, here)))


def _meant(word: str, here: Sequence[str]) -> list[str]:
    """Names and paths that a word stands for."""
    path = Path(word)
    if path.is_dir():
        files = sorted(map(str, path.rglob("*.npz")))
        if not files:
            raise BadInput(
                f"there is no '.npz' in the folder '{word}'; give a folder of archives in MacrOData's format"
            )
        return files
    if path.suffix == ".npz":
        return [word]
    name = word.lower()
    if name.startswith("synbench/"):
        return [synbench.load(name).name]
    full = {known.lower(): known for known in here}
    suites: dict[str, list[str]] = {"synbench": synbench.names(0)}
    for known in here:
        suites.setdefault(known.split("/")[1], []).append(known)
    if name in suites:
        return suites[name]
    if f"macrodata/{name.removeprefix('macrodata/')}" not in full:
        raise UnknownName("set of MacrOData", word, [*suites, *here])
    return [full[f"macrodata/{name.removeprefix('macrodata/')}"]]
