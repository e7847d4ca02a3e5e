"""Energy: Energy-based Out-of-distribution Detection.

Weitang Liu, Xiaoyun Wang, John Owens, Yixuan Li, NeurIPS 2020 (arXiv 2010.03759).

``E(x) = -T log sum_c exp(f_c / T)`` goes with the density of inputs under the model, where the softmax divides it away.
The paper claims that it lowers the FPR95 of MSP by 18 points on CIFAR-10 (WideResNet, six sets).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from farout.cards import paper
from farout.errors import BadInput
from farout.ood._score import Score
from farout.ood.views import Views

__all__ = ["Energy"]


@paper(
    "Energy",
    title="Energy-based Out-of-distribution Detection",
    authors="Liu, Wang, Owens, Li",
    year=2020,
    arxiv="2010.03759",
    kind="score",
    extra="torch",
    claim="Lowers the FPR95 of MSP by 18 points on CIFAR-10.",
)
class Energy(Score):
    """The free energy of the logits.

    Parameters
    ----------
    temperature : float
        T; 1 is what the paper recommends.

    Examples
    --------
    >>> import torch
    >>> Energy().score(Views(torch.tensor([[0.0, 0.0], [9.0, 0.0]])))
    tensor([-0.6931, -9.0001])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-T logsumexp(f / T)`` (n,)."""
        if not self.temperature > 0:
            raise BadInput(f"a temperature is above 0, not {self.temperature:g}")
        return -self.temperature * (views.logits / self.temperature).logsumexp(1)
