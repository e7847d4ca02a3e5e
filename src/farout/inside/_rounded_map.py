"""A linear map or convolution on one input, as it is and with its numbers rounded, plainly or with a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farout.inside._sites import Site

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEMES = ("w8a8", "w4a16", "w4a4")
# name of a remedy -> the recipe that applies it
REMEDIES = {
    "per-token scales": "rtn",
    "smoothquant": "smoothquant",
    "rotation": "quarot",
    "outlier columns in 16 bits": "llm_int8",
    "first token in 16 bits": "rtn",
    "groups of 128": "rtn",
}
_THRESHOLD = 6.0  # of LLM.int8()


class RoundedMap:
    """A linear map or convolution of one input, as it is and rounded; channels of ``x`` stand at ``axis``."""

    def __init__(self, site: Site, x: torch.Tensor, mask: torch.Tensor | None, seed: int) -> None:
        import torch

        module: Any = site.module
        self.module, self.seed = module, seed
        self.turned = not site.first and not hasattr(module, "in_features")  # kept as (in, out)
        self.weight = module.weight.detach().float()
        self.weight = self.weight.T if self.turned else self.weight
        self.first: torch.Tensor | None = None  # which rows are first tokens
        if site.first:
            self.axis, self.grouped = 1, getattr(module, "groups", 1) > 1
            self.rows = lambda y: y
            self.x = x
        else:
            self.axis, self.grouped = -1, False
            kept = None if mask is None or mask.shape != x.shape[:2] else mask.flatten().to(x.device)
            self.rows = lambda y: y.flatten(0, -2) if kept is None else y.flatten(0, -2)[kept]
            self.x = self.rows(x) if x.ndim > 1 else x[None]
            if x.ndim == 3:
                first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
                first[:, 0] = True
                self.first = self.rows(first[..., None]).flatten()
        self.plain = self.apply(self.x, self.weight)

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Run the module on another input with another weight, without its bias, and unseen by hooks."""
        from torch.func import functional_call

        stand_in = {"inner.weight": weight.T if self.turned else weight}
        bias = getattr(self.module, "bias", None)
        if bias is not None:
            stand_in["inner.bias"] = weight.new_zeros(bias.shape)
        return functional_call(_bare(self.module), stand_in, (x,))

    def rounded(self, scheme: str, remedy: str) -> torch.Tensor | None:
        """Return the product under a scheme and a remedy; None where the remedy has no place."""
        bits, inputs = (8, 8) if scheme == "w8a8" else (4, 16 if scheme == "w4a16" else 4)
        x, weight = self.x, self.weight
        token = tuple(range(1, x.ndim))
        whole = tuple(range(x.ndim)) if scheme == "w8a8" else token
        output = tuple(range(1, weight.ndim))
        if remedy == "groups of 128":
            if weight.ndim > 2 or weight.shape[1] <= 128 or weight.shape[1] % 128:
                return None
            groups = weight.unflatten(1, (-1, 128))
            return self.apply(_nearest(x, inputs, whole), _nearest(groups, bits, (2,)).flatten(1))
        if remedy and inputs == 16 and remedy != "rotation":
            return None
        if remedy == "per-token scales":
            return self.apply(_nearest(x, inputs, token), _nearest(weight, bits, output)) if whole != token else None
        if remedy == "smoothquant" and not self.grouped:
            reach_x = x.abs().movedim(self.axis, 0).flatten(1).amax(1)
            reach_w = weight.abs().movedim(1, 0).flatten(1).amax(1)
            scale = (reach_x.clamp(min=1e-5).sqrt() / reach_w.clamp(min=1e-5).sqrt()).clamp(min=1e-5)
            shape = [1] * (x.ndim - 1)
            shape.insert(self.axis % x.ndim, -1)
            x, weight = x / scale.view(shape), weight * scale.view(1, -1, *[1] * (weight.ndim - 2))
        elif remedy == "rotation" and self.axis == -1:
            turn = _turn(weight.shape[1], self.seed, weight)
            x, weight = turn(x), turn(weight)
        elif remedy == "outlier columns in 16 bits" and self.axis == -1:
            far = (x.abs() >= _THRESHOLD).any(0)
            kept = self.apply(x * far, weight)
            inner = x * ~far
            return kept + self.apply(_nearest(inner, inputs, whole), _nearest(weight, bits, output))
        elif remedy == "first token in 16 bits" and self.first is not None and bool((~self.first).any()):
            inner = _nearest(x[~self.first], inputs, whole if scheme == "w8a8" else token)
            all_x = x.clone()
            all_x[~self.first] = inner
            return self.apply(all_x, _nearest(weight, bits, output))
        elif remedy:
            return None
        return self.apply(_nearest(x, inputs, whole), _nearest(weight, bits, output))


def _nearest(x: torch.Tensor, bits: int, over: tuple[int, ...]) -> torch.Tensor:
    """Round to the nearest step of a symmetric grid whose scale is shared over some axes."""
    if bits == 16:
        return x
    most = 2 ** (bits - 1) - 1
    scale = x.abs().amax(over, keepdim=True).clamp(min=1e-30) / most
    return (x / scale).round_().clamp_(-most, most).mul_(scale)


def _turn(channels: int, seed: int, like: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a rotation of the last axis: random signs, then Hadamard's matrix in blocks of a power of two."""
    import torch
    from scipy.linalg import hadamard

    block = channels & -channels
    matrix = torch.from_numpy(hadamard(block) / math.sqrt(block)).to(like)
    drawn = torch.randint(0, 2, (channels,), generator=torch.Generator().manual_seed(seed)).to(like)
    signs = 2 * drawn - 1
    return lambda x: ((x * signs).unflatten(-1, (-1, block)) @ matrix).flatten(-2)


def _bare(module: nn.Module) -> nn.Module:
    """Wrap a module so that calling the wrapper runs it without its hooks."""
    from torch import nn

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner.forward(x)

    return Bare()


def quantizable(site: Site) -> bool:
    """Whether a site is a map whose weight is a matrix or kernel of floating numbers."""
    weight: Any = getattr(site.module, "weight", None)
    plain = site.kind == "linear" and weight is not None and weight.is_floating_point() and not weight.is_meta
    transposed = type(site.module).__name__.startswith("ConvTranspose")
    return plain and not transposed and (site.first or weight.ndim == 2)
