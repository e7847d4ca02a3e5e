"""GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers.

Elias Frantar, Saleh Ashkboos, Torsten Hoefler, Dan Alistarh, ICLR 2023 (arXiv 2210.17323).

Weights are rounded one input at a time, and what each rounding loses is made up for by the inputs that are still to be
rounded, with the inverse of the Hessian of the layer's error. :mod:`farout.quantize.round.gptq` holds the method.

The paper claims OPT-175B and BLOOM-176B at 3 or 4 bits a weight in four GPU hours with negligible loss.

Differences from the official code (IST-DASLab/gptq):

- Inputs are taken by descending Hessian diagonal, and groups keep the grid of the original weights, which the code
  has as options; ``order=False`` is the paper's form.
- A group's grid is never stale (the code reads weights that its running block has not updated yet).
- The Hessian counts tokens, without padding; the code counts sequences. The factor cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from farout.cards import paper
from farout.quantize._blocks import Block
from farout.quantize.grid import Grid
from farout.quantize.recipe import Recipe, round_inputs, round_weights
from farout.quantize.round._common import Rounded
from farout.quantize.round.gptq import Factor, factored, gptq
from farout.quantize.scheme import Scheme

__all__ = ["GPTQ"]


@paper(
    "GPTQ",
    title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    authors="Frantar, Ashkboos, Hoefler, Alistarh",
    arxiv="2210.17323",
    year=2023,
    kind="recipe",
    extra="llm",
    claim="OPT-175B and BLOOM-176B at 3 or 4 bits a weight in four GPU hours with negligible loss.",
    differs="Inputs are taken by descending Hessian diagonal by default, with the grids of the original weights.",
)
@dataclass(frozen=True)
class GPTQ(Recipe):
    """Round weights one input at a time, and let the others make up for it.

    Parameters
    ----------
    damping : float
        Share of the mean of the Hessian's diagonal that is added to it.
    order : bool
        Whether inputs with a large Hessian diagonal come first.
    """

    damping: float = 0.01
    order: bool = True

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block, the maps of a feed at a time, each on inputs that come from rounded maps."""
        for feed in block.feeds:
            hessians = block.hessians(feed.maps)
            factors = {id(one): factored(one, damping=self.damping, order=self.order) for one in hessians.values()}
            own = {name: factors[id(one)] for name, one in hessians.items()}  # maps of a feed share theirs
            round_weights(block, feed.maps, scheme.weights, partial(self._solve, own))
            round_inputs(block, feed.maps, scheme.inputs)

    def _solve(self, factors: dict[str, Factor], name: str, weight: torch.Tensor, grid: Grid) -> Rounded:
        return gptq(weight, factors[name], grid)
