"""The page of ranked columns: what they tell beside noise, which say the same, and how good they are."""

from __future__ import annotations

import json
import shlex
from os import PathLike
from typing import TYPE_CHECKING, Any

from farout.report._page import Section, figure, page, plain, render, table, write

if TYPE_CHECKING:
    from markupsafe import Markup

Ranking = Any  # farout.scoring.ranking.Ranking, which stands above this room and so is not imported
BARS = 30  # columns in the first picture
ODD = 20  # rows in the last table


def write_page(ranking: Ranking, path: str | PathLike[str]) -> None:
    """Write the page of ranked columns: one HTML file, whole or not at all.

    Parameters
    ----------
    ranking : Ranking
        From :func:`farout.scoring.ranking.rank`.
    path : str or path

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from farout.scoring.ranking import rank
    >>> target = Path(tempfile.mkdtemp()) / "ranking.html"
    >>> write_page(rank([{"a": "xxy"[i % 3], "b": "uuv"[i % 3]} for i in range(99)], "a"), target)
    >>> "<strong>b</strong> tells most about 'a'" in target.read_text(encoding="utf-8")
    True
    """
    sections = [_bars(ranking), _quality(ranking), _controls(ranking), _odd(ranking), _settings(ranking)]
    if len(ranking.together) > 1:
        sections.insert(1, _together(ranking))
    facts = [
        ("rows", f"{ranking.rows:,}"),
        ("columns", f"{ranking.table.height:,}"),
        ("entropy of the target", f"{ranking.entropy:.4f} nats"),
        ("best of noise", f"{ranking.noise:.4f} nats"),
    ]
    html = page(ranking.name, sections, kind="Ranking of columns", lead=_lead(ranking), facts=facts)
    write(path, html)


def _lead(ranking: Ranking) -> Markup:
    from markupsafe import Markup

    first = ranking.table.row(0, named=True)
    noise = int((ranking.table["score"] <= ranking.noise).sum())
    text = Markup("<p><strong>{}</strong> tells most about '{}': {:.4f} nats. {:,} of {:,} columns score no more than "
                  "noise.</p>")  # fmt: skip
    lead = text.format(first["feature"], ranking.target, first["score"], noise, ranking.table.height)
    return lead + Markup("").join(Markup('<p class="note">{}</p>').format(word) for word in ranking.warnings)


def _bars(ranking: Ranking) -> Section:
    """Corrected against plain mutual information, columns of noise among the others."""
    best = ranking.table.head(BARS)
    # of each kind of noise the best one, to keep the picture small
    noise = ranking.controls.filter(ranking.controls["feature"].str.contains(", 1$"))
    names = [*best["feature"], *(f"noise: {name.removesuffix(', 1')}" for name in noise["feature"])]
    score, whole = ([*best[what], *noise[what]] for what in ("score", "plain"))
    order = sorted(range(len(names)), key=lambda i: (score[i], -i))
    labels = [plain(names[i], 40) for i in order]
    is_noise = [i >= best.height for i in order]
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "x": [values[i] for i in order],
            "y": list(range(len(order))),
            "marker": {"color": colour},
            "customdata": labels,
            "hovertemplate": f"%{{customdata}}<br>{name} %{{x:.4f}} nats<extra></extra>",
        }
        for name, values, colour in (
            ("plain", whole, ["var(--rule)" if grey else "var(--data)" for grey in is_noise]),
            ("corrected", score, ["var(--muted)" if grey else "var(--accent)" for grey in is_noise]),
        )
    ]
    layout = {
        "height": 120 + 24 * len(order),
        "barmode": "overlay",
        "showlegend": False,
        "margin": {"l": 220, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "mutual information with the target, nats"}},
        "yaxis": {"tickvals": list(range(len(order))), "ticktext": labels, "showgrid": False},
    }
    intro = (
        f"The best {best.height:,} columns, and columns of noise with 2 to 50,000 values among them. Strong bars: "
        "corrected. Pale bars: plain, which grows with the number of values."
    )
    alt = "Bars of corrected and plain mutual information of the columns and of noise"
    return Section("What columns tell", figure({"data": bars, "layout": layout}, alt), intro)


