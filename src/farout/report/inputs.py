"""The page of a model's scored inputs: how they lie beside training inputs, the farthest out, and where alarms ring."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.report._figures import bins
from farout.report._page import Section, figure, page, plain, render, table, write
from farout.report._pictures import png

if TYPE_CHECKING:
    from markupsafe import Markup

InputResult = Any  # farout.scoring.inputs.InputResult, which stands above this room and so is not imported
SHOWN, FEW = 21, 14  # inputs in a gallery, whose rows are of seven
USUAL = 7  # training inputs beside it
CLASSES = 15  # lines of the table of classes
SIDE = 160  # pixels of a thumbnail
LETTERS = 240  # of a text that is shown
STRANGE = 2  # values of a row that are named
MEANINGS = {
    "AUROC": "how often an outlier scores higher than a usual input",
    "average precision": "of a list with the farthest out first",
    "outliers that ring": "outliers above the alarm line",
    "usual that ring": "usual inputs above the alarm line",
    "FPR at 95 % TPR, outliers positive": "usual inputs that ring where 95 % of the outliers do",
    "FPR at 95 % TPR, usual positive": "outliers that pass where 95 % of the usual inputs do",
}


def write_page(result: InputResult, path: str | PathLike[str]) -> None:
    """Write the page of a model's scored inputs: one HTML file, whole or not at all.

    Parameters
    ----------
    result : InputResult
        From :func:`farout.scoring.inputs.score_inputs`.
    path : str or path

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from farout.scoring.inputs import score_inputs
    >>> net = torch.nn.Linear(2, 3)
    >>> x = np.random.default_rng(0).normal(size=(120, 2))
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_page(score_inputs(x[:9], net, "energy", fit_on=x[9:]), target)
    >>> "of 9 rows</strong>" in target.read_text(encoding="utf-8")
    True
    """
    sections = [_scores(result), _farthest(result)]
    if result.quality:
        sections += [_told_apart(result), _mistakes(result)]
    if result.groups is not None and len(set(result.groups)) > 1:
        sections.append(_by_group(result))
    sections += [_by_class(result), _settings(result)]
    lead = render("inputs_lead.html", **_headline(result))
    kind = f"{result.card.name} of a model's inputs"
    write(path, page(result.name, sections, kind=kind, lead=lead, facts=_facts(result)))


def _headline(result: InputResult) -> dict[str, Any]:
    """Collect what the first sentences say."""
    known, quality, expected = result.known, result.quality, result.rate * len(result.scores)
    counts: dict[str, Any] = {}
    if quality:
        n_out, n_in = int(known.sum()), int((~known).sum())
        counts = {
            "outliers": n_out,
            "usual": n_in,
            "caught": int(result.alarms[known].sum()),
            "wrong": int(result.alarms[~known].sum()),
            "caught_share": _percent(quality["outliers that ring"]),
            "wrong_share": _percent(quality["usual that ring"]),
            "auroc": f"{quality['AUROC']:.3f}",
            "chance": _by_chance(quality["AUROC"], n_out, n_in),
        }
    return counts | {
        "rang": int(result.alarms.sum()),
        "n": len(result.scores),
        "what": result.what,
        "quality": quality,
        "shift": _shift(result),
        "held": 0 if result.held is None else len(result.held.scores),
        "own": _own(result),
        "method": result.card.name,
        "rate": _percent(result.rate),
        "expected": f"{expected:.2g}" if expected < 10 else f"{expected:,.0f}",
        "smallest": "" if result.held is None else f"{1 / (len(result.held.scores) + 1):.2g}",
        "notes": [note.rstrip(".") for note in result.notes],
    }


def _shift(result: InputResult) -> str:
    """Say whether the usual inputs as a whole lie where training inputs lie."""
    if result.shift is None:
        return ""
    n = len(result.scores) if result.known is None else int((~result.known).sum())
    who = f"the {result.what}" if result.known is None else f"the usual {result.what}"
    alike = _by_chance(result.shift, n, len(result.held.scores))
    how = "like" if alike else "higher than" if result.shift > 0.5 else "lower than"
    return (
        f"As a whole {who} score {how} those that the line was set on: one of them is higher with a chance of "
        f"{result.shift:.2f}, where 0.5 is alike."
    )


def _by_chance(above: float, n: int, m: int) -> bool:
    """Whether a share of pairs is as near to one half as two samples of one distribution often have it."""
    return abs(above - 0.5) < 1.96 * ((n + m + 1) / (12 * n * m)) ** 0.5


def _facts(result: InputResult) -> list[tuple[str, str]]:
    n, rang = len(result.scores), int(result.alarms.sum())
    facts = [
        (result.what.capitalize(), f"{n:,}"),
        ("Above the line", f"{rang:,} ({100 * rang / n:.2g} %)"),
        ("Model", result.model),
    ]
    right = result.settings["accuracy on what was held out"]
    if result.held is not None:
        facts.append(("Line set on", f"{len(result.held.scores):,}"))
    if right is not None:
        facts.append(("Model's accuracy", _percent(right)))
    seconds = result.settings["seconds"]["in all"]
    return [*facts, ("Time", f"{seconds:.2g} s" if seconds < 100 else f"{seconds:,.0f} s")]


def _scores(result: InputResult) -> Section:
    """Lay the histograms of training inputs, usual inputs and outliers over each other."""
    scores, held = result.scores, result.held
    line = result.threshold
    if line is None and result.alarms.any():
        line = float(scores[result.alarms].min())
    every = scores if held is None else np.concatenate([scores, held.scores])
    edges, logarithmic = bins(every, line, most=50)
    x = np.log10(edges) if logarithmic else edges
    parts = [] if held is None else [("training, held out" if _own(result) else "set the line", held.scores, "--data")]
    if result.known is None:
        parts.append((f"scored {result.what}", scores, "--accent"))
    else:
        parts += [("usual", scores[~result.known], "--ink"), ("outliers", scores[result.known], "--accent")]
    bars = [_bars(f"{name}: {len(part):,}", part, edges, x, colour) for name, part, colour in parts if len(part)]
    layout: dict[str, Any] = {
        "height": 340,
        "barmode": "overlay",
        "bargap": 0,
        "margin": {"l": 56, "r": 16, "t": 64, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"},
        "xaxis": {"title": {"text": "score" + (", log scale" if logarithmic else "")}, "zeroline": False},
        "yaxis": {"title": {"text": "share of its kind"}, "tickformat": ".0%", "zeroline": False},
    }
    if logarithmic:
        ticks = np.linspace(x[0], x[-1], 6)
        layout["xaxis"] |= {"tickvals": ticks, "ticktext": [f"{10**tick:,.3g}" for tick in ticks]}
    if line is not None:
        at = float(np.log10(line) if logarithmic else line)
        stroke = {"color": "var(--accent)", "width": 2, "dash": "dot"}
        layout["shapes"] = [{"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper", "line": stroke}]
        right = at > (x[0] + x[-1]) / 2
        layout["annotations"] = [
            {
                "x": at,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "right" if right else "left",
                "text": f"alarm line {line:.4g}",
                "showarrow": False,
                "font": {"color": "var(--accent)", "size": 13},
            }
        ]
    intro = "Farther right is farther out, less like what the model was trained on. Each kind adds up to 100 %."
    return Section("Scores", figure({"data": bars, "layout": layout}, "Histograms of the scores"), intro)


def _bars(name: str, scores: np.ndarray, edges: np.ndarray, x: np.ndarray, colour: str) -> dict[str, Any]:
    """Draw one histogram: filled, or the usual inputs' as an outline, so that those behind it can be seen."""
    counts = np.histogram(scores, edges)[0]
    said = [
        f"score {low:.4g} to {high:.4g}<br>{count:,} of {len(scores):,}"
        for low, high, count in zip(edges, edges[1:], counts)
    ]
    shared = {"name": name, "text": said, "hovertemplate": "%{text}<extra></extra>"}
    if colour == "--ink":
        steps = {"x": np.append(x, x[-1]), "y": np.concatenate([[0.0], counts / len(scores), [0.0]])}
        line = {"color": f"var({colour})", "width": 1.8, "shape": "vh"}
        return shared | steps | {"type": "scatter", "mode": "lines", "line": line, "text": [*said, "", ""]}
    return shared | {
        "type": "bar",
        "x": (x[:-1] + x[1:]) / 2,
        "y": counts / len(scores),
        "width": np.diff(x),
        "opacity": 1.0 if colour == "--data" else 0.6,
        "marker": {"color": f"var({colour})", "line": {"width": 0}},
        "textposition": "none",
    }


