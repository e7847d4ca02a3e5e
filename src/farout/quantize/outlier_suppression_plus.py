"""Outlier Suppression+: Accurate quantization of large language models by equivalent and optimal shifting and scaling.

Xiuying Wei, Yunchen Zhang, Yuhang Li, Xiangguo Zhang, Ruihao Gong, Jinyang Guo, Xianglong Liu, EMNLP 2023 (arXiv
2304.09145).

Outliers of activations stand in fixed channels, and on one side of zero. So every channel is shifted to be centred, and
then those that still stick out are divided down to one threshold; the threshold is the one with the least error of what
the maps and what follows them give. Norms and weights take both over.

The paper claims results near those of full precision for 8- and 6-bit BERT, OPT, BLOOM, BLOOMZ and LLaMA, and 15.5 %
more for 4-bit BERT than the best method before.

Differences from the official code (ModelTC/Outlier_Suppression_Plus):

- The shift is only taken where it lowers the error (``shift="gated"``); the paper always takes it (``"always"``), which
  harms where a channel's extreme is that of a single token. As in the code, there is none where the norm has no bias.
- The least threshold is a thousandth of the largest value, or 1 if that is more; the code has 1, or 0.1 for LLaMA.
- At most 200 thresholds are tried, and errors are taken on at most 2,048 tokens; the code's steps of 0.5 make thousands
of
  thresholds where activations are massive.
- What a gated unit or ReLU hands to the next map is scaled too, in all models; the code does it for LLaMA.
- Thresholds and shifts are found on the first 16 sequences, as in the code; padding is left out of both.

Shape legend: N tokens, C channels of a source, I inputs, O outputs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch.nn import functional

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.quantize._blocks import Block
from farout.quantize._linear import QuantLinear, Rounding
from farout.quantize._structure import Feed
from farout.quantize.grid import Grid
from farout.quantize.move import shift as shifting
from farout.quantize.move.scale import folds, scale
from farout.quantize.recipe import Recipe, round_inputs, round_weights
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme
from farout.quantize.smoothquant import norm_fed

__all__ = ["OutlierSuppressionPlus", "scales_of"]

SEQUENCES, TOKENS = 16, 2048
SHIFTS = ("gated", "always", "never")


def scales_of(low_I: torch.Tensor, high_I: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return ``max(1, high / t, low / -t)``: channels within the threshold stay, others are cut down to it.

    Examples
    --------
    >>> scales_of(torch.tensor([-1.0, -8.0]), torch.tensor([2.0, 1.0]), 4.0)
    tensor([1., 2.])
    """
    return torch.maximum(high_I / threshold, low_I / -threshold).clamp(min=1.0)


@paper(
    "Outlier Suppression+",
    title="Outlier Suppression+: Accurate quantization of large language models by equivalent and optimal shifting and "
    "scaling",
    authors="Wei, Zhang, Li, Zhang, Gong, Guo, Liu",
    arxiv="2304.09145",
    year=2023,
    kind="recipe",
    extra="llm",
    claim="Near full precision for 8- and 6-bit BERT, OPT, BLOOM, BLOOMZ and LLaMA; 15.5 % more for 4-bit BERT than "
    "the best method before.",
    differs="The shift is only taken where it lowers the error; at most 200 thresholds are tried, on 2,048 tokens.",
)
@dataclass(frozen=True)
class OutlierSuppressionPlus(Recipe):
    """Centre channels, divide those that stick out down to the best threshold, and round.

    Parameters
    ----------
    shift : {"gated", "always", "never"}
    observer : {"average", "extreme"}
        Static ranges of inputs: the mean over batches of each batch's extremes, or the extremes of all.
    candidates : int
        Thresholds that are tried at most.
    """

    full: ClassVar[bool] = True

    shift: str = "gated"
    observer: str = "average"
    candidates: int = 200

    def check(self, scheme: Scheme) -> None:
        """Refuse schemes that leave inputs as they are."""
        for name, value, known in (("shift", self.shift, SHIFTS), ("observer", self.observer, ("average", "extreme"))):
            if value not in known:
                raise UnknownName(name, value, known)
        if scheme.inputs is None or scheme.inputs.kind != "int":
            raise BadInput(
                f"Outlier Suppression+ rounds inputs to integers; give 'w8a8-tensor' or the like, not '{scheme}'"
            )

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        assert scheme.inputs is not None
        weights, inputs = _narrow(scheme.weights), _narrow(scheme.inputs)
        after = norm_fed(block)
        for feed in block.feeds:
            gated = feed.scales and not feed.shifts and folds(block, feed)
            if feed in after or gated:
                self._migrate(block, feed, weights, inputs)
        if inputs.dynamic or self.observer == "extreme":
            round_inputs(block, block.maps, inputs)
        else:
            _round_by_average(block, inputs)
        round_weights(block, block.maps, weights, lambda name, weight, grid: rtn(weight, grid))

    def _migrate(self, block: Block, feed: Feed, weights: Grid, inputs: Grid) -> None:
        """Shift and scale what a feed's maps read."""
        site = _Site(block, feed, weights, inputs)
        low, high = site.low, site.high
        shifts = self.shift != "never" and (shifting.folds(block, feed) or (feed.source is None and feed.after_norm))
        s, loss = self._best(site, low, high, None)
        if shifts:
            d = (low + high) / 2
            s_shifted, loss_shifted = self._best(site, low - d, high - d, d)
            if self.shift == "always" or loss_shifted < loss:
                shifting.shift(block, feed, feed.at_source(d, "mean"))
                s = s_shifted
        scale(block, feed, feed.at_source(s))

    def _best(
        self, site: _Site, low: torch.Tensor, high: torch.Tensor, d: torch.Tensor | None
    ) -> tuple[torch.Tensor, float]:
        """Return the scales (I,) of the threshold with the least error, and that error."""
        most = float(torch.maximum(high, -low).max())
        bound = min(max(1.0, most / 1000), most)
        steps = min(max(100, int(float(high.max()) / 0.5)), self.candidates)
        best, least = torch.ones_like(low), float("inf")
        for i in range(steps):
            threshold = most - i * (most - bound) / steps
            s = scales_of(low, high, threshold)
            loss = site.loss(s, threshold, d)
            if loss < least:
                best, least = s, loss
        return best, least


