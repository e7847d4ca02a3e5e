"""Permute: put the channels that maps read into another order, at their source and in the columns of their weights.

``X W' = (X P) (W P)'``. Channels with like ranges then stand in one group of a grid. The source must pass its channels
one by one, so values that heads share are left alone.

Shape legend: C channels of the source, which are those of the maps' input.
"""

from __future__ import annotations

from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize._blocks import Block
from farout.quantize._structure import Feed

__all__ = ["permute"]


def permute(block: Block, feed: Feed, order_C: torch.Tensor) -> None:
    """Let channel ``i`` of what a feed's maps read be what channel ``order[i]`` was.

    Parameters
    ----------
    block : Block
    feed : Feed
        Its source is a map (a norm's channels are those of the stream) that is alone, and passes channels one by one.
    order_C : int tensor (C,)
        A permutation.

    Raises
    ------
    BadInput
        The feed's channels cannot be reordered at their source, or ``order`` is no permutation.
    NotIdentity
        The block's output is not what it was.
    """
    channels = block.weight(feed.maps[0]).shape[1]
    if feed.source is None or feed.norm or not feed.alone or feed.index is not None:
        raise BadInput(f"the channels that '{feed.maps[0]}' reads cannot be reordered where they come from; leave them")
    if not torch.equal(order_C.sort().values.cpu(), torch.arange(channels)):
        raise BadInput(f"an order of {channels} channels names each of them once")
    with block.unchanged(f"reordering what '{feed.maps[0]}' reads"), torch.no_grad():
        source: Any = block.module.get_submodule(feed.source)
        partners = [source, *map(block.module.get_submodule, _partners(block, feed))]  # a gate goes with its branch
        for module in partners:
            module.weight.copy_(module.weight[order_C])
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(module.bias[order_C])
        for name in feed.maps:
            weight: Any = block.module.get_submodule(name).weight
            weight.copy_(weight[:, order_C])


def _partners(block: Block, feed: Feed) -> list[str]:
    """Return maps that read what the source reads and have its shape: the gate of a gated unit."""
    source = str(feed.source)
    beside = block.feed_of(source).maps
    shape = block.weight(source).shape
    return [
        name for name in beside if name != source and block.weight(name).shape == shape and _gates(block, name, feed)
    ]


def _gates(block: Block, name: str, feed: Feed) -> bool:
    """Whether a change of one output of a map changes the same channel of what the feed reads, and no other."""
    seen: list[torch.Tensor] = []
    block.watch(feed.maps[:1], lambda _, x: seen.append(x), block.states[:1])
    module = block.module.get_submodule(name)
    channel = block.weight(name).shape[0] // 2

    def change(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[..., channel] += 1.0
        return out

    hook = module.register_forward_hook(change)
    try:
        block.watch(feed.maps[:1], lambda _, x: seen.append(x), block.states[:1])
    finally:
        hook.remove()
    moved = (seen[1] - seen[0]).abs().amax(0) > 0
    return bool(moved[channel]) and int(moved.sum()) == 1
