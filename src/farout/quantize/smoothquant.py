"""SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models.

Guangxuan Xiao, Ji Lin, Mickael Seznec, Hao Wu, Julien Demouth, Song Han, ICML 2023 (arXiv 2211.10438).

Activations have outliers in a few channels and weights have none, so a share of each channel's range is moved from what
a norm gives into the weights that read it: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``.

The paper claims 8-bit weights and activations for models up to 530B parameters with negligible loss; WikiText-2
perplexity of Llama-2-7B 5.474 to 5.515.

Only what norms give is smoothed. Inputs with static steps (``"w8a8-tensor"``) take them from a second pass, over the
smoothed model.

Differences from the official code (mit-han-lab/smoothquant): maps that a norm feeds are found by experiment; where the
norm's output has other readers (blocks that normalise after their sums), maps divide as they run. A channel of which
calibration saw less than 1e-5 counts as 1e-5. Steps are those of the scheme; the code's are maxima over 127 (in
``"w8a8"`` over 127.5). Products of attention stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from farout.cards import paper
from farout.errors import BadInput, NothingMatched
from farout.quantize._blocks import Block
from farout.quantize._structure import Feed
from farout.quantize.move.scale import scale
from farout.quantize.recipe import Recipe, round_inputs, round_weights
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme

__all__ = ["SmoothQuant", "norm_fed", "smoothing"]

LEAST = 1e-5


def smoothing(absmax_I: torch.Tensor, weights: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """Return ``max|X_j|^alpha / max|W_j|^(1 - alpha)``, the weight's maximum taken over all maps that read the channel.

    Parameters
    ----------
    absmax_I : tensor (I,)
    weights : list of tensor (O, I)
    alpha : float

    Examples
    --------
    >>> smoothing(torch.tensor([16.0, 1.0]), [torch.tensor([[1.0, -4.0]])], 0.5)
    tensor([4.0000, 0.5000])
    """
    reach = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0).clamp(min=LEAST)
    return (absmax_I.float().clamp(min=LEAST) ** alpha / reach ** (1 - alpha)).clamp(min=LEAST)


def norm_fed(block: Block) -> list[Feed]:
    """Return the feeds that come from norms.

    Raises
    ------
    NothingMatched
        There is none.
    """
    found = [feed for feed in block.feeds if feed.after_norm]
    if not found:
        raise NothingMatched(
            "map that reads a norm", f"{block.name}.*", [f"{block.name}.{name}" for name in block.maps]
        )
    return found


@paper(
    "SmoothQuant",
    title="SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    authors="Xiao, Lin, Seznec, Wu, Demouth, Han",
    arxiv="2211.10438",
    year=2023,
    kind="recipe",
    extra="llm",
    claim="8-bit weights and activations up to 530B parameters with negligible loss; WikiText-2 perplexity of "
    "Llama-2-7B 5.474 to 5.515.",
    differs="Maps that a norm feeds are found by experiment.",
)
@dataclass(frozen=True)
class SmoothQuant(Recipe):
    """Move a share of the range of what norms give into the weights that read it.

    Parameters
    ----------
    alpha : float
        The share, in [0, 1]: 0.5 for OPT and BLOOM, 0.6 to 0.7 for Falcon, 0.8 to 0.9 for LLaMA-like models.

    Raises
    ------
    BadInput
        The share is outside of [0, 1].
    """

    full: ClassVar[bool] = True

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadInput(f"alpha is a share from 0 to 1, not {self.alpha}")

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        feeds = norm_fed(block)
        facts = block.facts([feed.maps[0] for feed in feeds])
        for feed in feeds:
            weights = [block.weight(name) for name in feed.maps]
            scale(block, feed, smoothing(facts[feed.maps[0]].absmax, weights, self.alpha))
        round_inputs(block, block.maps, scheme.inputs)
        round_weights(block, block.maps, scheme.weights, lambda name, weight, grid: rtn(weight, grid))
