"""MAD-Bench: Are Anomaly Scores Telling the Whole Story? A Benchmark for Multilevel Anomaly Detection.

Tri Cao, Minh-Huy Trinh, Ailin Deng, Quoc-Nam Nguyen, Khoa Duong, Ngai-Man Cheung, Bryan Hooi, 2024 (arXiv 2411.14515).

Anomalies differ in severity. A model learns from normal samples alone; a test sample has a level from 0 (normal) up to
the worst, and the score shall part normal samples from each level and rise with the level. This reads the scores that
models gave to the benchmark's images, or scores graded tables with detectors of the catalogue, and measures both.

The paper claims that models which are good at the binary question often fail to order anomalies by severity.

Differences from the paper and the official code:

- Tau-b and C-index are also taken over the anomalous samples alone, and the largest tau-b that the ties between levels
  allow stands beside it. Over all samples, pairs with a normal one rule both.
- A sample without a score is left out and counted. The official code reads a refusal of a language model as the score
  0, "surely normal": ``refused="zero"``.
- Half levels are rounded up for all numbers, as the official code does; ``round_up=False`` keeps them.
- The official code prints each file's numbers; means over a domain's subsets are taken here, of rounded percents.
- The benchmark's images may not be passed on; folders of graded images are scored with detectors of the catalogue
  (:mod:`farout.bench.image_levels`). The graded tables are ours (:mod:`farout.bench._mad_bench_tables` says what their
  levels mean).
- The highest level that a score tells from the one below, from where on it is saturated, is not in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench import _mad_bench_tables as tables
from farout.bench._mad_bench_files import Scored, published_counts, read_scored, result_files
from farout.bench._mad_bench_page import domain_rows, write_page
from farout.bench._tables import as_text
from farout.bench.levels import LevelReport, multilevel_report, rises_to
from farout.bench.suites import Progress
from farout.cards import find, list_cards, paper
from farout.errors import BadInput, FaroutError, UnknownName
from farout.io.files import writing
from farout.io.tables import write_table
from farout.scoring import versions

# Sets of ADBench whose columns are measurements and that have 1,000 normal rows or more.
DEFECTS = {
    "small": ("cardio", "Wilt", "annthyroid"),
    "full": (
        "cardio",
        "Wilt",
        "annthyroid",
        "pendigits",
        "satellite",
        "landsat",
        "letter",
        "mammography",
        "optdigits",
        "shuttle",
    ),
}
BUDGETS = {budget: [*tables.NSL_KDD, *(f"defect/{name}" for name in names)] for budget, names in DEFECTS.items()}
ROWS = {"small": 1_000, "full": 5_000}  # that a detector learns from, at most
REFUSED = ("left_out", "zero")


@paper(
    "MAD-Bench",
    title="Are Anomaly Scores Telling the Whole Story? A Benchmark for Multilevel Anomaly Detection",
    authors="Cao, Trinh, Deng, Nguyen, Duong, Cheung, Hooi",
    arxiv="2411.14515",
    year=2024,
    claim="A good binary detector need not order anomalies by severity: AUROC of normal against anomalous says little "
    "about Kendall's tau-b and the C-index over levels.",
    differs="Order is also measured among the anomalous samples alone, with the largest possible tau-b beside it; "
    "refused samples are counted, not scored 0. Reads result files of the images; scores folders of graded images, and "
    "graded tables of our own.",
    kind="benchmark",
)
def main(
    files: Iterable[str | Path] | None = None,
    methods: Iterable[str] | None = None,
    sets: Iterable[str] | None = None,
    budget: str = "small",
    out: str | Path = "out/mad_bench",
    *,
    images: Iterable[str | Path] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    round_up: bool = True,
    refused: str = "left_out",
    device: str = "auto",
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Measure how scores follow severity, print the table of domains and write it with a page.

    Parameters
    ----------
    files : iterable of path, optional
        Result files of the benchmark, ``<model>_<domain>_<subset>.csv`` with columns of path, severity and anomaly
        score, and folders of them. Where files are given, graded tables are run only if methods or sets are named too.
    methods : iterable of str, optional
        Names of the catalogue; by default the detectors of tables that need no extra, or all detectors of images.
    sets : iterable of str, optional
        Graded tables: ``nsl_kdd/agreement``, ``nsl_kdd/harm``, ``defect/NAME`` for a set of ADBench. By default those
        of the budget.
    budget : {"small", "full"}
        How many graded tables, and how many rows a detector learns from.
    out : path
        A folder: ``mad_bench.parquet`` and ``mad_bench.csv`` (a row for each model, subset and seed, as fractions),
        ``domains.csv`` (percents with two decimals, averaged over subsets), ``settings.json`` and ``page.html``.
    images : iterable of str or path, optional
        Graded images: what :func:`farout.bench.image_levels.graded_images` takes. Graded tables are then not run.
    seeds : sequence of int
        For what is drawn, by a graded table and by a detector with a ``random_state``.
    round_up : bool
        Whether half levels count as the next whole one.
    refused : {"left_out", "zero"}
        What becomes of a sample without a score; their number stands in ``refusals`` in either case.
    device : str
        For detectors of images; ``"auto"`` is the first GPU where there is one.
    n_jobs : int, optional
        Processes, as in joblib; not for images.
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        What ``mad_bench.parquet`` holds: ``model``, ``domain``, ``subset``, ``seed``; ``samples``, ``normal``,
        ``levels``, ``refusals``; ``auroc_1`` and so on (level 0 against each level), ``auroc_all``; ``tau_b``,
        ``tau_b_max``, ``c_index`` over all samples and ``anomalous_...`` over those above level 0; ``rises_to``, the
        highest level that is told from the one below;
        ``as_published``, whether the numbers of samples are those of the paper (null where it has none), and ``notes``,
        what is wrong with the subset.

    Raises
    ------
    UnknownName
        A method, a graded table, the budget or the word for refusals does not exist.
    BadInput
        Nothing could be measured; the first reason is named.
    """
    if budget not in BUDGETS:
        raise UnknownName("budget", budget, BUDGETS)
    if refused not in REFUSED:
        raise UnknownName("way to treat refusals", refused, REFUSED)
    problems: list[str] = []
    work: Iterator[Scored] = iter(())
    if files is not None:
        work = _read(result_files(files), problems)
    if images is not None:
        if sets is not None:
            raise BadInput("graded tables and images take different methods; run them one after the other")
        from farout.bench.image_levels import scored_images

        work = chain(
            work, scored_images(images, methods, seeds, budget, device=device, problems=problems, progress=progress)
        )
    elif files is None or methods is not None or sets is not None:
        chosen = _chosen(BUDGETS[budget] if sets is None else sets)
        names = [find(name).slug for name in methods or _defaults()]
        work = chain(work, _run(chosen, names, seeds, ROWS[budget], n_jobs, problems, progress))
    counts = published_counts()
    rows = []
    for scored in work:
        try:
            rows.append(measured(scored, counts, round_up=round_up, refused=refused))
        except BadInput as error:
            problems.append(f"{_place(scored)}: {error}")
    if not rows:
        raise BadInput(f"nothing could be measured; the first reason is: {problems[0]}")
    table = _in_order(pl.DataFrame(rows, infer_schema_length=None))
    settings = {
        "budget": budget,
        "seeds": list(seeds),
        "round_up": round_up,
        "refused": refused,
        "problems": problems,
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    by_domain = domains(table)
    print(as_text(*domain_rows(by_domain)))
    for line in (*problems, *_notes(table)):
        print(line)
    write_table(table, folder / "mad_bench.parquet")
    write_table(table, folder / "mad_bench.csv")
    write_table(by_domain, folder / "domains.csv")
    with writing(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2, default=repr) + "\n", encoding="utf-8")
    write_page(table, by_domain, [*problems, *_notes(table)], settings, folder / "page.html")
    return table


