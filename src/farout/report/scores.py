"""The page of a scored table, and what a notebook shows of it."""

from __future__ import annotations

import json
import shlex
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.kit.sketch import LevelCounts
from farout.report._figures import bins, histogram, picture
from farout.report._page import Section, figure, page, render, table, write
from farout.report._strips import strips
from farout.report._view import Result, View

if TYPE_CHECKING:
    from markupsafe import Markup

BARS = 8  # features of a row that get a bar of their own
NOTED = 5  # rows in a notebook


def write_page(result: Result, path: str | PathLike[str]) -> None:
    """Write the page of a scored table: one HTML file, whole or not at all.

    Parameters
    ----------
    result : Result
        From :func:`farout.scoring.score`.
    path : str or path

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from farout.scoring import score
    >>> target = Path(tempfile.mkdtemp()) / "scores.html"
    >>> write_page(score(np.random.default_rng(0).normal(size=(200, 3)), name="noise"), target)
    >>> "<strong>2 of 200 rows</strong>" in target.read_text(encoding="utf-8")
    True
    """
    view = View.of(result)
    sections = [_scores(view), _rows(view), _features(view), _picture(view), _columns(view)]
    html = page(
        result.name,
        [*sections, _settings(view)],
        kind="Scores of a table",
        lead=render("scores_lead.html", **_headline(view)),
        facts=_facts(view),
    )
    write(path, html)


def notebook(result: Result) -> str:
    """Return a light piece of HTML for notebooks: a sentence, a small histogram, and the rows farthest out.

    It takes its colours from the notebook around it, light or dark.

    Parameters
    ----------
    result : Result

    Examples
    --------
    >>> from farout.scoring import score
    >>> html = notebook(score(np.random.default_rng(0).normal(size=(200, 3))))
    >>> "2 of 200 rows" in html, "<script" in html
    (True, False)
    """
    view = View.of(result)
    edges, _ = bins(result.scores, view.line, most=48)
    counts = np.histogram(result.scores, edges)[0]
    highest = np.log1p(counts.max())
    above = np.zeros(len(counts), bool) if view.line is None else edges[:-1] >= view.line
    bars = [
        {"x": i * 320 / len(counts), "width": 320 / len(counts), "height": 44 * np.log1p(c) / highest, "far": bool(far)}
        for i, (c, far) in enumerate(zip(counts, above))
        if c
    ]
    html = render(
        "notebook.html",
        **_headline(view),
        bars=bars,
        line_at=320 * float((~above).sum()) / len(counts) if above.any() else None,
        top=_lines(view, min(NOTED, view.listed)),
    )
    return str(html)


def _headline(view: View) -> dict[str, Any]:
    """Collect what the first sentences say."""
    result = view.result
    return {
        "name": result.name,
        "method": result.card.name,
        "rows": len(result.scores),
        "rang": int(result.alarms.sum()),
        "rate": f"{100 * result.rate:.4g} %",
        "line": None if view.line is None else f"{view.line:.4g}",
        "calibrated": result.calibrated,
        "held_out": len(result.detector.calibration_scores_) if result.calibrated else 0,
        "smallest": f"{100 * result.p_values.min():.2g} %",
        "first": int(result.top_rows[0]),
        "why": view.words(0)[:1],
    }


def _facts(view: View) -> list[tuple[str, str]]:
    result = view.result
    rang, rows = int(result.alarms.sum()), len(result.scores)
    facts = [
        ("Rows", f"{rows:,}"),
        ("Columns read", f"{len(result.columns.names):,} of {len(result.columns.columns):,}"),
        ("Method", result.card.name),
        ("Above the line", f"{rang:,} ({100 * rang / rows:.2g} %)"),
    ]
    seconds = result.settings.get("seconds", {}).get("in all")
    return [*facts, ("Time", f"{seconds:.2g} s" if seconds < 100 else f"{seconds:,.0f} s")] if seconds else facts


def _scores(view: View) -> Section:
    line = "no alarm line" if view.line is None else f"alarm line at {view.line:.4g}"
    alt = f"Histogram of {len(view.result.scores):,} scores, {line}"
    intro = f"Farther right is farther out. Ticks below: {view.who}."
    return Section("Scores", figure(histogram(view), alt), intro)


def _rows(view: View) -> Section:
    intro = "Open a row to see what each feature adds to its score"
    # methods without parts of their own are explained by leaving columns out, and nothing is known as usual then
    usual = bool(view.result.usual_reasons.any())
    intro += "; nine of ten rows stay left of the tick on its bar." if usual else "."
    return Section("Rows farthest out", render("scores_rows.html", rows=_lines(view, view.listed)), intro)


