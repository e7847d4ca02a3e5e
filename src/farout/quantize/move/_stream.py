"""Who reads and who writes the residual stream of a model, and whether it can be rotated: found by experiment.

The stream is what a row of blocks hands on. While the outputs of all norms of a block are held as they were, nothing in
the block but sums is left between stream and stream. So random numbers that are added to what enters, one a channel,
must leave as they are (times one number), and must stand at the input of every norm that reads the stream, and of no
map. Numbers that are added to what a map gives leave the block in the same way where the map writes to the stream.
Last, with the stream and all that is written to it silenced, nothing may leave. What fails says why the stream cannot
be rotated: a block that normalises after its sum hands on nothing of what enters, and a norm between a map and the
stream adds on its own, with its gain.

Outside the blocks the same is asked of embeddings, with the input of the first block as what must change by the numbers
that are added, and of the norm behind the last block.

Shape legend: N tokens, C channels of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from farout.inside._running import call
from farout.inside._sites import first_tensor, length_of, mapped, sites_of
from farout.quantize._blocks import Calls, _Stop
from farout.quantize.move._stream_block import Blocked, Roles, StreamNorm, kind_of, roles_of

if TYPE_CHECKING:
    from farout.quantize.recipe import Work

__all__ = ["Blocked", "Entry", "Stream", "StreamNorm", "find_stream", "whole_output"]

_TOLERANCE = {torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Entry:
    """A parameter outside the blocks whose numbers stand in the stream, one a channel along ``axis``."""

    owner: str
    parameter: str
    axis: int


@dataclass(frozen=True)
class Stream:
    """All that a rotation of the stream has to change, by paths in the model.

    Attributes
    ----------
    width : int
    entries : tuple of Entry
    writers : tuple of str
        Maps.
    norms : tuple of StreamNorm
        Those in the blocks.
    last : StreamNorm
        That behind the last block.
    """

    width: int
    entries: tuple[Entry, ...]
    writers: tuple[str, ...]
    norms: tuple[StreamNorm, ...]
    last: StreamNorm


def find_stream(work: Work) -> Stream:
    """Find what reads and what writes the stream of a model.

    Raises
    ------
    Blocked
        It cannot be rotated.
    """
    calls = Calls(work.model, work.blocks, [_one_sequence(work)], work.forward)
    state = calls.states[0]
    known: dict[int, Roles] = {}  # blocks that are alike share their feeds
    writers: list[str] = []
    norms: list[StreamNorm] = []
    for name in work.blocks:
        block = work.block(name, calls, [state])
        key = id(work.feeds[name])
        if key not in known:
            known[key] = roles_of(block)
        writers += [f"{name}.{writer}" for writer in known[key].writers]
        norms += [norm.within(name) for norm in known[key].norms]
        state = block.run(0, state)
    weights = [work.model.get_submodule(path).weight for path in (*writers, *(r for n in norms for r in n.readers))]
    if len(set(map(id, weights))) < len(weights):
        raise Blocked("blocks share weights")
    with torch.no_grad():
        lab = _Lab(work, state.shape[-1])
        last = lab.last()
        if any(norm.centres != last.centres for norm in norms):
            raise Blocked("some norms take the mean of the stream away, and others do not")
        return Stream(state.shape[-1], lab.entries(), tuple(writers), tuple(norms), last)


def whole_output(work: Work) -> torch.Tensor:
    """Return what the model gives for the first sequence of the first batch."""
    device = next(work.model.parameters()).device
    with torch.no_grad():
        out = (work.forward or call)(work.model, mapped(_one_sequence(work), lambda tensor: tensor.to(device)))
    found = first_tensor(out)
    assert found is not None
    return found


def _one_sequence(work: Work) -> Any:
    batch = work.batches[0]
    size = length_of(batch)
    return mapped(batch, lambda tensor: tensor[:1] if size > 1 else tensor)


class _Lab:
    """What stands before the first block and behind the last, under experiment."""

    def __init__(self, work: Work, width: int) -> None:
        self.work, self.model = work, work.model
        self.names = list(work.blocks)
        self.outside = {
            path: module
            for path, module in self.model.named_modules()
            if not any(path == name or path.startswith(f"{name}.") for name in self.names)
        }
        norms = [path for path, site in sites_of(self.model).items() if site.kind == "norm"]
        self.norms = [path for path in norms if path in self.outside]
        self.drawn = torch.randn(width, generator=torch.Generator().manual_seed(0))

    def entries(self) -> tuple[Entry, ...]:
        """Return the parameters of which the stream is made."""
        plain = self.entry({})
        c = self.drawn.to(plain) * plain.abs().max()
        modules: list[str] = []
        bare: dict[torch.Tensor, torch.Tensor] = {}
        found: list[Entry] = []
        for path, module in self.outside.items():
            own = list(module.named_parameters(recurse=False))
            axis = _output_axis(module)
            if axis is not None:
                if self.adds(self.entry({path: _adding(c, axis)}), plain, c, path):
                    modules.append(path)
                    out = 1 if isinstance(module, nn.Embedding) else 0
                    found += [Entry(path, name, out if name == "weight" else 0) for name, _ in own]
            elif path not in self.norms:
                for name, parameter in own:
                    kept = parameter.detach().clone()
                    if parameter.shape[-1:] == c.shape and self.adds_bare(parameter, plain, c, f"{path}.{name}"):
                        bare[parameter] = kept
                        found.append(Entry(path, name, parameter.ndim - 1))
        try:
            for parameter in bare:
                parameter.zero_()
            silence = self.entry(dict.fromkeys(modules, torch.zeros_like))
        finally:
            for parameter, kept in bare.items():
                parameter.copy_(kept)
        if not found or float(silence.abs().max()) > 0:
            raise Blocked("something else than embeddings and their kind enters the first block")
        return tuple(found)

    def entry(self, changes: Mapping[str, Callable]) -> torch.Tensor:
        """Return what enters the first block while modules give something else."""
        found: list[torch.Tensor] = []

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            found.append(first_tensor([*args, kwargs]))  # type: ignore[arg-type]
            raise _Stop

        with ExitStack() as stack, suppress(_Stop):
            block = self.work.blocks[self.names[0]]
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            for path, change in changes.items():
                stack.callback(self.outside[path].register_forward_hook(_leaving(change)).remove)
            whole_output(self.work)
        return found[0]

    def adds_bare(self, parameter: torch.Tensor, plain: torch.Tensor, c: torch.Tensor, path: str) -> bool:
        """Whether a parameter that no embedding or map holds is added to the stream."""
        kept = parameter.detach().clone()
        try:
            parameter.add_(c)
            return self.adds(self.entry({}), plain, c, path)
        finally:
            parameter.copy_(kept)

    def adds(self, x: torch.Tensor, y: torch.Tensor, c: torch.Tensor, path: str) -> bool:
        """Whether multiples of ``c`` were added, at some tokens at least.

        Raises
        ------
        Blocked
            Something else happened.
        """
        d, c = (x - y).flatten(0, -2).double(), c.double()
        times = d @ c / (c @ c)
        limit = _TOLERANCE.get(x.dtype, 1e-4)
        if float((d - times[:, None] * c).abs().max()) > limit * float(c.abs().max()):
            raise Blocked(f"what '{path}' gives does not reach the first block as it is; a norm may stand between")
        return bool((times.abs() > limit).any())

    def last(self) -> StreamNorm:
        """Return the norm behind the last block, with its readers where they are maps and nothing else."""
        seen, output = self.whole({})
        if any(not torch.equal(seen[a][1], seen[b][0]) for a, b in pairwise(self.names)):
            raise Blocked("something happens to the stream between blocks")
        end = self.names[-1]
        stream = seen[end][1]
        behind = [path for path in self.norms if path in seen and seen[path][0].shape == stream.shape]
        behind = [path for path in behind if torch.equal(seen[path][0], stream)]
        if len(behind) != 1:
            raise Blocked(f"{len(behind)} norms outside the blocks read what leaves the last one, and not a single one")
        name = behind[0]
        normed = seen[name][1]
        c = self.drawn.to(stream) * stream.abs().max()
        _, moved = self.whole({end: lambda out: _added(out, c), name: lambda out: normed})
        if not self.same(moved, output):
            raise Blocked(f"others than the norm '{name}' read what leaves the last block")
        s = torch.exp2(0.5 + self.drawn.sigmoid()).to(stream)
        scaled, _ = self.whole({name: lambda out: out * s})
        maps = [path for path, module in self.outside.items() if isinstance(module, nn.Linear) and path in seen]
        wide = [path for path in maps if seen[path][0].shape[-1] == len(s)]
        readers = [path for path in wide if self.same(scaled[path][0], seen[path][0] * s)]
        _, undone = self.whole({name: lambda out: out * s}, dict.fromkeys(readers, lambda x: x / s))
        alone = tuple(readers) if self.same(undone, output) else ()
        return StreamNorm(name, alone, *kind_of(self.model.get_submodule(name), stream, name))

    def whole(self, changes: Mapping[str, Callable], undo: Mapping[str, Callable] | None = None) -> tuple[dict, Any]:
        """Run the model; return inputs and outputs of blocks, and of norms and maps outside, and what it gives."""
        seen: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
        maps = [path for path, module in self.outside.items() if isinstance(module, nn.Linear)]

        def enter(path: str) -> Callable:
            return lambda module, args: (undo[path](args[0]), *args[1:]) if undo and path in undo else None

        def leave(path: str) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
                seen[path] = first_tensor([*args, kwargs]), first_tensor(out)
                return changes[path](out) if path in changes else out

            return hook

        with ExitStack() as stack:
            for path in (*self.names, *self.norms, *maps):
                module = self.model.get_submodule(path)
                stack.callback(module.register_forward_hook(leave(path), with_kwargs=True).remove)
                stack.callback(module.register_forward_pre_hook(enter(path)).remove)
            output = whole_output(self.work)
        return seen, output

    def same(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Whether two tensors are the same but for rounding."""
        limit = _TOLERANCE.get(y.dtype, 1e-4) * float(y.abs().max())
        return x.shape == y.shape and float((x - y).abs().max()) <= limit


def _output_axis(module: nn.Module) -> int | None:
    """Return where the channels stand in what an embedding, map or convolution gives; None for anything else."""
    if isinstance(module, nn.Embedding | nn.Linear):
        return -1
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return -len(module.kernel_size) - 1
    return None


def _leaving(change: Callable) -> Callable:
    return lambda module, args, out: change(out)


def _adding(c: torch.Tensor, axis: int) -> Callable:
    """Return what adds ``c`` along an axis, where that has as many channels."""
    shaped = c.view(-1, *[1] * (-1 - axis))
    return lambda out: out + shaped if out.shape[axis] == len(c) else out


def _added(out: Any, c: torch.Tensor) -> Any:
    """Add to the first tensor of what a block gives."""
    if isinstance(out, torch.Tensor):
        return out + c
    if isinstance(out, tuple | list) and isinstance(out[0], torch.Tensor):
        return type(out)([out[0] + c, *out[1:]])
    raise Blocked("the blocks give neither tensors nor tuples")
