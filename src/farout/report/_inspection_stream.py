"""The residual stream of an inspected model: its channels as heat maps, its growth over layers, and its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.report._inspection_common import (
    BARE,
    GRAVE,
    has_positions,
    layer_names,
    layer_ticks,
    log_axis,
    number,
    pieces_in_words,
)
from farout.report._page import Section, figure, table

CELLS = 288  # columns of a heat map: more than a screen tells apart would hide nothing and cost much
NAMED = 8  # channels with a name above the map
FAR = 10.0  # times the median channel of its layer, from which a channel is named
_STACKED = 3  # names above each other
FP16 = 65_504.0  # the largest number of half precision


def heat_maps(found: Any) -> list[Section]:
    """Layers by channels: the largest and the mean absolute value, on one scale."""
    stats = [found.recording[site] for site in found.stream]
    if not stats:
        return []
    peaks = [part.absmax for part in stats]
    means = [part.magnitude / np.maximum(part.count, 1) for part in stats]
    (high, high_at), (usual, usual_at) = binned(peaks), binned(means)
    shown = np.concatenate([high[high > 0], usual[usual > 0]])
    if not shown.size:
        return []
    low, top = np.log10(np.quantile(shown, 0.02)), max(np.log10(shown.max()), np.log10(np.quantile(shown, 0.02)) + 1)
    names = layer_names(found)
    data = [
        _map(high, high_at, names, "largest |h|", "y"),
        _map(usual, usual_at, names, "mean |h|", "y2"),
    ]
    width = max(len(peak) for peak in peaks)
    step = step_of(width)
    height = max(90.0, min(16.0, max(7.0, 420 / len(names))) * len(names))  # of one map
    gap = 44 / (2 * height + 44)
    ticks = np.arange(np.ceil(low), top + 1e-9)
    ticks = ticks if len(ticks) > 1 else np.linspace(low, top, 4)
    rows = layer_ticks(names) | BARE | {"autorange": "reversed"}
    layout = {
        "height": int(2 * height + 44 + 122),
        "margin": {"l": 64, "r": 16, "t": 74 if outlier_channels(peaks) else 32, "b": 48},
        "xaxis": {"title": {"text": "channel"}, "range": [-step / 2, width - step / 2], "anchor": "y2"} | BARE,
        "yaxis": {"title": {"text": "layer"}, "domain": [0.5 + gap / 2, 1]} | rows,
        "yaxis2": {"title": {"text": "layer"}, "domain": [0, 0.5 - gap / 2]} | rows,
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
        "annotations": [
            *_channel_names(peaks, width),
            _title("largest |h|", 1),
            _title("mean |h|", 0.5 - gap / 2),
        ],
    }
    intro = (
        "Above: how far each channel ever reaches. Below: how large it usually is, on the same scale. A channel that "
        "stands out in both maps is always large; one that stands out only above spikes at a few positions."
    )
    binning = f" {width:,} channels are drawn in cells of {step}, each by its farthest one." if step > 1 else ""
    caption = (
        f"Named above: channels that reach at least {FAR:g} times as far as the median channel of their layer.{binning}"
    )
    alt = f"Heat maps of {len(names)} layers by {width:,} channels"
    title = "The residual stream, layer by channel" if found.layers["layer"][0] < 0 else "Inputs of linear maps"
    return [Section(title, figure({"data": data, "layout": layout}, alt, caption), intro)]


def step_of(width: int) -> int:
    """Return how many channels share a cell."""
    return max(1, -(-width // CELLS))


def binned(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Take the maximum of neighbouring channels, so that no outlier is lost.

    Parameters
    ----------
    rows : list of float arrays (C,)
        Widths may differ.

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
    >>> values, channels = binned([row])
    >>> values.shape, int(values.argmax()), int(channels[0, values.argmax()])
    ((1, 200), 133, 401)
    """
    width = max(len(row) for row in rows)
    step = step_of(width)
    padded = np.full((len(rows), -(-width // step) * step), -np.inf)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    cells = padded.reshape(len(rows), -1, step)
    values = cells.max(2)
    return np.where(np.isinf(values), np.nan, values), cells.argmax(2) + step * np.arange(cells.shape[1])


def _map(values: np.ndarray, channels: np.ndarray, names: list[str], what: str, axis: str) -> dict[str, Any]:
    with np.errstate(divide="ignore"):
        z = np.where(values > 0, np.log10(values), np.nan)
    text = [
        [f"layer {name}, channel {c}<br>{what} {number(v)}" for v, c in zip(row, at)]
        for name, row, at in zip(names, values.tolist(), channels.tolist())
    ]
    step = step_of(int(channels.max()) + 1)
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


def outlier_channels(rows: list[np.ndarray]) -> list[int]:
    """Return the channels that reach farthest beyond the median channel of some layer, the farthest first."""
    width = max(len(row) for row in rows)
    far = np.zeros(width)
    for row in rows:
        middle = np.median(row)
        if middle > 0:
            far[: len(row)] = np.maximum(far[: len(row)], row / middle)
    order = np.argsort(-far, kind="stable")[:NAMED]
    return [int(channel) for channel in order if far[channel] >= FAR]


def _channel_names(rows: list[np.ndarray], width: int) -> list[dict[str, Any]]:
    """Write the numbers of outlier channels above the map; neighbours that would overlap share a label."""
    strongest = outlier_channels(rows)
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


def _title(text: str, y: float) -> dict[str, Any]:
    """Write what a map shows to the right above it, out of the way of names of channels."""
    place = {"xref": "paper", "yref": "paper", "x": 1, "y": y, "xanchor": "right", "yanchor": "bottom"}
    return place | {"text": text, "showarrow": False, "font": {"color": "var(--muted)", "size": 13}}


def growth(found: Any) -> list[Section]:
    """Largest and usual values over layers, on a log axis."""
    rows = found.layers
    if rows.height < 2 or rows["peak"].drop_nans().is_empty():
        return []
    names = layer_names(found)
    tokens = has_positions(found)
    lines = [
        ("largest", "peak", "var(--accent)", "solid", 2.5),
        *([("largest, without the first position", "rest", "var(--accent)", "dot", 2)] if tokens else []),
        ("99.9 % quantile", "q999", "var(--ink)", "solid", 1.5),
        ("rms", "rms", "var(--muted)", "dash", 1.5),
        ("median", "median", "var(--data)", "solid", 2),
    ]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": list(range(len(names))),
            "y": rows[column].to_numpy(),
            "line": {"color": colour, "dash": dash, "width": size},
            "customdata": names,
            "hovertemplate": f"layer %{{customdata}}<br>{name} %{{y:,.4g}}<extra></extra>",
        }
        for name, column, colour, dash, size in lines
    ]
    layout = {
        "height": 380,
        "margin": {"l": 64, "r": 16, "t": 16, "b": 90},
        "legend": {"orientation": "h", "y": -0.22},
        "xaxis": {"title": {"text": "layer"}} | layer_ticks(names) | BARE,
        "yaxis": {"title": {"text": "|h|"}} | log_axis(rows.select("peak", "median").to_numpy()),
    }
    if rows["peak"].max() > FP16 / 8:
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": FP16, "y1": FP16}
            | {"line": {"color": "var(--muted)", "dash": "dot", "width": 1}}
        ]
        layout["annotations"] = [
            {"xref": "paper", "x": 1, "y": float(np.log10(FP16)), "xanchor": "right", "yanchor": "bottom"}
            | {"text": "largest number of float16", "showarrow": False, "font": {"color": "var(--muted)"}}
        ]
    intro = "A wide gap between the largest and the usual values breaks low-bit formats: the largest sets the step."
    if tokens:
        intro += " Where the dotted line lies far below the solid one, it is the first position alone that is large."
    return [Section("Growth over layers", figure({"data": data, "layout": layout}, "Magnitudes over layers"), intro)]


