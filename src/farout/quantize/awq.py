"""AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration.

Ji Lin, Jiaming Tang, Haotian Tang, Shang Yang, Wei-Ming Chen, Wei-Chen Wang, Guangxuan Xiao, Xingyu Dang, Chuang Gan,
Song Han, MLSys 2024 (arXiv 2306.00978).

Weights that read large inputs matter most. They are multiplied before they are rounded, and their inputs divided, by
``s = mean|X|^r``, so that rounding costs them less; the exponent is searched by what the module around them then gives.
After that the range of each group of weights is cut where this serves the group's own output.

The paper claims WikiText-2 perplexity of Llama-2-7B 5.60 at 4 bits and 6.24 at 3 bits in groups of 128, where rounding
to nearest has 5.73 and 6.66 (5.47 before).

Differences from the official code (mit-han-lab/llm-awq):

- Modules and what feeds them are found by experiment. Where heads share values, they share numbers, by the mean over
  them; the code leaves the output map alone then. Inputs whose division no norm or map before can take over (those
  after GELU, or after a norm that others read too) are divided as the map runs, as the code does after GELU.
- The search runs modules in float32, on as many tokens as ``tokens`` says, in whole batches; the code on all.
- What a group's range costs is computed from second moments of its inputs, which gives the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from farout.cards import paper
from farout.errors import BadInput
from farout.quantize._attention_watch import attention_maps
from farout.quantize._blocks import Block
from farout.quantize._search import Trials, sample
from farout.quantize._structure import Feed
from farout.quantize.grid import Grid
from farout.quantize.move.scale import scale, scaled_weight
from farout.quantize.recipe import Recipe, round_weights
from farout.quantize.round._common import working
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme

__all__ = ["AWQ", "awq_scale", "clipped_weight"]

LEAST = 1e-4  # of a power of a mean
SHRINKS, PARTS = 10, 20  # ranges are tried at 1, 19/20, ..., 11/20 of their size
CLIP_TOKENS = 512


def awq_scale(mean_abs: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return ``mean|X|^ratio``, over the root of its least times its greatest.

    Parameters
    ----------
    mean_abs : tensor (C,)
    ratio : float

    Examples
    --------
    >>> awq_scale(torch.tensor([16.0, 1.0]), 0.5)
    tensor([2.0000, 0.5000])
    """
    s = (mean_abs.float() ** ratio).clamp(min=LEAST)
    return s / (s.max() * s.min()).sqrt()