class _Site:
    """A feed with what its maps read, and what is made of it: the error of candidates is measured there."""

    def __init__(self, block: Block, feed: Feed, weights: Grid, inputs: Grid) -> None:
        self.block, self.feed, self.grid, self.inputs = block, feed, weights, inputs
        sequences, self.ats = 0, []
        for at, state in enumerate(block.states):
            if sequences < SEQUENCES:
                self.ats.append(at)
                sequences += len(state)
        rows = [self._read(feed.maps[0], at) for at in self.ats]
        x_NI = torch.cat(rows)
        self.low, self.high = x_NI.amin(0), x_NI.amax(0)
        self.next = self._next()
        if self.next is None:
            self.x_NI = x_NI[:: -(-len(x_NI) // TOKENS)]
            self.expected = self.x_NI @ block.weight(feed.maps[0]).float().T
        else:
            self.ats = self.ats[: max(1, TOKENS // max(len(rows[0]), 1))]
            self.expected = torch.cat([self._read(self.next, at) for at in self.ats])

    def _next(self) -> str | None:
        """Return the map that reads what several maps make together, as in attention; None for a single map."""
        if len(self.feed.maps) == 1:
            return None
        order = self.block.feeds
        rest = order[order.index(self.feed) + 1 :]
        return rest[0].maps[0] if rest else None

    def _read(self, name: str, at: int) -> torch.Tensor:
        """Return what a map reads in a batch, without padding."""
        seen: list[torch.Tensor] = []
        self.block.watch_batch(name, at, seen.append)
        keep = self.block.calls.keep[at]
        return (seen[0] if keep is None else seen[0][keep]).float()

    def loss(self, s: torch.Tensor, threshold: float, d: torch.Tensor | None) -> float:
        """Return the error with scales ``s`` (I,), after a shift ``d`` (I,) if there is one."""
        steps = None
        if not self.inputs.dynamic:
            edge = torch.full((1, 1), threshold, device=s.device)
            steps = self.inputs.steps_between(-edge, edge)

        def given(module: Any, x: torch.Tensor) -> torch.Tensor:
            weight = module.weight.detach().float()
            moved = x.float() if d is None else x.float() - d
            rounded = rtn(weight * s, self.grid.fitted(weight.shape[1])).weight
            out = functional.linear(self.inputs.rounded(moved / s, steps), rounded)
            return out if d is None else out + weight @ d

        maps = [self.block.module.get_submodule(name) for name in self.feed.maps]
        if self.next is None:
            return float((given(maps[0], self.x_NI) - self.expected).square().sum(1).mean())

        def leave(module: Any, args: tuple, out: torch.Tensor) -> torch.Tensor:
            x = module.enter(args[0]) if isinstance(module, QuantLinear) else args[0]
            bias = 0 if module.bias is None else module.bias.float()
            return (given(module, x) + bias).to(out)

        with ExitStack() as stack:
            for module in maps:
                stack.callback(module.register_forward_hook(leave).remove)
            got = torch.cat([self._read(self.next, at) for at in self.ats])
        return float((got - self.expected).square().sum(1).mean())


def _narrow(grid: Grid) -> Grid:
    """Return the paper's grid: symmetric ones without the lowest code."""
    return replace(grid, rule="narrow") if grid.rule == "full" else grid


def _round_by_average(block: Block, grid: Grid) -> None:
    """Round inputs in static ranges: the mean over batches of each batch's extremes."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def take(name: str, x: torch.Tensor) -> None:
        edge = torch.stack([x.min(), x.max()]).float()
        sums[name] = sums.get(name, 0) + edge
        counts[name] = counts.get(name, 0) + 1

    block.watch(block.maps, take)
    for name in block.maps:
        low, high = (sums[name] / counts[name]).reshape(2, 1, 1)
        block.own(name).rounding = Rounding(grid, grid.steps_between(low, high))