def measured(
    scored: Scored,
    counts: dict[tuple[str, str], dict[float, int]] | None = None,
    *,
    round_up: bool = True,
    refused: str = "left_out",
) -> dict[str, Any]:
    """Return the row of a subset: its numbers, and notes on what is wrong with it.

    Parameters
    ----------
    scored : Scored
    counts : dict, optional
        Published numbers of samples, from ``published_counts``.
    round_up, refused
        As in :func:`main`.

    Raises
    ------
    BadInput
        Fewer than two levels have a score, or a severity is negative.
    """
    notes = []
    graded = ~np.isnan(scored.severity)
    if not graded.all():
        notes.append(f"{(~graded).sum()} samples have no severity and are left out")
    severity, score = scored.severity[graded], scored.score[graded]
    silent = np.isnan(score)
    if silent.any():
        notes.append(f"{silent.sum()} of {len(score)} samples have no score and {_TREATED[refused]}")
    planned = _levels(severity, round_up)
    if refused == "zero":
        score = np.where(silent, 0.0, score)
    else:
        severity, score = severity[~silent], score[~silent]
    report = multilevel_report(severity, score, round_up=round_up) if len(score) else None
    if report is None:
        raise BadInput("no sample has a score")
    notes += [f"level {level:g} is empty" for level in _missing(planned, report)]
    if 0.0 not in report.counts:
        notes.append("no sample is normal, so that there is no AUROC")
    if len(report.auroc) == 1:
        notes.append("one level alone is above 0, so that there is no order among anomalies")
    if np.ptp(score) == 0:
        notes.append("all scores are equal, so that tau-b is undefined")
    expected = counts.get((scored.domain, scored.subset)) if counts else None
    found = dict(zip(*(part.tolist() for part in np.unique(scored.severity[graded], return_counts=True))))
    if expected is not None and found != expected:
        notes.append(f"samples by level are {_words(found)}, and {_words(expected)} in the paper")
    return {
        "model": scored.model,
        "domain": scored.domain,
        "subset": scored.subset,
        "seed": scored.seed,
        "samples": len(scored.severity),
        "normal": report.counts.get(0.0, 0),
        "levels": len(report.auroc),
        "refusals": int(silent.sum()),
        **{f"auroc_{level:g}": value for level, value in report.auroc.items()},
        "auroc_all": report.auroc_all,
        **_orders(report),
        "rises_to": rises_to(np.ceil(severity) if round_up else severity, score),
        "as_published": None if expected is None else found == expected,
        "notes": "; ".join(notes) or None,
    }


