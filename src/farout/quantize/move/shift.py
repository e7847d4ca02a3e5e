"""Shift: take numbers from the channels that maps read, and give ``W d`` to their biases.

``X W' + b = (X - d) W' + (b + W d)``, with the weight as it stands. A norm or map with a bias that nobody else reads
takes the shift into that bias; else the maps shift their own input as they run. Maps without a bias get one.

Shape legend: C channels of the source, I channels of the maps' input.
"""

from __future__ import annotations

from typing import Any

import torch

from farout.quantize._blocks import Block
from farout.quantize._linear import QuantLinear, Shift
from farout.quantize._norms import add_bias
from farout.quantize._structure import Feed

__all__ = ["folds", "shift"]


def folds(block: Block, feed: Feed) -> bool:
    """Whether the source of a feed has a bias that can take the shift over."""
    if feed.source is None or not (feed.shifts and feed.alone):
        return False
    modules = (block.module.get_submodule(name) for name in feed.maps)
    if any(len(module.before) for module in modules if isinstance(module, QuantLinear)):
        return False  # it comes after what maps do as they run
    return getattr(block.module.get_submodule(feed.source), "bias", None) is not None


def shift(block: Block, feed: Feed, d_C: torch.Tensor) -> None:
    """Take ``d`` from what a feed's maps read.

    Parameters
    ----------
    block : Block
    feed : Feed
    d_C : tensor (C,)
        By channel of the source (of the maps' input where the feed has no source).

    Raises
    ------
    NotIdentity
        The block's output is not what it was.
    """
    with block.unchanged(f"shifting what '{feed.maps[0]}' reads"):
        _shift(block, feed, d_C.detach())


def _shift(block: Block, feed: Feed, d_C: torch.Tensor) -> None:
    """Take away at the source, add at the maps."""
    d_I = feed.at_maps(d_C)
    folded = folds(block, feed)
    if folded:
        source: Any = block.module.get_submodule(str(feed.source))
        if feed.norm:
            add_bias(source, -d_C.to(source.bias))
        else:
            with torch.no_grad():
                source.bias.sub_(d_C.to(source.bias))
    for name in feed.maps:
        online: QuantLinear = block.own(name)
        online.add_bias((online.weight.double() @ d_I.double()).to(online.weight.dtype))
        if not folded:
            online.before.append(Shift(d_I.to(online.weight)))
