"""AdaDim: Rethinking Channel Dimensions to Isolate Outliers for Low-bit Weight Quantization of Large Language Models.

Jung Hwan Heo, Jeonghoon Kim, Beomseok Kwon, Byeongwook Kim, Se Jung Kwon, Dongsoo Lee, ICLR 2024 (arXiv 2309.15531).

Outliers of inputs make the weights of some input channels sensitive. Where groups of weights run along the outputs of
one input ("ic"), such a channel has steps of its own and hurts no neighbour; where they run along the inputs of one
output ("oc", as usual), it shares steps with them. Which of the two is better is measured, map by map.

The paper claims up to 4.7 points of MMLU for base models and 10 of HumanEval for instructed ones at 3 and 4 bits, on
top of rounding to nearest and of GPTQ.

Differences from the official code (johnheo/adadim-llm):

- The error of a module is that to its output in full precision; the code takes what the module gives with the maps that
  are rounded already.
- Modules are found by experiment, and run in float32 on as many tokens as ``tokens`` says, in whole batches.
- Groups that do not divide a side become the largest that do; padding does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.quantize._blocks import Block
from farout.quantize._search import Trials
from farout.quantize.grid import Grid
from farout.quantize.recipe import QuantizedModel, Recipe
from farout.quantize.round._common import Rounded
from farout.quantize.round.gptq import Factor, factored, gptq
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme

__all__ = ["AdaDim", "along_outputs"]

DIMENSIONS = ("ada", "oc", "ic")
SOLVERS = ("rtn", "gptq")


def along_outputs(quantized: QuantizedModel) -> list[str]:
    """Return the paths of the maps whose groups run along outputs ("ic"), in order.

    Examples
    --------
    Inputs of very different size, whose weights differ the other way round:

    >>> from farout.quantize import quantize
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16))
    >>> model = torch.nn.Sequential(block(), block())
    >>> sizes = torch.ones(16)
    >>> sizes[::4] = 50.0
    >>> with torch.no_grad():
    ...     _ = model[0][0].weight.mul_(sizes), model[0][1].weight.div_(sizes)
    >>> quantized = quantize(model, {"recipe": "adadim"}, "w3a16g8-clamped", [torch.randn(4, 64, 16)])
    >>> "0.1" in along_outputs(quantized)
    True
    """
    return [name for name, module in quantized.maps.items() if module.grid is not None and module.grid.per == "input"]


@paper(
    "AdaDim",
    title="Rethinking Channel Dimensions to Isolate Outliers for Low-bit Weight Quantization of Large Language Models",
    authors="Heo, Kim, Kwon, Kim, Kwon, Lee",
    arxiv="2309.15531",
    year=2023,
    kind="recipe",
    extra="llm",
    claim="Up to 4.7 points of MMLU for base models and 10 of HumanEval for instructed ones at 3 and 4 bits, on top of "
    "rounding to nearest and of GPTQ.",
    differs="Errors are those to the module in full precision; the official code compares with the module as rounded "
    "so far.",
)
@dataclass(frozen=True)
class AdaDim(Recipe):
    """Let groups of weights run along inputs or along outputs, whichever changes the module around a map less.

    The paper's grids are ``"w4a16g128-clamped"`` and ``"w3a16g128-clamped"``. :func:`along_outputs` says which maps
    chose what.

    Parameters
    ----------
    solver : {"rtn", "gptq"}
        How weights are rounded; the choice is made by rounding to nearest in both.
    dimension : {"ada", "oc", "ic"}
        Whether each map chooses, or all have groups along the inputs of an output, or along the outputs of an input.
    damping : float
        For GPTQ, the share of the mean of the Hessian's diagonal that is added to it.
    tokens : int
        Of calibration, on which modules are run to choose, in whole batches.
    """

    full: ClassVar[bool] = True

    solver: str = "rtn"
    dimension: str = "ada"
    damping: float = 0.01
    tokens: int = 8192

    def __post_init__(self) -> None:
        for word, value, known in (("solver", self.solver, SOLVERS), ("dimension", self.dimension, DIMENSIONS)):
            if value not in known:
                raise UnknownName(f"{word} of AdaDim", value, known)

    def check(self, scheme: Scheme) -> None:
        """Refuse all but integer weights in groups, with inputs as they are."""
        if scheme.inputs is not None or scheme.weights.kind != "int" or scheme.weights.per != "group":
            raise BadInput(
                f"'AdaDim' turns groups of integer weights, and rounds no inputs; not '{scheme}'. It can do "
                "'w4a16g128-clamped' and 'w3a16g128-clamped' (the paper's), 'w4a16g128', 'w4a16g128-asym' and the like"
            )

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block map by map; what is rounded stays so while later maps choose."""
        trials = Trials(block, self.tokens) if self.dimension == "ada" else None
        factors = self._factors(block)
        for name in block.maps:
            weight = block.weight(name)
            grids = {
                "oc": scheme.weights.fitted(weight.shape[1]),
                "ic": replace(scheme.weights, per="input").fitted(weight.shape[0]),
            }
            if trials is None:
                chosen = self.dimension
            else:
                losses = {word: trials.loss({name: rtn(weight, grid).weight}) for word, grid in grids.items()}
                chosen = "ic" if losses["ic"] < losses["oc"] else "oc"
            rounded = self._rounded(weight, grids[chosen], factors.get(name))
            if trials is not None:
                trials.put(name, rounded.weight)
            block.own(name).put(rounded)
        self._tell(block)

    def _tell(self, block: Block) -> None:
        """Note which maps have groups along their outputs, which formats of checkpoints do not know."""
        turned = [name for name in block.maps if block.own(name).grid.per == "input"]  # type: ignore[union-attr]
        if turned:
            block.notes.append(f"groups run along outputs in {', '.join(turned)} of '{block.name}'")

    def _factors(self, block: Block) -> dict[str, Factor]:
        """Factor the Hessians of a block in full precision; maps that share an input share theirs."""
        if self.solver == "rtn":
            return {}
        hessians = block.hessians(block.maps)
        found = {id(one): factored(one, damping=self.damping) for one in hessians.values()}
        return {name: found[id(one)] for name, one in hessians.items()}

    def _rounded(self, weight: torch.Tensor, grid: Grid, factor: Factor | None) -> Rounded:
        return rtn(weight, grid) if factor is None else gptq(weight, factor, grid)
