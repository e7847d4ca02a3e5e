"""The page of SUFO: which layers moved, what can be read from them, how the classes part, and who is far out."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.report._page import Section, figure, page, plain, table, write
from farout.report.robustness import COLOURS

if TYPE_CHECKING:
    from markupsafe import Markup

SufoReport = Any  # farout.inside.sufo.SufoReport; a page needs its numbers, not the room
MARKS = 2000  # samples in a plane
LISTED = 50  # outliers in the table
GAP = 0.03  # between panels, of the figure
WORDS = {"first": "first token", "mean": "mean over tokens"}


def write_page(report: SufoReport, path: str | PathLike[str], name: str = "model") -> None:
    """Write the page of what SUFO found: one HTML file, whole or not at all.

    Parameters
    ----------
    report : SufoReport
        From :meth:`farout.inside.sufo.SUFO.measure`.
    path : str or path
    name : str
        Of the model.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from farout.inside.sufo import SUFO
    >>> y, rng = np.arange(40) % 2, np.random.default_rng(0)
    >>> before, after = ([rng.normal(size=(40, 3)) + shift * y[:, None]] for shift in (0, 9))
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_page(SUFO(draws=10).measure({"before": before, "after": after}, y), target)
    >>> "Who is far out" in target.read_text(encoding="utf-8")
    True
    """
    sections = [_similarity(report), _probes(report), _dynamics(report), _axes(report), _outliers(report)]
    lowest = _moved(report)
    facts = [
        ("samples", f"{len(report.y):,}"),
        ("in 5 components", f"{report.sparsity[0]:.0%} → {report.sparsity[-1]:.0%}"),
        ("RSA, least", "none" if lowest is None else f"{report.similarity[report.poolings[0]][-1, lowest, 0]:.2f}"),
        ("outliers", f"{int(report.outliers.flagged.sum()):,}"),
    ]
    if report.tuned is not None:
        facts.insert(2, ("macro-F1", f"{report.tuned.mean():.3f}"))
    write(path, page(name, sections, kind="SUFO", lead=_lead(report, lowest), facts=facts))


def _moved(report: SufoReport) -> int | None:
    """The layer that is least like it was, by RSA of the first pooling."""
    alike = report.similarity[report.poolings[0]][-1, :, 0]
    return None if np.isnan(alike).all() else int(np.nanargmin(alike))


def _lead(report: SufoReport, lowest: int | None) -> Markup:
    from markupsafe import Markup

    sparser = "sparser" if report.sparsity[-1] > report.sparsity[0] else "no sparser"
    text = Markup("<p>From ‘{}’ to ‘{}’ the last layer became <strong>{}</strong>: five components hold {:.0%} of the ")
    text += Markup("variance, before {:.0%}. ")
    lead = text.format(report.stages[0], report.stages[-1], sparser, report.sparsity[-1], report.sparsity[0])
    if lowest is not None:
        lead += Markup("The layer ‘{}’ moved most. ").format(report.layers[lowest])
    far, wrong = int(report.outliers.far.sum()), int(report.outliers.misclassified.sum())
    lead += Markup("{:,} samples lie far from their class, and {:,} are told as another one.</p>").format(far, wrong)
    return lead


def _similarity(report: SufoReport) -> Section:
    """RSA and CKA by layer between the first stage and the last, with intervals; earlier stages thin."""
    data: list[dict[str, Any]] = []
    layers, _ = _short_names(report)
    for place, how in enumerate(report.poolings):
        axis = "" if place == 0 else str(place + 1)
        for which, (word, colour) in enumerate((("RSA", "var(--accent)"), ("CKA", "var(--ink)"))):
            for stage, tables in enumerate(report.similarity[how]):
                final = stage == len(report.similarity[how]) - 1
                y = tables[:, which]
                low, high = report.bounds[how][:, which].T
                bars = {"type": "data", "symmetric": False, "array": high - y, "arrayminus": y - low}
                data.append(
                    _line(f"{word}, {report.stages[stage + 1]}", layers, y, colour if final else "var(--data)")
                    | {"showlegend": final and place == 0, "xaxis": f"x{axis}", "yaxis": f"y{axis}"}
                    | {"name": word, "opacity": 1 if final else 0.7}
                    | ({"error_y": bars | {"color": colour, "thickness": 1}} if final else {})
                )
                data[-1]["line"] |= {} if final else {"width": 1, "dash": "solid" if which == 0 else "dot"}
    layout = _side_by_side(report, "similarity", [0, 1.03])
    intro = (
        f"How alike each layer is to what it was at ‘{report.stages[0]}’: 1 is unchanged. In colour the last stage, "
        "with the middle 95 % over bootstrapped samples; grey the stages before it (dotted: CKA). RSA compares "
        "distances, CKA (debiased) inner products. A layer at which all samples are the same, as the first token's is "
        "before the first layer, has no value."
    )
    return Section("Which layers moved", figure({"data": data, "layout": layout}, "Similarity by layer"), intro)


def _probes(report: SufoReport) -> Section:
    """Macro-F1 of linear probes by layer and stage, and that of the head."""
    data, shapes = [], []
    layers, _ = _short_names(report)
    for place, how in enumerate(report.poolings):
        axis = "" if place == 0 else str(place + 1)
        for stage, y in zip(report.stages, report.macro[how]):
            colour = {0: "var(--ink)", len(report.stages) - 1: "var(--accent)"}.get(report.stages.index(stage))
            trace = _line(plain(stage, 30), layers, y, colour or "var(--data)")
            data.append(trace | {"showlegend": place == 0, "xaxis": f"x{axis}", "yaxis": f"y{axis}"})
        if report.tuned is not None:
            dotted = {"color": "var(--accent)", "dash": "dot", "width": 1.5}
            f1 = float(report.tuned.mean())
            at = {"x0": 0, "x1": 1, "y0": f1, "y1": f1}
            shapes.append({"type": "line", "line": dotted, "xref": f"x{axis} domain", "yref": f"y{axis}"} | at)
    low = min(float(table.min()) for table in report.macro.values())
    layout = _side_by_side(report, "macro-F1", [max(0, low - 0.05), 1.01])
    body = figure({"data": data, "layout": layout | {"shapes": shapes}}, "Macro-F1 of probes by layer and stage")
    columns = [report.probes[report.poolings[0]][at, -1] for at in (0, -1)]
    head = ["Class", "Probe, last layer, before", "Probe, last layer, after"]
    if report.tuned is not None:
        columns.append(report.tuned)
        head.append("The model's own head")
    rows = [(name, *(f"{f1[c]:.3f}" for f1 in columns)) for c, name in enumerate(report.classes)]
    body += table(head, rows, label="F1 by class", numbers=head[1:])
    intro = "Macro-F1 of a linear probe on frozen features. "
    intro += "" if report.tuned is None else "The dotted line is the model's own head at the last stage. "
    return Section("What can be read from each layer", body, intro + "Below: F1 by class.")


def _dynamics(report: SufoReport) -> Section:
    """The samples in the plane of the last stage, a small picture a stage, outliers ringed."""
    shown = sorted({round(at) for at in np.linspace(0, len(report.stages) - 1, min(6, len(report.stages))).tolist()})
    kept = report.outliers.flagged.copy()
    kept[np.random.default_rng(0).permutation(len(kept))[: max(0, MARKS - int(kept.sum()))]] = True
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    bare = dict.fromkeys(("zeroline", "showticklabels", "showgrid"), False)
    framed = bare | {"showline": True, "mirror": True, "linecolor": "var(--rule)"}
    layout: dict[str, Any] = {
        "height": 320 * lines,
        "showlegend": True,
        "hovermode": "closest",
        "margin": {"l": 8, "r": 8, "t": 16, "b": 8},
        "legend": {"orientation": "h", "y": -0.02, "itemsizing": "constant"},
        "annotations": [],
    }
    data: list[dict[str, Any]] = []
    for place, stage in enumerate(shown):
        axis = "" if place == 0 else str(place + 1)
        line, column = divmod(place, columns)
        wide = [column / columns + GAP / 2, (column + 1) / columns - GAP / 2]
        high = [1 - (line + 1) / lines + GAP, 1 - line / lines - 3 * GAP]
        layout[f"xaxis{axis}"] = framed | {"domain": wide, "anchor": f"y{axis}"}
        layout[f"yaxis{axis}"] = framed | {"domain": high, "anchor": f"x{axis}"}
        words = f"silhouette {report.silhouette[stage]:.2f}, probe {report.linear[stage]:.2f}"
        layout["annotations"].append(_title(f"{plain(report.stages[stage], 30)}<br>{words}", wide[0], high[1]))
        axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": place == 0}
        data += [marks | axes for marks in _marks(report, stage, kept)]
    intro = (
        f"Samples along the first two principal axes of the last layer at ‘{report.stages[-1]}’; earlier stages are "
        "laid on the same axes. Rings: outliers of the last stage. The silhouette says how apart the classes are in "
        "the plane (at most 1), the probe is the balanced accuracy of a linear one in it."
    )
    return Section("How the classes part", figure({"data": data, "layout": layout}, "Dynamics by stage"), intro)


def _marks(report: SufoReport, stage: int, kept: np.ndarray) -> list[dict[str, Any]]:
    """The samples of a stage, by class: the usual ones as dots, the outliers as rings."""
    marks = []
    for c, name in enumerate(report.classes):
        for far in (False, True):
            rows = np.flatnonzero(kept & (report.y == c) & (report.outliers.flagged == far))
            ring = {"symbol": "circle-open", "size": 7, "line": {"width": 1.6}}
            marker = {"color": COLOURS[min(c, len(COLOURS) - 1)], "size": 4} | (ring if far else {"opacity": 0.5})
            marks.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": plain(name, 24) + (", outlier" if far else ""),
                    "legendgroup": f"{c} {far}",
                    "x": report.places[stage, rows, 0],
                    "y": report.places[stage, rows, 1],
                    "marker": marker,
                    "text": [_hover(report, row) for row in rows.tolist()],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    return [one for one in marks if len(one["x"])]


def _axes(report: SufoReport) -> Section:
    """Cumulative explained variance before and after, and what the head makes of single axes."""
    k = min(5, report.explained.shape[1])
    x = [str(i + 1) for i in range(k)]
    data = [
        {
            "type": "bar",
            "name": plain(report.stages[at], 30),
            "x": x,
            "y": report.explained[at].cumsum()[:k],
            "marker": {"color": colour},
            "hovertemplate": "%{y:.1%} in %{x}<extra></extra>",
        }
        for at, colour in ((0, "var(--data)"), (-1, "var(--accent)"))
    ]
    layout = {
        "height": 320,
        "bargap": 0.3,
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 72},
        "xaxis": {"title": {"text": "first components"}, "type": "category"},
        "yaxis": {"title": {"text": "share of the variance"}, "range": [0, 1.02], "tickformat": ".0%"},
    }
    body = figure({"data": data, "layout": layout}, "Cumulative explained variance before and after")
    intro = "How much of the variance of the last layer its first principal components hold."
    if report.told is not None:
        head = ("Component", *(f"told {name}" for name in report.classes), "Macro-F1 without it and those before")
        rows = [("none taken", *("" for _ in report.classes), f"{report.left[0]:.3f}")]
        for i, shares in enumerate(report.told):
            rows.append((str(i + 1), *(f"{share:.1%}" for share in shares), f"{report.left[i + 1]:.3f}"))
        body += table(head, rows, label="Components shown to the head", numbers=head[1:])
        intro += (
            " Below: as what the model's head takes the samples when it is shown one component alone, and how well it "
            "still tells them when the first ones are taken away."
        )
    return Section("Into how few directions", body, intro)


def _outliers(report: SufoReport) -> Section:
    """The outliers, farthest first, with what they say."""
    from markupsafe import Markup

    found = report.outliers
    ranked = found.ranked
    if not len(ranked):
        return Section("Who is far out", Markup("<p>No sample.</p>"))
    head = ("Sample", "Distance", "Labelled", "Lies with", "Why", *(("Text",) if report.texts else ()))
    rows = [
        (
            f"{row:,}",
            f"{found.distance[row]:.3g}",
            report.classes[report.y[row]],
            report.classes[found.lies_with[row]],
            " and ".join(w for w, so in (("far", found.far[row]), ("misclassified", found.misclassified[row])) if so),
            *((_short(report.texts[row], 300),) if report.texts else ()),
        )
        for row in ranked[:LISTED].tolist()
    ]
    intro = "By the distance from the centroid of the class in the plane of the last stage. "
    intro += "Far is beyond Tukey's outer fence of the class's distances."
    if len(ranked) > LISTED:
        intro += f" The first {LISTED} of {len(ranked):,}."
    return Section("Who is far out", table(head, rows, label="Outliers", numbers=head[1:2]), intro)


def _short_names(report: SufoReport) -> tuple[list[str], str]:
    """Return the layers' names without the row that blocks stand in, and its name; as they are where there is none."""
    rows = {name.rpartition(".")[0] for name in report.layers if name.rpartition(".")[2].isdigit()}
    row = rows.pop() if len(rows) == 1 else ""
    return [plain(name.removeprefix(f"{row}.") if row else name, 24) for name in report.layers], row


