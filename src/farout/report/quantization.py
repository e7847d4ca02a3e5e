"""The page of a quantized model: what each map lost, where its outliers were and are, and what it costs."""

from __future__ import annotations

import json
import shlex
from os import PathLike
from typing import Any

import numpy as np

from farout.report._inspection_common import log_axis, number
from farout.report._inspection_maps import two_maps
from farout.report._page import Section, figure, page, plain, render, table, write

Quantization = Any  # farout.quantizing.Quantization, which stands above this room and so is not imported
WORST = 20  # maps in the table of losses


def write_page(found: Quantization, path: str | PathLike[str]) -> None:
    """Write the page of a quantized model: one HTML file, whole or not at all.

    Parameters
    ----------
    found : Quantization
        From :func:`farout.quantizing.quantize_to`.
    path : str or path
    """
    one = found.quantized
    packed = found.bytes[1]
    facts = [
        ("recipe", one.recipe["recipe"]),
        ("scheme", one.scheme),
        ("bits a weight", f"{one.bits_per_weight:.2f}"),
        *([("on disk", f"{packed / 1e6:,.0f} MB")] if packed else []),
        ("calibration", "{samples} × {length} tokens".format(**found.settings)),
        ("time", f"{found.settings['seconds']['in all']:,.0f} s"),
        ("peak memory", f"{found.settings['peak memory, bytes'] / 1e9:.1f} GB"),
    ]
    sections = [_blocks(found), *_inputs(found), _maps(found), _settings(found)]
    write(path, page(found.name, sections, kind="Quantized model", lead=" ".join(found.verdict()), facts=facts))


def _blocks(found: Quantization) -> Section:
    """The error of what leaves each block, over blocks."""
    names, errors = list(found.quantized.block_errors), list(found.quantized.block_errors.values())
    data = [
        {
            "type": "bar",
            "x": list(range(len(names))),
            "y": errors,
            "marker": {"color": "var(--data)"},
            "text": [plain(name) for name in names],
            "textposition": "none",
            "hovertemplate": "%{text}<br>%{y:.3g}<extra></extra>",
        }
    ]
    layout = {
        "height": 300,
        "margin": {"l": 64, "r": 16, "t": 8, "b": 48},
        "xaxis": {"title": {"text": "block"}, "showgrid": False},
        "yaxis": log_axis(np.asarray(errors)),
    }
    intro = (
        "The squared change of what leaves each block over its squared size, on the first calibration batch, with the "
        "errors of all blocks before it: 0.01 is little, 1 is as large as the signal."
    )
    return Section("What blocks lost", figure({"data": data, "layout": layout}, "Errors over blocks"), intro)


def _inputs(found: Quantization) -> list[Section]:
    """The largest value of each channel that maps read, before and after."""
    pairs = [_rows(recording) for recording in found.recordings]
    if not all(rows for rows in pairs):
        return []
    names = [[str(i) for i in range(len(rows))] for rows in pairs]
    intro = (
        "How far each channel reaches in what linear maps read, a row for each input in the order in which they run: "
        "before above, after below, on one scale. What a recipe has moved into weights is gone below."
    )
    drawn = two_maps(("before", pairs[0], names[0]), ("after", pairs[1], names[1]))
    return [Section("Channels before and after", drawn, intro)]


def _rows(recording: Any) -> list[np.ndarray]:
    """Return the reach of each channel, of the inputs that are as wide as most."""
    rows = [stats.absmax for stats in recording.stats.values()]
    widths = [len(row) for row in rows]
    usual = max(set(widths), key=widths.count) if widths else 0
    return [row for row in rows if len(row) == usual and row.any()]


def _maps(found: Quantization) -> Section:
    """The maps that lost most, folded."""
    errors = found.quantized.errors
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    maps = found.quantized.maps
    rows = [
        (
            name,
            " × ".join(map(str, maps[name].weight.shape)),
            str(maps[name].grid.bits if maps[name].grid else 16),
            number(errors[name]),
        )
        for name in worst
        if name in maps
    ]
    body = table(("Map", "Shape", "Bits", "Error"), rows, label="Maps that lost most", numbers=("Bits", "Error"))
    intro = (
        f"Of {len(errors)} maps, those whose output changed most: squared change over squared size, with the error "
        "of the input."
    )
    return Section("Maps that lost most", body, intro)


def _settings(found: Quantization) -> Section:
    """What would repeat the run, and what a reader should know."""
    settings = {**found.settings, "recipe": found.quantized.recipe}
    run = {name: number(value) for name, value in settings.items() if not isinstance(value, dict) and name != "command"}
    body = render(
        "inspection_settings.html",
        command=shlex.join(settings.get("command", [])),
        facts=[(str(name), number(value)) for name, value in found.facts.items()],
        run=run,
        groups={name: value for name, value in settings.items() if isinstance(value, dict) and value},
        json=json.dumps(settings, indent=2, default=str),
    )
    return Section("Settings", body, " ".join(["All that it takes to run this again.", *found.notes]))
