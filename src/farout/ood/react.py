"""ReAct: Out-of-distribution Detection With Rectified Activations.

Yiyou Sun, Chuan Guo, Yixuan Li, NeurIPS 2021 (arXiv 2111.12797).

Inputs that are unlike the training data drive a few units far up. Cut at a height that usual inputs seldom reach, they
no longer make the model sure of itself. The paper claims FPR95 31.4 % on ImageNet, where energy has 58.4 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from torch import Tensor

from farout.cards import paper
from farout.errors import BadInput
from farout.ood._score import Score, features_of, head_of
from farout.ood.views import Views

__all__ = ["ReAct"]


@paper(
    "ReAct",
    title="ReAct: Out-of-distribution Detection With Rectified Activations",
    authors="Sun, Guo, Li",
    year=2021,
    arxiv="2111.12797",
    kind="score",
    extra="torch",
    claim="FPR95 31.4 % on ImageNet, where energy has 58.4 %.",
)
class ReAct(Score):
    """The energy of the logits that cut features give.

    Parameters
    ----------
    percentile : float
        Of all features of usual inputs, where they are cut.

    Attributes
    ----------
    height_ : float

    Examples
    --------
    >>> import torch
    >>> views = Views(torch.zeros(2, 1), torch.tensor([[1.0], [9.0]]), weight=torch.ones(1, 1), bias=torch.zeros(1))
    >>> ReAct(percentile=50).fit(views).score(views)
    tensor([-1., -5.])
    """

    needs = ("features", "head")
    learns = True
    unseen = True

    def __init__(self, percentile: float = 90.0) -> None:
        self.percentile = percentile

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Find the height."""
        if not 0 < self.percentile <= 100:
            raise BadInput(f"a percentile is above 0 and at most 100, not {self.percentile:g}")
        self.height_ = float(np.percentile(features_of(views).cpu().numpy(), self.percentile))
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-logsumexp(W min(h, height) + b)`` (n,)."""
        weight, bias = head_of(views)
        return -(features_of(views).clamp(max=self._fitted("height_")) @ weight.T + bias).logsumexp(1)
