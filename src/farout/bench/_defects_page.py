"""The words and the page of the benchmark of defects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from farout.bench._macrodata_figures import time_against_accuracy
from farout.bench._tables import as_html
from farout.report._page import Section, figure, page, write

WORDS = {
    "auroc": "AUROC",
    "ap": "AP",
    "f1": "F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO@0.3",
    "fit_seconds": "fit s",
    "images_per_second": "images/s",
}
MEASURES = tuple(WORDS)[:6]


def write_page(
    table: pl.DataFrame, short: pl.DataFrame, problems: Sequence[str], settings: dict[str, Any], path: Path
) -> None:
    """Write the means, accuracy against time, a table for each measure with a column a set, and every row."""
    from markupsafe import Markup

    ran = short.drop_nulls("auroc")
    n_sets = table["set"].n_unique()
    sections = [
        Section(
            "Means over the sets",
            as_html(*in_words(short)),
            "In percent: AUROC, average precision and F1 of images; then numbers of pixels, over the images whose "
            "defects are marked. F1 is that of a threshold from held-out normal images, at a rate of 5 %. Seconds and "
            "images a second count reading and decoding.",
        ),
        Section(
            "Accuracy against time",
            figure(
                time_against_accuracy(ran["method"].to_list(), ran["fit_seconds"], ran["auroc"]),
                f"Mean image AUROC of {len(ran)} methods against seconds to fit.",
            ),
            "Seconds to fit; methods in the accent colour are not beaten in both.",
        ),
    ]
    own = table.group_by("set", "method", maintain_order=True).agg(pl.col(MEASURES).mean())
    for measure in MEASURES:
        if own[measure].count():
            wide = own.pivot("set", index="method", values=measure).select(
                "method", *own["set"].unique(maintain_order=True)
            )
            head = list(wide.columns)
            rows = [[row[0], *(_word("auroc", value) for value in row[1:])] for row in wide.iter_rows()]
            sections.append(
                Section(f"{WORDS[measure]} by set", as_html(head, rows), "In percent, the mean over seeds.")
            )
    sections.append(Section("Every row", as_html(*in_words(table.drop("error")))))
    if problems:
        sections.append(Section("What failed", as_html(["cell"], [[line] for line in problems])))
    sections.append(Section("Settings", Markup("<pre>{}</pre>").format(json.dumps(settings, indent=2, default=repr))))
    best = short["method"][0]
    facts = [("methods", f"{len(short)}"), ("sets", f"{n_sets}"), ("best by AUROC", best)]
    lead = "How well detectors that learn from normal images alone tell defective images, and mark the defects."
    write(path, page("Defects", sections, kind="benchmark", lead=lead, facts=facts))


def in_words(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of numbers, in words."""
    head = [WORDS.get(name, name) for name in table.columns]
    return head, [[_word(name, value) for name, value in row.items()] for row in table.to_dicts()]


def _word(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in MEASURES:
        return f"{100 * value:.1f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
