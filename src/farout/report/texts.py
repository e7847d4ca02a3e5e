"""The page of scored texts: where scores lie, and both ends read token by token, coloured by surprise."""

from __future__ import annotations

import json
import shlex
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.report._page import Section, figure, page, plain, render, write

if TYPE_CHECKING:
    from markupsafe import Markup

TextResult = Any  # farout.scoring.texts.TextResult, which stands above this room and so is not imported
MARKS = 2000  # texts in the picture of scores and lengths
SHOWN = 1500  # tokens of a text that are shown
DEEP = 12.0  # nats at which the colour is strongest
BINS = 40


def write_page(result: TextResult, path: str | PathLike[str]) -> None:
    """Write the page of scored texts: one HTML file, whole or not at all.

    Parameters
    ----------
    result : TextResult
        From :func:`farout.scoring.texts.score_texts`.
    path : str or path

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from farout.scoring.texts import score_texts
    >>> class Alphabet(torch.nn.Module):
    ...     def forward(self, ids):
    ...         return 9.0 * torch.nn.functional.one_hot(ids + 1, 256)
    >>> result = score_texts(["abcdefg", "abxdefg"], Alphabet(), parameters={"tokenizer": "bytes"})
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_page(result, target)
    >>> '<span title="9.0 nats"' in target.read_text(encoding="utf-8")
    True
    """
    n = len(result.texts)
    sections = [_histogram(result), _lengths(result), _read(result, "Least likely seen", result.first, result.order)]
    if result.last:
        sections.append(_read(result, "Most likely seen", result.last, result.order[::-1]))
    sections.append(_settings(result))
    facts = [
        ("texts", f"{n:,}"),
        ("above the line", f"{int(result.alarms.sum()):,}"),
        ("model", result.model),
        ("statistic", str(result.settings["parameters"].get("statistic", result.card.name))),
    ]
    write(path, page(result.name, sections, kind=f"{result.card.name} of texts", lead=_lead(result), facts=facts))


def _lead(result: TextResult) -> Markup:
    from markupsafe import Markup

    rang, n = int(result.alarms.sum()), len(result.texts)
    what = "p-values against normal texts" if result.calibrated else "ranks among these texts"
    text = (
        "<p><strong>{:,} of {:,}</strong> texts are above the line at {:.3g} % ({}). The higher the score, the less "
        "likely the model has seen the text in training.</p><p>A score is how much the least likely tokens surprise "
        "the model. It also grows with rare language and changes with length, so compare texts of one kind and "
        "length.</p>"
    )
    return Markup(text).format(rang, n, 100 * result.rate, what)


def _histogram(result: TextResult) -> Section:
    counts, edges = np.histogram(result.scores, bins=min(BINS, max(5, len(result.scores) // 4)))
    bars = {
        "type": "bar",
        "x": (edges[:-1] + edges[1:]) / 2,
        "y": counts,
        "width": np.diff(edges),
        "marker": {"color": "var(--data)"},
        "hovertemplate": "%{x:.2f}: %{y} texts<extra></extra>",
    }
    layout: dict[str, Any] = {
        "height": 300,
        "bargap": 0.05,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "score"}},
        "yaxis": {"title": {"text": "texts"}},
    }
    if result.alarms.any():
        line = float(result.scores[result.alarms].min())
        place = {"x0": line, "x1": line, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [place | {"type": "line", "line": {"color": "var(--accent)", "dash": "dot", "width": 2}}]
    intro = "How many texts have which score. Where texts are above the line, it is dotted."
    return Section("Scores", figure({"data": [bars], "layout": layout}, "Histogram of the scores"), intro)


def _lengths(result: TextResult) -> Section:
    n = len(result.texts)
    rows = np.sort(np.random.default_rng(0).choice(n, MARKS, replace=False)) if n > MARKS else np.arange(n)
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": np.array([len(result.texts[row]) for row in rows]),
        "y": result.scores[rows],
        "marker": {"size": 6, "color": ["var(--accent)" if result.alarms[row] else "var(--data)" for row in rows]},
        "text": [plain(f"row {row}: {result.texts[row]}", 60) for row in rows],
        "hovertemplate": "%{text}<br>%{x:,} letters, score %{y:.2f}<extra></extra>",
    }
    layout = {
        "height": 320,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "letters of the text"}, "type": "log"},
        "yaxis": {"title": {"text": "score"}},
    }
    intro = "Where scores follow length, compare only what is of like length."
    return Section("Score and length", figure({"data": [marks], "layout": layout}, "Scores over lengths"), intro)


def _read(result: TextResult, title: str, read: list[Any], order: np.ndarray) -> Section:
    """Show texts as the model read them."""
    texts = [
        {
            "row": int(row),
            "score": float(result.scores[row]),
            "p": f"{result.p_values[row]:.2g}",
            "alarm": bool(result.alarms[row]),
            "start": _start(result.texts[row]),
            "tokens": [_token(piece, log_p) for piece, log_p in zip(one.pieces[:SHOWN], one.log_p.tolist())],
            "cut": len(one.pieces) > SHOWN,
        }
        for row, one in zip(order, read)
    ]
    intro = (
        f"The {len(texts)} texts at this end. The stronger a token is coloured, the less the model expected it after "
        "what stands before; point at one for its surprise."
    )
    return Section(title, render("texts_read.html", texts=texts), intro)


def _token(piece: str, log_p: float) -> dict[str, Any]:
    if np.isnan(log_p):
        return {"piece": piece, "nats": "not predicted", "depth": 0}
    return {"piece": piece, "nats": f"{-log_p:.1f} nats", "depth": round(80 * min(1.0, -log_p / DEEP))}


def _start(text: str, most: int = 70) -> str:
    """Return the beginning of a text, in one line.

    Examples
    --------
    >>> _start("one  two " * 20, most=12)
    'one two one…'
    """
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _settings(result: TextResult) -> Section:
    settings = result.settings
    run = {name: value for name, value in settings.items() if not isinstance(value, dict) and value is not None}
    body = render(
        "scores_settings.html",
        card=result.card,
        command=shlex.join(settings.get("command", [])),
        run={name: value for name, value in run.items() if name not in ("method", "command")},
        groups={name: value for name, value in settings.items() if isinstance(value, dict) and value},
        json=json.dumps(settings, indent=2, default=str),
    )
    return Section("Settings", body, "All that it takes to run this again.")