def _farthest(result: InputResult) -> Section:
    body = _shown(result, result.order[:SHOWN])
    most = min(SHOWN, len(result.scores))
    intro = f"The {most} {result.what} with the highest scores, and what the model takes them for."
    if result.held is not None:
        middle = np.argsort(np.abs(result.held.scores - np.median(result.held.scores)), kind="stable")[:USUAL]
        title = f"For comparison: usual {result.what}, from the middle of those that the line was set on"
        body += _shown(result, middle, result.held, title)
    return Section("Farthest out", body, intro)


def _told_apart(result: InputResult) -> Section:
    """Draw the ROC curve, and list what is measured where outliers are known."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(result.known, result.scores)
    quality = result.quality
    curve = {
        "type": "scatter",
        "mode": "lines",
        "x": false,
        "y": true,
        "line": {"color": "var(--accent)", "width": 2.5},
        "hovertemplate": "%{y:.1%} of the outliers at %{x:.1%} of the usual<extra></extra>",
    }
    chance = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": "var(--data)", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    here = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [quality["usual that ring"]],
        "y": [quality["outliers that ring"]],
        "marker": {"size": 11, "color": "var(--ink)"},
        "text": ["alarm line"],
        "textposition": "bottom right",
        "hovertemplate": "alarm line: %{y:.1%} of the outliers at %{x:.1%} of the usual<extra></extra>",
    }
    layout = {
        "height": 380,
        "showlegend": False,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "usual inputs that ring"}, "range": [-0.02, 1.02], "tickformat": ".0%"},
        "yaxis": {"title": {"text": "outliers that ring"}, "range": [-0.02, 1.02], "tickformat": ".0%"},
    }
    drawn = figure({"data": [chance, curve, here], "layout": layout}, f"ROC curve, AUROC {quality['AUROC']:.3f}")
    rows = [(name, f"{value:.3f}", MEANINGS[name]) for name, value in quality.items()]
    listed = table(["Measure", "Value", "Is"], rows, label="How well outliers are told apart", numbers=["Value"])
    intro = (
        "Each point of the curve is a place where the line could stand. Two numbers go by the name of FPR95; they "
        "differ in what is called positive, and both are here."
    )
    return Section("Outliers told apart", render("inputs_beside.html", left=drawn, right=listed), intro)


def _mistakes(result: InputResult) -> Section:
    """Show the outliers that score lowest, and the usual inputs that score highest."""
    low = [row for row in result.order[::-1] if result.known[row]][:FEW]
    high = [row for row in result.order if not result.known[row]][:FEW]
    body = _shown(result, low, title="Known outliers that score lowest") + _shown(
        result, high, title=f"Usual {result.what} that score highest"
    )
    intro = "What rings is framed. Outliers without a frame are missed; usual ones with a frame are false alarms."
    if result.what != "images":
        intro = "Outliers that do not ring are missed; usual ones that ring are false alarms."
    return Section("Worst mistakes", body, intro)


def _by_group(result: InputResult) -> Section:
    """Count the alarms of each folder, or label of a table."""
    what = "Folder" if result.what == "images" else "Label"
    groups = np.array(result.groups)
    usual = result.held.scores if result.known is None and result.held is not None else None
    if result.known is not None:
        usual = result.scores[~result.known]
    head = [what, "Inputs", "Ring", "Share", "Median score", "AUROC"]
    rows = []
    for group in sorted(set(result.groups)):
        mine = groups == group
        scores, rang = result.scores[mine], int(result.alarms[mine].sum())
        own = result.known is not None and not result.known[mine].all()
        apart = "" if usual is None or own else _auroc(scores, usual)
        share, middle = _percent(rang / len(scores)), f"{np.median(scores):.4g}"
        rows.append((group, f"{len(scores):,}", f"{rang:,}", share, middle, apart))
    against = "the usual inputs" if result.known is not None else "what the line was set on"
    intro = f"Kinds of inputs differ in how far out they are. AUROC: against {against}."
    return Section(f"By {what.lower()}", table(head, rows, label=f"Alarms by {what.lower()}", numbers=head[1:]), intro)


def _by_class(result: InputResult) -> Section:
    """Count the alarms of each class that the model predicts."""
    look, held = result.look, result.held
    names = np.arange(len(result.classes))
    total, rang = (np.bincount(look.predicted[mine], minlength=len(names)) for mine in (slice(None), result.alarms))
    known, false = np.zeros_like(total), np.zeros_like(total)
    if held is not None:
        known = np.bincount(held.predicted, minlength=len(names))
        false = np.bincount(held.predicted[held.scores > result.threshold], minlength=len(names))
    order = [place for place in np.lexsort((-total, -rang)) if total[place]]
    head = ["Taken for", "Inputs", "Ring", "Share", "Set the line", "Ring of these"]
    rows = [
        (
            result.classes[place],
            f"{total[place]:,}",
            f"{rang[place]:,}",
            _percent(rang[place] / total[place]),
            f"{known[place]:,}" if held is not None else "",
            f"{false[place]:,}" if held is not None else "",
        )
        for place in order[:CLASSES]
    ]
    more = f" {len(order) - CLASSES:,} more classes are left out." if len(order) > CLASSES else ""
    intro = (
        "The classes that the model sees most alarms in, beside those of the inputs that the line was set on. Outliers "
        f"that gather in a class are what the model would confuse with it.{more}"
    )
    return Section("By predicted class", table(head, rows, label="Alarms by class", numbers=head[1:]), intro)


def _shown(result: InputResult, rows: Iterable[int], look: Any = None, title: str = "") -> Markup:
    """Show some inputs: pictures in a gallery, texts and rows of numbers in a table."""
    own = look is None
    look = result.look if own else look
    if result.what == "images":
        pictures = [
            {
                "address": png(thumbnail(look.items[row])),
                "name": look.names[row],
                "score": f"{look.scores[row]:.4g}",
                "p": f"{result.p_values[row]:.2g}" if own else "",
                "alarm": bool(result.alarms[row]) if own else bool(look.scores[row] > result.threshold),
                "taken": _taken(result, look, row),
            }
            for row in rows
        ]
        return render("inputs_gallery.html", pictures=pictures, title=title)
    head = ["Score", *(["p"] if own else []), "Taken for"]
    strange = _strange(result, look, rows) if result.what == "rows" else None
    lines = []
    for place, row in enumerate(rows):
        text = plain(look.items[row], LETTERS) if result.what == "texts" else look.names[row]
        p = [f"{result.p_values[row]:.2g}{' *' if result.alarms[row] else ''}"] if own else []
        more = [strange[place]] if strange is not None else []
        lines.append([text, f"{look.scores[row]:.4g}", *p, _taken(result, look, row), *more])
    first = title or result.what.capitalize().rstrip("s")
    head = [first, *head, *(["Values farthest from usual"] if strange is not None else [])]
    return table(head, lines, label=title or "Inputs", numbers=["Score", "p"])


def _strange(result: InputResult, look: Any, rows: Iterable[int]) -> list[str] | None:
    """Name the values of rows that are farthest from the middle half of usual rows, which need not make the score."""
    x = np.asarray(look.items, np.float64)
    if x.ndim != 2:
        return None
    usual = np.asarray((result.look if result.held is None else result.held).items, np.float64)
    low, first, middle, third, high = np.quantile(usual, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    names = result.columns or [f"x{place}" for place in range(x.shape[1])]
    spread = np.maximum(third - first, 1e-9 * np.maximum(1.0, np.abs(middle)))
    told = []
    for row in rows:
        farthest = np.argsort(-np.abs(x[row] - middle) / spread, kind="stable")[:STRANGE]
        told.append("; ".join(f"{names[k]} {x[row, k]:.3g} (usual {low[k]:.3g} to {high[k]:.3g})" for k in farthest))
    return told


def _taken(result: InputResult, look: Any, row: int) -> str:
    return f"{result.classes[look.predicted[row]]}, {_percent(look.probability[row])}"


def thumbnail(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Scale bytes (h, w, 3) down to at most ``side`` pixels, each the mean of those that it stands for.

    Examples
    --------
    >>> thumbnail(np.repeat(np.arange(4, dtype=np.uint8), 6).reshape(4, 2, 3), side=2)[..., 0]
    array([[0],
           [2]], dtype=uint8)
    """
    height, width = pixels.shape[:2]
    share = min(1.0, side / max(height, width))
    rows, columns = (max(1, round(size * share)) for size in (height, width))
    if (rows, columns) == (height, width):
        return pixels
    top, left = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), top, 0), left, 1)
    counts = np.diff(top, append=height)[:, None] * np.diff(left, append=width)
    return (sums / counts[..., None]).astype(np.uint8)


def _auroc(these: np.ndarray, others: np.ndarray) -> str:
    ordered = np.sort(others)
    below = np.searchsorted(ordered, these, "left") + np.searchsorted(ordered, these, "right")
    return f"{below.sum() / (2 * len(these) * len(others)):.3f}"


def _percent(share: float) -> str:
    """Write a share.

    Examples
    --------
    >>> _percent(1.0), _percent(0.0123), _percent(0.98765)
    ('100 %', '1.2 %', '98.8 %')
    """
    return f"{100 * share:.3g} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _own(result: InputResult) -> bool:
    return result.settings["line set on"] == "training inputs"


def _settings(result: InputResult) -> Section:
    settings = result.settings
    run = {name: value for name, value in settings.items() if not isinstance(value, dict) and value is not None}
    groups = {name: value for name, value in settings.items() if isinstance(value, dict) and value}
    body = render(
        "scores_settings.html",
        card=result.card,
        command=shlex.join(settings.get("command", [])),
        run={name: value for name, value in run.items() if name not in ("method", "command")},
        groups={name: value for name, value in groups.items() if name != "quality"},
        json=json.dumps(settings, indent=2, default=str),
    )
    return Section("Settings", body, "All that it takes to run this again.")
