"""QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs.

Saleh Ashkboos, Amirkeivan Mohtashami, Maximilian L. Croci, Bo Li, Martin Jaggi, Dan Alistarh, Torsten Hoefler, James
Hensman, NeurIPS 2024 (arXiv 2404.00456).

A rotation of the channels changes nothing that a linear map computes, if the weight is rotated too, and spreads what
stands out in a few channels over all. The residual stream is rotated once and for all, by folding a Hadamard matrix
with random signs into all that writes and reads it; the values of each head likewise; what the last map of attention
and of the feed-forward part read is rotated as the model runs. Then weights are rounded by GPTQ, with ranges that are
searched, and inputs by a step for each token, from 0.9 of its range.

The paper claims that Llama-2-70B loses at most 0.47 of WikiText-2 perplexity with 4 bits for weights, inputs and cache
(3.32 to 3.79), and Llama-2-7B 0.63 (5.47 to 6.10).

A token that is huge as a whole stays so: its length does not change when it is turned. So a step for each token is a
part of the method.

Differences from the paper and the official code (spcl/QuaRot):

- Keys and values in the cache are not rounded, and so not rotated after their positions.
- Who reads and writes the stream, and which channels make a head, is found by experiment, for any model; the code knows
  LLaMA and OPT. A model whose stream cannot be rotated (norms after sums, or between a map and the stream) has its maps
  rotate what they read as they run, and a note says so.
- Where no Hadamard matrix has as many rows as there are heads (9, in SmolLM2-135M), the code stops. Here all channels
  that the last map of attention reads are rotated together.
- Rotations as the model runs have random signs, too. Without them one channel of a Hadamard matrix adds up what is
  positive in all channels, such as what GELU gives: in MiniLM with 4-bit inputs embeddings then turn twice as far.
- Orders 156 and 172, which the code has as tables, cannot be had; blocks of the largest order that divides stand in.
- Inputs of maps that are finished are rounded while those behind are calibrated; the code rounds inputs at the end.
- The range of inputs is cut to 0.9 in the paper, for 4 bits; in the code that is an option, 1 by default. Here inputs
  of more than 4 bits keep theirs, since their steps are so fine that cutting costs more than it gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.kit.hadamard import largest_order
from farout.quantize._blocks import Block, Calls
from farout.quantize._linear import QuantLinear, part
from farout.quantize._structure import Feed
from farout.quantize.grid import Grid, Steps
from farout.quantize.move.rotate import head_size, rotate_heads, rotate_inputs, rotate_stream
from farout.quantize.recipe import Recipe, Work, round_weights
from farout.quantize.round._common import Rounded
from farout.quantize.round.gptq import gptq
from farout.quantize.round.rtn import clipped_steps, rtn
from farout.quantize.scheme import Scheme

__all__ = ["ClippedRounding", "QuaRot"]

SOLVERS = ("gptq", "rtn")
CLIP, FEW = 0.9, 4  # of the range of a token, for inputs of so few bits


@part
class ClippedRounding(nn.Module):
    """Round each token (or group of its channels) by steps from a share of its range.

    With ``b`` bits the step of a symmetric grid is ``clip max|x| / (2^(b-1) - 1)``.

    Parameters
    ----------
    grid : Grid
        Of integers.
    clip : float
        The share, in (0, 1].

    Examples
    --------
    >>> ClippedRounding(Grid(4, "token"), 0.9)(torch.tensor([[7.0, 0.5, 0.6]]))
    tensor([[6.3000, 0.9000, 0.9000]])
    """

    def __init__(self, grid: Grid, clip: float) -> None:
        super().__init__()
        self.grid, self.clip = grid, clip

    @classmethod
    def restored(cls, options: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ClippedRounding:
        """Make it again."""
        return cls(Grid.from_dict(options["grid"]), options["clip"])

    def options(self) -> dict[str, Any]:
        """Return what it needs to be made again."""
        return {"grid": self.grid.as_dict(), "clip": self.clip}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round what a map reads (..., I)."""
        v = self.grid.view(x if x.dtype == torch.float64 else x.float())
        low, high = v.amin(-1, keepdim=True), v.amax(-1, keepdim=True)
        if not self.grid.symmetric:
            return self.grid.rounded(x, self.grid.steps_between(self.clip * low, self.clip * high))
        most = torch.maximum(low.abs(), high.abs())
        scale = self.clip * most / (2 ** (self.grid.bits - 1) - 1)
        return self.grid.rounded(x, Steps(torch.where(most > 0, scale, torch.ones_like(scale))))

    def extra_repr(self) -> str:
        """Say how."""
        return f"{self.grid}, clip={self.clip}"


