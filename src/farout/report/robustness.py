"""The page of the robustness index: one map of an embedding in two colourings, and what neighbours share over k."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import UnknownName
from farout.report._page import Section, figure, page, plain, table, write

if TYPE_CHECKING:
    from markupsafe import Markup

Robustness = Any  # farout.inside.robustness_index.Robustness; a page needs its numbers, not the room
VIEWS = ("tsne", "pca")
MARKS = 2000  # rows in the map
NAMED = 10  # labels with a colour of their own; the rarest others share one
# Told apart by readers with any kind of colour vision, on light and on dark paper (Okabe and Ito 2008, two added).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a900", "#8c6bb1", "#8c564b", "#7f7f7f")


def write_page(found: Robustness, path: str | PathLike[str], name: str = "embedding", view: str = "tsne") -> None:
    """Write the page of what an embedding's neighbours share: one HTML file, whole or not at all.

    Parameters
    ----------
    found : Robustness
        From :meth:`farout.inside.robustness_index.RobustnessIndex.measure`.
    path : str or path
    name : str
        Of the embedding.
    view : {"tsne", "pca"}
        How the map is drawn; of more than 2,000 rows, 2,000 are.

    Raises
    ------
    UnknownName
        When ``view`` is another.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from farout.inside.robustness_index import RobustnessIndex
    >>> tissue, centre = np.arange(80) % 2, np.arange(80) // 2 % 2
    >>> X = np.eye(2)[tissue] + np.random.default_rng(0).normal(scale=0.1, size=(80, 2))
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write_page(RobustnessIndex(k=5).measure(X, tissue, centre), target, view="pca")
    >>> "The class rules" in target.read_text(encoding="utf-8")
    True
    """
    if view not in VIEWS:
        raise UnknownName("view", view, VIEWS)
    sections = [_maps(found, view), _curves(found), _sharing(found), _errors(found), _numbers(found)]
    low, high = found.intervals["index"]
    facts = [
        ("rows", f"{len(found.labels):,}"),
        ("neighbours", f"{found.k:,}"),
        ("index", f"{found.index:.2f} ({low:.2f} to {high:.2f})"),
        ("share", f"{found.share:.3f} ({found.intervals['share'][0]:.3f} to {found.intervals['share'][1]:.3f})"),
    ]
    write(path, page(name, sections, kind="Robustness index", lead=_lead(found), facts=facts))


def _lead(found: Robustness) -> Markup:
    from markupsafe import Markup

    rules = "The class rules" if found.index > 1 else "The confounder rules" if found.index < 1 else "Neither rules"
    text = (
        "<p><strong>{}</strong>: at k = {:,}, {:.2f} times as many neighbours have the row's class as its confounder. "
    )
    if np.isnan(found.share):
        text += "None shares just one of the two.</p>"
    else:
        text += "Of those that share just one of the two, {:.1%} share the class.</p>"
    return Markup(text).format(rules, found.k, found.index, found.share)


def _maps(found: Robustness, view: str) -> Section:
    """One map, coloured by class and by confounder."""
    rng = np.random.default_rng(0)
    n = len(found.labels)
    rows = np.sort(rng.choice(n, MARKS, replace=False)) if n > MARKS else np.arange(n)
    places = _placed(found.embedding[rows], view)
    how = {"tsne": "t-SNE", "pca": "The first two principal components"}[view]
    body = _coloured(places, found.labels[rows], "class") + _coloured(places, found.confounders[rows], "confounder")
    intro = (
        f"{how} of {len(rows):,} rows: the same points twice. A good embedding groups the upper map by colour and "
        "mixes the colours of the lower one."
    )
    return Section("One map, two colourings", body, intro)


def _placed(rows: np.ndarray, view: str) -> np.ndarray:
    """Place rows in the plane (n, 2)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if view == "pca":
        return PCA(2, svd_solver="full").fit_transform(np.pad(rows, ((0, 0), (0, max(0, 2 - rows.shape[1])))))
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="random", random_state=0).fit_transform(rows)


def _coloured(places: np.ndarray, labels: np.ndarray, what: str) -> Markup:
    names, counts = np.unique(labels, return_counts=True)
    often = names[np.argsort(-counts, kind="stable")]
    named = set(often if len(often) <= NAMED else often[: NAMED - 1])
    shown = [(name, labels == name) for name in names if name in named]
    if len(named) < len(names):
        shown.append((f"{len(names) - len(named)} others", ~np.isin(labels, list(named))))
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plain(str(name), 24),
            "x": places[these, 0],
            "y": places[these, 1],
            "marker": {"color": colour, "size": 5, "opacity": 0.75},
            "text": [plain(label, 40) for label in labels[these]],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for (name, these), colour in zip(shown, COLOURS)
    ]
    bare = {"zeroline": False, "showticklabels": False, "showgrid": False}
    layout = {
        "height": 460,
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"title": {"text": what}, "itemsizing": "constant"},
        "margin": {"l": 16, "r": 16, "t": 16, "b": 16},
        "xaxis": bare,
        "yaxis": bare | {"scaleanchor": "x"},
    }
    return figure({"data": data, "layout": layout}, f"Map of the embedding, coloured by {what}", f"Coloured by {what}.")


