"""Two inspected models side by side: curves over layers, findings that come and go, and the sites that changed most."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from farout.report._inspection_common import BARE, layer_names, log_axis, number
from farout.report._inspection_maps import two_maps
from farout.report._inspection_stream import peaks_of
from farout.report._page import Section, figure, plain, table

SITES = 30  # in the table of changes


def changes(found: Any) -> list[Section]:
    """All that two models have to be compared by; nothing for a single one."""
    if found.other is None:
        return []
    return [_curves(found), *_maps(found), _findings(found), *_sites(found)]


def _curves(found: Any) -> Section:
    """Four numbers over layers for both models."""
    panels = [
        ("largest |h|", "log", lambda one: one.layers["peak"].to_numpy()),
        ("kurtosis", "log", lambda one: one.layers["kurtosis"].to_numpy()),
        ("attention on the first position", "linear", lambda one: one.sinks["first"].to_numpy()),
        ("w8a8 error, worst map of the block", "log", _block_costs),
    ]
    panels = [panel for panel in panels if any(len(panel[2](one)) for one in (found, found.other))]
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": []}
    rows = -(-len(panels) // 2)
    for k, (title, kind, values) in enumerate(panels):
        axis = "" if k == 0 else str(k + 1)
        both = np.concatenate([np.asarray(values(one), float) for one in (found, found.other)])
        left, top = 0.54 * (k % 2), 1 - (k // 2) / rows
        longest = max(len(values(one)) for one in (found, found.other))
        places = list(range(0, longest, max(1, longest // 8)))
        for which, (one, colour) in enumerate(((found, "var(--muted)"), (found.other, "var(--accent)"))):
            y = values(one)
            start = int(one.layers["layer"][0]) if k < 2 and one.layers.height else 0
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": plain(one.name, 40),
                    "legendgroup": which,
                    "showlegend": k == 0,
                    "x": list(range(start, start + len(y))),
                    "y": y,
                    "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}",
                    "line": {"color": colour, "width": 3 - 1.2 * which},
                    "hovertemplate": f"{plain(one.name, 40)}, layer %{{x}}<br>%{{y:,.4g}}<extra></extra>",
                }
            )
        layout[f"xaxis{axis}"] = {"domain": [left, left + 0.46], "anchor": f"y{axis}"} | BARE | {"tickvals": places}
        layout[f"yaxis{axis}"] = {
            "domain": [top - 1 / rows + 0.1, top - 0.05],
            "anchor": f"x{axis}",
            **(log_axis(both) if kind == "log" else {"range": [0, 1.02]}),
        }
        place = {"xref": "paper", "yref": "paper", "x": left, "y": top - 0.04, "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append(
            place | {"text": title, "showarrow": False, "font": {"color": "var(--muted)", "size": 13}}
        )
    layout |= {
        "height": 60 + 240 * rows,
        "margin": {"l": 56, "r": 16, "t": 8, "b": 40},
        "legend": {"orientation": "h", "y": 0.02 if rows > 1 else -0.2},
    }
    intro = f"Grey: {found.name}. Orange: {found.other.name}. Over layers."
    return Section("Side by side", figure({"data": data, "layout": layout}, "Both models over layers"), intro)


def _maps(found: Any) -> list[Section]:
    """The largest values of both models, channel by channel."""
    maps = [(one.name, peaks_of(one), layer_names(one)) for one in (found, found.other)]
    if not all(any(row.any() for row in rows) for _, rows, _ in maps):
        return []
    intro = "How far each channel ever reaches: the first model above, the other below, on one scale."
    return [Section("Channels of both", two_maps(*maps), intro)]


def _block_costs(one: Any) -> np.ndarray:
    """Return the worst w8a8 error within each block, in order."""
    plain_ = one.rounding.filter((pl.col("scheme") == "w8a8") & (pl.col("recipe") == "plain"))
    number = pl.col("layer").str.extract(r"(?:^|\.)(\d+)(?:\.|$)").cast(pl.Int64)
    blocks = plain_.with_columns(number.alias("block")).drop_nulls("block")
    return blocks.group_by("block").agg(pl.col("error").max()).sort("block")["error"].to_numpy()


def _findings(found: Any) -> Section:
    """Which findings appear, vanish, grow or shrink."""
    rows = [
        (
            change.what,
            change.kind,
            change.where,
            *(number(size) for size in (change.size, change.other_size)),
            change.says,
        )
        for change in found.finding_changes()
    ]
    head = ("Change", "Finding", "Where", found.name, found.other.name, "In words")
    names = {"new": "only in the second", "gone": "only in the first"}
    intro = f"Sizes in multiples of each finding's bound. New: {names['new']}; gone: {names['gone']}."
    if not rows:
        return Section("Findings of both", table(("Change",), [("no finding in either",)], label="Findings"), intro)
    return Section("Findings of both", table(head, rows, label="Findings of both models", numbers=head[3:5]), intro)


def _sites(found: Any) -> list[Section]:
    """The sites that changed most."""
    every = found.changes()
    frame = every.filter(every["change"] > 0)
    if not frame.height:
        return []
    rows = [
        (
            row["site"],
            row["kind"],
            *(number(row[name]) for name in ("peak", "other_peak")),
            f"{number(row['peak_ratio'])} ×",
            *(number(row[name]) for name in ("kurtosis", "other_kurtosis")),
            f"{number(row['kurtosis_ratio'])} ×",
        )
        for row in frame.head(SITES).iter_rows(named=True)
    ]
    head = ("Site", "Kind", "Largest", "then", "ratio", "Kurtosis", "then ", "ratio ")
    intro = f"Of {every.height:,} sites that both have, those whose largest value or kurtosis changed most."
    return [Section("Sites that changed", table(head, rows, label="Changes of sites", numbers=head[2:]), intro)]
