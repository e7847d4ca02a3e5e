"""The two figures of a scored table, as plotly dictionaries: its scores, and its rows in two dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.kit.columns import Codes, Features
from farout.kit.profile import Profile
from farout.kit.sketch import LevelCounts
from farout.report._page import plain
from farout.report._view import View

BARS = 60
RIM = 4.0  # standard deviations, beyond which a value lies at the rim of the picture
PROJECTED = 300  # features in the picture at most: its cost grows with them, its meaning does not


def histogram(view: View) -> dict[str, Any]:
    """Count the scores; the alarm line is an edge between two bars, and the marked rows are a rug below.

    A few scores far beyond the rest would leave one bar for all others, so then equal steps are steps of the logarithm.
    """
    scores, line = view.result.scores, view.line
    edges, logarithmic = bins(scores, line)
    counts = np.histogram(scores, edges)[0]
    above = np.zeros(len(counts), bool) if line is None else edges[:-1] >= line
    x = np.log10(edges) if logarithmic else edges
    bars = {
        "type": "bar",
        "x": (x[:-1] + x[1:]) / 2,
        "y": counts,
        "width": np.diff(x),
        "marker": {"color": ["var(--accent)" if far else "var(--data)" for far in above], "line": {"width": 0}},
        "text": [f"score {low:.4g} to {high:.4g}<br>{c:,} rows" for low, high, c in zip(edges, edges[1:], counts)],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
    at = scores[view.rows]
    rug = {
        "type": "scatter",
        "mode": "markers",
        "x": np.log10(at) if logarithmic else at,
        "y": np.zeros(len(at)),
        "yaxis": "y2",
        "marker": {"symbol": "line-ns", "size": 12, "line": {"width": 1.5, "color": "var(--accent)"}},
        "text": [_hover(view, place) for place in range(view.marked)],
        "hovertemplate": "%{text}<extra></extra>",
    }
    many = len(scores) >= 100
    layout = {
        "height": 360,
        "bargap": 0,
        "showlegend": False,
        "margin": {"l": 48, "r": 16, "t": 32, "b": 48},
        "xaxis": {
            "title": {"text": "score"},
            "anchor": "y2",
            "showgrid": False,
            "zeroline": False,
            **_log_ticks(x, logarithmic),
        },
        "yaxis": {
            "title": {"text": "rows (log scale)" if many else "rows"},
            "domain": [0.1, 1],
            "zeroline": False,
            # from half a row, so that a bar of one row can be seen
            **({"type": "log", "range": [np.log10(0.5), np.log10(counts.max()) + 0.1], "dtick": 1} if many else {}),
        },
        "yaxis2": {"domain": [0, 0.07], "visible": False, "range": [-1, 1], "fixedrange": True},
    }
    if line is not None and x[0] <= (at_line := np.log10(line) if logarithmic else line):
        stroke = {"color": "var(--accent)", "width": 1.5, "dash": "dot"}
        right = at_line > (x[0] + x[-1]) / 2
        layout["shapes"] = [
            {"type": "line", "x0": at_line, "x1": at_line, "y0": 0, "y1": 1, "yref": "paper", "line": stroke}
        ]
        layout["annotations"] = [
            {
                "x": at_line,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "right" if right else "left",
                "text": f"alarm line {line:.4g}",
                "showarrow": False,
                "font": {"color": "var(--accent)", "size": 13},
            }
        ]
    return {"data": [bars, rug], "layout": layout}


def bins(scores: np.ndarray, line: float | None, most: int = BARS) -> tuple[np.ndarray, bool]:
    """Return edges of bars that hold all scores, one edge on the line, and whether they step in logarithms."""
    low, high = float(scores.min()), float(max(scores.max(), line if line is not None else -np.inf))
    logarithmic = low > 0 and high > 50 * float(np.median(scores))
    if logarithmic:
        edges = 10 ** _steps(np.log10(low), np.log10(high), None if line is None else np.log10(line), most, len(scores))
        edges[[0, -1]] = min(edges[0], low), max(edges[-1], high)  # 10 ** log10(x) may miss x by a bit
        if line is not None:
            edges[np.argmin(np.abs(edges - line))] = line
        return edges, True
    return _steps(low, high, line, most, len(scores)), False


def _steps(low: float, high: float, line: float | None, most: int, n: int) -> np.ndarray:
    width = (high - low) / min(most, max(8, int(2 * n**0.5))) or 1.0
    start = low if line is None else line
    before, after = np.ceil((start - low) / width), np.floor((high - start) / width) + 1
    return start + width * np.arange(-before, after + 1)


def _log_ticks(x: np.ndarray, logarithmic: bool) -> dict[str, Any]:
    if not logarithmic:
        return {}
    decades = np.arange(np.ceil(x[0]), x[-1] + 1e-9)
    ticks = decades if len(decades) > 2 else np.linspace(x[0], x[-1], 6)
    return {"tickvals": ticks, "ticktext": [f"{10**t:,.3g}" for t in ticks]}


def _hover(view: View, place: int) -> str:
    row = view.result.top_rows[place]
    words = [plain(word, 70) for word in view.words(place)]
    return "<br>".join([f"<b>row {row:,}</b>  score {view.result.scores[row]:.4g}", *words])


def picture(view: View) -> tuple[dict[str, Any], str] | None:
    """Project the sample and the marked rows onto the two directions in which the sample varies most.

    Numbers become normal scores (the normal quantile of their rank), so that a value far out lies at the rim and does
    not squash the rest; categories become rarities. Both have about unit variance.

    Returns
    -------
    figure, caption : dict, str
        None where there are not two features and three rows that vary.
    """
    result = view.result
    usual = ~np.isin(result.sample_rows, view.rows)
    chosen = np.arange(len(result.profile.names))[:PROJECTED]
    if len(chosen) < 2 or usual.sum() < 3:
        return None
    sample = _spread(result.profile, result.features(result.sample_frame), chosen)
    odd = _spread(result.profile, view.features.take(np.arange(view.marked)), chosen)
    centre, scale = sample.mean(axis=0), sample.std(axis=0)
    scale[scale < 1e-9] = np.inf  # a feature that does not vary moves nothing
    sample, odd = (np.clip((x - centre) / scale, -RIM, RIM) for x in (sample, odd))
    directions, share = _principal(sample)
    if directions is None:
        return None
    grey, far = sample[usual] @ directions.T, odd @ directions.T
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": grey[:, 0],
            "y": grey[:, 1],
            "marker": {"color": "var(--data)", "size": 5, "opacity": 0.55},
            "text": result.sample_rows[usual],
            "hovertemplate": "row %{text:,}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": far[:, 0],
            "y": far[:, 1],
            "marker": {"color": "var(--accent)", "size": 9, "line": {"color": "var(--paper)", "width": 1}},
            "text": [_hover(view, place) for place in range(view.marked)],
            "hovertemplate": "%{text}<extra></extra>",
        },
    ]
    names = [
        ", ".join(plain(result.profile.names[chosen[j]], 24) for j in np.argsort(-np.abs(d), kind="stable")[:2])
        for d in directions
    ]
    titles = [f"{which} direction: mostly {name}" for which, name in zip(("first", "second"), names)]
    bare = {"zeroline": False, "showticklabels": False, "showgrid": False}
    layout = {
        "height": 480,
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 32, "r": 16, "t": 32, "b": 36},
        "xaxis": {"title": {"text": titles[0]}, **bare},
        "yaxis": {"title": {"text": titles[1]}, **bare},
    }
    cut = f" Only the first {PROJECTED} features are used." if len(result.profile.names) > PROJECTED else ""
    caption = (
        f"Grey: {int(usual.sum()):,} rows drawn at random. Orange: {view.who}. Each number is replaced by the "
        "normal quantile of its rank and each category by how rare its level is, so that values far out cannot squash "
        f"the picture; the axes are the first two principal components of the sample ({100 * share:.0f} % of its "
        f"variance).{cut} A row that is odd in other directions can lie in the middle here."
    )
    return {"data": data, "layout": layout}, caption


def _spread(profile: Profile, features: Features, chosen: np.ndarray) -> np.ndarray:
    """Return normal scores of numbers and ``-log share`` of levels (n, features); missing values are 0."""
    from scipy.special import ndtri

    out = np.zeros((features.n, len(chosen)))
    for k, j in enumerate(chosen):
        known, column = profile.columns[j], features.columns[j]
        if isinstance(known, LevelCounts):
            assert isinstance(column, Codes)
            out[:, k] = -np.log(known.probabilities(column.codes, column.levels))
        else:
            assert not isinstance(column, Codes)
            at_or_below, at_or_above = known.counts(column)
            rank = (at_or_below + known.n - at_or_above) / 2 / max(known.n, 1)
            rim = 0.5 / max(known.n, 1)
            out[:, k] = ndtri(np.clip(rank, rim, 1 - rim))
    return np.nan_to_num(out)


def _principal(x: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Return the first two principal directions of centred rows, and the share of the variance along them."""
    variances, directions = np.linalg.eigh(x.T @ x)
    if variances[-1] <= 0:
        return None, 0.0
    first = directions.T[:-3:-1]
    largest = np.take_along_axis(first, np.abs(first).argmax(axis=1)[:, None], axis=1)
    # a sign that does not depend on the machine
    return first * np.sign(largest), float(variances[-2:].sum() / variances.sum())