@paper(
    "QuaRot",
    title="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs",
    authors="Ashkboos, Mohtashami, Croci, Li, Jaggi, Alistarh, Hoefler, Hensman",
    arxiv="2404.00456",
    year=2024,
    kind="recipe",
    extra="llm",
    claim="Llama-2-70B loses at most 0.47 of WikiText-2 perplexity with 4 bits for weights, inputs and cache.",
    differs="Keys and values in the cache are not rounded; readers and writers of the stream are found by experiment.",
)
@dataclass(frozen=True)
class QuaRot(Recipe):
    """Rotate the residual stream and what maps read, and round then.

    Parameters
    ----------
    solver : {"gptq", "rtn"}
        How weights are rounded.
    clip : float, optional
        Share of a token's range that its step is taken from; by default 0.9 up to 4 bits, and 1 above.
    clip_weights : bool
        Whether the range of the weights that share a step is searched, by the least sum of ``|w - v|^2.4``.
    damping, order
        Of GPTQ, as for :class:`farout.quantize.gptq.GPTQ`.
    seed : int
        For the signs of the rotations.

    Examples
    --------
    >>> from farout.quantize import quantize
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
    ...     def forward(self, x):
    ...         return x + self.down(self.up(self.norm(x)).relu())
    >>> model = nn.Sequential(nn.Linear(4, 16), Block(), Block(), nn.LayerNorm(16), nn.Linear(16, 4))
    >>> quantized = quantize(model, "quarot", "w4a4", [torch.randn(4, 64, 4)])
    >>> len(quantized.maps["1.up"].before), len(quantized.maps["1.down"].before)  # the stream is rotated by folding
    (0, 1)
    """

    solver: str = "gptq"
    clip: float | None = None
    clip_weights: bool = True
    damping: float = 0.01
    order: bool = False
    seed: int = 0

    def check(self, scheme: Scheme) -> None:
        """Refuse inputs that are no integers, or whose steps come from calibration."""
        if self.solver not in SOLVERS:
            raise UnknownName("solver", self.solver, SOLVERS)
        if self.clip is not None and not 0 < self.clip <= 1:
            raise BadInput(f"'clip' is a share of the range, above 0 and at most 1; {self.clip:g} was given")
        grid = scheme.inputs
        if grid is not None and (grid.kind != "int" or not grid.dynamic or grid.per not in ("token", "group")):
            raise BadInput(
                f"QuaRot rounds inputs to integers by steps of each token, so '{scheme}' is none of its schemes; w4a4, "
                "w4a8, w8a8 and w4a16g128 are"
            )

    def begin(self, work: Work) -> None:
        """Rotate the whole model."""
        turned = rotate_stream(work, self.seed)
        calls = Calls(work.model, work.blocks, work.batches[:1], work.forward)
        state = calls.states[0]
        sizes: dict[int, int] = {}  # blocks that are alike share their feeds
        for name in work.blocks:
            block = work.block(name, calls, [state])
            for feed in block.feeds:
                if f"{name}.{feed.maps[0]}" in turned:
                    continue
                if id(feed) not in sizes:
                    sizes[id(feed)] = head_size(block, feed) or 1
                _rotate(block, feed, sizes[id(feed)], self.seed)
            state = block.run(0, state)
        online = [path for path, module in work.model.named_modules() if isinstance(module, QuantLinear)]
        if online:
            kinds = ", ".join(f"'{name}'" for name in dict.fromkeys(path.rpartition(".")[2] for path in online))
            work.notes.append(f"{len(online)} maps, called {kinds}, rotate what they read as the model runs")

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block, the maps of a feed at a time."""
        for feed in block.feeds:
            hessians = block.hessians(feed.maps) if self.solver == "gptq" else {}

            def solve(name: str, weight: torch.Tensor, grid: Grid) -> Rounded:
                if self.solver == "rtn":
                    return rtn(weight, grid, clip=self.clip_weights)
                searched = self.clip_weights and grid.per != "input"  # whose steps are taken as they are reached
                steps = clipped_steps(weight.float(), grid) if searched else None
                return gptq(weight, hessians[name], grid, damping=self.damping, order=self.order, steps=steps)  # noqa: B023

            round_weights(block, feed.maps, scheme.weights, solve)
            grid = scheme.inputs
            if grid is not None:
                clip = self.clip or (CLIP if grid.bits <= FEW else 1.0)
                for name in feed.maps:
                    block.own(name).rounding = ClippedRounding(grid, clip)


def _rotate(block: Block, feed: Feed, size: int, seed: int) -> None:
    """Rotate what maps read where the stream does not give it: heads by folding, and the rest as the model runs."""
    width = block.weight(feed.maps[0]).shape[1]
    heads = width // size
    whole = largest_order(width)
    if size > 1 and largest_order(size) * largest_order(heads) >= whole:
        rotate_heads(block, feed, size)
        if largest_order(heads) > 1:
            rotate_inputs(block, feed.maps, order=largest_order(heads), across=size)
    elif whole > 1:
        rotate_inputs(block, feed.maps, seed=seed)