def layers(found: Any) -> Section:
    """The numbers behind the pictures."""
    tokens = has_positions(found)
    sunk = dict(zip(found.sinks["layer"], found.sinks["first"]))
    rows = []
    for name, row in zip(layer_names(found), found.layers.iter_rows(named=True)):
        where = [f"channel {row['channel']:,}"] if row["channel"] is not None else ["nothing finite"]
        if tokens and row["position"] is not None:
            where.append(f"position {row['position']:,}" + pieces_in_words(row["pieces"]))
        cells = [name, number(row["peak"]), ", ".join(where)]
        cells += [number(row[column]) for column in ("q999", "median", "rms", "kurtosis")]
        if tokens:
            cells += [number(row["rest"])]
            cells += [f"{100 * sunk[row['layer']]:.0f} %" if row["layer"] in sunk else "–"]
        rows.append(cells)
    head = ["Layer", "Largest", "Where", "99.9 %", "Median", "Rms", "Kurtosis"]
    numbers = ["Largest", "99.9 %", "Median", "Rms", "Kurtosis"]
    if tokens:
        head += ["Without first position", "Attention on it"]
        numbers += head[-2:]
    intro = "The numbers behind the pictures. Kurtosis is that of all values together: 3 where they are Gaussian."
    return Section("Layer by layer", table(head, rows, label="Numbers of each layer", numbers=numbers), intro)
