"""LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale.

Tim Dettmers, Mike Lewis, Younes Belkada, Luke Zettlemoyer, NeurIPS 2022 (arXiv 2208.07339).

A few columns of activations hold values of 6 and more, and would take the range of all others. So these columns are
multiplied in 16 bits, and everything else in 8, with a scale for each token and each row of weights.

The paper claims that models of 175B parameters run in 8 bits without loss, over 99.9 % of the values being multiplied
in 8 bits, where plain 8-bit products fail from 6.7B parameters on.

Differences from the paper, as in its code (bitsandbytes): the columns of weights that meet outliers are those of the
8-bit weights, not a copy in 16 bits. ``columns="full"`` is the paper's text: columns in which calibration saw an
outlier stay as they are. It matters where such columns of weights are small, since their errors meet large inputs.
Differences from the code: what a map reads is compared with the threshold, and kept, in the precision of the model,
where the code casts it to float16 first; the gradient of training is not here.
Products of integers are computed with plain numbers that stand on their grids; on a GPU
:func:`farout.quantize.kernels.int8_linear` computes with integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from farout.cards import paper
from farout.errors import BadInput
from farout.quantize._blocks import Block
from farout.quantize._linear import part
from farout.quantize.grid import Grid
from farout.quantize.recipe import Recipe, round_weights
from farout.quantize.round._common import Rounded, working
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme

__all__ = ["LLMInt8", "Split"]

INPUTS = Grid(8, "token", rule="narrow")


@part
class Split(nn.Module):
    """Round inputs to 8 bits a token, but leave columns that hold a value of at least the threshold as they are.

    With ``C`` the columns that hold such a value, row ``i`` has the scale ``a_i = max |X_ij|`` over its values below
    the threshold (those of ``C`` too), and

        ``r(X)_ij = round(127 X_ij / a_i) a_i / 127`` outside of ``C``, and ``X_ij`` in it.

    Which columns these are depends on all rows of a call, padding too: a single token is split otherwise alone.

    Parameters
    ----------
    threshold : float
        Where an outlier begins; 0 splits nothing off.

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

    def outliers(self, x: torch.Tensor) -> torch.Tensor:
        """Return which values are outliers, in the shape of ``x``."""
        return x.abs() >= (self.threshold or torch.inf)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """Return which columns hold an outlier (I,)."""
        return self.outliers(x).flatten(0, -2).any(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round all columns but those with outliers."""
        wide = working(x)  # 127 x would overflow in float16
        outliers = self.outliers(x)
        steps = INPUTS.steps(wide.masked_fill(outliers, 0))
        return torch.where(outliers.flatten(0, -2).any(0), x, INPUTS.rounded(wide, steps).to(x.dtype))

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
    columns : {"int8", "full"}
        What inputs with outliers are multiplied with: 8-bit weights, or, where calibration saw these outliers, weights
        as they are, which are not counted in ``bits_per_weight``.

    Raises
    ------
    BadInput
        The threshold is below 0, or there are no such columns.

    Examples
    --------
    >>> from farout.quantize import quantize
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16))
    >>> quantized = quantize(torch.nn.Sequential(block(), block()), "llm_int8", "w8a8", [torch.randn(4, 64, 16)])
    >>> quantized.maps["0.1"].rounding
    Split(threshold=6.0)
    """

    threshold: float = 6.0
    columns: str = "int8"

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise BadInput(f"the threshold of outliers is 0 (no outliers) or above, not {self.threshold}")
        if self.columns not in ("int8", "full"):
            raise BadInput(f"columns with outliers are 'int8' or 'full', not '{self.columns}'")

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        """Whether data are needed."""
        return self.columns == "full"

    def check(self, scheme: Scheme) -> None:
        """Refuse anything but 8-bit integers, symmetric, a scale for each row and each token."""
        weights, inputs = scheme.weights, scheme.inputs
        fits = inputs is not None and (weights.per, inputs.per) == ("channel", "token")
        if not fits or any((g.kind, g.bits, g.symmetric) != ("int", 8, True) for g in (weights, inputs) if g):
            raise BadInput(
                f"LLM.int8() rounds to 8-bit integers, with a scale for each row of weights and each token, not "
                f"'{scheme}'. It can do 'w8a8'; scales are those of +-127"
            )

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        facts = block.facts(block.maps) if self.columns == "full" and self.threshold else {}

        def solve(name: str, weight: torch.Tensor, grid: Grid) -> Rounded:
            if name not in facts:
                return rtn(weight, grid)
            outlying = facts[name].absmax >= self.threshold
            rounded = rtn(weight.masked_fill(outlying, 0), grid)
            kept = working(weight).masked_fill(~outlying, 0)
            return Rounded(rounded.weight + kept, rounded.steps, grid, kept)

        round_weights(block, block.maps, replace(scheme.weights, rule="narrow"), solve)
        for name in block.maps:
            block.own(name).rounding = Split(self.threshold)
