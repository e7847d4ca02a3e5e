"""The page of a causal graph: the drawn graph, what the class loses without it, where it looks, how stable it is."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput
from farout.report._page import Section, figure, page, plain, render, table, write
from farout.report._pictures import laid, png, visible

if TYPE_CHECKING:
    from markupsafe import Markup

CausalGraph = Any  # farout.inside.causal_paths.CausalGraph; a page needs its numbers, not the room
DRAWN = 10  # units of a layer in the drawing; the strongest
PICTURES = 8  # images in the row of maps
LINES = 40  # paths into a layer in the drawing; the strongest
LISTED = 40  # units in the table
STEP = 132  # pixels between layers


def write_page(
    found: CausalGraph,
    path: str | PathLike[str],
    *,
    name: str = "model",
    class_name: str | None = None,
    images: Any = None,
    maps: Mapping[str, np.ndarray] | None = None,
    stability: Mapping[str, float] | None = None,
) -> None:
    """Write the page of what causes a class: one HTML file, whole or not at all.

    Parameters
    ----------
    found : CausalGraph
        From :meth:`farout.inside.causal_paths.CausalPaths.measure`.
    path : str or path
    name : str
        Of the model.
    class_name : str, optional
        By default ``"class 3"``, or whatever its number is.
    images : array or tensor (n, c, h, w), optional
        Of the class: for the pictures of what units look for, and the maps. The first 8 are shown.
    maps : mapping of str to array (n, h, w), optional
        Maps of the same images by other methods, such as captum's, to stand below the graph's own.
    stability : mapping of str to float, optional
        From :func:`farout.inside.causal_paths.stability`.

    Raises
    ------
    BadInput
        The graph has no edges, or a map does not belong to the images.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from farout.inside.causal_paths import CausalPaths
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> X = torch.randn(64, 4)
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_page(CausalPaths().measure(model, X, X[:, 0] > 0, target=1), target)
    >>> "units cause class 1" in target.read_text(encoding="utf-8")
    True
    """
    if not found.edges:
        raise BadInput("the graph has no edges: nothing was found that causes the class, so nothing can be drawn")
    called = class_name or f"class {found.target}"
    pictures = None if images is None else np.asarray(images, dtype=float)
    if pictures is not None and pictures.ndim != 4:
        raise BadInput(f"images have four axes (n, c, h, w), not {pictures.ndim}")
    for other, values in (maps or {}).items():
        if pictures is None or values.shape != (len(pictures), *pictures.shape[2:]):
            raise BadInput(f"the maps of '{other}' have shape {values.shape}, which is not that of the images")
    sections = [_graph(found, called, pictures), _losses(found, called)]
    if pictures is not None:
        sections.append(_maps(found, called, pictures, maps or {}))
    if stability:
        sections.append(_stability(stability))
    sections.append(_units(found, called))
    hidden = sum(layer.units for layer in found.network.layers[:-1])
    facts = [
        ("inputs of the class", f"{found.samples:,}"),
        ("layers", f"{len(found.layers)}"),
        ("units in the graph", f"{len(found.paths):,} of {hidden:,}"),
        ("paths", f"{len(found.edges):,}"),
        ("probability", f"{found.probability:.3f}"),
    ]
    write(path, page(name, sections, kind="Causal paths", lead=_lead(found, called, hidden), facts=facts))


def _lead(found: CausalGraph, called: str, hidden: int) -> Markup:
    from markupsafe import Markup

    # the layer in which few units make most of the difference
    narrow = min(found.checks, key=lambda check: check.without / found.probability + check.kept / check.units)
    text = "<p><strong>{:,} of {:,} hidden units cause {}.</strong> "
    text += "Without those in {}, {:,} of {:,}, its probability falls from {:.2f} to {:.2f}"
    text += "; with them alone, it is {:.2f}.</p>" if narrow.kept < narrow.units else ".</p>"
    numbers = (narrow.layer, narrow.kept, narrow.units, found.probability, narrow.without, narrow.alone)
    return Markup(text).format(len(found.paths), hidden, called, *numbers)


def _graph(found: CausalGraph, called: str, pictures: np.ndarray | None) -> Section:
    """Draw the class on top, and the strongest units of each layer below it."""
    layers = [layer for layer in reversed(found.layers) if found.units(layer)]
    shown = {layer: found.units(layer)[:DRAWN] for layer in layers}
    place = {found.root: (0.0, 0.0)}
    flows = {(e.source, e.target): 0.0 for e in found.edges}
    for edge in found.edges:
        flows[edge.source, edge.target] += edge.share * found.paths.get(edge.target, 1.0)
    for depth, layer in enumerate(layers, start=1):
        units = shown[layer]

        def pull(unit: Any) -> float:
            """Where its readers stand: few paths cross then."""
            ends = [(flow, place[v][0]) for (u, v), flow in flows.items() if u == unit and v in place]
            total = sum(flow for flow, _ in ends)
            return sum(flow * x for flow, x in ends) / total if total else 0.0

        order = sorted(units, key=pull)
        for k, unit in enumerate(order):
            place[unit] = ((k + 0.5) / len(order) * 2 - 1) * (0.5 + 0.5 * len(order) / DRAWN), -float(depth)
    skips = {(e.source, e.target) for e in found.edges if e.skip}
    data = []
    for layer in [found.root.layer, *layers]:
        into = [(f, u, v) for (u, v), f in flows.items() if v.layer == layer and u in place and v in place]
        into = sorted(into, key=lambda one: one[0])[-LINES:]
        data += [_curve(place[u], place[v], flow / into[-1][0], (u, v) in skips) for flow, u, v in into]
    units = [unit for unit in place if unit != found.root]
    crops = found.crops(pictures, units) if pictures is not None else {}
    heaviest = max(found.paths.values())
    data += [
        {
            "type": "scatter",
            "mode": "markers" if crops else "markers+text",
            "x": [place[unit][0] for unit in units],
            "y": [place[unit][1] for unit in units],
            "text": [str(unit.number) for unit in units],
            "textfont": {"color": "var(--ink)", "size": 12},
            "marker": {
                "symbol": "square" if crops else "circle",
                "size": [50 if crops else 24 + 22 * (found.paths[unit] / heaviest) ** 0.5 for unit in units],
                "color": "var(--card)",
                "opacity": 1,
                "line": {
                    "color": ["var(--accent)" if found.paths[u] > 0.5 * heaviest else "var(--data)" for u in units],
                    "width": [1 + 4 * found.paths[unit] / heaviest for unit in units],
                },
            },
            "customdata": [_said(found, unit) for unit in units],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": [0.0],
            "y": [0.0],
            "marker": {"size": 20, "color": "var(--accent)"},
            "text": [plain(f"{called}, probability {found.probability:.3f}")],
            "hovertemplate": "%{text}<extra></extra>",
        },
    ]
    depth = len(layers)
    images = [
        {
            "source": png(visible(crops[unit])),
            "x": place[unit][0],
            "y": place[unit][1],
            "xref": "x",
            "yref": "y",
            "sizex": 0.125,
            "sizey": 44 / STEP,
            "xanchor": "center",
            "yanchor": "middle",
            "layer": "above",
        }
        for unit in units
        if unit in crops
    ]
    names = [
        {"x": -1.36, "y": -float(k), "text": f"<b>{plain(layer, 18)}</b><br>{_count(found, layer)}"}
        for k, layer in enumerate(layers, start=1)
    ]
    numbers = [{"x": place[u][0] + 0.07, "y": place[u][1] - 0.14, "text": str(u.number)} for u in units if u in crops]
    top = {"x": 0.05, "y": 0.0, "text": f"<b>{plain(called)}</b>", "font": {"color": "var(--ink)", "size": 15}}
    bare = {"visible": False, "fixedrange": True}
    layout = {
        "height": 70 + STEP * (depth + 1),
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "xaxis": bare | {"range": [-1.38, 1.06]},
        "yaxis": bare | {"range": [-depth - 0.55, 0.45]},
        "images": images,
        "annotations": [
            {"showarrow": False, "xanchor": "left", "align": "left"} | one for one in [*names, *numbers, top]
        ],
    }
    intro = (
        "From the class downwards: a line is a path whose cut lowers what it leads to; the widest of a layer carries "
        "most of what leads to the class"
        + (", and dotted ones are skip connections." if skips else ".")
        + f" Of each layer the {DRAWN} strongest units and their {LINES} strongest paths are drawn, units framed by "
        "weight; point at one for its numbers."
    )
    caption = "Pictures: the mean surroundings in which a filter is most active in the images." if crops else ""
    return Section("The graph", figure({"data": data, "layout": layout}, f"Causal graph of {called}", caption), intro)


def _curve(low: tuple[float, float], high: tuple[float, float], strength: float, skip: bool) -> dict[str, Any]:
    """Draw a path as an S from a unit up to its reader."""
    s = np.linspace(0, 1, 24)
    bend = s * s * (3 - 2 * s)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": low[0] + (high[0] - low[0]) * bend,
        "y": low[1] + (high[1] - low[1]) * s,
        "line": {
            "color": "var(--accent)" if strength > 0.5 else "var(--data)",
            "width": 0.7 + 6 * strength,
            "dash": "dot" if skip else "solid",
        },
        "opacity": 0.45 + 0.5 * strength,
        "hoverinfo": "skip",
    }


def _count(found: CausalGraph, layer: str) -> str:
    total = found.network.layers[found.layers.index(layer)].units
    return f"{len(found.units(layer))} of {total}"


def _said(found: CausalGraph, unit: Any) -> str:
    effect, t = found.effects[unit]
    up = sorted((e for e in found.edges if e.source == unit), key=lambda e: -e.share)[:4]
    readers = ", ".join(f"{plain(str(e.target), 24)} ({e.share:.0%})" for e in up)
    return (
        f"<b>{plain(str(unit), 30)}</b>  weight {found.paths[unit]:.3f}<br>"
        f"without it, log-odds {-effect:+.3f} (t {t:.1f})<br>leads to {readers}"
    )


def _losses(found: CausalGraph, called: str) -> Section:
    """What the class keeps without the kept units of each layer, and with them alone."""
    checks = found.checks[::-1]
    data = [
        {
            "type": "bar",
            "name": label,
            "x": [getattr(check, what) for check in checks],
            "y": [plain(check.layer, 24) for check in checks],
            "orientation": "h",
            "marker": {"color": colour},
            "hovertemplate": f"{label}: %{{x:.3f}}<extra></extra>",
        }
        for label, what, colour in (
            ("with the units of the graph alone", "alone", "var(--data)"),
            ("without them", "without", "var(--accent)"),
        )
    ]
    whole = {"type": "line", "x0": found.probability, "x1": found.probability, "yref": "paper", "y0": 0, "y1": 1}
    layout = {
        "height": 110 + 62 * len(checks),
        "barmode": "group",
        "bargap": 0.35,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "margin": {"l": 80, "r": 16, "t": 40, "b": 48},
        "xaxis": {"title": {"text": f"probability of {plain(called)}"}, "range": [0, 1.01]},
        "yaxis": {"autorange": "reversed", "ticklabelstandoff": 8},
        "shapes": [whole | {"line": {"color": "var(--muted)", "width": 1, "dash": "dot"}}],
    }
    intro = (
        "Necessary and sufficient? In each layer the units of the graph, or all others, are put to their references. "
        "Dotted: nothing is."
    )
    alt = f"Probability of {called} without the units of the graph, and with them alone, by layer"
    return Section("What the class loses", figure({"data": data, "layout": layout}, alt), intro)


def _maps(found: CausalGraph, called: str, pictures: np.ndarray, maps: Mapping[str, np.ndarray]) -> Section:
    """Lay maps over images, a row a method."""
    few = pictures[:PICTURES]
    rows = [("images", [png(visible(one)) for one in few])]
    for method, heat in {"causal paths": found.map(few), **maps}.items():
        rows.append((method, [png(laid(one, h)) for one, h in zip(few, heat)]))
    intro = (
        f"What the units of the graph answer to in images of {called}, their excess over the reference weighted by "
        "their paths." + (" Below it, maps of the same images by other methods." if maps else "")
    )
    return Section("Where it looks", render("causal_maps.html", rows=rows, columns=len(few)), intro)


def _stability(stability: Mapping[str, float]) -> Section:
    words = {
        "noise": ("noise on the inputs", "overlap of units (Jaccard)"),
        "resampled": ("inputs drawn again", "overlap of units (Jaccard)"),
        "noise ranks": ("noise on the inputs", "rank correlation of weights"),
        "resampled ranks": ("inputs drawn again", "rank correlation of weights"),
        "trained again": ("the network trained again", "rank correlation of maps"),
    }
    rows = [(*words.get(what, (what, "")), f"{value:.3f}") for what, value in stability.items()]
    body = table(("What changed", "What is compared", "Agreement"), rows, label="Stability", numbers=("Agreement",))
    return Section("Does it stay the same?", body, "1 is full agreement.")


def _units(found: CausalGraph, called: str) -> Section:
    head = ("Unit", "Weight", "Log-odds without it", "t", "Near-duplicates")
    twins = {unit: [str(other) for other in group if other != unit] for group in found.twins for unit in group}
    units = found.units()
    rows = []
    for unit in units[:LISTED]:
        effect, t = found.effects[unit]
        others = ", ".join(twins.get(unit, []))
        rows.append((str(unit), f"{found.paths[unit]:.3f}", f"{-effect:+.3f}", f"{t:.1f}", others))
    intro = (
        "Weight: over all paths to the class, the product of shares. Log-odds: how the class changes when the unit "
        f"alone is put to its reference, in the mean over inputs of {called}."
        + (f" The {LISTED} strongest of {len(units):,}." if len(units) > LISTED else "")
    )
    return Section("Units", table(head, rows, label="Units of the graph", numbers=head[1:4]), intro)
