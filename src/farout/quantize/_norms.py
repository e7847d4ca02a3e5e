"""The gain and offset of any normalisation, whatever its class keeps: weight, 1 + weight, a bias or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["add_bias", "gain_of", "set_gain"]


def _offset(norm: nn.Module) -> float:
    """Return what is added to the weight before it multiplies: found by running the norm with a weight of zeros."""
    found = getattr(norm, "_farout_offset", None)
    if found is not None:
        return float(found)
    weight: Any = norm.weight
    kept = weight.detach().clone()
    bias: Any = getattr(norm, "bias", None)
    sample = torch.randn(2, *weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        try:
            weight.zero_()
            out = norm(sample)
        finally:
            weight.copy_(kept)
        moved = out - bias if bias is not None else out
    offset = 0.0 if float(moved.abs().max()) < 1e-6 else 1.0
    norm._farout_offset = offset  # type: ignore[assignment]
    return offset


def gain_of(norm: nn.Module) -> torch.Tensor | None:
    """Return what a norm multiplies its channels by (C,); None where it has no weight."""
    weight = getattr(norm, "weight", None)
    return None if weight is None else weight.detach() + _offset(norm)


def set_gain(norm: Any, gain: torch.Tensor) -> None:
    """Make a norm multiply its channels by other numbers."""
    with torch.no_grad():
        norm.weight.copy_(gain - _offset(norm))


def add_bias(norm: Any, change: torch.Tensor) -> bool:
    """Add to what a norm adds; False where it adds nothing and cannot."""
    if getattr(norm, "bias", None) is None:
        return False
    with torch.no_grad():
        norm.bias.add_(change)
    return True
