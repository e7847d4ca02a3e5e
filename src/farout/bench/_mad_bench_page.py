"""The page and the words of MAD-Bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench._tables import as_html
from farout.report._page import Section, figure, page, plain, write

WORDS = {
    "subsets": "subsets",
    "refusals": "no score",
    "auroc_all": "0 vs all",
    "tau_b": "tau-b",
    "tau_b_max": "of at most",
    "c_index": "C",
    "anomalous_tau_b": "anomalous: tau-b",
    "anomalous_tau_b_max": "of at most",
    "anomalous_c_index": "C",
}


def domain_rows(by_domain: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of domains, in words; a dash where a domain has no such number."""
    levels = [name for name in by_domain.columns if name.startswith("auroc_") and name != "auroc_all"]
    shown = ["subsets", "refusals", *levels, *list(WORDS)[2:]]
    head = ["domain", "model", *(WORDS.get(name, f"0 vs {name.removeprefix('auroc_')}") for name in shown)]
    rows = [[row["domain"], row["model"], *(_word(row[name]) for name in shown)] for row in by_domain.to_dicts()]
    return head, rows


def write_page(
    table: pl.DataFrame, by_domain: pl.DataFrame, problems: Sequence[str], settings: dict[str, Any], path: Path
) -> None:
    """Write the means, a curve over the levels for each domain, every subset, and what went wrong."""
    from markupsafe import Markup

    sections = [
        Section(
            "Domains",
            as_html(*domain_rows(by_domain)),
            "In percent, the mean over subsets. AUROC of level 0 against each level and against all; tau-b and C-index "
            "over all samples, then over the anomalous ones alone: 0 and 50 say that the score orders them by chance.",
        )
    ]
    for (domain,), part in by_domain.group_by("domain", maintain_order=True):
        intro = "A curve that is flat near 100 finds all levels and need not tell them apart."
        sections.append(Section(f"Levels, {domain}", figure(*curves(part, str(domain))), intro))
    wide = table.select(
        "domain",
        "model",
        pl.format("{} {}", "subset", pl.col("seed").cast(pl.String).fill_null("")).alias("subset, seed"),
        "samples",
        *(pl.col(c) * 100 for c in ("auroc_all", "tau_b", "c_index", "anomalous_tau_b", "anomalous_c_index")),
        pl.col("rises_to").alias("rises to level"),
        pl.col("as_published").cast(pl.String).fill_null("-"),
    )
    sections.append(
        Section("Every subset", as_html(wide.columns, [[_word(cell) for cell in row] for row in wide.iter_rows()]))
    )
    if problems:
        sections.append(Section("What is wrong", as_html(["subset"], [[line] for line in problems])))
    sections.append(Section("Settings", Markup("<pre>{}</pre>").format(json.dumps(settings, indent=2, default=repr))))
    facts = [
        ("domains", f"{by_domain['domain'].n_unique()}"),
        ("models", f"{by_domain['model'].n_unique()}"),
        ("subsets", f"{len(table.select('domain', 'subset').unique())}"),
        ("without a score", f"{table['refusals'].sum():,}"),
    ]
    lead = "Whether scores rise with the severity of an anomaly, beside whether they part it from normal samples."
    write(path, page("MAD-Bench", sections, kind="benchmark of levels", lead=lead, facts=facts))


def curves(by_domain: pl.DataFrame, domain: str) -> tuple[dict[str, Any], str]:
    """Draw AUROC against the level for each model of a domain; return the figure and its words."""
    levels = [name for name in by_domain.columns if name.startswith("auroc_") and name != "auroc_all"]
    levels = [name for name in levels if by_domain[name].null_count() < len(by_domain)]
    x = [float(name.removeprefix("auroc_")) for name in levels]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(row["model"]),
            "x": x,
            "y": np.array([row[name] for name in levels], np.float64),
            "hovertemplate": plain(row["model"]) + "<br>0 against %{x}: %{y:.2f}<extra></extra>",
        }
        for row in by_domain.to_dicts()
    ]
    layout = {
        "height": 380,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "level"}, "tickvals": x, "fixedrange": True, "zeroline": False},
        "yaxis": {"title": {"text": "AUROC against level 0, percent"}, "fixedrange": True, "zeroline": False},
    }
    return {"data": data, "layout": layout}, f"AUROC by level of {len(data)} models on {domain}."


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value}"
