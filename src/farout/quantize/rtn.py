"""Rounding to nearest, the recipe that every other one is measured against.

No paper: weights go to the nearest number of their grid, whose range is that of the weights; inputs likewise. No data
are needed but for static steps of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from farout.cards import paper
from farout.quantize._blocks import Block
from farout.quantize.recipe import Recipe, round_inputs, round_weights
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme

__all__ = ["RTN"]


@paper(
    "RTN",
    title="Rounding to nearest",
    kind="recipe",
    extra="llm",
    claim="None: it is the baseline.",
)
@dataclass(frozen=True)
class RTN(Recipe):
    """Round weights and inputs to the nearest number of their grids.

    Examples
    --------
    >>> import torch
    >>> from farout.quantize import quantize
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16))
    >>> model = torch.nn.Sequential(block(), block())
    >>> quantized = quantize(model, "rtn", "w8a16", [torch.randn(4, 64, 16)])
    >>> sorted(quantized.maps), round(quantized.bits_per_weight)
    (['0.1', '1.1'], 9)
    """

    calibrated: ClassVar[bool] = False

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        round_weights(block, block.maps, scheme.weights, lambda name, weight, grid: rtn(weight, grid))
        round_inputs(block, block.maps, scheme.inputs)
