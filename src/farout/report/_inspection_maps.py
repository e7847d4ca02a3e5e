"""Channels of an inspected model as heat maps: two of them, above each other, on one scale of colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from farout.report._inspection_common import BARE, GRAVE, layer_ticks, number
from farout.report._page import figure, plain

if TYPE_CHECKING:
    from markupsafe import Markup

CELLS = 288  # columns of a heat map: more than a screen tells apart would hide nothing and cost much
NAMED = 8  # channels with a name above the map
FAR = 10.0  # times the median channel of its layer, from which a channel is named
_STACKED = 3  # names above each other
_GAP = 30  # pixels between the maps

Rows = list[np.ndarray]


def two_maps(above: tuple[str, Rows, list[str]], below: tuple[str, Rows, list[str]]) -> Markup:
    """Draw layers by channels twice.

    Parameters
    ----------
    above, below : (str, list of float arrays (C,), list of str)
        What a map shows, a row of magnitudes for each layer, and the names of the layers. Not all values may be zero.
    """
    width = max(len(row) for _, rows, _ in (above, below) for row in rows)
    step = step_of(width)
    cells = [binned(rows, step) for _, rows, _ in (above, below)]
    shown = np.concatenate([values[values > 0] for values, _ in cells])
    low = np.log10(np.quantile(shown, 0.02))
    top = max(np.log10(shown.max()), low + 1)
    ticks = np.arange(np.ceil(low), top + 1e-9)
    ticks = ticks if len(ticks) > 1 else np.linspace(low, top, 4)
    heights = [max(90.0, min(16.0, max(7.0, 420 / len(names))) * len(names)) for _, _, names in (above, below)]
    total = sum(heights) + _GAP
    parts = [[1 - heights[0] / total, 1], [0, heights[1] / total]]
    named = outlier_channels([*above[1], *below[1]])
    axes = {
        f"yaxis{axis}": {"title": {"text": plain(what, 24)}, "domain": part, "autorange": "reversed"}
        | layer_ticks(names)
        | BARE
        for axis, part, (what, _, names) in zip(("", "2"), parts, (above, below))
    }
    margin = {"l": 64, "r": 16, "t": 64 if named else 16, "b": 48}
    layout = {
        "height": int(total + margin["t"] + margin["b"]),
        "margin": margin,
        "xaxis": {"title": {"text": "channel"}, "range": [-step / 2, width - step / 2], "anchor": "y2"} | BARE,
        **axes,
        "coloraxis": {
            "colorscale": GRAVE,
            "cmin": low,
            "cmax": top,
            "colorbar": {
                "tickvals": ticks,
                "ticktext": [number(10**tick) for tick in ticks],
                "thickness": 10,
                "outlinewidth": 0,
                "len": 1.0,
            },
        },
        "annotations": _channel_names(named, width),
    }
    data = [
        _map(*part, what, names, axis, step) for part, (what, _, names), axis in zip(cells, (above, below), ("y", "y2"))
    ]
    binning = f" {width:,} channels are drawn in cells of {step}, each by its farthest one." if step > 1 else ""
    caption = f"Named above: channels that reach at least {FAR:g} times as far as the median channel of their layer."
    alt = f"Heat maps of {len(above[2])} layers by {width:,} channels"
    return figure({"data": data, "layout": layout}, alt, (caption if named else "") + binning)


def step_of(width: int) -> int:
    """Return how many channels share a cell."""
    return max(1, -(-width // CELLS))


def binned(rows: Rows, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Take the maximum of neighbouring channels, so that no outlier is lost.

    Parameters
    ----------
    rows : list of float arrays (C,)
        Widths may differ.
    step : int
        Channels in a cell.

    Returns
    -------
    values : float64 array (rows, cells)
        NaN where a row has no channel.
    channels : int64 array (rows, cells)
        Where each maximum stands.

    Examples
    --------
    >>> row = np.ones(600)
    >>> row[401] = 9.0
    >>> values, channels = binned([row], 3)
    >>> values.shape, int(values.argmax()), int(channels[0, values.argmax()])
    ((1, 200), 133, 401)
    """
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), -(-width // step) * step), -np.inf)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    cells = padded.reshape(len(rows), -1, step)
    values = cells.max(2)
    return np.where(np.isinf(values), np.nan, values), cells.argmax(2) + step * np.arange(cells.shape[1])


def _map(values: np.ndarray, channels: np.ndarray, what: str, names: list[str], axis: str, step: int) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        z = np.where(values > 0, np.log10(values), np.nan)
    text = [
        [f"layer {name}, channel {c}<br>{plain(what)} {number(v)}" for v, c in zip(row, at)]
        for name, row, at in zip(names, values.tolist(), channels.tolist())
    ]
    return {
        "type": "heatmap",
        "z": z,
        "x0": (step - 1) / 2,
        "dx": step,
        "y": list(range(len(names))),
        "yaxis": axis,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "coloraxis": "coloraxis",
    }


def outlier_channels(rows: Rows) -> list[int]:
    """Return the channels that reach farthest beyond the median channel of some layer, the farthest first."""
    width = max(len(row) for row in rows)
    far = np.zeros(width)
    for row in rows:
        middle = np.median(row)
        if middle > 0:
            far[: len(row)] = np.maximum(far[: len(row)], row / middle)
    order = np.argsort(-far, kind="stable")[:NAMED]
    return [int(channel) for channel in order if far[channel] >= FAR]


def _channel_names(strongest: list[int], width: int) -> list[dict[str, Any]]:
    """Write the numbers of outlier channels above the map; neighbours that would overlap share a label."""
    groups: list[list[int]] = []
    for channel in sorted(strongest):
        if groups and channel - groups[-1][-1] < 0.035 * width:
            groups[-1].append(channel)
        else:
            groups.append([channel])
    groups = [sorted(sorted(group, key=strongest.index)[:_STACKED]) for group in groups]
    return [
        {
            "x": float(np.mean(group)),
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "text": "<br>".join(str(channel) for channel in group),
            "showarrow": False,
            "font": {"color": "var(--accent)", "size": 12},
        }
        for group in groups
    ]
