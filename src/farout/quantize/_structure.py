"""Which maps share an input, and which module's output that is: found by experiment, never by the class of a model.

A block is run as it is, and once more with each module's output multiplied by random numbers, one a channel. Where the
input of a map comes out multiplied by those very numbers, at every token, the map reads that module, and which channel
it reads where is in the numbers themselves. So a norm is found before the maps that it feeds, the values before the
output map of an attention (through heads that share them), the linear branch of a gated unit and not the gated one, and
the first map of a unit with ReLU and not of one with GELU. The same with random numbers added tells what a shift
survives. Last, everything found is undone at the readers: if the block's output is then what it was, nobody else reads
the module (in a block that normalises after its sum, the sum does).

Shape legend: N tokens, C channels of the module, I channels of the map's input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from farout.inside._sites import first_tensor, sites_of

__all__ = ["Feed", "feeds_of", "maps_of"]

_SAME = 1e-4  # how far, relative to the largest, numbers of float32 may be apart that are the same


@dataclass(frozen=True)
class Feed:
    """Maps that read one tensor, and where it comes from.

    Attributes
    ----------
    maps : tuple of str
        Paths in the block, in the order in which they run.
    source : str or None
        The norm or map of the block whose output it is, passed on channel by channel; None where there is none.
    norm : bool
        Whether the source is a norm.
    index : tensor (I,) of int or None
        Which channel of the source each channel is; None for each its own.
    scales, shifts : bool
        What passes from source to maps unchanged: numbers that multiply, numbers that are added.
    alone : bool
        Whether nobody but these maps reads the source.
    entry : bool
        Whether it is what enters the block.
    calls : int
        How often the last of the maps is called in a run of the block.
    """

    maps: tuple[str, ...]
    source: str | None = None
    norm: bool = False
    index: torch.Tensor | None = field(default=None, compare=False)
    scales: bool = False
    shifts: bool = False
    alone: bool = False
    entry: bool = False
    calls: int = 1

    @property
    def after_norm(self) -> bool:
        """Whether a norm gives what these maps read: one of this block, or the last one of the block before."""
        return self.norm or self.entry

    def at_maps(self, per_source: torch.Tensor) -> torch.Tensor:
        """Lay numbers of the source's channels (C,) out by channel of the maps (I,)."""
        return per_source if self.index is None else per_source[self.index.to(per_source.device)]

    def at_source(self, per_map: torch.Tensor, how: str = "amax") -> torch.Tensor:
        """Join numbers of the maps' channels (I,) by channel of the source (C,): ``"amax"``, ``"amin"``, ``"mean"``."""
        if self.index is None:
            return per_map
        index = self.index.to(per_map.device)
        out = per_map.new_zeros(int(index.max()) + 1)
        return out.scatter_reduce(0, index, per_map, how, include_self=False)


def maps_of(block: nn.Module) -> list[str]:
    """Return the paths of the linear maps of a block whose weights are plain numbers."""
    from farout.quantize._linear import QuantLinear

    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear | QuantLinear) and name]


def feeds_of(block: nn.Module, run: Callable[[nn.Module], Any]) -> list[Feed]:
    """Find the feeds of a block.

    Parameters
    ----------
    block : torch.nn.Module
        Left as it is; a copy in float32 is experimented on.
    run : callable
        ``run(block)`` calls it on a sample, in float32.

    Returns
    -------
    list of Feed
        In the order in which they run. Maps that are not called are left out.
    """
    twin = copy.deepcopy(block).float().eval()
    with torch.no_grad():
        return _Lab(twin, run).feeds()