def _lines(view: View, most: int) -> list[dict[str, Any]]:
    """Describe the first rows for the table."""
    result = view.result
    highest = float(np.abs(result.scores[result.top_rows[0]]))
    decimals = int(np.clip(3 - np.floor(np.log10(highest)), 0, 6)) if highest else 3
    return [
        {
            "row": f"{row:,}",
            "score": f"{result.scores[row]:,.{decimals}f}",
            "p": f"{result.p_values[row]:#.2g}",
            "alarm": bool(result.alarms[row]),
            "words": view.words(place),
            "bars": _bars(view, place),
        }
        for place, row in enumerate(result.top_rows[:most])
    ]


def _bars(view: View, place: int) -> list[dict[str, Any]]:
    """Return a row's strongest parts, each with what is usual for its feature, and the sum of all others."""
    parts, usual = view.parts[place], np.maximum(view.result.usual_reasons, 0)
    if not parts.any():
        return []
    order = np.argsort(-parts, kind="stable")
    strongest = [int(j) for j in order[:BARS] if parts[j] > 0]
    widest = max(parts.max(), usual[strongest].max(initial=0))
    bars: list[dict[str, Any]] = [
        {
            "words": view.said(place, j),
            "part": f"{parts[j]:.2f}",
            "width": 100 * parts[j] / widest,
            "usual": 100 * usual[j] / widest,
            "named": bool(view.named[place, j]),
        }
        for j in strongest
    ]
    left = len(parts) - len(strongest)
    if left:
        words = f"all other features ({left:,})" if left > 1 else "the other feature"
        # their sum would dwarf every bar
        part = f"{parts.sum() - parts[strongest].sum():.2f}"
        bars.append({"words": words, "part": part, "width": 0.0, "usual": 0.0, "named": False})
    return bars


def _features(view: View) -> Section:
    shown = strips(view)
    left = len(view.result.profile.names) - len(shown)
    learned = view.result.settings.get("fitted on", "the table")
    grey = "the rows of the table" if learned == "the table" else f"the rows that the method learned from ({learned})"
    body = render("scores_features.html", strips=shown, left=left, marked=view.marked)
    verb = "lies" if view.marked == 1 else "lie"
    intro = (
        f"Where {view.who} {verb}, most blamed feature first. Grey: {grey}. "
        "Orange: odd rows, strong where the feature is one of their reasons."
    )
    return Section("Feature by feature", body, intro)


def _picture(view: View) -> Section:
    made = picture(view)
    if made is None:
        return Section(
            "In two dimensions", render("note.html", text="It takes two features and three rows that vary to draw.")
        )
    fig, caption = made
    alt = f"Two-dimensional picture of the rows, {view.who} marked"
    return Section("In two dimensions", figure(fig, alt, caption))


def _columns(view: View) -> Section:
    columns, profile = view.result.columns, view.result.profile
    place = {name: j for j, name in enumerate(profile.names)}
    read = []
    for column in columns.columns:
        if column.kind != "left out":
            j = place.get(column.name)
            facts = ("", "", "") if j is None else _spread(view, j)
            read.append((column.name, column.kind, column.why, *facts))
    head = ("Column", "Read as", "Why", "Missing", "Most usual", "From – to")
    body = table(head, read, label="Columns that were read", numbers=("Missing", "Most usual"))
    left_out = [(column.name, column.why) for column in columns.left_out]
    if left_out:
        body = table(("Left out", "Why"), left_out, label="Columns that were left out") + body
    intro = f"{len(read):,} columns were read and {len(left_out):,} left out. A wrong guess is set right with kinds."
    return Section("Columns", body, intro)


def _spread(view: View, feature: int) -> tuple[str, str, str]:
    """Say how much of a feature is missing, its most usual value, and its range."""
    column = view.result.profile.columns[feature]
    total = column.n + column.missing
    missing = f"{100 * column.missing / total:.2g} %" if column.missing else "–"
    if not column.n:
        return missing, "–", "–"
    if isinstance(column, LevelCounts):
        return missing, column.levels[int(column.counts.argmax())], f"{len(column.levels):,} levels"
    low, high = (view.shown(feature, float(column.values[end])) for end in (0, -1))
    return missing, view.shown(feature, float(column.quantile(0.5))), f"{low} – {high}"


def _settings(view: View) -> Section:
    result = view.result
    settings = dict(result.settings)
    run = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    body: Markup = render(
        "scores_settings.html",
        card=result.card,
        command=shlex.join(settings.get("command", [])),
        run={name: value for name, value in run.items() if value is not None and name not in ("method", "command")},
        groups={name: value for name, value in settings.items() if isinstance(value, dict) and value},
        json=json.dumps(settings, indent=2, default=str),
    )
    return Section("Settings", body, "All that it takes to run this again.")
