"""Figures of a benchmark of many sets: a method against a rival of choice, and time against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from farout.bench import _figures as figures
from farout.bench._figures import Figure
from farout.errors import BadInput


def scatter_rivals(sets: Sequence[str], ours: ArrayLike, rivals: Mapping[str, ArrayLike], name: str) -> Figure:
    """One point a data set: a method against one of several rivals, chosen from a list.

    Parameters
    ----------
    sets : sequence of str
    ours : array of shape (n_sets,)
        AUROC of the method, NaN = not run.
    rivals : mapping of str to array of shape (n_sets,)
        AUROC of each rival; the first is shown at first.
    name : str
        The method.

    Returns
    -------
    dict
        ``data`` and ``layout`` of a plotly figure: three traces for each rival, as in ``scatter_rival``.

    Raises
    ------
    BadInput
        There is no rival, or one shares no set with the method.

    Examples
    --------
    >>> fig = scatter_rivals(["a", "b"], [0.9, 0.6], {"LOF": [0.8, 0.7], "ECOD": [0.5, 0.5]}, "KNN")
    >>> [button["label"] for button in fig["layout"]["updatemenus"][0]["buttons"]]
    ['LOF', 'ECOD']
    >>> [trace["visible"] for trace in fig["data"]]
    [True, True, True, False, False, False]
    """
    if not rivals:
        raise BadInput(f"'{name}' has no rival; run two methods or more")
    single = {rival: figures.scatter_rival(sets, ours, theirs, name, rival) for rival, theirs in rivals.items()}
    first = next(iter(single.values()))
    data = [trace | {"visible": i == 0} for i, fig in enumerate(single.values()) for trace in fig["data"]]
    per_rival = len(first["data"])
    buttons = []
    for i, (rival, fig) in enumerate(single.items()):
        shown = [j // per_rival == i for j in range(len(data))]
        layout = fig["layout"]
        moved = {key: layout[key] for key in ("title", "annotations")}
        moved |= {f"{axis}.{part}": layout[axis][part] for axis in ("xaxis", "yaxis") for part in ("title", "range")}
        buttons.append({"label": rival, "method": "update", "args": [{"visible": shown}, moved]})
    menu = {
        "buttons": buttons,
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
        "bgcolor": "var(--card)",
        "bordercolor": "var(--rule)",
    }
    layout = first["layout"]
    return {"data": data, "layout": layout | {"updatemenus": [menu], "margin": layout["margin"] | {"t": 80}}}


def time_against_accuracy(names: Sequence[str], seconds: ArrayLike, accuracy: ArrayLike) -> Figure:
    """One point a method: seconds to the right, on a logarithmic axis, and mean AUROC upwards.

    Parameters
    ----------
    names : sequence of str
    seconds, accuracy : array of shape (n_methods,)

    Returns
    -------
    dict
        ``data`` and ``layout`` of a plotly figure; methods that no other beats in both are in the accent colour.

    Examples
    --------
    >>> fig = time_against_accuracy(["KNN", "HBOS", "slow"], [1.0, 0.1, 2.0], [0.8, 0.7, 0.6])
    >>> [trace["text"] for trace in fig["data"]]
    [['KNN', 'HBOS'], ['slow']]
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (seconds, accuracy))
    beaten = np.array([bool(((x <= x[i]) & (y >= y[i]) & ((x < x[i]) | (y > y[i]))).any()) for i in range(len(x))])
    hover = "%{text}<br>%{x:.3g} s a set<br>mean AUROC %{y:.3f}"
    data = []
    for chosen, colour in ((~beaten, figures.OURS), (beaten, figures.OTHER)):
        text = [name for name, there in zip(names, chosen) if there]
        trace = figures._trace(x[chosen], y[chosen], "markers+text", colour, text, hover)
        data.append(trace | {"textposition": "top center"})
    return {
        "data": data,
        "layout": figures._layout(
            {**figures._axis("seconds a set, to fit and score"), "type": "log"},
            figures._axis("mean AUROC"),
            height=440,
            margin={"l": 70, "r": 70, "t": 40, "b": 60},
        ),
    }