class _Lab:
    """A block under experiment."""

    def __init__(self, block: nn.Module, run: Callable[[nn.Module], Any]) -> None:
        self.block, self.call = block, run
        self.maps = maps_of(block)
        sites = sites_of(block)
        self.norms = [name for name, site in sites.items() if site.kind == "norm" and site.width]
        self.order: list[str] = []
        self.tensors: dict[str, int] = {}
        self.inputs, self.output = self.run({}, first=True)

    def run(self, changes: dict[str, Callable], undo: dict[str, Callable] | None = None, first: bool = False) -> Any:
        """Run with outputs of modules changed, and inputs of maps changed back; return these inputs and the output."""
        seen: dict[str, torch.Tensor] = {}
        undo = undo or {}

        def enter(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple) -> tuple | None:
                x = args[0]
                if first:
                    self.order.append(name)
                    self.tensors[name] = id(x)
                    self.held.append(x)  # so that no other tensor gets its id
                seen.setdefault(name, x.detach().reshape(-1, x.shape[-1]).clone())
                return (undo[name](x), *args[1:]) if name in undo else None

            return hook

        self.held: list[torch.Tensor] = []

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.entry = first_tensor([*args, kwargs]).detach()  # type: ignore[union-attr]

        with ExitStack() as stack:
            stack.callback(self.block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for name in self.maps:
                stack.callback(self.block.get_submodule(name).register_forward_pre_hook(enter(name)).remove)
            for name, change in changes.items():
                module = self.block.get_submodule(name)
                hook = module.register_forward_hook(lambda module, args, out, change=change: change(out))
                stack.callback(hook.remove)
            output = first_tensor(self.call(self.block))
        self.held = []
        return seen, output

    def feeds(self) -> list[Feed]:
        """Return the feeds, each with the last module before it that it passes."""
        groups: dict[int, list[str]] = {}
        for name in dict.fromkeys(self.order):
            groups.setdefault(self.tensors[name], []).append(name)
        found = [
            Feed(tuple(maps), entry=self._enters(maps[0]), calls=self.order.count(maps[-1])) for maps in groups.values()
        ]
        for source in (*self.norms, *self.order):  # maps last: the value map is nearer than the norm before it
            found = self._claimed(source, found)
        return found

    def _enters(self, name: str) -> bool:
        """Whether a map reads what enters the block."""
        x = self.inputs[name]
        return x.numel() == self.entry.numel() and torch.equal(x, self.entry.reshape(x.shape))

    def _claimed(self, source: str, feeds: list[Feed]) -> list[Feed]:
        """Let feeds that read a module say so."""
        module = self.block.get_submodule(source)
        weight: Any = getattr(module, "weight", None)
        if weight is None:
            return feeds
        drawn = torch.Generator().manual_seed(len(source) + sum(map(ord, source)))
        s = _apart(len(weight), drawn).to(weight)
        d = torch.randn(len(weight), generator=drawn).to(weight)
        inputs, _ = self.run({source: lambda out: out * s})
        readers = {}
        for feed in feeds:
            if source in feed.maps:
                continue
            x, y = self.inputs[feed.maps[0]], inputs[feed.maps[0]]
            index = _ratios(x, y, s)
            if index is not None:
                readers[feed] = index
        if not readers or len({tuple(index.tolist()) for index in readers.values()}) > 1:
            return feeds
        index = next(iter(readers.values()))
        moved, _ = self.run({source: lambda out: out + d})
        shifts = all(_differs(self.inputs[feed.maps[0]], moved[feed.maps[0]], d[index]) for feed in readers)
        undo = {name: lambda x: x / s[index] for feed in readers for name in feed.maps}
        _, output = self.run({source: lambda out: out * s}, undo)
        alone = _close(output, self.output)
        own = torch.equal(index, torch.arange(len(s), device=index.device))
        maps = tuple(name for feed in feeds if feed in readers for name in feed.maps)
        calls = self.order.count(maps[-1])
        claimed = Feed(maps, source, source in self.norms, None if own else index, True, shifts, alone, calls=calls)
        rest = [feed for feed in feeds if feed not in readers]
        place = {name: i for i, name in enumerate(self.order)}
        return sorted([*rest, claimed], key=lambda feed: place[feed.maps[0]])


def _apart(count: int, drawn: torch.Generator) -> torch.Tensor:
    """Return numbers in random order that rounding does not mix up: steps of one ratio, from 1.4 to 2.8.

    They are away from 1, so that what was not touched shows. Of as many drawn numbers two are often so near to each
    other that which of them a channel was multiplied by cannot be told in float32.
    """
    return torch.exp2(0.5 + torch.randperm(count, generator=drawn) / count)


def _ratios(x_NI: torch.Tensor, y_NI: torch.Tensor, s_C: torch.Tensor) -> torch.Tensor | None:
    """Return which of the numbers ``s`` each channel was multiplied by; None unless that is all that happened."""
    power = x_NI.square().sum(0)
    alive = power > 1e-12 * power.max()
    if not bool(alive.any()):
        return None
    ratio = (x_NI * y_NI).sum(0) / torch.where(alive, power, 1.0)
    rest = (y_NI - x_NI * ratio).abs().amax(0) / x_NI.abs().amax(0).clamp(min=1e-30)
    if float(rest[alive].max()) > _SAME:
        return None
    ordered, order = s_C.sort()
    at = torch.searchsorted(ordered, ratio.contiguous()).clamp(1, len(ordered) - 1)
    lower = (ratio - ordered[at - 1]).abs() < (ratio - ordered[at]).abs()
    index = order[torch.where(lower, at - 1, at)]
    if float((s_C[index] / ratio - 1)[alive].abs().max()) > _SAME:
        return None
    if not bool(alive.all()):  # what a silent channel reads cannot be seen, unless all others read their own
        own = torch.arange(len(ratio), device=index.device)
        if len(ratio) != len(s_C) or not torch.equal(index[alive], own[alive]):
            return None
        index = own
    return index


def _differs(x_NI: torch.Tensor, y_NI: torch.Tensor, d_I: torch.Tensor) -> bool:
    """Whether nothing but ``d`` was added."""
    reach = float(x_NI.abs().max()) + float(d_I.abs().max())
    return float((y_NI - x_NI - d_I).abs().max()) <= _SAME * reach


def _close(x: torch.Tensor, y: torch.Tensor, tolerance: float = _SAME) -> bool:
    """Whether two tensors are the same but for rounding."""
    return float((x - y).abs().max()) <= tolerance * float(y.abs().max().clamp(min=1e-30))
