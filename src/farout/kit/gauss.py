"""Gaussians with one covariance for all classes: means, and a distance that is a squared norm after whitening."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from farout.errors import BadInput

__all__ = ["SharedGaussian", "squared_distances"]


@dataclass(frozen=True)
class SharedGaussian:
    """Class means and one tied covariance.

    Attributes
    ----------
    means : float64 tensor (C, d)
    covariance : float64 tensor (d, d)
        The mean square of what is left of the rows when their class's mean is taken off; divided by n.
    whitening : float64 tensor (d, r)
        ``P = whitening @ whitening.T`` is the pseudo-inverse of the covariance, of rank r.
    classes : int64 tensor (C,)
        What the rows of ``means`` are called.
    """

    means: Tensor
    covariance: Tensor
    whitening: Tensor
    classes: Tensor

    @classmethod
    def fit(cls, x: Tensor, labels: Tensor | None = None, shrinkage: float = 0.0) -> SharedGaussian:
        """Estimate it.

        Parameters
        ----------
        x : tensor (n, d)
        labels : int tensor (n,), optional
            None is one class.
        shrinkage : float
            Share of the covariance that is replaced by its mean eigenvalue times the identity.

        Examples
        --------
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
        >>> SharedGaussian.fit(x).squared_distances(torch.tensor([[3.0, 2.0]]))
        tensor([[4.]], dtype=torch.float64)
        """
        if x.ndim != 2 or not len(x):
            raise BadInput(f"a Gaussian is fitted to rows (n, d), and not to {tuple(x.shape)}")
        if not 0 <= shrinkage <= 1:
            raise BadInput(f"shrinkage is a share from 0 to 1, not {shrinkage:g}")
        eps = torch.finfo(x.dtype).eps
        x = x.double()
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device) if labels is None else labels.to(x.device)
        if len(labels) != len(x):
            raise BadInput(f"there are {len(x)} rows and {len(labels)} labels; give one label for each row")
        classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(classes), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, place, x)
        means /= counts[:, None]
        centred = x - means[place]
        return cls.of(means, centred.T @ centred / len(x), classes, shrinkage, eps)

    @classmethod
    def of(
        cls, means: Tensor, covariance: Tensor, classes: Tensor, shrinkage: float = 0.0, eps: float = 2.0**-52
    ) -> SharedGaussian:
        """Make it of its moments; directions without variance count for nothing, as in a pseudo-inverse.

        Parameters
        ----------
        means, covariance, classes
            As the attributes.
        shrinkage : float
            As for :meth:`fit`.
        eps : float
            Of the precision in which the rows were computed: what varies by less than ``d eps`` of the largest
            eigenvalue is their rounding.
        """
        if shrinkage:
            size = covariance.diagonal().mean()
            identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
            covariance = (1 - shrinkage) * covariance + shrinkage * size * identity
        values, vectors = torch.linalg.eigh(covariance)
        used = values > values[-1].clamp(min=0) * len(values) * eps
        if not used.any():
            raise BadInput("all rows of a class are equal, so that there is no covariance; give other rows, or more")
        return cls(means, covariance, vectors[:, used] / values[used].sqrt(), classes)

    def squared_distances(self, x: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance (n, C) of rows (n, d) to each mean, in float64."""
        return squared_distances(x, self.means, self.whitening)


def squared_distances(x: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    """Return squared distances (n, C) of rows (n, d) to means (C, d) that ``whitening`` (d, r) makes spherical."""
    return torch.cdist(x.to(whitening.dtype) @ whitening, means @ whitening).square()
