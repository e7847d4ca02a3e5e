"""How large the numbers inside a ReLU network can get, where its inputs lie in a box and follow a pattern.

Two kinds of bounds: intervals, and linear functions of the input that lie above and below what a neuron gives (those of
CROWN, Zhang et al., NeurIPS 2018), taken back layer by layer. A pattern tightens both, since a ReLU that is known to be
on or off is linear. They are sound: an input of the box that follows the pattern is never beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from farout.errors import BadInput
from farout.ood._patterns import Pattern

ROUNDING = 1e-9  # bounds are wider by this, far more than what float64 rounds away in sums of a few thousand numbers
Limits = tuple[Tensor, Tensor]  # of the pre-activations of a layer: least and greatest


@dataclass(frozen=True, eq=False)
class ReluNet:
    """A network of linear maps with a ReLU between two, in float64 on the CPU.

    Parameters
    ----------
    weights : list of tensor (O, I)
    biases : list of tensor (O,)
    """

    weights: list[Tensor]
    biases: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module | ReluNet) -> ReluNet:
        """Copy the weights of a model.

        Raises
        ------
        BadInput
            The model is no ``nn.Sequential`` of Linear and ReLU that take turns, with a Linear at both ends.

        Examples
        --------
        >>> ReluNet.of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).neurons
        4
        """
        if isinstance(model, ReluNet):
            return model
        parts = list(model) if isinstance(model, nn.Sequential) else [model]
        wanted = [nn.ReLU if i % 2 else nn.Linear for i in range(len(parts))]
        if len(parts) < 3 or len(parts) % 2 == 0 or not all(map(isinstance, parts, wanted)):
            seen = ", ".join(type(part).__name__ for part in parts[:8])
            raise BadInput(
                "what is proved is proved of an nn.Sequential of Linear, ReLU, Linear, ..., Linear, and this model is "
                f"{type(model).__name__} of {seen}; fold norms into their maps and flatten inputs before"
            )
        maps = [part for part in parts if isinstance(part, nn.Linear)]
        weights = [part.weight.detach().double().cpu() for part in maps]
        biases = [
            w.new_zeros(len(w)) if m.bias is None else m.bias.detach().double().cpu() for m, w in zip(maps, weights)
        ]
        return cls(weights, biases)

    @property
    def widths(self) -> list[int]:
        """How many neurons each hidden layer has."""
        return [len(bias) for bias in self.biases[:-1]]

    @property
    def neurons(self) -> int:
        """How many hidden neurons there are."""
        return sum(self.widths)

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pre-activations (n, N) of all hidden neurons and the logits (n, C) of inputs (n, d)."""
        found, y = [], x
        for weight, bias in zip(self.weights, self.biases):
            found.append(y @ weight.T + bias)
            y = found[-1].relu()
        return torch.cat(found[:-1], dim=1), found[-1]

    def states(self, x: Tensor) -> Tensor:
        """Say which hidden neurons are on: bool (n, N)."""
        return self.run(x.double())[0] > 0


@dataclass(frozen=True, eq=False)
class Region:
    """The inputs of a box that follow a pattern.

    Parameters
    ----------
    lower, upper : float64 tensor (d,)
    pattern : Pattern
    """

    lower: Tensor
    upper: Tensor
    pattern: Pattern

    def holds(self, net: ReluNet, x: Tensor) -> Tensor:
        """Say which inputs (n, d) lie in the region: bool (n,), computed in float64."""
        inside = ((x >= self.lower) & (x <= self.upper)).all(dim=1)
        return inside & self.pattern.follows(net.states(x))

    def masks(self, net: ReluNet) -> list[tuple[Tensor, Tensor]]:
        """Return which neurons of each hidden layer are active, and which inactive."""
        return list(zip(self.pattern.active.split(net.widths), self.pattern.inactive.split(net.widths)))


def bounds(
    net: ReluNet, region: Region, within: list[Limits] | None = None, linear: bool = True
) -> list[Limits] | None:
    """Bound the pre-activations of all hidden layers.

    Parameters
    ----------
    net : ReluNet
    region : Region
    within : list of (tensor (O,), tensor (O,)), optional
        Bounds that are known to hold, such as those of a region that this one is a part of.
    linear : bool
        Whether intervals are tightened by linear functions.

    Returns
    -------
    list of (tensor (O,), tensor (O,)), or None
        None where bounds cross: nothing in the box follows the pattern.

    Examples
    --------
    >>> net = ReluNet.of(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)))
    >>> box = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    >>> [(least, most)] = bounds(net, Region(*box, Pattern.empty(1)))
    >>> bool((most - least - net.weights[0].abs()).abs() < 1e-6)
    True
    """
    found: list[Limits] = []
    low, high = region.lower, region.upper
    for layer, (active, inactive) in enumerate(region.masks(net)):
        weight, bias = net.weights[layer], net.biases[layer]
        above, below = weight.clamp(min=0), weight.clamp(max=0)
        least, most = above @ low + below @ high + bias, above @ high + below @ low + bias
        if linear and layer:
            rows = torch.eye(len(bias), dtype=torch.float64)
            most = torch.minimum(most, greatest(net, region, found, rows))
            least = torch.maximum(least, -greatest(net, region, found, -rows))
        least, most = least - ROUNDING, most + ROUNDING
        if within is not None:
            least, most = torch.maximum(least, within[layer][0]), torch.minimum(most, within[layer][1])
        least, most = least.where(~active, least.clamp(min=0)), most.where(~inactive, most.clamp(max=0))
        if (least > most).any():
            return None
        found.append((least, most))
        low, high = least.clamp(min=0), most.clamp(min=0)
    return found


def greatest(net: ReluNet, region: Region, limits: list[Limits], rows: Tensor) -> Tensor:
    """Bound functions of the pre-activations of the layer after those that ``limits`` has.

    A ReLU that is on gives what it is given, and one that is off gives 0. One of which neither is known lies below the
    line through both ends of its curve, and above a line through 0 of slope 0 or 1, whichever leaves less room.

    Parameters
    ----------
    net : ReluNet
    region : Region
    limits : list of (tensor (O,), tensor (O,))
        Of the layers below.
    rows : float64 tensor (k, O)
        Weights of the pre-activations, a function each.

    Returns
    -------
    tensor (k,)
        In the region no function is greater.
    """
    total = torch.zeros(len(rows), dtype=torch.float64)
    for layer in range(len(limits), -1, -1):
        total = total + rows @ net.biases[layer]
        rows = rows @ net.weights[layer]
        if layer:
            least, most = limits[layer - 1]
            on, off = least >= 0, most <= 0
            chord = (most / (most - least)).where(~on, 1.0).where(~off, 0.0)
            under = (most > -least).double().where(~on, 1.0).where(~off, 0.0)
            total = total + rows.clamp(min=0) @ (-chord * least).where(~on & ~off, 0.0)
            rows = rows.clamp(min=0) * chord + rows.clamp(max=0) * under
    return total + rows.clamp(min=0) @ region.upper + rows.clamp(max=0) @ region.lower + ROUNDING
