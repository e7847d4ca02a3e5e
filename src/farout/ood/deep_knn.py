"""Deep kNN: Out-of-Distribution Detection with Deep Nearest Neighbors.

Yiyou Sun, Yifei Ming, Xiaojin Zhu, Yixuan Li, ICML 2022 (arXiv 2204.06507).

An input is far out when its k-th nearest neighbour among the training features, all of length one, is far away. No
distribution is assumed. The paper claims FPR95 24.77 points below Mahalanobis's on ImageNet.

Differences from the official code: distances are not squared (the order is the same), and nothing is added to features
after dividing by their length. The search is exact, block by block, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from farout.cards import paper
from farout.errors import BadInput
from farout.ood._score import Score, features_of
from farout.ood.views import Views

__all__ = ["DeepKNN", "kth_distance"]

BLOCK = 1 << 24  # distances that are held at once


@paper(
    "Deep kNN",
    title="Out-of-Distribution Detection with Deep Nearest Neighbors",
    authors="Sun, Ming, Zhu, Li",
    year=2022,
    arxiv="2204.06507",
    kind="score",
    extra="torch",
    claim="FPR95 24.77 points below Mahalanobis's on ImageNet.",
)
class DeepKNN(Score):
    """Distance to the k-th nearest training feature.

    Parameters
    ----------
    k : int
    normalize : bool
        Whether features are divided by their length.

    Attributes
    ----------
    bank_ : tensor (n, d)
    half_squares_ : tensor (n,)

    Examples
    --------
    >>> import torch
    >>> views = Views(torch.zeros(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    >>> DeepKNN(k=1).fit(views).score(Views(torch.zeros(1, 1), torch.tensor([[0.0, 5.0]])))
    tensor([0.])
    """

    needs = ("features",)
    learns = True

    def __init__(self, k: int = 50, normalize: bool = True) -> None:
        self.k = k
        self.normalize = normalize

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Keep the features."""
        if not 1 <= self.k <= len(views):
            raise BadInput(f"k lies between 1 and the number of training inputs, {len(views)}, and is {self.k}")
        self.bank_ = self._ready(views)
        self.half_squares_ = half_squares(self.bank_)
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return the distance to the k-th nearest (n,)."""
        return kth_distance(self._ready(views), self._fitted("bank_"), self.k, self.half_squares_)

    def _ready(self, views: Views) -> Tensor:
        features = features_of(views)
        return F.normalize(features, dim=1) if self.normalize else features


def half_squares(bank: Tensor) -> Tensor:
    """Return half of the squared length (m,) of each row (m, d)."""
    return bank.square().sum(1) / 2


def kth_distance(x: Tensor, bank: Tensor, k: int, half: Tensor | None = None) -> Tensor:
    """Return the distance (n,) of rows (n, d) to the k-th nearest of a bank (m, d).

    The neighbour is found from products, and its distance then computed from the difference: the former loses what is
    small beside the length of a row. ``half`` is :func:`half_squares` of the bank, where it is at hand.

    Examples
    --------
    >>> kth_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), 2)
    tensor([5.])
    """
    half = half_squares(bank) if half is None else half
    if torch.jit.is_tracing():  # one block: a graph has no loop
        nearest = (x @ bank.T - half).topk(k, dim=1).indices[:, -1]
    else:
        blocks = x.split(max(1, BLOCK // len(bank)))
        nearest = torch.cat([_kth_largest(torch.addmm(half, part, bank.T, beta=-1), k) for part in blocks])
    return (x - bank[nearest]).square().sum(1).sqrt()


def _kth_largest(x: Tensor, k: int) -> Tensor:
    """Return the place (n,) of the k-th largest number of each row (n, m).

    Columns are cut into groups. The k largest numbers lie in the k groups with the largest maxima, so that a row is
    read once and few of its numbers are sorted.
    """
    n, m = x.shape
    size = math.isqrt(m // k) // 16 * 16 or 1  # whole registers
    groups = m // size
    if groups <= 2 * k:
        return x.topk(k, dim=1).indices[:, -1]
    cut = x[:, : groups * size].unflatten(1, (groups, size))
    chosen = cut.amax(2).topk(k, dim=1, sorted=False).indices
    places = chosen[:, :, None] * size + torch.arange(size, device=x.device)
    rest = torch.arange(groups * size, m, device=x.device).expand(n, -1)
    places = torch.cat([places.flatten(1), rest], 1)
    found = x.gather(1, places).topk(k, dim=1).indices[:, -1:]
    return places.gather(1, found)[:, 0]