def clipped_weight(weight: torch.Tensor, x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Cut the weights of each group of a row to the range with which rounding changes the group's output least.

    Parameters
    ----------
    weight : tensor (O, I)
    x : tensor (N, I)
        What the map reads.
    grid : Grid
        Per "group" or "channel".

    Returns
    -------
    tensor (O, I)
        Within ``+-m`` of each group, with ``m`` of 1, 0.95, ..., 0.55 of its greatest size; the greatest of those that
        do equally well.

    Examples
    --------
    One weight far out would have all others rounded to 0, and its input is no larger than theirs:

    >>> weight, x = torch.tensor([[5.0, 2.2, 2.2, 2.2, 2.2, 2.2, 2.2, 2.2]]), torch.eye(8)
    >>> clipped_weight(weight, x, Grid(2, rule="narrow"))[0, 0]
    tensor(2.7500)
    """
    weight = working(weight)
    groups = weight.unflatten(-1, (-1, grid.group or weight.shape[-1]))  # (O, G, g)
    seen = x.to(weight).unflatten(-1, groups.shape[1:]).transpose(0, 1)  # (G, N, g)
    moments = seen.mT @ seen
    most = groups.abs().amax(-1, keepdim=True)
    best, least = most, torch.full_like(most, torch.inf)
    for i in range(SHRINKS):
        m = most * (1 - i / PARTS)
        cut = groups.clamp(-m, m)
        steps = grid.steps_between(cut.amin(-1, keepdim=True), cut.amax(-1, keepdim=True))
        off = (grid.nearest(cut, steps) - groups).transpose(0, 1)  # (G, O, g)
        error = (off @ moments * off).sum(-1, keepdim=True).transpose(0, 1)
        better = error < least
        best, least = torch.where(better, m, best), torch.where(better, error, least)
    return groups.clamp(-best, best).flatten(1)


@paper(
    "AWQ",
    title="AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
    authors="Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han",
    arxiv="2306.00978",
    year=2024,
    kind="recipe",
    extra="llm",
    claim="WikiText-2 perplexity of Llama-2-7B 5.60 at 4 bits and 6.24 at 3 bits in groups of 128, where rounding to "
    "nearest has 5.73 and 6.66.",
    differs="Feeds and modules are found by experiment; where heads share values, they share scales; modules are "
    "searched on a bounded number of tokens.",
)
@dataclass(frozen=True)
class AWQ(Recipe):
    """Multiply weights that read large inputs, then cut ranges of weights, then round to nearest.

    The paper's grids are ``"w4a16g128-clamped"`` and ``"w3a16g128-clamped"``.

    Parameters
    ----------
    ratios : int
        How many exponents are tried: ``0, 1/ratios, ...``, below 1. With 1 nothing is scaled.
    clip : bool
        Whether ranges are cut.
    tokens : int
        Of calibration, on which modules are run to choose an exponent, in whole batches.
    """

    full: ClassVar[bool] = True

    ratios: int = 20
    clip: bool = True
    tokens: int = 8192

    def check(self, scheme: Scheme) -> None:
        """Refuse all but integer weights in rows or groups of rows, with inputs as they are."""
        weights = scheme.weights
        if scheme.inputs is not None or weights.kind != "int" or weights.per not in ("channel", "group"):
            raise BadInput(
                f"'AWQ' rounds weights to integers with steps for rows or groups of inputs, and no inputs; not "
                f"'{scheme}'. It can do 'w4a16g128-clamped' (the paper's), 'w3a16g128-clamped', 'w4a16g128', "
                "'w4a16g128-asym', 'w4a16' and the like"
            )

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        for feed, s in self._scales(block, scheme.weights):
            scale(block, feed, s)
        seen = _inputs(block, self.tokens) if self.clip else {}

        def cut(name: str, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
            return clipped_weight(weight, seen[name], grid) if name in seen else weight

        round_weights(block, block.maps, scheme.weights, lambda name, weight, grid: rtn(cut(name, weight, grid), grid))

    def _scales(self, block: Block, grid: Grid) -> list[tuple[Feed, torch.Tensor]]:
        """Search a scale for each feed, all on the block as it is."""
        if self.ratios <= 1:
            return []
        trials = Trials(block, self.tokens)
        facts = block.facts([feed.maps[0] for feed in block.feeds])
        found = []
        for feed in block.feeds:
            mean_abs = feed.at_source(facts[feed.maps[0]].mean_abs, "mean")
            ratio = _best_ratio(trials, block, feed, mean_abs, grid, self.ratios)
            if ratio > 0:
                found.append((feed, awq_scale(mean_abs, ratio)))
        return found


def _best_ratio(trials: Trials, block: Block, feed: Feed, mean_abs: torch.Tensor, grid: Grid, ratios: int) -> float:
    """Return the exponent with the least loss; of equals, the least."""

    def loss(ratio: float) -> float:
        s_I = feed.at_maps(awq_scale(mean_abs, ratio))
        weights = {}
        for name in feed.maps:
            weight = working(block.weight(name))
            weights[name] = grid.fitted(weight.shape[1]).rounded(scaled_weight(weight, s_I)) / s_I
        return trials.loss(weights)

    return min((i / ratios for i in range(ratios)), key=loss)


def _inputs(block: Block, tokens: int) -> dict[str, torch.Tensor]:
    """Return what maps read, at 512 tokens at most, evenly spread; maps of queries and keys are left out."""
    maps = {name: block.module.get_submodule(name) for name in block.maps}
    heads = attention_maps(lambda at: block.calls.run(block.name, block.module, at, block.states[at]), 0, maps)
    skipped = {heads.get("q"), heads.get("k")}
    rows: dict[str, list[torch.Tensor]] = {}
    leads = [feed.maps[0] for feed in block.feeds]
    block.watch(leads, lambda name, x: rows.setdefault(name, []).append(x.float()), sample(block, tokens))
    found: dict[str, torch.Tensor] = {}
    for feed in block.feeds:
        x = torch.cat(rows.pop(feed.maps[0]))
        x = x[torch.linspace(0, len(x) - 1, min(len(x), CLIP_TOKENS), device=x.device).round().long()]
        found |= {name: x for name in feed.maps if name not in skipped}
    return found
