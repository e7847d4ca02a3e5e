"""Where the attention of an inspected model goes: heads that look at the first position, and other sinks."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.report._inspection_common import BARE, GRAVE, layer_ticks, pieces_in_words, quoted
from farout.report._page import Section, figure, table

FIRST = 32  # key positions with a column of their own
SINK = 0.1  # mean share of attention, from which a later position gets one too


def sinks(found: Any) -> list[Section]:
    """Attention on the first position by head, and on every position by layer."""
    attentions = found.sinks
    if not attentions.height:
        return []
    names = [str(layer) for layer in attentions["layer"].to_list()]
    shares = [found.recording[site].share for site in attentions["site"]]
    heads = max(len(share) for share in shares)
    first = np.full((len(shares), heads), np.nan)
    for place, share in enumerate(shares):
        first[place, : len(share)] = share[:, 0]
    places, by_place = _by_position([share.mean(0) for share in shares])
    labels = ["rest" if position is None else str(position) for position in places]
    data = [
        _map(first, names, [f"head {head}" for head in range(heads)], "x", "y"),
        _map(by_place, names, [_place(found, position) for position in places], "x2", "y2"),
    ]
    every = max(1, heads // 12)
    tens = [k for k, position in enumerate(places) if position is None or position % 8 == 0 or position >= FIRST]
    rows = layer_ticks(names) | BARE | {"autorange": "reversed"}
    height = min(18, max(8, 420 / len(names))) * len(names)
    layout = {
        "height": int(max(height, 160) + 90),
        "margin": {"l": 56, "r": 16, "t": 36, "b": 48},
        "xaxis": {
            "domain": [0, 0.36],
            "title": {"text": "head"},
            "tickvals": list(range(0, heads, every)),
        }
        | BARE,
        "xaxis2": {
            "domain": [0.44, 1],
            "title": {"text": "key position"},
            "tickvals": tens,
            "ticktext": [labels[k] for k in tens],
            "anchor": "y2",
        }
        | BARE,
        "yaxis": {"title": {"text": "layer"}} | rows,
        "yaxis2": {"anchor": "x2", "showticklabels": False, "matches": "y"} | rows,
        "coloraxis": {
            "colorscale": GRAVE,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "len": 1.0},
        },
        "annotations": [
            _title("attention on the first position, by head", 0.0),
            _title("attention on each position, mean of heads", 0.44),
        ],
    }
    keys = max(share.shape[1] for share in shares)
    even = float(np.mean(1 / np.arange(1, keys + 1))) if found.causal else 1 / keys
    intro = (
        "A head that has nothing to say looks at a sink. Sinks and massive activations come together: the token "
        "that is looked at is the one that carries them."
    )
    caption = f"Attention spread evenly would give the first position {100 * even:.2g} %."
    body = figure({"data": data, "layout": layout}, "Heat maps of attention by head and by position", caption)
    return [Section("Attention sinks", body + _table(found), intro)]


def _by_position(means: list[np.ndarray]) -> tuple[list[int | None], np.ndarray]:
    """Keep the first positions and those that are sinks anywhere, and pool the rest (None)."""
    keys = max(len(mean) for mean in means)
    shares = np.stack([np.pad(mean, (0, keys - len(mean))) for mean in means])
    kept = [k for k in range(keys) if k < FIRST or shares[:, k].max() >= SINK]
    rest = [k for k in range(keys) if k not in set(kept)]
    if not rest:
        return list(kept), shares
    return [*kept, None], np.concatenate([shares[:, kept], shares[:, rest].sum(1, keepdims=True)], axis=1)


def _place(found: Any, position: int | None) -> str:
    if position is None:
        return "all other positions"
    pieces = found.pieces(position)
    return f"position {position}" + (f" ({quoted(pieces)})" if pieces else "")


def _map(z: np.ndarray, names: list[str], columns: list[str], x: str, y: str) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "z": z,
        "x": list(range(len(columns))),
        "y": list(range(len(names))),
        "xaxis": x,
        "yaxis": y,
        "text": [[f"layer {name}, {column}" for column in columns] for name in names],
        "hovertemplate": "%{text}<br>%{z:.1%} of the attention<extra></extra>",
        "coloraxis": "coloraxis",
    }


def _title(text: str, x: float) -> dict[str, Any]:
    place = {"xref": "paper", "yref": "paper", "x": x, "y": 1, "xanchor": "left", "yanchor": "bottom"}
    return place | {"text": text, "showarrow": False, "font": {"color": "var(--muted)", "size": 13}}


def _table(found: Any) -> Any:
    """List the positions that are a sink in some layer."""
    rows = []
    for (position,), group in found.sinks.group_by("position", maintain_order=True):
        sunk = group.filter(group["sink_heads"] > 0)
        if not sunk.height:
            continue
        top = group.sort("share", descending=True).row(0, named=True)
        rows.append(
            (
                f"{position:,}" + pieces_in_words(top["pieces"]),
                f"{sunk.height:,} of {found.sinks.height:,}",
                f"{int(sunk['sink_heads'].sum()):,} of {int(found.sinks['heads'].sum()):,}",
                f"{100 * top['share']:.0f} % in layer {top['layer']}",
            )
        )
    head = ("Position", "Sink in layers", "Sink heads", "Largest mean share")
    if not rows:
        return ""
    return table(head, rows, label="Positions that are sinks", numbers=head[1:])
