"""The residual stream of an inspected model: its channels as heat maps, its growth over layers, and its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.report._inspection_common import (
    BARE,
    has_positions,
    layer_names,
    layer_ticks,
    log_axis,
    number,
    pieces_in_words,
)
from farout.report._inspection_maps import two_maps
from farout.report._page import Section, figure, table

FP16 = 65_504.0  # the largest number of half precision


def heat_maps(found: Any) -> list[Section]:
    """Layers by channels: the largest and the mean absolute value, on one scale."""
    peaks, means = peaks_of(found), means_of(found)
    if not any(peak.any() for peak in peaks):
        return []
    names = layer_names(found)
    intro = (
        "Above: how far each channel ever reaches. Below: how large it usually is, on the same scale. A channel that "
        "stands out in both maps is always large; one that stands out only above spikes at a few positions."
    )
    body = two_maps(("largest |h|", peaks, names), ("mean |h|", means, names))
    title = "The residual stream, layer by channel" if found.layers["layer"][0] < 0 else "Inputs of linear maps"
    return [Section(title, body, intro)]


def peaks_of(found: Any) -> list[np.ndarray]:
    """Return the largest absolute value of each channel, for each layer."""
    return [found.recording[site].absmax for site in found.stream]


def means_of(found: Any) -> list[np.ndarray]:
    """Return the mean absolute value of each channel, for each layer."""
    stats = [found.recording[site] for site in found.stream]
    return [part.magnitude / np.maximum(part.count, 1) for part in stats]


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
