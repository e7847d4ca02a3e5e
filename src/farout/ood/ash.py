"""ASH: Extremely Simple Activation Shaping for Out-of-Distribution Detection.

Andrija Djurisic, Nebojsa Bozanic, Arjun Ashok, Rosanne Liu, ICLR 2023 (arXiv 2209.09858).

Most of what the last features hold is not needed to tell classes apart. Without the smallest of them, and with the
others made equal or larger, the energy detects better. The paper claims FPR95 22.7 % on ImageNet (ASH-B), where ReAct
has 31.4 %; on CIFAR-10 later re-runs find it far behind energy.

Differences from the official code: features are shaped after pooling, as in OpenOOD; the code does it before.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.ood._score import Score, features_of, head_of
from farout.ood.views import Views

__all__ = ["ASH"]

VARIANTS = ("b", "s", "p")


@paper(
    "ASH",
    title="Extremely Simple Activation Shaping for Out-of-Distribution Detection",
    authors="Djurisic, Bozanic, Ashok, Liu",
    year=2023,
    arxiv="2209.09858",
    kind="score",
    extra="torch",
    claim="FPR95 22.7 % on ImageNet, where ReAct has 31.4 %.",
    differs="Features are shaped after pooling, as in OpenOOD.",
)
class ASH(Score):
    """The energy of the logits that shaped features give.

    Parameters
    ----------
    percentile : float
        Share of the features of an input, in percent, that are set to 0: the smallest.
    variant : {"b", "s", "p"}
        The others are all set to the sum of all over their number, multiplied by ``exp(sum of all / sum of the
        others)``, or left as they are.

    Examples
    --------
    >>> import torch
    >>> head = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    >>> views = Views(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), **head)
    >>> ASH(percentile=50).score(views)  # of 1 and 3 is left 4
    tensor([-4.0181])
    """

    needs = ("features", "head")

    def __init__(self, percentile: float = 90.0, variant: str = "b") -> None:
        self.percentile = percentile
        self.variant = variant

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-logsumexp(W h' + b)`` (n,)."""
        weight, bias = head_of(views)
        return -(self.shaped(features_of(views)) @ weight.T + bias).logsumexp(1)

    def shaped(self, features: Tensor) -> Tensor:
        """Return shaped features (n, d)."""
        if self.variant not in VARIANTS:
            raise UnknownName("variant of ASH", self.variant, VARIANTS)
        values, places = largest(features, self.percentile)
        whole = features.sum(1, keepdim=True)
        if self.variant == "b":
            values = (whole / values.shape[1]).expand(values.shape)
        elif self.variant == "s":
            values = values * (whole / values.sum(1, keepdim=True)).exp()
        return features.new_zeros(features.shape).scatter(1, places, values)


def largest(features: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Return the features of each row (n, d) but its smallest ``percentile`` percent, and where they stand."""
    if not 0 <= percentile < 100:
        raise BadInput(f"a percentile is 0 at least and below 100, not {percentile:g}")
    width = int(features.shape[1])  # of a trace it is a tensor
    count = width - round(width * percentile / 100)
    return features.topk(max(count, 1), dim=1)
