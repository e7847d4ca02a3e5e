"""Who reads and who writes the residual stream in a block: found by experiment, with its norms held.

Shape legend: N tokens, C channels of the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import nn

from farout.inside._sites import sites_of
from farout.quantize._blocks import Block
from farout.quantize._norms import gain_of
from farout.quantize._structure import maps_of

__all__ = ["Blocked", "Roles", "StreamNorm", "kind_of", "roles_of"]

_SAME = 1e-5  # how far, relative to the largest, numbers of float32 may be apart that are the same


class Blocked(Exception):
    """The stream cannot be rotated; the message says why, as half a sentence."""


@dataclass(frozen=True)
class StreamNorm:
    """A norm that reads the stream.

    Attributes
    ----------
    name : str
    readers : tuple of str
        The maps that read it; none where others than maps do.
    centres : bool
        Whether it takes the mean away.
    eps : float
        What it adds to the variance.
    """

    name: str
    readers: tuple[str, ...]
    centres: bool
    eps: float

    def within(self, block: str) -> StreamNorm:
        """Return it with paths in the model, from those in a block."""
        return StreamNorm(f"{block}.{self.name}", tuple(f"{block}.{r}" for r in self.readers), self.centres, self.eps)


@dataclass(frozen=True)
class Roles:
    """The maps of a block that write to the stream, and the norms that read it; paths in the block."""

    writers: tuple[str, ...]
    norms: tuple[StreamNorm, ...]


def roles_of(block: Block) -> Roles:
    """Find what reads and writes the stream.

    Raises
    ------
    Blocked
        The stream cannot be rotated through this block.
    """
    silent = sorted(set(maps_of(block.module)) - set(block.maps))
    if silent:
        raise Blocked(f"'{block.name}.{silent[0]}' did not run on the first sequence, so what it reads is unknown")
    with torch.no_grad():
        return _Lab(block).roles()


@dataclass
class _Seen:
    """Inputs of norms and maps, by call; outputs of norms, by call; and what leaves the block."""

    inputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    normed: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class _Lab:
    """A block under experiment."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.twin = copy.deepcopy(block.module).float().eval()
        self.norms = [name for name, site in sites_of(self.twin).items() if site.kind == "norm"]
        self.x = block.states[0].float()
        self.plain = self.run(self.x, held=False)
        drawn = torch.randn(self.x.shape[-1], generator=torch.Generator().manual_seed(0)).to(self.x)
        self.c = drawn * max(float(self.x.abs().max()), float(self.plain.output.abs().max()))

    def run(
        self,
        x: torch.Tensor,
        changes: Mapping[str, Callable] | None = None,
        undo: Mapping[str, Callable] | None = None,
        held: bool = True,
    ) -> _Seen:
        """Run with norms giving what they gave at first, outputs of modules changed, and inputs of maps."""
        seen, changes, undo = _Seen(), changes or {}, undo or {}

        def enter(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple) -> tuple | None:
                seen.inputs.setdefault(name, []).append(args[0].detach())
                return (undo[name](args[0]), *args[1:]) if name in undo else None

            return hook

        def leave(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
                if name in self.norms:
                    called = seen.normed.setdefault(name, [])
                    called.append(self.plain.normed[name][len(called)] if held else out)
                    out = called[-1]
                return changes[name](out) if name in changes else out

            return hook

        with ExitStack() as stack:
            for name in (*self.norms, *self.block.maps):
                module = self.twin.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(enter(name)).remove)
                stack.callback(module.register_forward_hook(leave(name)).remove)
            seen.output = self.block.calls.run(self.block.name, self.twin, 0, x, torch.float32)
        return seen

    def roles(self) -> Roles:
        """Find all roles."""
        name, width = self.block.name, len(self.c)
        moved = self.run(self.x + self.c)
        times = self.multiple(moved)
        if times == 0:
            raise Blocked(f"what enters '{name}' is not handed on as it is, since norms stand behind its sums")
        if bare := self.changed(moved, self.block.maps):
            raise Blocked(f"'{name}.{bare[0]}' reads the stream without a norm")
        if times is None:
            raise Blocked(f"what enters '{name}' is not handed on as it is")
        reading = self.changed(moved, self.norms)
        writers = [m for m in self.block.maps if self.block.weight(m).shape[0] == width and self.writes(m)]
        silence = self.run(0 * self.x, dict.fromkeys(writers, torch.zeros_like))
        left = [silence.output, *(x for norm in reading for x in silence.inputs[norm])]
        if any(float(x.abs().max()) > _SAME * float(self.c.abs().max()) for x in left):
            others = [norm for norm in self.norms if norm not in reading and self.writes(norm)]
            who = f"the norm '{name}.{others[0]}'" if others else f"something in '{name}'"
            raise Blocked(f"{who} adds to the stream what no linear map gives as it stands")
        return Roles(tuple(writers), tuple(self.reader(norm) for norm in reading))

    def writes(self, name: str) -> bool:
        """Whether what a module gives is added to the stream, and goes nowhere else."""
        seen = self.run(self.x, {name: lambda out: out + self.c if out.shape[-1] == len(self.c) else out})
        return not self.changed(seen, self.block.maps) and bool(self.multiple(seen))

    def reader(self, name: str) -> StreamNorm:
        """Return a norm with the maps that read it."""
        drawn = torch.rand(len(self.c), generator=torch.Generator().manual_seed(1)).to(self.x)
        s = torch.exp2(0.5 + drawn)  # away from 1
        scaled = self.run(self.x, {name: lambda out: out * s})
        plain = self.plain.inputs
        wide = [m for m in self.block.maps if plain[m][0].shape[-1] == len(s)]
        readers = [m for m in wide if not _apart(scaled.inputs[m][0], plain[m][0] * s)]
        undone = self.run(self.x, {name: lambda out: out * s}, {m: lambda x: x / s for m in readers})
        where = f"{self.block.name}.{name}"
        twice = [m for m in (name, *readers) if len(plain[m]) > 1]
        if twice:
            raise Blocked(f"'{self.block.name}.{twice[0]}' is called more than once in a block")
        gap = float((undone.output - self.plain.output).abs().max())
        if not readers or gap > _SAME * float(self.plain.output.abs().max()):
            raise Blocked(f"others than linear maps read '{where}', so they cannot take its gain over")
        norm, x = self.twin.get_submodule(name), self.plain.inputs[name][0]
        return StreamNorm(name, tuple(readers), *kind_of(norm, x, where))

    def multiple(self, seen: _Seen) -> float | None:
        """Return how often ``c`` came out at every token; None where something else did."""
        d = (seen.output - self.plain.output).flatten(0, -2)
        times = float((d @ self.c).mean() / (self.c @ self.c))
        close = float((d - times * self.c).abs().max()) <= 10 * _SAME * float(self.c.abs().max())
        return (times if abs(times) > 100 * _SAME else 0.0) if close else None

    def changed(self, seen: _Seen, names: Sequence[str]) -> list[str]:
        """Return the modules that read something else."""
        return [
            name
            for name in names
            if name in seen.inputs and any(map(_apart, seen.inputs[name], self.plain.inputs[name]))
        ]


