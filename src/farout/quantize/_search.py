"""What a rounded weight does to the module it stands in: the loss by which AWQ and AdaDim choose.

Which module that is, the order of the maps says, never a class: maps that share an input are judged by the smallest
module that holds them all (an attention for its queries, keys and values; a gated unit for its two branches), a map
alone by the module around it if that runs other maps later (an attention for fused projections), and else by itself
(the maps at the end of an attention and of a feed-forward part).

Shape legend: N tokens, C channels of the module's output, O outputs, I inputs of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farout.inside._sites import first_tensor, mapped
from farout.quantize._blocks import Block
from farout.quantize._structure import Feed

__all__ = ["Trials", "enclosing", "sample"]


def enclosing(block: Block, feed: Feed) -> str:
    """Return the path, in the block, of the module by whose output the maps of a feed are judged; "" for the block."""
    parents = [name.split(".")[:-1] for name in feed.maps]
    shared = []
    for words in zip(*parents):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    if len(feed.maps) == 1:
        name, around = feed.maps[0], ".".join(shared)
        later = block.maps[block.maps.index(name) + 1 :]
        if not any(other.startswith(f"{around}.") for other in later):
            return name
    while isinstance(block.module.get_submodule(".".join(shared)), nn.ModuleList | nn.ModuleDict):  # is never called
        shared.pop()
    return ".".join(shared)


def sample(block: Block, tokens: int) -> list[torch.Tensor]:
    """Return states of the first batches that hold so many tokens together: whole batches, and one at least."""
    taken: list[torch.Tensor] = []
    for state in block.states:
        if taken and sum(one.shape[:-1].numel() for one in taken) >= tokens:
            break
        taken.append(state)
    return taken


@dataclass
class _Call:
    """A module as it was called, and what it gave (N, C) for tokens that are no padding."""

    args: tuple
    kwargs: dict[str, Any]
    out: torch.Tensor
    keep: torch.Tensor | None


class Trials:
    """A copy of a block in float32, on which weights are tried; the block stays as it is.

    Parameters
    ----------
    block : Block
        All of it in full precision.
    tokens : int
        Of calibration, in whole batches, on which modules are run.

    Attributes
    ----------
    where : dict of str to str
        By map, the module by whose output it is judged.
    """

    def __init__(self, block: Block, tokens: int) -> None:
        self.twin = copy.deepcopy(block.module).float().eval()
        self.where = {name: enclosing(block, feed) for feed in block.feeds for name in feed.maps}
        self._calls: dict[str, list[_Call]] = {path: [] for path in self.where.values()}
        entered: dict[str, tuple[tuple, dict[str, Any]]] = {}
        keep: torch.Tensor | None = None

        def enter(path: str) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                entered[path] = mapped(args, _copy), mapped(kwargs, _copy)

            return hook

        def leave(path: str) -> Callable:
            def hook(module: nn.Module, args: tuple, out: Any) -> None:
                self._calls[path].append(_Call(*entered.pop(path), _rows(out, keep).clone(), keep))

            return hook

        with ExitStack() as stack, torch.no_grad():
            for path in self._calls:
                module = self.twin.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(enter(path), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave(path)).remove)
            for at, state in enumerate(sample(block, tokens)):
                keep = block.calls.keep[at]
                block.calls.run(block.name, self.twin, at, state, torch.float32)

    def put(self, name: str, weight: torch.Tensor) -> None:
        """Let a map have another weight (O, I) from now on."""
        self._map(name).weight.data = weight.float()

    def _map(self, name: str) -> Any:
        return self.twin.get_submodule(name)

    def loss(self, weights: dict[str, torch.Tensor]) -> float:
        """Return what weights of maps of one feed cost.

        Parameters
        ----------
        weights : dict of str to tensor (O, I)
            By map; those that were there stand there again afterwards.

        Returns
        -------
        float
            The mean square, over tokens that are no padding and channels, of what the enclosing module's output is off
            what it was when the block was copied.
        """
        path = self.where[next(iter(weights))]
        before = {name: self._map(name).weight.data for name in weights}
        for name, weight in weights.items():
            self.put(name, weight)
        module, off, count = self.twin.get_submodule(path), 0.0, 0
        with torch.no_grad():
            for one in self._calls[path]:
                change = _rows(module(*one.args, **one.kwargs), one.keep) - one.out
                off, count = off + float(change.square().sum(dtype=torch.float64)), count + change.numel()
        for name, old in before.items():
            self.put(name, old)
        return off / max(count, 1)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Keep what a hidden state is now: others may add to it in place later, and to masks and positions nobody does."""
    return tensor.clone() if tensor.is_floating_point() and tensor.ndim in (2, 3) else tensor


def _rows(out: Any, keep: torch.Tensor | None) -> torch.Tensor:
    """Return what a module gave as rows (N, C), without padding where rows are tokens."""
    found = first_tensor(out)
    assert found is not None
    rows = found.reshape(-1, found.shape[-1])
    return rows if keep is None or len(keep) != len(rows) else rows[keep]
