"""The page of the table benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench import _figures as figures
from farout.bench._adbench_words import agreement_rows, score_rows
from farout.bench._parts import ending, ranks, short
from farout.bench._published import PUBLISHED, SOURCES, beside, numbers_of_others
from farout.bench._tables import as_html
from farout.bench.suites import matrix
from farout.report._page import Section, figure, page, write


def write_page(table: pl.DataFrame, agreed: pl.DataFrame, settings: dict[str, Any], path: Path) -> None:
    """Write ranks, all cells, the published numbers beside ours, and the time, for each protocol."""
    sections = []
    for (protocol,), part in table.group_by("protocol", maintain_order=True):
        pairs = beside(part, numbers_of_others(PUBLISHED))
        sections += [
            *ranks(part, f"Ranks, {protocol}"),
            _every_set(part, pairs, protocol),
            *_published(pairs, protocol),
        ]
    sections.append(_time(table))
    if len(agreed):
        intro = f"Absolute difference in points of AUROC, sets used whole. {'; '.join(SOURCES.values())}."
        sections.append(Section("Agreement with others", as_html(*agreement_rows(agreed)), intro))
    sections += ending(table, settings)
    n_sets, n_methods = table["set"].n_unique(), table["method"].n_unique()
    facts = [
        ("sets", f"{n_sets}"),
        ("methods", f"{n_methods}"),
        ("cells", f"{len(table):,}"),
        ("failed", f"{table['error'].count()}"),
    ]
    lead = "How well each method finds the labelled anomalies, with its defaults and without looking at a label."
    write(path, page("ADBench", sections, kind="benchmark of tables", lead=lead, facts=facts))


def _every_set(table: pl.DataFrame, pairs: pl.DataFrame, protocol: str) -> Section:
    """The heat map of AUROC and the table of AP."""
    from markupsafe import Markup

    sets, methods, values = matrix(table)
    fig = figures.heat(methods, [short(name) for name in sets], values)
    alt = f"AUROC of {len(methods)} methods on {len(sets)} sets."
    body = figure(fig, alt) + Markup("<h3>{}</h3>").format("Average precision in percent: ours/published")
    body += as_html(*score_rows(table, pairs, "ap"))
    return Section(f"Every set, {protocol}", body, "AUROC; the mean over seeds.")


def _published(pairs: pl.DataFrame, protocol: str) -> list[Section]:
    """Every cell against the published number; nothing where there is none."""
    pairs = pairs.drop_nulls("their_auroc")
    if not len(pairs):
        return []
    names = [f"{method} on {short(name)}" for method, name in pairs.select("method", "set").iter_rows()]
    ours, theirs = pairs["auroc"].to_numpy(), pairs["their_auroc"].to_numpy()
    fig = figures.scatter_rival(names, ours, theirs, "farout", "the published table")
    median = np.median(np.abs(ours - theirs))
    alt = f"AUROC of {len(names)} cells, published and measured here; the median difference is {median:.3f}."
    intro = f"A point is one method on one set; {SOURCES[PUBLISHED]}."
    if protocol == "unsupervised":
        intro += " The source fits on a bootstrap sample, so that neighbour methods differ."
    return [Section(f"Published and measured, {protocol}", figure(fig, alt), intro)]


def _time(table: pl.DataFrame) -> Section:
    """Seconds to fit and score, one thread, over the sets on which every method ran."""
    done = table.group_by("protocol", "set", "method", maintain_order=True).agg(
        pl.col("seconds").fill_null(np.nan).mean()
    )
    per_set = done.group_by("protocol", "set").agg(pl.col("seconds").sum().is_finite().alias("all_ran"))
    shared = done.join(per_set.filter("all_ran"), on=["protocol", "set"])
    total = shared.group_by("method").agg(pl.col("seconds").sum()).sort("seconds")
    rows = [[method, f"{seconds:.2f}"] for method, seconds in total.iter_rows()]
    n_shared = per_set["all_ran"].sum()
    intro = f"To fit and score with one thread, summed over the {n_shared} sets (by protocol) on which all methods ran."
    return Section("Time", as_html(["method", "seconds"], rows), intro)