def _hover(report: SufoReport, row: int) -> str:
    words = [f"sample {row:,}: {plain(report.classes[report.y[row]], 30)}"]
    return "<br>".join(words + ([plain(report.texts[row], 80)] if report.texts else []))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _side_by_side(report: SufoReport, y: str, span: list[float]) -> dict[str, Any]:
    """Lay out one panel a pooling, on one scale."""
    titles, ticks = [WORDS.get(how, how) for how in report.poolings], len(report.layers)
    row = plain(_short_names(report)[1], 40)
    layout: dict[str, Any] = {
        "height": 380,
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"l": 56, "r": 16, "t": 36, "b": 96},
        "annotations": [],
    }
    for place, title in enumerate(titles):
        axis = "" if place == 0 else str(place + 1)
        wide = [(place + 0.06 * (place > 0)) / len(titles), (place + 1 - 0.02) / len(titles)]
        layout[f"xaxis{axis}"] = {"domain": wide, "anchor": f"y{axis}", "type": "category", "showgrid": False}
        layout[f"xaxis{axis}"] |= {"range": [-0.5, ticks - 0.5], "title": {"text": row}}
        layout[f"yaxis{axis}"] = {"range": span, "anchor": f"x{axis}", "zeroline": False}
        layout["annotations"].append(_title(title, wide[0], 1.0))
    layout["yaxis"]["title"] = {"text": y}
    return layout


def _title(text: str, x: float, y: float) -> dict[str, Any]:
    """Words over the left corner of a panel."""
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
        "font": {"size": 12.5},
    }


def _line(name: str, x: list[str], y: np.ndarray, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "marker": {"size": 5, "color": colour},
        "line": {"color": colour, "width": 2},
        "hovertemplate": f"%{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
    }
