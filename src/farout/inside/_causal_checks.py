"""Whether an explanation can be relied on: is it stable where nothing changed, and does it point at what counts?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput
from farout.inside._causal_graph import CausalGraph

if TYPE_CHECKING:
    from torch import nn

__all__ = ["faithfulness", "jaccard", "stability"]


def jaccard(a: Iterable[Any], b: Iterable[Any]) -> float:
    """Return the number of common members over the number of all; 1 where both sets are empty.

    Examples
    --------
    >>> jaccard([1, 2, 3], [2, 3, 4])
    0.5
    """
    first, second = set(a), set(b)
    return len(first & second) / len(first | second) if first | second else 1.0


def stability(
    paths: Any,
    model: nn.Module,
    X: Any,
    y: Any,
    target: int,
    *,
    sigma: float = 0.1,
    draws: int = 5,
    others: Sequence[nn.Module] = (),
    random_state: int = 0,
) -> dict[str, float]:
    """Measure how much a causal graph changes where it should not.

    Parameters
    ----------
    paths : CausalPaths
    model : torch.nn.Module
    X, y, target
        As for :meth:`farout.inside.causal_paths.CausalPaths.measure`.
    sigma : float
        Standard deviation of the normal noise that is added to inputs.
    draws : int
        Of noise, and of rows with replacement.
    others : sequence of torch.nn.Module
        The same network trained again. Its units have no counterparts, so maps of the class's inputs are compared.
    random_state : int

    Returns
    -------
    dict of str to float
        Means over the draws: ``"noise"`` and ``"resampled"``, the Jaccard overlap of the units of the graph;
        ``"noise ranks"`` and ``"resampled ranks"``, Spearman's correlation of the weights of all units that are in
        either graph; with ``others``, ``"trained again"``, Spearman's correlation of the maps.
    """
    import torch

    inputs, classes = torch.as_tensor(X), torch.as_tensor(np.asarray(y))
    generator = torch.Generator().manual_seed(random_state)
    first = paths.measure(model, inputs, classes, target)
    overlaps: dict[str, list[float]] = {}

    def compare(what: str, second: CausalGraph) -> None:
        overlaps.setdefault(what, []).append(jaccard(first.paths, second.paths))
        overlaps.setdefault(f"{what} ranks", []).append(_agreement(first, second))

    for _ in range(draws):
        noise = sigma * torch.randn(inputs.shape, generator=generator)
        compare("noise", paths.measure(model, inputs + noise.to(inputs), classes, target))
        rows = torch.randint(len(inputs), (len(inputs),), generator=generator)
        compare("resampled", paths.measure(model, inputs[rows], classes[rows], target))
    if others:
        of_class = inputs[classes == target]
        maps = first.map(of_class)
        for other in others:
            again = paths.measure(other, inputs, classes, target).map(of_class)
            overlaps.setdefault("trained again", []).extend(_spearman(a, b) for a, b in zip(maps, again))
    return {what: float(np.mean(values)) for what, values in overlaps.items()}


def faithfulness(
    model: nn.Module, X: Any, maps: np.ndarray, target: int, *, fill: Any = 0.0, steps: int = 20
) -> tuple[float, float]:
    """Take away, and put in, the pixels of images in the order of a map.

    Parameters
    ----------
    model : torch.nn.Module
    X : array or tensor (n, c, h, w)
    maps : array (n, h, w)
        Larger where more important.
    target : int
        The class whose probability is followed.
    fill : float or tensor (c, h, w)
        What stands where a pixel is missing.
    steps : int
        Into which the pixels are parted.

    Returns
    -------
    deletion, insertion : float
        Areas under the mean probability of the class over the share of pixels that are gone (small is faithful) or
        there (large is faithful).

    Examples
    --------
    >>> import torch
    >>> class Corner(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.stack([x[:, 0, 0, 0], -x[:, 0, 0, 0]], dim=1)
    >>> X = torch.full((1, 1, 2, 2), 50.0)
    >>> faithfulness(Corner(), X, np.array([[[4, 3], [2, 1]]]), 0, steps=4)  # the corner that counts goes first
    (0.5625, 0.9375)
    """
    import torch

    X = torch.as_tensor(X)
    if X.ndim != 4 or maps.shape != (len(X), *X.shape[2:]):
        raise BadInput(f"images (n, c, h, w) and maps (n, h, w) are needed, not {tuple(X.shape)} and {maps.shape}")
    order = np.argsort(-maps.reshape(len(X), -1), axis=1, kind="stable")
    rank = torch.from_numpy(np.argsort(order, axis=1).reshape(maps.shape)).to(X.device)[:, None]
    base = torch.as_tensor(fill, dtype=X.dtype, device=X.device).expand_as(X)
    curves = []
    for there in (False, True):
        values = []
        for count in np.linspace(0, rank[0].numel(), steps + 1).round().astype(int):
            mixed = torch.where((rank < int(count)) == there, X, base)
            with torch.no_grad():
                values.append(float(model(mixed).double().softmax(1)[:, target].mean()))
        curves.append(float(np.trapezoid(values, dx=1 / steps)))
    return curves[0], curves[1]


def _agreement(first: CausalGraph, second: CausalGraph) -> float:
    """Return Spearman's correlation of the weights of the units that are in either graph."""
    units = sorted({*first.paths, *second.paths})
    return _spearman(*(np.array([graph.paths.get(unit, 0.0) for unit in units]) for graph in (first, second)))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's correlation; 0 where one of the two does not vary."""
    from scipy.stats import spearmanr

    a, b = a.ravel(), b.ravel()
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.array_equal(a, b))
    return float(spearmanr(a, b).statistic)
