"""The page and the words of perplexities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench._tables import as_html
from farout.report._page import Section, figure, page, plain, write


def table_rows(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, in words."""
    head = ["text", "perplexity", "loss", "+-", "windows", "of tokens"]
    rows = [
        [
            row["text"],
            f"{row['perplexity']:.3f}",
            f"{row['loss']:.4f}",
            f"{row['error']:.4f}" if np.isfinite(row["error"]) else "-",
            f"{row['windows']:,}",
            f"{row['length']:,}",
        ]
        for row in table.to_dicts()
    ]
    return head, rows


def write_page(table: pl.DataFrame, settings: dict[str, Any], path: Path) -> None:
    """Write the table, the loss of every window, and the settings."""
    from markupsafe import Markup

    begins = f"begins with {settings['begins with']}" if settings["begins with"] else "has no token to begin with"
    intro = (
        f"The loss is in nats for each token, and +- its standard error over windows. A window {begins}, and its first "
        "token is not scored. Only numbers of the same tokenizer and length of window can be compared."
    )
    caption = "Windows side by side, from the beginning of a text to its end."
    sections = [
        Section("Texts", as_html(*table_rows(table)), intro),
        Section("Windows", figure(*curves(table), caption)),
        Section("Settings", Markup("<pre>{}</pre>").format(json.dumps(settings, indent=2, default=repr))),
    ]
    lead = "How well the model predicts each token of a text from those before it in the window."
    facts = [("texts", f"{len(table)}"), ("tokens scored", f"{table['tokens'].sum():,}")]
    write(path, page(f"Perplexity of {table['model'][0]}", sections, kind="perplexity", lead=lead, facts=facts))


def curves(table: pl.DataFrame) -> tuple[dict[str, Any], str]:
    """Draw the loss of each window over its place in the text; return the figure and its words."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plain(row["text"]),
            "x": (np.arange(row["windows"]) + 0.5) / row["windows"] * 100,
            "y": np.array(row["losses"], np.float64),
            "hovertemplate": plain(row["text"]) + "<br>%{y:.3f} nats at %{x:.0f} %<extra></extra>",
        }
        for row in table.to_dicts()
    ]
    layout = {
        "height": 380,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "place in the text, percent"}, "fixedrange": True, "zeroline": False},
        "yaxis": {"title": {"text": "loss, nats a token"}, "fixedrange": True, "zeroline": False},
    }
    return {"data": data, "layout": layout}, f"Loss by window on {len(data)} texts."
