"""A model opened at its layers: what its units send, and what happens where that is taken away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from farout.errors import BadInput, UnknownName
from farout.inside._causal_parts import interventions, shares
from farout.inside._causal_structure import Path, layers_of
from farout.inside._causal_trace import Trace, editing, trace

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Network", "PathEffects", "Unit", "evaluating", "log_odds"]

REFERENCES = ("mean", "zero")


class Unit(NamedTuple):
    """A filter of a convolution or a neuron of a linear map."""

    layer: str
    number: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.number}"


@dataclass(frozen=True)
class PathEffects:
    """Effects of interventions on one path into a layer, sample by sample.

    Attributes
    ----------
    path : Path
    groups : list of list of int
        Units of the parent that were intervened on together.
    effects : float64 array (N, G, V)
        How much lower the child is for each sample.
    parts : list of float64 array (members, V)
        For each group, the share (0 to 1) of each member in its part in the child, by mean absolute value.
    """

    path: Path
    groups: list[list[int]]
    effects: np.ndarray
    parts: list[np.ndarray]


class Network:
    """A model, its layers, and the references that replace a unit's output.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    X : tensor (n, ...)
        Inputs over which means and correlations of units are taken.
    reference : {"mean", "zero"}
    batch_size : int
    alike : float
        Correlation over samples and places from which units are near-duplicates.

    Attributes
    ----------
    layers : list of Layer
        In running order; the last one holds the classes.
    names : list of str
        Of the layers.
    references : dict of int to tensor
        For each value that is read, what stands in for it (without the sample axis).
    resting : list of tensor
        For each hidden layer, what it shows (U, ...) where its units are at their references.
    twins : list of list of list of int
        For each layer, its units in groups of near-duplicates; most stand alone.
    """

    def __init__(self, model: nn.Module, X: torch.Tensor, reference: str, batch_size: int, alike: float) -> None:
        if reference not in REFERENCES:
            raise UnknownName("reference", reference, REFERENCES)
        self.model, self.batch_size = model, batch_size
        run = trace(model, self._moved(X[:batch_size]))
        _check_replay(model, run)
        self.layers = layers_of(model, run)
        self.names = [layer.name for layer in self.layers]
        self.classes = self.layers[-1].units
        self._operations = [op.name for op in run.ops]
        self._edits: list[dict[int, tuple[torch.Tensor, float]]] = []
        sources = sorted({path.source for layer in self.layers for path in layer.paths})
        sums: dict[int, Any] = dict.fromkeys(sources, 0.0)
        shown: list[Any] = [0.0] * (len(self.layers) - 1)
        moments: list[Any] = [0.0] * (len(self.layers) - 1)
        for _, run in self.runs(X):
            for number in sources:
                sums[number] = sums[number] + run.values[number].double().sum(0)
            for i, layer in enumerate(self.layers[:-1]):
                seen = run.values[layer.seen].double()
                rows = _with_ones(seen.transpose(0, 1).flatten(1))
                shown[i] = shown[i] + seen.sum(0)
                moments[i] = moments[i] + rows @ rows.T
        dtype = run.values[0].dtype
        part = 1 / len(X) if reference == "mean" else 0.0
        self.references = {number: (total * part).to(dtype) for number, total in sums.items()}
        self.resting = [(total * part).to(dtype) for total in shown]
        self.twins = [_twins(moment.cpu().numpy(), alike) for moment in moments]

    def _moved(self, x: torch.Tensor) -> torch.Tensor:
        weight = next(self.model.parameters(), None)
        return x if weight is None else x.to(weight)

    def runs(self, X: torch.Tensor) -> Iterator[tuple[slice, Trace]]:
        """Run inputs through the model, a batch at a time."""
        for start in range(0, len(X), self.batch_size):
            rows = slice(start, start + self.batch_size)
            run = trace(self.model, self._moved(X[rows]))
            if [op.name for op in run.ops] != self._operations:
                raise BadInput("the model ran other operations on another batch: its paths depend on the input")
            yield rows, run

    def logits(self, run: Trace, given: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Return the logits (n, classes) of a run, with some values replaced."""
        return run.replay(given or {}, [self.layers[-1].value])[0]

    def ablation(self, run: Trace, units: Mapping[int, Sequence[int]], weight: float = 0.0) -> dict[int, torch.Tensor]:
        """Return the values of a run in which units, by layer, are replaced by their references."""
        given = {}
        for i, those in units.items():
            for source, width in self._sources(i):
                given[source] = _mixed(run.values[source], self.references[source], those, width, weight)
        return given

    def _sources(self, i: int) -> list[tuple[int, int]]:
        """Return the values in which a layer is read, and how many features a unit has there."""
        paths = {path.source: path.width for layer in self.layers for path in layer.paths if path.parent == i}
        return list(paths.items())

    def unit_effects(
        self,
        X: torch.Tensor,
        target: torch.Tensor | int,
        i: int,
        groups: Sequence[Sequence[int]],
        against: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Return how much lower the log-odds of the target are without each group of units of a layer.

        Parameters
        ----------
        X : tensor (n, ...)
        target : int or tensor (n,)
            The class, or one for each input.
        i : int
            The layer.
        groups : sequence of sequence of int
            Its units.
        against : tensor (n,), optional
            The one class that each input's log-odds are against; by default all others.

        Returns
        -------
        float64 array (n, groups)
        """
        import torch

        found = torch.zeros(len(X), len(groups), dtype=torch.float64)
        targets = torch.as_tensor(target).expand(len(X))
        for rows, run in self.runs(X):
            other = None if against is None else against[rows]
            base = log_odds(self.logits(run), targets[rows], other)
            for g, units in enumerate(groups):
                without = log_odds(self.logits(run, self.ablation(run, {i: units})), targets[rows], other)
                found[rows, g] = (base - without).cpu()
        return found.numpy()

    def path_effects(self, X: torch.Tensor, i: int, children: Sequence[int]) -> list[PathEffects]:
        """Intervene on every path from units of other layers into some units of a layer.

        Parameters
        ----------
        X : tensor (n, ...)
        i : int
            The layer.
        children : sequence of int
            Its units. In the last layer these are classes, whose log-odds are followed: an intervention there takes
            the unit's part in all logits away, since the others belong to the odds of each.

        Returns
        -------
        list of PathEffects
            One for each path that comes from units. A skip connection reaches from each unit only the child of the
            same number, so there a group is one of the children's numbers and its effects are 0 elsewhere.
        """
        import torch

        layer = self.layers[i]
        last = i == len(self.layers) - 1
        index = list(children)
        paths = [path for path in layer.paths if path.parent is not None]
        groups = [
            self.twins[path.parent] if path.op is not None or last else [[v] for v in index]
            for path in paths
            if path.parent is not None
        ]
        effects: list[list[Any]] = [[] for _ in paths]
        sizes: list[Any] = [0.0] * len(paths)
        for _, run in self.runs(X):
            value = run.values[layer.value]

            def shown(changed: Any, run: Trace = run) -> Any:
                """Return what the children show (m, V) for what enters the layer (m, ...)."""
                if last:
                    return torch.stack([log_odds(changed, torch.full((len(changed),), v)) for v in index], dim=1)
                (seen,) = run.replay({layer.value: changed}, [layer.seen])
                return seen[:, index].flatten(2).double().mean(2) if seen.ndim > 2 else seen[:, index].double()

            for p, path in enumerate(paths):
                found, size = interventions(
                    run, path, self.references[path.source], value, index, groups[p], shown, last
                )
                effects[p].append(found)
                sizes[p] = sizes[p] + size
        return [
            PathEffects(path, groups[p], np.concatenate(effects[p]), shares(sizes[p], groups[p]))
            for p, path in enumerate(paths)
        ]

    @contextmanager
    def ablated(self, units: Mapping[int, Sequence[int]], weight: float = 0.0) -> Iterator[None]:
        """Let the model itself run with units replaced, within the context; contexts may be nested."""
        edits = {
            source: (_features(those, width, self.references[source]), weight)
            for i, those in units.items()
            for source, width in self._sources(i)
        }
        self._edits.append(edits)
        try:
            if len(self._edits) > 1:
                yield  # the outermost context's watch sees all
            else:
                with editing(self.model, self._edit):
                    yield
        finally:
            self._edits.pop()

    def _edit(self, number: int, value: torch.Tensor) -> torch.Tensor:
        for edits in self._edits:
            if number in edits:
                places, weight = edits[number]
                reference = self.references[number].to(value)[places]
                value = value.clone()
                value[:, places] = reference + weight * (value[:, places] - reference)
        return value


def log_odds(logits: torch.Tensor, target: torch.Tensor, against: torch.Tensor | None = None) -> torch.Tensor:
    """Return the log-odds (n,) of a class against one other, or all, for each row of logits, in double precision.

    A log-probability would hide every effect where the model is sure of its class, since it is near 0 before and after.
    """
    import torch

    logits = logits.double()
    own = torch.nn.functional.one_hot(target, logits.shape[1]).bool().to(logits.device)
    if against is not None:
        return logits[own] - logits.gather(1, against.to(logits.device)[:, None])[:, 0]
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode, and give each of its modules its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _features(units: Sequence[int], width: int, reference: torch.Tensor) -> torch.Tensor:
    """Return the places of units among the features of a value."""
    import torch

    first = torch.as_tensor(sorted(units), dtype=torch.long)
    return (first[:, None] * width + torch.arange(width)).flatten().to(reference.device)


def _mixed(
    value: torch.Tensor, reference: torch.Tensor, units: Sequence[int], width: int, weight: float
) -> torch.Tensor:
    """Replace units by their reference, or move them towards it."""
    places = _features(units, width, reference)
    value = value.clone()
    value[:, places] = reference[places] + weight * (value[:, places] - reference[places])
    return value


def _check_replay(model: nn.Module, run: Trace) -> None:
    """Refuse a model that cannot be run again from its operations."""
    import torch

    with torch.no_grad():
        plain = model(run.values[0])
        (again,) = run.replay({0: run.values[0]}, [run.output])
    if not torch.allclose(plain, again, rtol=1e-4, atol=1e-5):
        raise BadInput(
            f"the model's pass cannot be followed: run again from its operations it differs by "
            f"{float((plain - again).abs().max()):.3g}; it draws at random, or changes tensors in place behind torch"
        )


def _with_ones(rows: torch.Tensor) -> torch.Tensor:
    """Add a row of ones, so that sums of products hold sums too."""
    import torch

    return torch.cat([rows, torch.ones_like(rows[:1])])


def _twins(moments: np.ndarray, alike: float) -> list[list[int]]:
    """Group units, all pairs of which correlate at least so much over samples and places."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    products, sums, n = moments[:-1, :-1], moments[:-1, -1], moments[-1, -1]
    if len(sums) < 2:
        return [[0]]
    covariance = products / n - np.outer(sums, sums) / n**2
    spread = np.sqrt(np.clip(np.diag(covariance), 0, None))
    still = spread <= 1e-6 * np.sqrt(np.diag(products) / n)  # never moves, so it is like no other
    spread[still] = np.inf
    distance = np.clip(1 - covariance / np.outer(spread, spread), 0, 2)
    np.fill_diagonal(distance, 0)
    label = fcluster(linkage(squareform(distance, checks=False), "complete"), 1 - alike, "distance")
    groups = [np.flatnonzero(label == one).tolist() for one in np.unique(label)]
    return sorted(groups)
