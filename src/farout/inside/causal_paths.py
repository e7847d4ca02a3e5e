"""Causal paths: Causal Analysis for Robust Interpretability of Neural Networks.

Ola Ahmad, Nicolas Bereux, Loïc Baret, Vahid Hashemi, Freddy Lecue, WACV 2024 (arXiv 2305.08950).

Which units inside a classifier cause a class? Not those that are active when it is predicted, but those without which
it would not be: what a unit sends along a path is replaced by a reference, and what that does to the end of the path is
its effect. From the class downwards, the paths with effects that matter and are no noise make a graph.

The paper claims that explanations from such interventions are more stable and more faithful than attributions that rest
on correlation, such as gradients and saliency, and that the graph helps to repair a model.

This is written in the spirit of the paper, not after it: only its abstract and that of its earlier short version
("Interventional Explanations of Neural Networks") could be read, and no code was found. From the abstracts come path
interventions on hidden units of a trained network, their effect on the prediction as the criterion, and the graph of a
class as the result. Ours, and so possibly different:

- the reference of an intervention is the unit's mean map over data of all classes (or zero);
- the effect on a unit is that on its mean activation, on the class that on its log-odds, since the log-probability
  hides effects where the model is sure;
- a unit keeps the fewest parents that make up a share of the summed positive effects and pass a t-test, with the false
  discovery rate over all paths into a layer controlled by Benjamini and Hochberg's procedure;
- near-duplicate units, of which none is missed alone, are intervened on together;
- a skip connection is a path of its own, and all paths are cut before the non-linearity that joins them;
- the saliency map, the checks (necessity, sufficiency, stability, deletion and insertion) and the repair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.inside._causal_checks import faithfulness, jaccard, stability
from farout.inside._causal_effects import Network, PathEffects, Unit, evaluating, log_odds
from farout.inside._causal_graph import CausalGraph, Edge, LayerCheck
from farout.kit.training import torch_or_say

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Blame", "CausalGraph", "CausalPaths", "Edge", "Unit", "faithfulness", "jaccard", "stability"]


@dataclass(frozen=True)
class Blame:
    """A unit that speaks for the wrong class where the model errs.

    Attributes
    ----------
    unit : Unit
    effect : float
        How much the log-odds of the wrong class against the right one fall without it, in the mean over the errors.
    t : float
    p : float
        One-sided, before the correction for many units.
    """

    unit: Unit
    effect: float
    t: float
    p: float


@paper(
    "Causal paths",
    title="Causal Analysis for Robust Interpretability of Neural Networks",
    authors="Ahmad, Bereux, Baret, Hashemi, Lecue",
    arxiv="2305.08950",
    year=2023,
    claim="Interventions on paths between hidden units give explanations of a class that are more stable and faithful "
    "than attributions by correlation, and a graph that helps to repair the model.",
    differs="In the spirit of the paper: only abstracts could be read and no code was found. The reference (mean), the "
    "effects, the t-test with false-discovery control, near-duplicates together, the map, checks and repair are ours.",
    kind="measure",
    extra="torch",
)
class CausalPaths:
    """The graph of hidden units that cause a class, found by interventions on paths.

    ``effect(u -> v) = mean over x of the class of s_v(x) - s_v(x | what v gets from u is u's reference)``, where ``s``
    is the mean activation of a unit over its places or the log-odds of the class. From the class downwards,
    layer by layer, a unit keeps the parents that together make up ``share`` of the positive effects on it and that
    differ from noise.

    Cost: for each layer, a pass over the class's samples and one convolution more with as many products as its own,
    times the non-linearity for each unit; for each kept unit, a pass from its layer on.

    Parameters
    ----------
    reference : {"mean", "zero"}
        What stands in for a unit: its mean map over all of ``X``, or 0, which many units never show.
    share : float
        Of the summed positive effects on a unit, what the kept ones reach.
    t_critical : float
        Least t of a kept path.
    fdr : float
        Rate of false discoveries among the paths into a layer.
    alike : float
        Correlation over samples and places from which units of a layer are near-duplicates.
    batch_size : int

    Examples
    --------
    Of six hidden units, one sees the class and one is its copy; none of the two is missed alone:

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
    >>> with torch.no_grad():
    ...     for weight in model.parameters():
    ...         _ = weight.zero_()
    ...     model[0].weight[2, 0] = model[0].weight[5, 0] = 1.0
    ...     model[0].weight[1, 1] = 1.0
    ...     model[2].weight[1, 2] = model[2].weight[1, 5] = 4.0
    >>> X = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    >>> graph = CausalPaths().measure(model, X, X[:, 0] > 0.5, target=1)
    >>> [str(unit) for unit in graph.units()], graph.twins
    (['0:2', '0:5'], ((Unit(layer='0', number=2), Unit(layer='0', number=5)),))
    """

    def __init__(
        self,
        reference: str = "mean",
        share: float = 0.8,  # rho
        t_critical: float = 2.0,
        fdr: float = 0.05,
        alike: float = 0.95,
        batch_size: int = 256,
    ) -> None:
        self.reference = reference
        self.share = share
        self.t_critical = t_critical
        self.fdr = fdr
        self.alike = alike
        self.batch_size = batch_size

    def measure(
        self,
        model: nn.Module,
        X: Any,
        y: Any,
        target: int,
        progress: Callable[[str, float], None] | None = None,
    ) -> CausalGraph:
        """Find what causes a class.

        Parameters
        ----------
        model : torch.nn.Module
            Takes one tensor and returns logits. Between convolutions and linear maps, what runs must treat each channel
            by itself; skip connections are welcome. It is run in evaluation mode, and left as it was.
        X : array or tensor (n, ...)
            Inputs of all classes; references are means over them.
        y : array (n,) of int
            Their classes.
        target : int
            The class; its inputs are those that are intervened on.
        progress : callable, optional
            Called with what is being done and the share done.

        Returns
        -------
        CausalGraph

        Raises
        ------
        BadInput
            The model's paths cannot be followed, it gives no finite logits, or the class has fewer than two inputs.
        """
        self._check()
        tell = progress or (lambda what, done: None)
        inputs, labels = _read(X, y)
        with evaluating(model):
            tell("means of units", 0.0)
            network = Network(model, inputs, self.reference, self.batch_size, self.alike)
            if not 0 <= target < network.classes:
                raise BadInput(f"the model has {network.classes} classes; there is no class {target}")
            of_class = inputs[labels == target]
            if len(of_class) < 2:
                raise BadInput(f"class {target} has {len(of_class)} inputs; effects need at least 2, better 50")
            return self._search(network, of_class, target, tell)

    def _search(
        self, network: Network, of_class: torch.Tensor, target: int, tell: Callable[[str, float], None]
    ) -> CausalGraph:
        """Go from the class downwards."""
        import torch
        from scipy.special import expit

        deepest = len(network.layers) - 1
        frontier: dict[int, set[int]] = {deepest: {target}}
        edges: list[Edge] = []
        for done, i in enumerate(reversed(range(len(network.layers)))):
            tell(f"paths into '{network.names[i]}'", 0.1 + 0.6 * done / len(network.layers))
            children = sorted(frontier.get(i, ()))
            if children:
                found = network.path_effects(of_class, i, children)
                for edge in self._kept(network, i, children, found):
                    edges.append(edge)
                    frontier.setdefault(network.names.index(edge.source.layer), set()).add(edge.source.number)
        base = np.concatenate(
            [
                log_odds(network.logits(run), torch.full((len(run.values[0]),), target)).cpu().numpy()
                for _, run in network.runs(of_class)
            ]
        )
        effects: dict[Unit, tuple[float, float]] = {}
        checks: list[LayerCheck] = []
        for i, layer in enumerate(network.layers[:-1]):
            kept = sorted(frontier.get(i, ()))
            if not kept:
                continue
            tell(f"units of '{layer.name}'", 0.7 + 0.3 * i / deepest)
            others = [u for u in range(layer.units) if u not in frontier[i]]
            without = network.unit_effects(of_class, target, i, [*([u] for u in kept), kept, others])
            for unit, mean, t in zip(kept, without.mean(axis=0), _standardised(without)):
                effects[Unit(layer.name, unit)] = float(mean), float(t)
            gone, alone = (float(expit(base - without[:, place]).mean()) for place in (-2, -1))
            checks.append(LayerCheck(layer.name, len(kept), layer.units, gone, alone))
        twins = tuple(
            tuple(Unit(network.names[i], u) for u in group)
            for i, groups in enumerate(network.twins)
            for group in groups
            if len(group) > 1 and frontier.get(i, set()).issuperset(group)
        )
        tell("done", 1.0)
        return CausalGraph(
            target, len(of_class), float(expit(base).mean()), tuple(edges), effects, tuple(checks), twins, network
        )

    def _kept(self, network: Network, i: int, children: list[int], found: list[PathEffects]) -> list[Edge]:
        """Choose the paths into a layer that matter and are no noise, by falling share of each child."""
        tested = [(one, g, units) for one in found for g, units in enumerate(one.groups)]
        if not tested:
            return []
        mean_GV = np.stack([one.effects[:, g].mean(axis=0) for one, g, _ in tested])
        t_GV = np.stack([_standardised(one.effects[:, g]) for one, g, _ in tested])
        p_GV = _p_values(t_GV, len(found[0].effects))
        real_GV = (t_GV > self.t_critical) & _discoveries(p_GV, self.fdr)
        edges = []
        for v, child in enumerate(children):
            positive = np.clip(mean_GV[:, v], 0, None)
            order = np.argsort(-positive, kind="stable")
            total = positive.sum()
            reached = np.concatenate([[0.0], positive[order].cumsum()])[:-1]
            for place, g in enumerate(order):
                if positive[g] == 0 or reached[place] >= self.share * total:
                    break
                one, at, units = tested[g]
                for unit, part in zip(units, one.parts[at][:, v]):
                    if real_GV[g, v] and part > 0:
                        assert one.path.parent is not None
                        edges.append(
                            Edge(
                                Unit(network.names[one.path.parent], unit),
                                Unit(network.names[i], child),
                                float(mean_GV[g, v] * part),
                                float(t_GV[g, v]),
                                float(p_GV[g, v]),
                                float(positive[g] / total * part),
                                one.path.op is None,
                                len(units),
                            )
                        )
        return sorted(edges, key=lambda edge: (edge.target, -edge.share))

    def blame(self, model: nn.Module, X: Any, y: Any) -> list[Blame]:
        """Find the units that speak for the wrong class where the model errs: ablate or weaken them to repair it.

        Parameters
        ----------
        model : torch.nn.Module
        X : array or tensor (n, ...)
            Inputs; references are means over them.
        y : array (n,) of int
            Their true classes.

        Returns
        -------
        list of Blame
            Hidden units without which the predicted class loses against the true one, in the mean over the inputs that
            are predicted wrongly, and not by noise; the largest effect first. Hand the units to
            :meth:`CausalGraph.ablated`.

        Raises
        ------
        BadInput
            Fewer than two inputs are predicted wrongly, or as in :meth:`measure`.
        """
        import torch

        self._check()
        inputs, labels = _read(X, y)
        with evaluating(model):
            network = Network(model, inputs, self.reference, self.batch_size, self.alike)
            predicted = torch.cat([network.logits(run).argmax(1).cpu() for _, run in network.runs(inputs)])
            wrong = predicted != labels
            if int(wrong.sum()) < 2:
                raise BadInput(
                    f"{int(wrong.sum())} of {len(labels)} inputs are predicted wrongly; blame needs 2 or more"
                )
            rows: list[tuple[Unit, np.ndarray]] = []
            for i, layer in enumerate(network.layers[:-1]):
                singles = [[u] for u in range(layer.units)]
                more = network.unit_effects(inputs[wrong], predicted[wrong], i, singles, against=labels[wrong])
                rows += [(Unit(layer.name, u), more[:, u]) for u in range(layer.units)]
        t = np.array([_standardised(more) for _, more in rows])
        p = _p_values(t, int(wrong.sum()))
        real = (t > self.t_critical) & _discoveries(p, self.fdr)
        found = [
            Blame(unit, float(more.mean()), float(t[k]), float(p[k])) for k, (unit, more) in enumerate(rows) if real[k]
        ]
        return sorted(found, key=lambda one: -one.effect)

    def _check(self) -> None:
        torch_or_say("finding causal paths")
        for name in ("share", "fdr", "alike"):
            if not 0 < getattr(self, name) <= 1:
                raise BadInput(f"'{name}' lies above 0 and at most at 1, not at {getattr(self, name)}")
        if self.batch_size < 1:
            raise BadInput(f"'batch_size' is at least 1, not {self.batch_size}")


def _read(X: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs as floating numbers and classes as integers, one each."""
    import torch

    inputs = torch.as_tensor(X)
    inputs = inputs if inputs.is_floating_point() else inputs.float()
    labels = torch.as_tensor(np.asarray(y)).long().cpu()
    if inputs.ndim < 2 or labels.shape != inputs.shape[:1]:
        raise BadInput(
            f"inputs of shape {tuple(inputs.shape)} and classes of shape {tuple(labels.shape)} do not go together: "
            "give (n, ...) and (n,)"
        )
    finite = inputs.flatten(1).isfinite().all(1)
    if not finite.all():
        raise BadInput(f"input {int((~finite).nonzero()[0])} holds NaN or infinity; leave it out")
    return inputs, labels


def _standardised(effects: np.ndarray) -> np.ndarray:
    """Return mean over standard deviation times the root of the number of samples (first axis)."""
    mean, spread = effects.mean(axis=0), effects.std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, mean / spread * np.sqrt(len(effects)))


def _p_values(t: np.ndarray, n: int) -> np.ndarray:
    """Return the probability that noise without effect has so large a t."""
    from scipy.stats import t as student

    return student.sf(t, n - 1)


def _discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """Benjamini-Hochberg: which p-values are discoveries at a rate of false ones."""
    from scipy.stats import false_discovery_control

    return (false_discovery_control(p.ravel()) <= rate).reshape(p.shape)
