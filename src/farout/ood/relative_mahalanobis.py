"""Relative Mahalanobis: A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection.

Jie Ren, Stanislav Fort, Jeremiah Liu, Abhijit Guha Roy, Shreyas Padhy, Balaji Lakshminarayanan, 2021 (arXiv
2106.09022).

Directions in which all training features vary alike say nothing about classes, and drown what does. The distance to the
mean of all features, under their overall covariance, is taken off. The paper claims AUROC 81.04 % for CIFAR-100 against
CIFAR-10, where the Mahalanobis distance has 74.81 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from farout.cards import paper
from farout.kit.gauss import SharedGaussian, squared_distances
from farout.ood._score import Score, features_of, labels_or_predicted
from farout.ood.views import Views

__all__ = ["RelativeMahalanobis"]


@paper(
    "Relative Mahalanobis",
    title="A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
    authors="Ren, Fort, Liu, Guha Roy, Padhy, Lakshminarayanan",
    year=2021,
    arxiv="2106.09022",
    kind="score",
    extra="torch",
    claim="AUROC 81.04 % for CIFAR-100 against CIFAR-10, where the Mahalanobis distance has 74.81 %.",
)
class RelativeMahalanobis(Score):
    """Squared distance to the nearest class mean less that to the mean of all.

    Attributes
    ----------
    means_, whitening_ : tensor (C, d), tensor (d, r)
        Of the classes.
    mean_, overall_ : tensor (1, d), tensor (d, r)
        Of all.

    Examples
    --------
    >>> import torch
    >>> features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 1.0], [1.0, 0.0], [8.0, 1.0]])
    >>> views = Views(features, features)
    >>> found = RelativeMahalanobis().fit(views, torch.tensor([0, 0, 1, 1, 0, 1]))
    >>> at_a_mean, between = found.score(Views(features[:2], torch.tensor([[0.3, 0.3], [4.5, 0.5]])))
    >>> bool(at_a_mean < between)
    True
    """

    needs = ("features",)
    learns = True
    labelled = True

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Estimate both Gaussians; labels (n,) are true classes, and predicted ones stand in for them."""
        features = features_of(views)
        classes = SharedGaussian.fit(features, labels_or_predicted(views, labels))
        overall = SharedGaussian.fit(features)
        self.means_, self.whitening_ = classes.means, classes.whitening
        self.mean_, self.overall_ = overall.means, overall.whitening
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``min_c d_c^2 - d_0^2`` (n,)."""
        features = features_of(views)
        near = squared_distances(features, self._fitted("means_"), self.whitening_).amin(1)
        return near - squared_distances(features, self.mean_, self.overall_)[:, 0]
