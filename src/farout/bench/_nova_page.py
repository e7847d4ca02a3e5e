"""The words and the page of NOVA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from farout.bench._tables import as_html
from farout.report._page import Section, page, write

PLAIN = ("false boxes", "coverage", "entropy", "true entropy")  # no shares
INTROS = {
    "localisation": "Average precision (AP) at overlaps of 0.3, 0.5 and the mean from 0.5 to 0.95, F1 of all boxes, "
    "the share of images with a hit, false boxes an image, and the share of answers that could not be read.",
    "captioning": "Overlap of words, F1 of terms and of sequences, and whether the text tells normal from abnormal.",
    "diagnosis": "Share of cases whose diagnosis is named first, or among five; the exact match is a lower bound. "
    "Coverage is how many diagnoses come first at all, for each true one; entropies are in bits.",
}


def task_rows(table: pl.DataFrame, task: str, intervals: bool = False) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a task over all cases, in words: a row a model."""
    part = table.filter((pl.col("task") == task) & (pl.col("stratum") == "all"))
    measures = part["measure"].unique(maintain_order=True).to_list()
    rows = []
    for (model,), own in part.group_by("model", maintain_order=True):
        cells = {row["measure"]: _word(row, intervals) for row in own.to_dicts()}
        rows.append([str(model), *(cells.get(measure, "-") for measure in measures), str(own["cases"][0])])
    return ["model", *measures, "cases"], rows


def write_page(
    table: pl.DataFrame,
    compared: pl.DataFrame,
    readers: Sequence[tuple[str, str, float]],
    settings: dict[str, Any],
    path: Path,
) -> None:
    """Write the tables of the tasks with intervals, the strata, the readers, and what diagnoses were compared as."""
    from markupsafe import Markup

    sections = []
    for task in table["task"].unique(maintain_order=True):
        intro = f"{INTROS[task]} In brackets: 95 % over cases drawn again."
        sections.append(Section(str(task).capitalize(), as_html(*task_rows(table, task, intervals=True)), intro))
    split = table.filter(pl.col("stratum") != "all").drop_nulls("value")
    if len(split):
        head = ["stratum", "task", "model", "measure", "value", "cases"]
        rows = [
            [row["stratum"], row["task"], row["model"], row["measure"], _word(row, True), str(row["cases"])]
            for row in split.sort("stratum", "task", "measure", "model", maintain_order=True).to_dicts()
        ]
        sections.append(Section("Strata", as_html(head, rows)))
    if readers:
        rows = [[a, b, f"{value:.3f}"] for a, b, value in readers]
        intro = "The mean overlap of two readers is about what a model can reach."
        sections.append(Section("Readers", as_html(["reader", "and", "mean overlap"], rows), intro))
    if len(compared):
        intro = "Diagnoses as models said them, and as they were compared."
        rows = [[str(cell) for cell in row] for row in compared.iter_rows()]
        sections.append(Section("Diagnoses", as_html(compared.columns, rows), intro))
    sections.append(Section("Settings", Markup("<pre>{}</pre>").format(json.dumps(settings, indent=2))))
    facts = [(name, f"{settings[name]:,}") for name in ("cases", "images")]
    facts.append(("models", f"{table['model'].n_unique()}"))
    lead = "How well models find, describe and name what is abnormal in images unlike those that they learned from."
    write(path, page("NOVA", sections, kind="benchmark of answers", lead=lead, facts=facts))


def _word(row: dict[str, Any], intervals: bool) -> str:
    """A number, in percent where it is a share, with its interval."""
    factor, digits = (1, 2) if row["measure"] in PLAIN else (100, 1)
    if row["value"] is None or row["value"] != row["value"]:
        return "-"
    word = f"{factor * row['value']:.{digits}f}"
    if intervals and row["low"] is not None:
        word += f" [{factor * row['low']:.{digits}f}, {factor * row['high']:.{digits}f}]"
    return word