def kind_of(norm: nn.Module, x: torch.Tensor, where: str) -> tuple[bool, float]:
    """Return whether a norm takes the mean away, and what it adds to the variance.

    Parameters
    ----------
    norm : torch.nn.Module
    x : tensor (..., C)
        Like what it reads.
    where : str
        Its path, for the error.

    Raises
    ------
    Blocked
        It is neither LayerNorm nor RMSNorm.
    """
    told = (getattr(norm, word, None) for word in ("eps", "variance_epsilon", "epsilon"))
    known = [value for value in told if isinstance(value, float)] or [1e-5, 1e-6, float(torch.finfo(x.dtype).eps)]
    drawn = torch.randn(64, x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x) + 1
    drawn[32:] *= 1e-2  # where eps counts
    gain, bias = gain_of(norm), getattr(norm, "bias", None)
    y = norm(drawn)
    for centres, eps in product((False, True), known):
        inner = drawn - drawn.mean(-1, keepdim=True) if centres else drawn
        expected: Any = inner * torch.rsqrt(inner.square().mean(-1, keepdim=True) + eps)
        expected = expected * (1 if gain is None else gain) + (0 if bias is None else bias)
        if not _apart(y, expected, {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(x.dtype, 1e-4)):
            return centres, eps
    raise Blocked(f"'{where}' is neither LayerNorm nor RMSNorm")


def _apart(x: torch.Tensor, y: torch.Tensor, limit: float = _SAME) -> bool:
    """Whether two tensors differ by more than rounding."""
    return float((x - y).abs().max()) > limit * max(float(y.abs().max()), 1e-30)
