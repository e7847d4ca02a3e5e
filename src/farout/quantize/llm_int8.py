"""LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale.

Tim Dettmers, Mike Lewis, Younes Belkada, Luke Zettlemoyer, NeurIPS 2022 (arXiv 2208.07339).

A few columns of activations hold values of 6 and more, and would take the range of all others. So these columns are
multiplied in 16 bits, and everything else in 8, with a scale for each token and each row of weights.

The paper claims that models of 175B parameters run in 8 bits without loss, over 99.9 % of the values being multiplied
in 8 bits, where plain 8-bit products fail from 6.7B parameters on.

Differences from the paper, as in its code (bitsandbytes): the columns of weights that meet outliers are those of the
8-bit weights, not a copy in 16 bits. Products of integers are computed with plain numbers that stand on their grids; on
a GPU :func:`farout.quantize.kernels.int8_linear` computes with integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from farout.cards import paper
from farout.errors import BadInput
from farout.quantize._blocks import Block
from farout.quantize._linear import part
from farout.quantize.grid import Scheme
from farout.quantize.recipe import Recipe, round_weights
from farout.quantize.round.rtn import rtn

__all__ = ["LLMInt8", "Split"]


@part
class Split(nn.Module):
    """Round inputs to 8 bits a token, but leave columns that hold a value of at least the threshold as they are.

    With ``C`` the columns that hold such a value, row ``i`` has the scale ``a_i = max |X_ij|`` over its values below
    the threshold (those of ``C`` too), and

        ``r(X)_ij = round(127 X_ij / a_i) a_i / 127`` outside of ``C``, and ``X_ij`` in it.

    Which columns these are depends on all rows of a call.

    Parameters
    ----------
    threshold : float
        0 splits nothing off.

    Examples
    --------
    >>> Split(6.0)(torch.tensor([[1.0, 0.3, 7.0], [2.0, 0.3, 0.1]]))
    tensor([[1.0000, 0.2992, 7.0000],
            [2.0000, 0.2992, 0.1000]])
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    @classmethod
    def restored(cls, options: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Split:
        """Make it again."""
        return cls(options["threshold"])

    def options(self) -> dict[str, Any]:
        """Return what it needs to be made again."""
        return {"threshold": self.threshold}

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """Return which columns hold an outlier (I,)."""
        if self.threshold <= 0:
            return torch.zeros(x.shape[-1], dtype=torch.bool, device=x.device)
        return (x.abs() >= self.threshold).flatten(0, -2).any(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round all columns but those with outliers."""
        size = x.abs()
        if self.threshold > 0:
            size = torch.where(size >= self.threshold, 0.0, size)
        reach = size.amax(-1, keepdim=True)
        step = torch.where(reach > 0, reach, 1.0) / 127
        return torch.where(self.columns(x), x, (x / step).round().clamp(-127, 127) * step)

    def extra_repr(self) -> str:
        """Say what is split off."""
        return f"threshold={self.threshold}"


@paper(
    "LLM.int8()",
    title="LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale",
    authors="Dettmers, Lewis, Belkada, Zettlemoyer",
    arxiv="2208.07339",
    year=2022,
    kind="recipe",
    extra="llm",
    claim="175B parameters in 8 bits without loss, over 99.9 % of the values multiplied in 8 bits; plain 8-bit "
    "products fail from 6.7B parameters on.",
    differs="The columns of weights that meet outliers are those of the 8-bit weights, as in the official code.",
)
@dataclass(frozen=True)
class LLMInt8(Recipe):
    """Multiply in 8 bits, and the columns with outliers in 16.

    Parameters
    ----------
    threshold : float
        Where an outlier begins; 0 splits nothing off.
    """

    calibrated: ClassVar[bool] = False

    threshold: float = 6.0

    def check(self, scheme: Scheme) -> None:
        """Refuse anything but 8-bit weights and 8-bit inputs a token."""
        inputs = scheme.inputs
        fits = scheme.weights.kind == "int" and scheme.weights.bits == 8 and scheme.weights.per == "channel"
        if not fits or inputs is None or inputs.bits != 8 or inputs.per != "token":
            raise BadInput(f"LLM.int8() rounds weights and inputs to 8 bits; give 'w8a8', not '{scheme}'")

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        grid = replace(scheme.weights, rule="narrow")
        round_weights(block, block.maps, grid, lambda name, weight, grid: rtn(weight, grid))
        for name in block.maps:
            block.own(name).rounding = Split(self.threshold)
