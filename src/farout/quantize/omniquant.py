"""OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models.

Wenqi Shao, Mengzhao Chen, Zhaoyang Zhang, Peng Xu, Lirui Zhao, Zhiqian Li, Kaipeng Zhang, Peng Gao, Yu Qiao, Ping Luo,
ICLR 2024 (arXiv 2308.13137).

Weights are left alone, and what is learned, block by block with gradients, is around them: how far the range of each
row or group is clipped (learnable weight clipping), and by how much the channels between maps are scaled and shifted,
which changes nothing in full precision (learnable equivalent transformation).

The paper claims LLaMA-2 from 7B to 70B in 1 to 16 hours on one A100 with 128 samples, for W4A4, W6A6, W4A16, W3A16 and
W2A16, with the largest gains at W2A16 and W4A4.

Differences from the official code (OpenGVLab/OmniQuant):

- Scales of queries and keys are the same for both channels of a pair that a rotary embedding turns, so that they change
  nothing; the code learns one for each, which ``pairs=False`` does. They are learned only where they matter: where
  queries and keys are rounded, for a weight's row rounds the same at any scale.
- What is trained is what is folded. The code trains other weights of the value and output maps than it folds in OPT.
- Heads that share values share their scales; the code knows no such heads. Where a norm has other readers than maps,
  maps divide as they run.
- Scales stay positive: those below 0.01 become 0.01 after each step, and the code keeps the sign of those that jump
  over 0.
- Products are made in float32, or with ``amp`` in bfloat16, and not in float16 with a scaled loss.
- Probabilities of attention stay as they are; the code rounds them to 16 bits.
- Ranges and steps have no floor at 1e-5 (see :mod:`farout.quantize.grid`).
- Samples are batches of the calibration data; the code takes sequences one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from farout.cards import paper
from farout.errors import BadInput
from farout.quantize._blocks import Block
from farout.quantize._learned import Clipping, Move, Moves
from farout.quantize._operands import Operands
from farout.quantize._structure import Feed
from farout.quantize._training import inputs_rounded_through, originals, train
from farout.quantize.grid import Grid, Steps
from farout.quantize.move.scale import folds
from farout.quantize.move.scores import scores_of
from farout.quantize.move.shift import folds as shift_folds
from farout.quantize.recipe import Recipe, Work, round_inputs, round_weights
from farout.quantize.round._common import Rounded
from farout.quantize.scheme import Scheme
from farout.quantize.smoothquant import smoothing

__all__ = ["OmniQuant"]

MEMORY = 0.99  # of the running centre of a channel


@paper(
    "OmniQuant",
    title="OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models",
    authors="Shao, Chen, Zhang, Xu, Zhao, Li, Zhang, Gao, Qiao, Luo",
    arxiv="2308.13137",
    year=2023,
    kind="recipe",
    extra="llm",
    claim="LLaMA-2 from 7B to 70B in 1 to 16 hours on one A100 with 128 samples; gains are largest at W2A16 and W4A4.",
    differs="Scales of queries and keys are shared by channels that a rotary embedding turns into each other, so that "
    "they change nothing; what is trained is what is folded; heads that share values share scales.",
)
@dataclass(frozen=True)
class OmniQuant(Recipe):
    """Learn how far weights are clipped and how channels are scaled and shifted, and leave the weights alone.

    The paper's grids for weights have a zero point that is free: ``"w2a16g64-free"``.

    Parameters
    ----------
    clip : bool
        Learn clipping.
    move : bool, optional
        Learn scales and shifts. By default where inputs are rounded, and in blocks whose norms have offsets (OPT) for
        weights alone as well.
    shift : bool
        Learn shifts too, where inputs are rounded and what gives a channel has a bias.
    epochs : int
        The paper's scripts take 20 mostly, and 40 for 2 bits. With 0, what is learned stays where it starts.
    clip_rate, move_rate : float
        Learning rates; the paper takes a ``move_rate`` of 1e-3 for Llama-2-7B in W4A4.
    alpha : float, optional
        Share of a channel's range that scales move into weights at the start. By default 0.5, and 0.75 for W4A4.
    augmented : bool, optional
        Whether outputs shall also be those of the full block on the same input. By default for weights of 2 bits.
    zero_points : bool
        Round inputs with a zero point, as the paper does and names of schemes cannot say.
    operands : bool
        Where inputs are rounded, round queries, keys and values as well.
    pairs : bool
        Whether both channels of a rotated pair share a scale.
    amp : bool
        Make products in bfloat16 while training.

    Examples
    --------
    >>> from farout.quantize import quantize
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16))
    >>> model = torch.nn.Sequential(block(), block())
    >>> found = quantize(model, OmniQuant(epochs=2), "w2a16-free", [torch.randn(4, 64, 16)])
    >>> sorted(found.maps), found.bits_per_weight
    (['0.1', '1.1'], 3.125)
    """

    both: ClassVar[bool] = True

    clip: bool = True
    move: bool | None = None
    shift: bool = True
    epochs: int = 10
    clip_rate: float = 1e-2
    move_rate: float = 5e-3
    alpha: float | None = None
    augmented: bool | None = None
    zero_points: bool = True
    operands: bool = True
    pairs: bool = True
    amp: bool = False

    def check(self, scheme: Scheme) -> None:
        """Raise BadInput for floats and for inputs with steps from calibration."""
        x = scheme.inputs
        if scheme.weights.kind != "int" or (x is not None and (x.kind != "int" or not x.dynamic)):
            raise BadInput(
                f"OmniQuant rounds to integers, inputs by steps of each token, not '{scheme}'; take a scheme such as "
                "'w2a16g64-free', 'w3a16-free', 'w4a4' or 'w6a6'"
            )

    def begin(self, work: Work) -> None:
        """Let blocks round the operands of attention as soon as their maps round what they read."""
        inputs = self._inputs(work.scheme)
        if inputs is None or not self.operands:
            return
        for module in work.blocks.values():
            Operands(module, replace(inputs, per="token", group=0))
        work.notes.append(
            "Queries, keys and values are rounded as well, by hooks on the blocks of this model; stored forms do not "
            "say it."
        )

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        inputs = self._inputs(scheme)
        base, moves = originals(block), self._moves(block, scheme)
        clipping = Clipping(block, scheme.weights) if self.clip else None
        aims: list[list[torch.Tensor]] = [block.targets or []]
        if scheme.weights.bits <= 2 if self.augmented is None else self.augmented:
            aims.append(block.outputs())

        def steps(name: str, weight: torch.Tensor, grid: Grid) -> Steps:
            return grid.steps(weight) if clipping is None else clipping.steps(name, weight, grid)

        def tensors() -> dict[str, torch.Tensor]:
            out = moves.tensors(base)
            for name in block.maps:
                weight = out[f"{name}.weight"]
                grid = scheme.weights.fitted(weight.shape[1])
                out[f"{name}.weight"] = grid.rounded(weight, steps(name, weight, grid), through=True)
            return out

        def solve(name: str, weight: torch.Tensor, grid: Grid) -> Rounded:
            final = steps(name, weight.float(), grid)
            return Rounded(grid.rounded(weight.float(), final), final, grid)

        with moves.dividing(block), inputs_rounded_through(block, block.maps, inputs):
            train(
                block,
                tensors,
                aims,
                [(moves.leaves, self.move_rate), (clipping.leaves if clipping else [], self.clip_rate)],
                self.epochs,
                settle=moves.settle,
                amp=self.amp,
            )
        moves.fold(block)
        round_weights(block, block.maps, scheme.weights, solve)
        round_inputs(block, block.maps, inputs)

    def _inputs(self, scheme: Scheme) -> Grid | None:
        """Return the grid of inputs."""
        x = scheme.inputs
        return replace(x, rule="free") if x is not None and self.zero_points and x.symmetric else x

    def _moves(self, block: Block, scheme: Scheme) -> Moves:
        """Return the moves that are learned of a block, at their start."""
        x = scheme.inputs
        offset = any(feed.norm and _bias(block, feed.source) is not None for feed in block.feeds)
        if not (x is not None or offset if self.move is None else self.move):
            return Moves(block, [])
        few = x is not None and max(scheme.weights.bits, x.bits) <= 4
        alpha = self.alpha if self.alpha is not None else 0.75 if few else 0.5
        matter = (x is not None and self.operands) or not self.pairs
        scores = scores_of(block, self.pairs) if matter else None
        return Moves(block, _starts(block, alpha, self.shift and x is not None), scores, exact=self.pairs)


def _starts(block: Block, alpha: float, shifts: bool) -> list[Move]:
    """Return the moves at their start: after norms, and from values to the map behind attention.

    Scales are SmoothQuant's, with the weight of one map: of queries, of what a gate multiplies, of the output. Shifts
    are the running centres of channels.
    """
    feeds = [f for f in block.feeds if f.after_norm or (f.scales and f.shifts and folds(block, f))]
    absmax, centre = _seen(block, [feed.maps[0] for feed in feeds])
    found = []
    for feed in feeds:
        lead = feed.maps[0]
        s = feed.at_source(smoothing(absmax[lead], [block.weight(_measured(block, feed))], alpha))
        d = feed.at_source(centre[lead], "mean") if shifts and shift_folds(block, feed) else None
        found.append(Move(feed, s.clone().requires_grad_(), None if d is None else d.clone().requires_grad_()))
    return found


def _measured(block: Block, feed: Feed) -> str:
    """Return the map of a feed whose weight sets the scale: what a gate multiplies, else the first."""
    linear = {other.source for other in block.feeds if not other.shifts}
    return next((name for name in feed.maps if name in linear), feed.maps[0])


def _seen(block: Block, names: Sequence[str]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return, of what maps read in the full model, the largest size of each channel (I,) and its running centre."""
    absmax: dict[str, torch.Tensor] = {}
    centre: dict[str, torch.Tensor] = {}

    def take(name: str, x: torch.Tensor) -> None:
        low, high = x.float().amin(0), x.float().amax(0)
        most, middle = torch.maximum(-low, high), (low + high) / 2
        absmax[name] = torch.maximum(absmax[name], most) if name in absmax else most
        centre[name] = MEMORY * centre[name] + (1 - MEMORY) * middle if name in centre else middle

    block.watch(names, take, block.plain)
    return absmax, centre


def _bias(block: Block, source: str | None) -> torch.Tensor | None:
    return getattr(block.module.get_submodule(str(source)), "bias", None)