def domains(table: pl.DataFrame) -> pl.DataFrame:
    """Average over subsets and seeds as the official tables do: percents with two decimals, then the mean of these.

    A subset that lacks a level, or whose anomalies have one level only, is left out of that mean; a score that is
    constant on a subset makes the mean NaN.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`main`.

    Returns
    -------
    polars.DataFrame
        ``domain``, ``model``, ``subsets``, ``refusals`` and the numbers.
    """
    numbers = [pl.col(name) for name in table.columns if name.startswith(_NUMBERS)]
    return table.group_by("domain", "model", maintain_order=True).agg(
        pl.col("subset").n_unique().alias("subsets"),
        pl.col("refusals").sum(),
        *((number * 100).round(2).mean().round(2) for number in numbers),
    )


_NUMBERS = ("auroc_", "tau_b", "c_index", "anomalous_")
_TREATED = {"left_out": "are left out", "zero": "count as 0"}


def _orders(report: LevelReport) -> dict[str, float | None]:
    """Tau-b and C-index, over all and among the anomalous; null where no two levels are there to be ordered."""
    values: dict[str, float | None] = {}
    for prefix, order in (("", report.everything), ("anomalous_", report.anomalous)):
        for name in ("tau_b", "tau_b_max", "c_index"):
            values[prefix + name] = getattr(order, name) if order.pairs else None
    return values


def _levels(severity: np.ndarray, round_up: bool) -> set[float]:
    """Levels that a subset has, or should have: whole ones without a gap up to the highest."""
    used = np.ceil(severity) if round_up else severity
    return {*used.tolist(), *np.arange(1.0, np.floor(used.max(initial=0)) + 1).tolist()}


def _missing(planned: set[float], report: LevelReport) -> list[float]:
    return sorted(planned - {0.0} - set(report.auroc))


def _read(paths: Sequence[Path], problems: list[str]) -> Iterator[Scored]:
    """Read result files; one that cannot be read is named, and the rest goes on."""
    for path in paths:
        try:
            yield read_scored(path)
        except BadInput as error:
            problems.append(f"{path.name}: {error}")


def _run(
    chosen: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    most: int,
    n_jobs: int | None,
    problems: list[str],
    progress: Progress | None,
) -> Iterator[Scored]:
    """Score graded tables; a method that fails on one is named, and the rest goes on."""
    from joblib import Parallel, delayed

    cells = list(product(chosen, seeds, methods))
    work = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(partial(_score, most=most))(*cell) for cell in cells)
    for done, ((name, seed, method), result) in enumerate(zip(cells, work), 1):
        if isinstance(result, str):
            problems.append(f"{method} on {name}, seed {seed}: {result}")
        else:
            yield result
        if progress:
            progress(f"{method} on {name}", done / len(cells))


def _score(name: str, seed: int, method: str, most: int) -> Scored | str:
    """Fit a method on a graded table's normal rows and score the others; the reason where that fails."""
    from threadpoolctl import threadpool_limits

    card = find(method)
    detector = card.load()()
    if "random_state" in detector.get_params():
        detector.set_params(random_state=seed)
    kind, _, subset = name.partition("/")
    domain = name if name in tables.NSL_KDD else kind  # two orders of the same attacks have no mean
    try:
        table = tables.graded(name, seed, most)
        with threadpool_limits(1):
            score = detector.fit(table.normal).outlier_score(table.X)
    except (FaroutError, ValueError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    return Scored(card.name, domain, subset, table.severity, score, seed)


def _chosen(sets: Iterable[str]) -> list[str]:
    """Full names of graded tables."""
    known = {name.lower(): name for name in tables.graded_names()}
    words = list(sets)
    for word in words:
        if word.lower() not in known:
            raise UnknownName("graded table", word, known.values())
    return [known[word.lower()] for word in words]


def _defaults() -> list[str]:
    return [card.slug for card in list_cards("table", "detector") if not card.extra and card.inductive]


def _in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Put the columns of the levels, which come as files bring them, in rising order."""
    levels = sorted(
        (c for c in table.columns if c.startswith("auroc_") and c != "auroc_all"), key=lambda c: float(c[6:])
    )
    others = [c for c in table.columns if c not in levels]
    place = others.index("auroc_all")
    return table.select(*others[:place], *levels, *others[place:])


def _notes(table: pl.DataFrame) -> list[str]:
    """What is wrong with subsets, each by its name."""
    noted = table.drop_nulls("notes").select("model", "domain", "subset", "notes").unique(maintain_order=True)
    return [f"{model} on {domain}, {subset}: {notes}" for model, domain, subset, notes in noted.iter_rows()]


def _place(scored: Scored) -> str:
    return f"{scored.model} on {scored.domain}, {scored.subset}"


def _words(counts: dict[float, int]) -> str:
    return ", ".join(f"{level:g}: {n}" for level, n in sorted(counts.items()))
