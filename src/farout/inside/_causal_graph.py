"""What causes a class: the graph of units and paths that interventions found, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput, UnknownName
from farout.inside._causal_effects import Network, Unit, evaluating

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CausalGraph", "Edge", "LayerCheck", "Unit"]


@dataclass(frozen=True)
class Edge:
    """A path from a unit to a unit of a later layer, or to the class.

    Attributes
    ----------
    source, target : Unit
        The class is the unit of the last layer that has its number.
    effect : float
        How much lower the target is, in the mean over the samples of the class, when what it gets on this path is
        replaced by the reference: in units of its activation, or of log-odds where it is the class.
    t : float
        Mean over standard deviation of that, times the root of the number of samples.
    p : float
        One-sided, before the correction for many paths.
    share : float
        Of the summed positive effects on the target.
    skip : bool
        Whether it is a skip connection.
    together : int
        How many near-duplicates were intervened on together; effect and share are this unit's part of theirs.
    """

    source: Unit
    target: Unit
    effect: float
    t: float
    p: float
    share: float
    skip: bool
    together: int


@dataclass(frozen=True)
class LayerCheck:
    """What the class loses without the kept units of a layer, and what it keeps with nothing else of it.

    Attributes
    ----------
    layer : str
    kept, units : int
    without : float
        Mean probability of the class when the kept units are replaced by their references.
    alone : float
        The same when all others are.
    """

    layer: str
    kept: int
    units: int
    without: float
    alone: float


@dataclass(frozen=True)
class CausalGraph:
    """The causal graph of a class.

    Attributes
    ----------
    target : int
        The class.
    samples : int
        Of the class, over which effects were taken.
    probability : float
        Of the class, in the mean over them.
    edges : tuple of Edge
        From the class downwards, and by falling share.
    effects : dict of Unit to (float, float)
        For each unit of the graph, how much lower the log-odds of the class are without it, and t.
    checks : tuple of LayerCheck
        Of the layers that have units in the graph, in running order.
    twins : tuple of tuple of Unit
        Near-duplicates among the units of the graph, which were intervened on together.
    network : Network
        The model, opened.
    """

    target: int
    samples: int
    probability: float
    edges: tuple[Edge, ...]
    effects: dict[Unit, tuple[float, float]]
    checks: tuple[LayerCheck, ...]
    twins: tuple[tuple[Unit, ...], ...]
    network: Network = field(repr=False)

    @property
    def root(self) -> Unit:
        """The class, as a unit of the last layer."""
        return Unit(self.network.names[-1], self.target)

    @property
    def layers(self) -> list[str]:
        """All hidden layers of the model, in running order."""
        return self.network.names[:-1]

    @cached_property
    def paths(self) -> dict[Unit, float]:
        """The weight of each unit: over all paths to the class, the sum of the products of shares; strongest first."""
        weight = {self.root: 1.0}
        for edge in self.edges:  # from the class downwards: a target is complete before its own edges come
            weight[edge.source] = weight.get(edge.source, 0.0) + edge.share * weight[edge.target]
        del weight[self.root]
        return dict(sorted(weight.items(), key=lambda pair: -pair[1]))

    def units(self, layer: str | None = None) -> list[Unit]:
        """Return the units of the graph, of one layer or all, by falling weight."""
        if layer is not None and layer not in self.layers:
            raise UnknownName("layer", layer, self.layers)
        return [unit for unit in self.paths if layer in (None, unit.layer)]

    def frame(self) -> pl.DataFrame:
        """Return the edges as a table, a row each."""
        import polars as pl

        rows = [
            {"source": str(e.source), "target": str(e.target), "effect": e.effect, "t": e.t, "p": e.p, "share": e.share}
            | {"skip": e.skip, "together": e.together}
            for e in self.edges
        ]
        names, numbers = ("source", "target"), ("effect", "t", "p", "share")
        kinds: dict[str, Any] = dict.fromkeys(names, pl.String) | dict.fromkeys(numbers, pl.Float64)
        return pl.DataFrame(rows, schema=kinds | {"skip": pl.Boolean, "together": pl.Int64})

    def map(self, X: Any) -> np.ndarray:
        """Show where in inputs the units of the graph are more active than their reference.

        In each layer that has places, the excess of the kept units over their references is summed with the units'
        weights and enlarged to the size of the input; each layer's sum is scaled by its largest value, and the layers
        are averaged.

        Parameters
        ----------
        X : array or tensor (n, c, h, w)

        Returns
        -------
        float64 array (n, h, w)
            From 0 to 1.

        Raises
        ------
        BadInput
            The inputs are no images, or no layer with units in the graph has places.
        """
        import torch
        from torch.nn import functional

        X = torch.as_tensor(X)
        kept = [(i, layer, self.units(layer.name)) for i, layer in enumerate(self.network.layers[:-1])]
        made = []
        with evaluating(self.network.model):
            for _, run in self.network.runs(X):
                heats = []
                for i, layer, units in kept:
                    shown = run.values[layer.seen]
                    if not units or shown.ndim != 4 or X.ndim != 4:
                        continue
                    index = [unit.number for unit in units]
                    weights = torch.tensor([self.paths[unit] for unit in units]).to(shown)
                    excess = (shown[:, index] - self.network.resting[i][index]).clamp(min=0)
                    heat = (excess * weights[:, None, None]).sum(1, keepdim=True)
                    heat = functional.interpolate(heat, X.shape[2:], mode="bilinear", align_corners=False)
                    heats.append(heat[:, 0] / heat.amax((1, 2, 3)).clamp(min=1e-30)[:, None, None])
                if not heats:
                    raise BadInput(
                        f"inputs of shape {tuple(X.shape)}: a map needs images (n, c, h, w), and units of the graph "
                        "that are filters of convolutions"
                    )
                made.append(torch.stack(heats).mean(0).double().cpu().numpy())
        return np.concatenate(made)

    def crops(self, X: Any, units: Iterable[Unit], most: int = 9) -> dict[Unit, np.ndarray]:
        """Show what filters look for: the mean of the surroundings in which each is most active.

        Parameters
        ----------
        X : array or tensor (n, c, h, w)
        units : iterable of Unit
        most : int
            Inputs to average, each at the place where the unit is most active in it.

        Returns
        -------
        dict of Unit to float64 array (c, side, side)
            Without the units that have no places. The side grows with the layer's depth and with pooling before it.
        """
        import torch

        X = torch.as_tensor(X)
        wanted: dict[int, list[Unit]] = {}
        for unit in units:
            wanted.setdefault(self.layers.index(unit.layer), []).append(unit)
        best: dict[Unit, list[tuple[float, int, int]]] = {unit: [] for those in wanted.values() for unit in those}
        grid: dict[int, tuple[int, int]] = {}
        with evaluating(self.network.model):
            for rows, run in self.network.runs(X):
                for i, those in wanted.items():
                    shown = run.values[self.network.layers[i].seen]
                    if shown.ndim != 4 or X.ndim != 4:
                        continue
                    grid[i] = shown.shape[2], shown.shape[3]
                    for unit in those:
                        peak, at = shown[:, unit.number].flatten(1).max(1)
                        inputs = range(rows.start, rows.start + len(peak))
                        best[unit] = sorted([*best[unit], *zip(peak.tolist(), inputs, at.tolist())])[-most:]
        crops = {}
        for i, those in wanted.items():
            if i not in grid:
                continue
            down, right = (whole / part for whole, part in zip(X.shape[2:], grid[i]))
            side = min(round((3 + 2 * i) * down) | 1, *X.shape[2:])
            padded = torch.nn.functional.pad(X, [side // 2] * 4)
            for unit in those:
                cut = []
                for _, n, place in best[unit]:
                    y, x = int((place // grid[i][1] + 0.5) * down), int((place % grid[i][1] + 0.5) * right)
                    cut.append(padded[n, :, y : y + side, x : x + side])
                crops[unit] = torch.stack(cut).mean(0).double().cpu().numpy()
        return crops

    @contextmanager
    def ablated(self, units: Iterable[Unit | tuple[str, int]] | None = None, weight: float = 0.0) -> Iterator[None]:
        """Let the model run without some units, within the context.

        Parameters
        ----------
        units : iterable of Unit, optional
            By default all of the graph. Others of the model may be among them.
        weight : float
            What is left of a unit's deviation from its reference: 0 ablates it, 0.5 halves it, 1 changes nothing.

        Raises
        ------
        UnknownName
            The model has no such layer.
        BadInput
            A layer has no such unit.

        Examples
        --------
        >>> import torch
        >>> from farout.inside.causal_paths import CausalPaths
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> X = torch.randn(64, 4)
        >>> graph = CausalPaths().measure(model, X, model(X).argmax(1), target=1)
        >>> with graph.ablated():
        ...     without = model(X)
        >>> bool((without != model(X)).any())
        True
        """
        by_layer: dict[int, list[int]] = {}
        for layer, index in self.units() if units is None else units:
            if layer not in self.layers:
                raise UnknownName("layer", layer, self.layers)
            i = self.layers.index(layer)
            if not 0 <= index < self.network.layers[i].units:
                raise BadInput(f"'{layer}' has {self.network.layers[i].units} units; there is no unit {index}")
            by_layer.setdefault(i, []).append(index)
        with self.network.ablated(by_layer, weight):
            yield
