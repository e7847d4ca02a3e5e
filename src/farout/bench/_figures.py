"""Figures of a benchmark as plain plotly dictionaries, ready for JSON.

No figure sets a colour of text or background: the page that shows it decides between light and dark. Lines are grey
and marks have two hues, safe for the colour-blind, that read on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.errors import BadInput

Figure = dict[str, Any]

OURS = "#1f8fd6"
OTHER = "#e0762f"
LINE = "rgba(128,128,128,0.75)"
GRID = "rgba(128,128,128,0.22)"
LETTER = 7.2  # pixels, the width of a letter in plotly's font of 12
ROW = 24  # pixels, the height of a line of text with air around it
BAR = 0.55  # rows between two bars of a critical-difference diagram
LABELLED = 5  # points of a scatter that carry their name


def critical_difference(
    names: Sequence[str], ranks: ArrayLike, cliques: Sequence[Sequence[str]], cd: float | None = None
) -> Figure:
    """Demsar's diagram: mean ranks on an axis, best on the left, and a bar for each group that does not differ.

    A dot on a bar marks a member of the group; the bar passes over methods without a dot.

    Parameters
    ----------
    names : sequence of str
        The methods.
    ranks : array of shape (n_methods,)
        Their mean ranks, from `farout.bench.stats.mean_ranks`.
    cliques : sequence of sequences of str
        Groups that do not differ, from `farout.bench.stats.groups`.
    cd : float, optional
        Critical difference, drawn as a ruler above the axis.

    Returns
    -------
    dict
        ``data`` and ``layout`` of a plotly figure.

    Raises
    ------
    BadInput
        Not as many names as ranks, a missing rank, or a group with an unknown method.

    Examples
    --------
    >>> fig = critical_difference(["LOF", "ECOD", "KNN"], [2.5, 1.2, 2.3], [("KNN", "LOF")])
    >>> fig["data"][0]["text"], fig["data"][0]["x"]
    (['ECOD', 'KNN', 'LOF'], [1.2, 2.3, 2.5])
    """
    place = dict(zip(names, _numbers("ranks", ranks, (len(names),)).tolist()))
    ranked = sum(rank == rank for rank in place.values())
    if not names or ranked < len(names):
        raise BadInput(f"a diagram needs different names and a rank for each; {len(names)} names have {ranked} ranks")
    unknown = {name for clique in cliques for name in clique} - set(names)
    if unknown:
        raise BadInput(f"a group holds '{min(unknown)}', which is none of the {len(names)} methods")
    order = sorted(names, key=place.__getitem__)
    x = [place[name] for name in order]
    left = float(np.floor(x[0]))
    right = max(float(np.ceil(x[-1])), left + 1, left + (cd or 0))

    # y counts rows of text, downwards from the axis: first the bars, then the labels. The outermost method of each half
    # hangs highest, so that no leader crosses another.
    n_left = (len(order) + 1) // 2
    below_bars = BAR * len(cliques) + 0.9
    y = [-below_bars - (i if i < n_left else len(order) - 1 - i) for i in range(len(order))]
    edge = [left] * n_left + [right] * (len(order) - n_left)
    top, bottom = (2.5 if cd else 0.3), min(y) - 0.6

    dots = _trace(x, [0] * len(x), "markers", OURS, order, "%{text}<br>mean rank %{x:.2f}")
    leaders = _lines(
        [end for rank, side in zip(x, edge) for end in (rank, rank, side, None)],
        [end for depth in y for end in (0, depth, depth, None)],
    )
    bars = []
    for i, clique in enumerate(cliques):
        members = sorted(clique, key=place.__getitem__)
        at = [place[name] for name in members]
        bars.append(
            _trace(
                at, [-BAR * (i + 1)] * len(at), "lines+markers", OTHER, members, "%{text}: not told apart on this bar"
            )
        )
    labels = [
        _note(edge[i], y[i], f"{name}  <b>{rank:.2f}</b>", xanchor="right", xshift=-4)
        if i < n_left
        else _note(edge[i], y[i], f"<b>{rank:.2f}</b>  {name}", xanchor="left", xshift=4)
        for i, (name, rank) in enumerate(zip(order, x))
    ]
    labels.append(_note(left, 0, "mean rank", xanchor="right", xshift=-10))
    ruler = []
    if cd:
        ruler = [_lines([left, left, left, left + cd, left + cd, left + cd], [1.6, 2, 1.8, 1.8, 1.6, 2], width=2)]
        labels.append(_note(left + cd / 2, 1.8, f"CD = {cd:.2f}", yanchor="bottom", yshift=3))
    beside = LETTER * (max(map(len, names)) + 6) + 8
    axis = {
        **_axis(""),
        "range": [left - 0.01, right + 0.01],  # room for the width of a line at either end
        "dtick": 1,
        "showgrid": False,
        "ticks": "outside",
        "side": "top",
        "anchor": "free",
        "position": -bottom / (top - bottom),
    }
    return {
        "data": [dots, leaders, *bars, *ruler],
        "layout": _layout(
            axis,
            {"visible": False, "fixedrange": True, "range": [bottom, top]},
            height=round(ROW * (top - bottom)) + 36,
            margin={"l": beside, "r": beside, "t": 12 if cd else 28, "b": 8},
            annotations=labels,
        ),
    }


def scatter_rival(
    sets: Sequence[str], ours: ArrayLike, theirs: ArrayLike, name: str, rival: str, measure: str = "AUROC"
) -> Figure:
    """One point a data set: a method against a rival, with the diagonal on which they are equal.

    Parameters
    ----------
    sets : sequence of str
        Names of the data sets; the few with the largest differences are written beside their points.
    ours, theirs : array of shape (n_sets,)
        The measure of the method (upwards) and of the rival (to the right); larger is better, NaN = not run.
    name, rival : str
        Names of the two methods.
    measure : str, default "AUROC"
        What is measured.

    Returns
    -------
    dict
        ``data`` and ``layout`` of a plotly figure: the diagonal, the points above it, and the others.

    Raises
    ------
    BadInput
        Not as many values as sets, or no set on which both were run.

    Examples
    --------
    >>> fig = scatter_rival(["cardio", "glass"], [0.9, 0.6], [0.8, 0.7], "ECOD", "LOF")
    >>> [trace["text"] for trace in fig["data"][1:]]
    [['cardio'], ['glass']]
    """
    up = _numbers("ours", ours, (len(sets),))
    across = _numbers("theirs", theirs, (len(sets),))
    both = ~np.isnan(up - across)
    if not both.any():
        raise BadInput(f"'{name}' and '{rival}' were not run on any common set of the {len(sets)}")
    up, across, sets = up[both], across[both], [word for word, kept in zip(sets, both) if kept]
    better, equal = up > across, up == across
    hover = f"%{{text}}<br>{name} %{{y:.3f}}<br>{rival} %{{x:.3f}}"
    data = [
        _trace(across[chosen], up[chosen], "markers", colour, [sets[i] for i in np.flatnonzero(chosen)], hover)
        for chosen, colour in ((better, OURS), (~better, OTHER))
    ]
    low, high = min(up.min(), across.min()), max(up.max(), across.max())
    air = 0.06 * (high - low) or 0.05
    ends = [low - air, high + air]
    farthest = [i for i in np.argsort(-np.abs(up - across), kind="stable")[:LABELLED] if not equal[i]]
    # Names stand on the side away from the diagonal, where there are fewer points.
    labels = [
        _note(across[i], up[i], sets[i], xanchor="right", xshift=-8)
        if better[i]
        else _note(across[i], up[i], sets[i], xanchor="left", xshift=8)
        for i in farthest
    ]
    title = f"{name} is better on {better.sum()}, equal on {equal.sum()}, worse on {(~better & ~equal).sum()} sets"
    return {
        "data": [_lines(ends, ends, dash="dot"), *data],
        "layout": _layout(
            {**_axis(f"{measure} of {rival}"), "range": ends, "nticks": 8, "constrain": "domain"},
            {**_axis(f"{measure} of {name}"), "range": ends, "nticks": 8, "constrain": "domain", "scaleanchor": "x"},
            title={"text": title, "font": {"size": 14}},
            height=520,
            margin={"l": 70, "r": 70, "t": 50, "b": 60},
            annotations=labels,
        ),
    }


def heat(names: Sequence[str], sets: Sequence[str], values: ArrayLike, measure: str = "AUROC") -> Figure:
    """Every method on every data set as a coloured cell, the best method on the left and the easiest set on top.

    Parameters
    ----------
    names : sequence of str
        The methods.
    sets : sequence of str
        The data sets.
    values : array of shape (n_sets, n_methods)
        Larger is better; NaN = not run, an empty cell.
    measure : str, default "AUROC"
        What is measured.

    Returns
    -------
    dict
        ``data`` and ``layout`` of a plotly figure; rows and columns are in the order of their means.

    Raises
    ------
    BadInput
        The values are not one for each set and method.

    Examples
    --------
    >>> fig = heat(["LOF", "ECOD"], ["glass", "cardio"], [[0.5, 0.7], [0.6, 0.9]])
    >>> fig["data"][0]["x"], fig["data"][0]["y"], fig["data"][0]["z"]
    (['ECOD', 'LOF'], ['cardio', 'glass'], [[0.9, 0.6], [0.7, 0.5]])
    """
    table = _numbers("values", values, (len(sets), len(names)))
    present = ~np.isnan(table)
    filled = np.where(present, table, 0)
    with np.errstate(invalid="ignore"):  # a method or set without any value has mean 0/0 = NaN, which sorts last
        columns = np.argsort(-filled.sum(axis=0) / present.sum(axis=0), kind="stable")
        rows = np.argsort(-filled.sum(axis=1) / present.sum(axis=1), kind="stable")
    cells = {
        "type": "heatmap",
        "x": [names[j] for j in columns],
        "y": [sets[i] for i in rows],
        "z": [_plain(row) for row in table[np.ix_(rows, columns)]],
        "colorscale": "Viridis",
        "xgap": 1,
        "ygap": 1,
        "texttemplate": "%{z:.2f}",
        "hoverongaps": False,
        "hovertemplate": f"%{{x}} on %{{y}}<br>{measure} %{{z:.3f}}<extra></extra>",
        "colorbar": {"title": {"text": measure}, "outlinewidth": 0, "thickness": 12},
    }
    ordinal = {
        "type": "category",
        "automargin": True,
        "showgrid": False,
        "fixedrange": True,
        "ticks": "",
        "ticklabelstandoff": 4,
    }
    return {
        "data": [cells],
        "layout": _layout(
            {**ordinal, "side": "top"},
            {**ordinal, "autorange": "reversed", "dtick": 1},
            height=ROW * len(sets) + 120,
            margin={"l": 20, "r": 20, "t": 60, "b": 20},
        ),
    }


def published_against_ours(
    names: Sequence[str], published: ArrayLike, ours: ArrayLike, measure: str = "AUROC"
) -> Figure:
    """One line a name: the published number as a ring, the measured one as a dot, and the way between them.

    Parameters
    ----------
    names : sequence of str
        Methods, papers or data sets.
    published, ours : array of shape (n_names,)
        The published and the measured numbers; NaN where there is none.
    measure : str, default "AUROC"
        What is measured.

    Returns
    -------
    dict
        ``data`` and ``layout`` of a plotly figure, in the order of the names from the top.

    Raises
    ------
    BadInput
        Not as many values as names.

    Examples
    --------
    >>> fig = published_against_ours(["ECOD", "LOF"], [0.83, 0.71], [0.82, float("nan")])
    >>> [(trace["name"], trace["x"]) for trace in fig["data"][1:]]
    [('published', [0.83, 0.71]), ('measured here', [0.82, None])]
    """
    printed = _numbers("published", published, (len(names),))
    measured = _numbers("ours", ours, (len(names),))
    ways = _lines(
        [end for a, b in zip(_plain(printed), _plain(measured)) for end in (a, b, None)],
        [end for name in names for end in (name, name, None)],
        width=2,
    )
    rings = _trace(printed, names, "markers", OTHER, names, "%{y}<br>published %{x:.3f}")
    rings["marker"] |= {"symbol": "circle-open", "size": 12, "line": {"width": 2.5}}
    dots = _trace(measured, names, "markers", OURS, names, "%{y}<br>measured here %{x:.3f}")
    rings["name"], dots["name"] = "published", "measured here"
    return {
        "data": [ways, rings, dots],
        "layout": _layout(
            _axis(measure),
            {**_axis(""), "type": "category", "autorange": "reversed", "dtick": 1, "automargin": True},
            height=ROW * len(names) + 120,
            margin={"l": 20, "r": 20, "t": 40, "b": 60},
            showlegend=True,
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        ),
    }


def _trace(x: ArrayLike, y: Any, mode: str, colour: str, text: Sequence[str], hover: str) -> Figure:
    """Points that carry names, in one colour."""
    return {
        "type": "scatter",
        "mode": mode,
        "x": _plain(x),
        "y": _plain(y),
        "text": list(text),
        "marker": {"color": colour, "size": 9},
        "line": {"color": colour, "width": 4},
        "hovertemplate": hover + "<extra></extra>",
        "cliponaxis": False,
    }


def _lines(x: Sequence[Any], y: Sequence[Any], width: float = 1.2, dash: str = "solid") -> Figure:
    """Grey lines behind what is measured; None lifts the pen."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "y": list(y),
        "line": {"color": LINE, "width": width, "dash": dash},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _note(x: float, y: float, text: str, **more: Any) -> Figure:
    """Text at a point, without an arrow."""
    return {"x": float(x), "y": float(y), "text": text, "showarrow": False, **more}


def _axis(title: str) -> Figure:
    """An axis in grey that cannot be zoomed by accident while a page scrolls."""
    return {
        "title": {"text": title},
        "showline": True,
        "linecolor": LINE,
        "tickcolor": LINE,
        "gridcolor": GRID,
        "zeroline": False,
        "fixedrange": True,
    }


def _layout(xaxis: Figure, yaxis: Figure, **more: Any) -> Figure:
    """What all figures share: a transparent ground and no legend."""
    return {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        **more,
    }


def _numbers(what: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Values as floats of the shape that the names ask for."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape:
        raise BadInput(f"'{what}' must have shape {shape}, one number for each name; its shape is {array.shape}")
    return array


def _plain(values: Any) -> list[Any]:
    """A list for JSON, which knows no NaN: None instead."""
    return [None if value != value else value for value in np.asarray(values).tolist()]
