"""MaxLogit: Scaling Out-of-Distribution Detection for Real-World Settings.

Dan Hendrycks, Steven Basart, Mantas Mazeika, Andy Zou, Joe Kwon, Mohammadreza Mostajabi, Jacob Steinhardt, Dawn Song,
ICML 2022 (arXiv 1911.11132).

With many classes the softmax shares its mass between those that look alike, and the largest logit says more than the
largest probability. The paper claims gains of about ten points of AUROC over MSP in segmentation and many-label sets.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from farout.cards import paper
from farout.ood._score import Score
from farout.ood.views import Views

__all__ = ["MaxLogit"]


@paper(
    "MaxLogit",
    title="Scaling Out-of-Distribution Detection for Real-World Settings",
    authors="Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt, Song",
    year=2022,
    arxiv="1911.11132",
    kind="score",
    extra="torch",
    claim="The largest logit detects better than the largest probability where classes are many.",
)
class MaxLogit(Score):
    """Minus the largest logit.

    Examples
    --------
    >>> import torch
    >>> MaxLogit().score(Views(torch.tensor([[1.0, 0.0], [9.0, 0.0]])))
    tensor([-1., -9.])
    """

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-max_c f_c`` (n,)."""
        return -views.logits.amax(1)
