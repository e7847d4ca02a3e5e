"""The page of MacrOData."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench import _macrodata_report as report
from farout.bench._macrodata_figures import scatter_rivals, time_against_accuracy
from farout.bench._parts import compared, ending, ranks, short
from farout.bench._tables import as_html
from farout.bench.stats import wilcoxon_holm
from farout.report._page import Section, figure, page, write

OURS = "Default"  # the method that is held against the others where it was run; else the one that ranks best


def write_page(table: pl.DataFrame, settings: dict[str, Any], path: Path) -> None:
    """Write means, ranks and tests, one method against its rivals, time, strata, doubts and published numbers."""
    from markupsafe import Markup

    judged = report.summary(table)
    sections = [
        Section(
            "Means",
            as_html(*report.summary_rows(table)),
            "Over the sets on which every method ran, in percent. Normalised AP is (AP - r) / (1 - r), r the share of "
            "anomalies. Elo by maximum likelihood, 1000 in the mean. Wins: sets on which the AUROC beats the forest's.",
        ),
        *ranks(table, "Ranks"),
    ]
    if len(judged) > 1:
        sections += [_pairs(table), _against_rivals(table, judged), _time(judged)]
    sections.append(
        Section(
            "Strata", as_html(*report.strata_rows(table)), "Mean AUROC in percent, and the method that has the best."
        )
    )
    doubts = Markup("").join(Markup("<p>{}</p>").format(line) for line in report.doubts(table))
    sections.append(Section("Doubtful sets", doubts, "Labels are read here to describe the sets; no method saw them."))
    if len(report.beside(table)):
        intro = (
            "Published: means over all 790 sets of OddBench, from a later paper's table, where ECOD is PyOD's, which "
            "scores new rows together. Here: means over those of the sets that are present. They are not the same sets."
        )
        sections.append(Section("Published", as_html(*report.beside_rows(table)), intro))
    n_sets, n_methods = table["set"].n_unique(), table["method"].n_unique()
    facts = [("sets", f"{n_sets}"), ("methods", f"{n_methods}"), ("failed", f"{table['error'].count()}")]
    lead = (
        "How well each method, with its defaults and fitted on normal rows alone, finds the anomalies among new rows."
    )
    sections += ending(table, settings)
    write(path, page("MacrOData", sections, kind="benchmark of tables", lead=lead, facts=facts))


def _pairs(table: pl.DataFrame) -> Section:
    """Every pair by Wilcoxon's test with Holm's adjustment."""
    _, methods, values = compared(table)
    rows = [
        [f"{pair.first}, {pair.second}", str(pair.n_sets), f"{pair.p:.2g}", f"{pair.p_holm:.2g}"]
        for pair in sorted(wilcoxon_holm(values, methods), key=lambda pair: pair.p)
    ]
    return Section("Pairs", as_html(["pair", "sets", "p", "adjusted by Holm"], rows), report.tests(table))


def _against_rivals(table: pl.DataFrame, judged: pl.DataFrame) -> Section:
    """A method against each other one, chosen from a list."""
    sets, methods, values = compared(table)
    name = OURS if OURS in methods else judged["method"][0]
    column = dict(zip(methods, values.T))
    met = [rival for rival in judged["method"] if rival != name]
    points = [short(one).split("/")[-1] for one in sets]
    fig = scatter_rivals(points, column[name], {rival: column[rival] for rival in met}, name)
    alt = f"AUROC of {name} against each of {len(met)} rivals on {len(sets)} sets; {fig['layout']['title']['text']}."
    return Section("Set by set", figure(fig, alt), "A point is a set; the rival is chosen above the picture.")


def _time(judged: pl.DataFrame) -> Section:
    """Seconds a set against mean AUROC."""
    seconds = judged["seconds"].to_numpy() / judged["sets"].to_numpy()
    fig = time_against_accuracy(judged["method"].to_list(), seconds, judged["auroc_mean"].to_numpy())
    alt = (
        f"Seconds and mean AUROC of {len(judged)} methods; {judged['method'][int(np.argmin(seconds))]} is the fastest."
    )
    return Section(
        "Time", figure(fig, alt), "To fit and score with one thread; no method is better than a blue one in both."
    )