def _curves(found: Robustness) -> Section:
    """Both indices over k, each with its line of balance."""
    curves = [
        ("index", found.index_curve, "var(--accent)", "x", "y"),
        ("share", found.share_curve, "var(--ink)", "x2", "y2"),
    ]
    ks = np.arange(1, len(found.counts) + 1)
    data = [_line(name, ks, y, colour) | {"xaxis": x, "yaxis": axis} for name, y, colour, x, axis in curves]
    dotted = {"type": "line", "xref": "paper", "line": {"color": "var(--muted)", "dash": "dot", "width": 1}}
    marked = {"type": "line", "yref": "paper", "line": {"color": "var(--data)", "width": 1}, "y0": 0, "y1": 1}
    layout = {
        "height": 340,
        "showlegend": False,
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "xaxis": {"title": {"text": "neighbours k"}, "domain": [0, 0.45]},
        "xaxis2": {"title": {"text": "neighbours k"}, "domain": [0.55, 1], "anchor": "y2"},
        "yaxis": {"title": {"text": "index"}, "rangemode": "tozero"},
        "yaxis2": {"title": {"text": "share"}, "range": [0, 1], "anchor": "x2"},
        "shapes": [
            dotted | {"x0": 0, "x1": 0.45, "y0": 1, "y1": 1, "yref": "y"},
            dotted | {"x0": 0.55, "x1": 1, "y0": 0.5, "y1": 0.5, "yref": "y2"},
            *(marked | {"x0": found.k, "x1": found.k, "xref": axis} for axis in ("x", "x2")),
        ],
    }
    intro = (
        "Left: neighbours of the same class over neighbours of the same confounder. Right: of the neighbours that "
        f"share just one of the two, the share with the class. Dotted: balance. The upright line is at k = {found.k}. "
        "Embeddings are compared by the whole curve, since each has its own k."
    )
    return Section("The index over k", figure({"data": data, "layout": layout}, "Both indices over k"), intro)


def _sharing(found: Robustness) -> Section:
    """How often the k-th neighbour itself shares each label."""
    each = np.diff(found.counts, axis=0, prepend=0) / found.counts[0].sum()
    ks = np.arange(1, len(each) + 1)
    data = [
        _line("same class", ks, each[:, 0] + each[:, 1], "var(--accent)"),
        _line("same confounder", ks, each[:, 0] + each[:, 2], "var(--muted)"),
    ]
    intro = "How many rows have a k-th neighbour of the same class, and of the same confounder."
    return Section("What the k-th neighbour shares", _shares(data, "share of the rows", "Shares over k"), intro)


def _errors(found: Robustness) -> Section:
    """What neighbours predict, and whom wrong predictions came from."""
    data = [
        _line("class predicted", found.ks, found.accuracy, "var(--ink)"),
        _line("confounder predicted", found.ks, found.confounder_accuracy, "var(--muted)"),
        _line("same confounder among errors", found.ks, found.confounded, "var(--accent)"),
        _line("base rate of it", found.ks, found.base_rate, "var(--accent)", dash="dot"),
    ]
    intro = (
        "Balanced accuracy of a vote of k neighbours. In colour: where the vote is wrong, how many of the neighbours "
        "from the predicted class share the row's confounder, and how many would if the confounder played no part."
    )
    return Section("Where errors come from", _shares(data, "share", "Accuracies and errors over k"), intro)


def _shares(data: list[dict[str, Any]], title: str, alt: str) -> Markup:
    """Draw lines between 0 and 1 over k."""
    layout = {
        "height": 340,
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 80},
        "xaxis": {"title": {"text": "neighbours k"}},
        "yaxis": {"title": {"text": title}, "range": [0, 1.02]},
    }
    return figure({"data": data, "layout": layout}, alt)


def _line(name: str, x: np.ndarray, y: np.ndarray, colour: str, dash: str = "solid") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 2, "dash": dash},
        "hovertemplate": f"k = %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
    }


def _numbers(found: Robustness) -> Section:
    shown = [k for k in (1, 3, 5, 9, 21, 51, 101, 201, 501) if k <= len(found.counts)]
    rows = [
        (f"{k:,}", f"{found.index_curve[k - 1]:.3f}", f"{found.share_curve[k - 1]:.3f}", *map("{:,}".format, counts))
        for k, counts in ((k, found.counts[k - 1].tolist()) for k in sorted({*shown, found.k}))
    ]
    head = ("k", "Index", "Share", "Both", "Class only", "Confounder only", "Neither")
    intro = "Neighbours of all rows up to k, by what they share with their row."
    return Section("Numbers", table(head, rows, label="Counts of neighbours", numbers=head[1:]), intro)