def _together(ranking: Ranking) -> Section:
    """Redundancy of the best columns, in the order of 3MR."""
    labels = [plain(name, 30) for name in ranking.together]
    heat = {
        "type": "heatmap",
        "z": ranking.redundancy,
        "x": list(range(len(labels))),
        "y": list(range(len(labels))),
        "text": [[f"{a}<br>{b}" for b in labels] for a in labels],
        "hovertemplate": "%{text}<br>%{z:.4f} nats<extra></extra>",
        "colorscale": [[0, "var(--paper)"], [1, "var(--accent)"]],
        "showscale": False,
    }
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "showgrid": False, "zeroline": False}
    layout = {
        "height": 160 + 30 * len(labels),
        "margin": {"l": 200, "r": 16, "t": 16, "b": 120},
        "xaxis": ticks | {"tickangle": -40},
        "yaxis": ticks | {"autorange": "reversed"},
    }
    alt = "Heat map of the redundancy of the best columns"
    intro = (
        "Corrected mutual information of each two of the best columns; the stronger, the more they say the same. "
        "They stand in the order of 3MR: relevant, little redundant, and telling when taken together."
    )
    return Section("Which say the same", figure({"data": [heat], "layout": layout}, alt), intro)


def _quality(ranking: Ranking) -> Section:
    head = ("Column", "Corrected", "Remark", "Plain", "Values", "Once", "Coverage", "Bytes", "From – to", "Mean")
    rows = []
    for row in ranking.table.iter_rows(named=True):
        span = "–" if row["min"] is None else f"{row['min']:,.4g} – {row['max']:,.4g}"
        shares = ("–" if row[name] is None else f"{100 * row[name]:.3g} %" for name in ("rare_share", "coverage"))
        sizes = ["–" if row[name] is None else f"{row[name]:,.4g}" for name in ("bytes", "mean")]
        told = (f"{row['score']:.4f}", row["remark"], f"{row['plain']:.4f}", f"{row['cardinality']:,}")
        rows.append((row["feature"], *told, *shares, sizes[0], span, sizes[1]))
    body = table(head, rows, label="Columns and their quality", numbers=(head[1], *head[3:]))
    intro = "Once: share of the values that occur once. Coverage: rows that are not missing, empty or {}."
    return Section("Columns", body, intro)


def _controls(ranking: Ranking) -> Section:
    rows = [(name, f"{score:.4f}", f"{whole:.4f}") for name, score, whole in ranking.controls.iter_rows()]
    body = table(("Column", "Corrected", "Plain"), rows, label="Controls", numbers=("Corrected", "Plain"))
    intro = (
        "Columns of known worth were ranked beside the others. A column that scores no more than the best of noise is "
        "as good as noise; one at the level of the target itself may be the target in disguise."
    )
    return Section("Controls", body, intro)


def _odd(ranking: Ranking) -> Section:
    kinds = ("empty", "braces", "zero", "long")
    rows = [
        (f"{row['row']:,}", *(f"{100 * row[kind]:.3g} %" for kind in ("score", *kinds)), f"{row['entropy']:.2f}")
        for row in ranking.odd_rows.head(ODD).iter_rows(named=True)
    ]
    head = ("Row", "In all", "Empty", "{}", "Zero", "Over-long", "Entropy")
    body = table(head, rows, label="Rows with the least in them", numbers=head[1:])
    intro = "Share of the fields that hold nothing of use, and the entropy of the characters of all fields, in nats."
    return Section("Rows with the least in them", body, intro)


def _settings(ranking: Ranking) -> Section:
    settings = ranking.settings
    run = {name: value for name, value in settings.items() if not isinstance(value, dict) and value is not None}
    body = render(
        "scores_settings.html",
        card=ranking.card,
        command=shlex.join(settings.get("command", [])),
        run={name: value for name, value in run.items() if name not in ("method", "command")},
        groups={name: value for name, value in settings.items() if isinstance(value, dict) and value},
        json=json.dumps(settings, indent=2, default=str),
    )
    return Section("Settings", body, "All that it takes to run this again.")
