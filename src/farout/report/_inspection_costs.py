"""What rounding costs in an inspected model: every linear map in three schemes, and what recipes leave of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from farout.cards import list_cards
from farout.inside.quantization_cost import REMEDIES
from farout.report._inspection_common import number
from farout.report._page import Section, figure, plain, render

PLAIN = "plain"
WORDS = {
    "w8a8": "8-bit weights and activations, one scale for each activation tensor",
    "w4a16": "4-bit weights, activations as they are",
    "w4a4": "4-bit weights and activations, one scale for each token",
}
WORST = 10  # maps of a scheme that are marked
FLOOR = 1e-9  # errors below are drawn there


def recipes(found: Any) -> list[Section]:
    """What each recipe leaves of the cost of plain rounding, by scheme."""
    summed = found.recipes
    if not summed.height:
        return []
    by = "loss" if summed["loss"].null_count() == 0 else "mean"
    known = {(row["scheme"], row["recipe"]): row for row in summed.iter_rows(named=True)}
    schemes = summed["scheme"].unique(maintain_order=True).to_list()
    best = dict(summed.group_by("scheme").agg(pl.col(by).min()).iter_rows())
    rows = [
        {
            "recipe": "plain rounding" if recipe == PLAIN else recipe,
            "slug": REMEDIES.get(recipe, ""),
            "cells": [_cell(known.get((s, recipe)), known.get((s, PLAIN)), best[s], by) for s in schemes],
        }
        for recipe in summed["recipe"].unique(maintain_order=True).to_list()
    ]
    if by == "loss":
        energy = not found.loss_unit.startswith("nats")
        what = (
            "the predicted change of the model's output over its energy" if energy else "the predicted rise of the loss"
        )
        what += ", all maps together" if energy else f" in {found.loss_unit}, all maps together"
        small = "Small: the error of a map's output over its energy, mean and median of the maps."
    else:
        what = "the error of a linear map's output over the output's energy, mean of the maps"
        small = "Small: the median."
    intro = f"In bold: {what}; behind it, how many times less than with plain rounding. {small}"
    absent = sorted(set(REMEDIES.values()) - {card.slug for card in list_cards("quantize")})
    if absent:
        intro += f" Tried in small here; this version has no recipe yet for {', '.join(absent)}."
    named = [(scheme, WORDS.get(scheme, "")) for scheme in schemes]
    return [Section("What helps", render("inspection_recipes.html", schemes=named, rows=rows), intro)]


def _cell(row: dict[str, Any] | None, base: Any, best: float | None, by: str) -> dict[str, Any] | None:
    """Describe what a recipe leaves; None where it has no place."""
    if row is None:
        return None
    errors = f"error {_share(row['mean'])}, median {_share(row['median'])}"
    return {
        "value": number(row["loss"]) if by == "loss" else _share(row["mean"]),
        "gain": _gain(base[by] / row[by]) if base[by] and row[by] and row is not base else "",
        "note": errors if by == "loss" else f"median {_share(row['median'])}",
        "best": row[by] == best,
    }


def _gain(times: float) -> str:
    """Say how many times less is left; nothing where it is about the same."""
    if abs(times - 1) < 0.005:
        return ""
    return f"{number(times)} × less" if times > 1 else f"{number(1 / times)} × more"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2g} %" if value < 1 else f"{100 * value:,.0f} %"


def costs(found: Any) -> list[Section]:
    """One bar for each linear map and scheme; a tick shows what the best recipe leaves."""
    rounding = found.rounding
    if not rounding.height:
        return []
    schemes = rounding["scheme"].unique(maintain_order=True).to_list()
    order = rounding["layer"].unique(maintain_order=True).to_list()
    place = {layer: k for k, layer in enumerate(order)}
    low = max(FLOOR, 0.5 * float(rounding.filter(pl.col("error") > 0)["error"].min() or FLOOR))
    high = max(2 * float(rounding["error"].max() or 1.0), 10 * low)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": []}
    for row, scheme in enumerate(schemes):
        axis = "" if row == 0 else str(row + 1)
        these = rounding.filter(rounding["scheme"] == scheme)
        data.append(_bars(these.filter(these["recipe"] == PLAIN), place, found.loss_unit, f"y{axis}"))
        best = found.best(scheme)
        if best:
            data.append(_ticks(these.filter(these["recipe"] == best), place, best, f"y{axis}", low))
        top, part = 1 - row / len(schemes), 1 / len(schemes)
        layout[f"yaxis{axis}"] = {
            "type": "log",
            "domain": [top - part + 0.03, top - 0.05],
            "range": [np.log10(low), np.log10(high)],
            "dtick": max(1, round(np.log10(high / low) / 4)),
            "exponentformat": "power",
            "zeroline": False,
        }
        said = f"<b>{scheme}</b>  {WORDS.get(scheme, '')}" + (f"; tick: {plain(best)}" if best else "")
        place_ = {"xref": "paper", "yref": "paper", "x": 0, "y": top - 0.045, "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append(
            place_ | {"text": said, "showarrow": False, "font": {"color": "var(--muted)", "size": 13}}
        )
    starts, names = _blocks(order)
    layout |= {
        "height": 60 + 190 * len(schemes),
        "bargap": 0.15,
        "showlegend": False,
        "margin": {"l": 64, "r": 16, "t": 8, "b": 56},
        "xaxis": {
            "title": {"text": "linear maps in their order" + (", labelled by block" if names else "")},
            "tickvals": starts,
            "ticktext": names,
            "showgrid": bool(names),
            "range": [-0.7, len(order) - 0.3],
            "anchor": f"y{len(schemes) if len(schemes) > 1 else ''}",
        },
    }
    intro = (
        "The error of each linear map's output when it alone is rounded, over the output's energy: 0.01 is little, 1 "
        "is as large as the signal. Orange: those that cost the model most. Ticks: what the best recipe leaves."
    )
    alt = f"Bars of rounding errors of {len(order)} linear maps in {len(schemes)} schemes"
    return [Section("What rounding costs", figure({"data": data, "layout": layout}, alt), intro)]


def _bars(rows: pl.DataFrame, place: dict[str, int], unit: str, axis: str) -> dict[str, Any]:
    by = "error" if rows["loss"].null_count() else "loss"
    worst = set(rows.sort(by, descending=True, nulls_last=True)["layer"][: min(WORST, rows.height // 4)])
    hovers = [plain(layer) for layer in rows["layer"]]
    if by == "loss":
        hovers = [f"{layer}<br>costs {number(loss)} {unit}" for layer, loss in zip(hovers, rows["loss"])]
    return {
        "type": "bar",
        "x": [place[layer] for layer in rows["layer"]],
        "y": rows["error"].clip(FLOOR).to_numpy(),
        "yaxis": axis,
        "marker": {"color": ["var(--accent)" if layer in worst else "var(--data)" for layer in rows["layer"]]},
        "text": hovers,
        "textposition": "none",
        "hovertemplate": "%{text}<br>error of its output %{y:.3g}<extra></extra>",
    }


def _ticks(rows: pl.DataFrame, place: dict[str, int], recipe: str, axis: str, low: float) -> dict[str, Any]:
    width = max(3, min(14, 900 / max(len(place), 1)))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [place[layer] for layer in rows["layer"]],
        "y": rows["error"].clip(low).to_numpy(),
        "yaxis": axis,
        "marker": {"symbol": "line-ew", "size": width, "line": {"color": "var(--ink)", "width": 2}},
        "text": [plain(layer) for layer in rows["layer"]],
        "hovertemplate": f"%{{text}}<br>{plain(recipe)} %{{y:.3g}}<extra></extra>",
    }


def _blocks(layers: list[str]) -> tuple[list[int], list[str]]:
    """Return where a new block begins and its number, thinned out where there are many."""
    numbers = [next((part for part in layer.split(".") if part.isdigit()), None) for layer in layers]
    starts = [k for k, number in enumerate(numbers) if number is not None and (k == 0 or numbers[k - 1] != number)]
    every = max(1, len(starts) // 16)
    starts = starts[::every]
    return starts, [str(numbers[k]) for k in starts]
