"""GradNorm: On the Importance of Gradients for Detecting Distributional Shifts in the Wild.

Rui Huang, Andrew Geng, Yixuan Li, NeurIPS 2021 (arXiv 2110.00218).

The gradient of the divergence between the uniform distribution and the softmax, with respect to the weights of the
head, is larger for usual inputs. The paper claims an average FPR95 of 54.7 % on ImageNet, where energy has 71.0 %.

Differences from the official code: the L1 norm is computed in closed form, ``||h||_1 ||p - u||_1 / T``, without a
backward pass for each input; the code's targets are ones instead of 1/C, which multiplies it by C.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from farout.cards import paper
from farout.ood._score import Score, features_of
from farout.ood.views import Views

__all__ = ["GradNorm"]


@paper(
    "GradNorm",
    title="On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
    authors="Huang, Geng, Li",
    year=2021,
    arxiv="2110.00218",
    kind="score",
    extra="torch",
    claim="Average FPR95 54.7 % on ImageNet, where energy has 71.0 %.",
    differs="The norm in closed form, without a backward pass.",
)
class GradNorm(Score):
    """Minus the L1 norm of the gradient of ``KL(u || softmax(f / T))`` with respect to the head's weight.

    Parameters
    ----------
    temperature : float
        T.

    Examples
    --------
    >>> import torch
    >>> GradNorm().score(Views(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([[1.0], [2.0]])))
    tensor([-0.0000, -1.9995])
    """

    needs = ("features",)

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-||h||_1 ||softmax(f / T) - 1/C||_1 / T`` (n,)."""
        away = (views.logits / self.temperature).softmax(1) - 1 / views.logits.shape[1]
        return -features_of(views).abs().sum(1) * away.abs().sum(1) / self.temperature
