"""A linear map with rounded numbers, and what may stand before it.

``y = r(t(x)) W' + b``: transforms ``t`` (the part of an exact rewrite that could not be folded into an earlier module),
then the rounding ``r`` of the input, then a weight that stands on its grid. The weight is kept as plain numbers,
exactly ``scale * (code - zero)``, so codes can be had back whenever they are to be packed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from farout.kit.hadamard import transform
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import Rounded

__all__ = ["PARTS", "QuantLinear", "Rotate", "Rounding", "Scale", "Shift", "part"]


PARTS: dict[str, type[nn.Module]] = {}  # what may stand in a map, by class name


def part(kind: type[nn.Module]) -> type[nn.Module]:
    """Let runs that go on make a transform or rounding again; it has ``restored(options, tensors)``."""
    PARTS[kind.__name__] = kind
    return kind


@part
class Scale(nn.Module):
    """Divide channels by numbers ``s`` (I,)."""

    s: torch.Tensor

    def __init__(self, s: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("s", s)

    @classmethod
    def restored(cls, options: Any, tensors: dict[str, torch.Tensor]) -> Scale:
        """Make it again."""
        return cls(**tensors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.s


@part
class Shift(nn.Module):
    """Take numbers ``d`` (I,) from channels."""

    d: torch.Tensor

    def __init__(self, d: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("d", d)

    @classmethod
    def restored(cls, options: Any, tensors: dict[str, torch.Tensor]) -> Shift:
        """Make it again."""
        return cls(**tensors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.d


@part
class Rotate(nn.Module):
    """Turn channels by signs ``D`` and orthonormal Hadamard matrices ``H`` in blocks: ``x D H``, or back ``x H' D``.

    Parameters
    ----------
    order, across : int
        Size of a block, and how far apart its channels are: see :func:`farout.kit.hadamard.transform`.
    signs : tensor (I,), optional
    back : bool
        Whether it is undone.
    """

    def __init__(self, order: int, across: int = 1, signs: torch.Tensor | None = None, back: bool = False) -> None:
        super().__init__()
        self.order, self.across, self.back = order, across, back
        self.register_buffer("blocks", torch.tensor([order, across, int(back)]))  # for `restored`
        self.register_buffer("signs", signs)

    @classmethod
    def restored(cls, options: Any, tensors: dict[str, torch.Tensor]) -> Rotate:
        """Make it again."""
        order, across, back = tensors["blocks"].tolist()
        return cls(order, across, tensors.get("signs"), bool(back))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        signs: Any = 1 if self.signs is None else self.signs.to(x.dtype)
        if self.back:
            return transform(x, self.order, across=self.across, back=True) * signs
        return transform(x * signs, self.order, across=self.across)

    def extra_repr(self) -> str:
        return f"{self.order}, across={self.across}, signs={self.signs is not None}, back={self.back}"


@part
class Rounding(nn.Module):
    """Round the input of a map to a grid: by the tensor at hand, or by steps that calibration gave."""

    scale: torch.Tensor | None
    zero: torch.Tensor | None

    def __init__(self, grid: Grid, steps: Steps | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("scale", None if steps is None else steps.scale)
        self.register_buffer("zero", None if steps is None else steps.zero)

    @classmethod
    def restored(cls, options: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Rounding:
        """Make it again."""
        steps = Steps(tensors["scale"], tensors.get("zero")) if "scale" in tensors else None
        return cls(Grid.from_dict(options["grid"]), steps)

    def options(self) -> dict[str, Any]:
        """Return what it needs, beside tensors, to be made again."""
        return {"grid": self.grid.as_dict()}

    @property
    def steps(self) -> Steps | None:
        """The static steps; None where each input brings its own."""
        return None if self.scale is None else Steps(self.scale, self.zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grid.rounded(x, self.steps)

    def extra_repr(self) -> str:
        return f"{self.grid}"


class QuantLinear(nn.Module):
    """A linear map; before its weight is rounded it computes what the plain map computes.

    Attributes
    ----------
    weight : Parameter (O, I)
        On its grid as soon as ``grid`` is set.
    bias : Parameter (O,) or None
    before : ModuleList
        Transforms of the input, in order.
    rounding : Module or None
        Rounds the input.
    grid : Grid or None
        Of the weight.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.before = nn.ModuleList()
        self.rounding: nn.Module | None = None
        self.grid: Grid | None = None
        for name in ("weight_scale", "weight_zero", "kept"):
            self.register_buffer(name, None)

    @classmethod
    def of(cls, module: nn.Module) -> QuantLinear:
        """Return the module itself where it is one already."""
        return module if isinstance(module, QuantLinear) else cls(module)  # type: ignore[arg-type]

    def put(self, rounded: Rounded) -> None:
        """Take over a rounded weight."""
        self.weight = nn.Parameter(rounded.weight.to(self.weight), requires_grad=False)
        self.grid = rounded.grid
        self.weight_scale, self.weight_zero, self.kept = rounded.steps.scale, rounded.steps.zero, rounded.kept

    @property
    def rounded(self) -> Rounded | None:
        """The rounded weight with its steps; None as long as it is plain."""
        if self.grid is None:
            return None
        return Rounded(self.weight.detach(), Steps(self.weight_scale, self.weight_zero), self.grid, self.kept)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the product sees but for rounding."""
        for part in self.before:
            x = part(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        if self.rounding is not None:
            x = self.rounding(x)
        return functional.linear(x, self.weight, self.bias)

    def add_bias(self, change: torch.Tensor) -> None:
        """Add to the bias; make one where there is none."""
        old = 0 if self.bias is None else self.bias.detach()
        self.bias = nn.Parameter((old + change).to(self.weight.dtype), requires_grad=False)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.grid or 'plain'}"
