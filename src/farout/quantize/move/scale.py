"""Scale: divide the channels that maps read by numbers, and multiply the columns of their weights by the same.

``X W' = (X / s) (W diag(s))'``. Where the channels come from a norm or another map that nobody else reads, that
module's gain, bias and rows are divided; else the maps divide their own input as they run.

Shape legend: C channels of the source, I channels of the maps' input.
"""

from __future__ import annotations

from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize._blocks import Block
from farout.quantize._linear import QuantLinear, Scale, Shift
from farout.quantize._norms import gain_of, set_gain
from farout.quantize._structure import Feed

__all__ = ["folds", "scale", "scaled_weight"]


def scaled_weight(weight: torch.Tensor, s_I: torch.Tensor) -> torch.Tensor:
    """Multiply the columns of a weight (O, I), in float64."""
    return (weight.double() * s_I.double()).to(weight.dtype)


def folds(block: Block, feed: Feed) -> bool:
    """Whether the source of a feed can take the division over, so that nothing is left to do at run time."""
    if feed.source is None or not (feed.scales and feed.alone):
        return False
    if any(not isinstance(part, Shift) for part in _before(block, feed)):
        return False  # what maps do as they run would come before the scales, and does not commute with them
    return not feed.norm or gain_of(block.module.get_submodule(feed.source)) is not None


def _before(block: Block, feed: Feed) -> list[Any]:
    """Return what maps do with their input as they run."""
    modules = (block.module.get_submodule(name) for name in feed.maps)
    return [part for module in modules if isinstance(module, QuantLinear) for part in module.before]


def scale(block: Block, feed: Feed, s_C: torch.Tensor) -> None:
    """Divide what a feed's maps read by ``s``.

    Parameters
    ----------
    block : Block
    feed : Feed
    s_C : tensor (C,)
        Positive; by channel of the source (of the maps' input where the feed has no source).

    Raises
    ------
    BadInput
        A number is not positive and finite.
    NotIdentity
        The block's output is not what it was.
    """
    if not bool(((s_C > 0) & torch.isfinite(s_C)).all()):
        raise BadInput(f"scales of '{feed.maps[0]}' are positive and finite, and the least is {float(s_C.min()):.3g}")
    with block.unchanged(f"scaling what '{feed.maps[0]}' reads"):
        _scale(block, feed, s_C.detach())


def _scale(block: Block, feed: Feed, s_C: torch.Tensor) -> None:
    """Divide at the source, multiply at the maps."""
    s_I = feed.at_maps(s_C)
    folded = folds(block, feed)
    if folded:
        for part in _before(block, feed):
            part.d = part.d / s_I.to(part.d)
        source: Any = block.module.get_submodule(str(feed.source))
        with torch.no_grad():
            if feed.norm:
                set_gain(source, (gain_of(source).double() / s_C).to(source.weight.dtype))  # type: ignore[union-attr]
            else:
                source.weight.copy_((source.weight.double() / s_C[:, None]).to(source.weight.dtype))
            if getattr(source, "bias", None) is not None:
                source.bias.copy_((source.bias.double() / s_C).to(source.bias.dtype))
    for name in feed.maps:
        module: Any = block.module.get_submodule(name)
        with torch.no_grad():
            module.weight.copy_(scaled_weight(module.weight, s_I))
        if not folded:
            online: QuantLinear = block.own(name)
            online.before.append(Scale(s_I.to(online.weight)))
