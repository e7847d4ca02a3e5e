"""MSP: A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks.

Dan Hendrycks, Kevin Gimpel, ICLR 2017 (arXiv 1610.02136).

A classifier is less sure of what it has not been trained on: its largest softmax probability is smaller. The paper
shows that this alone tells out-of-distribution inputs apart in vision, text and speech; later work is measured against
it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from farout.cards import paper
from farout.ood._score import Score
from farout.ood.views import Views

__all__ = ["MSP"]


@paper(
    "MSP",
    title="A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
    authors="Hendrycks, Gimpel",
    year=2017,
    arxiv="1610.02136",
    kind="score",
    extra="torch",
    claim="The largest softmax probability separates unknown inputs in vision, text and speech; the baseline since.",
)
class MSP(Score):
    """Minus the largest softmax probability.

    Examples
    --------
    >>> import torch
    >>> MSP().score(Views(torch.tensor([[0.0, 0.0], [9.0, 0.0]])))
    tensor([-0.5000, -0.9999])
    """

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-max_c p_c`` (n,)."""
        return -views.logits.softmax(1).amax(1)
