"""MixOE: Mixture Outlier Exposure: Towards Out-of-Distribution Detection in Fine-grained Environments.

Jingyang Zhang, Nathan Inkawhich, Randolph Linderman, Yiran Chen, Hai Li, WACV 2023 (arXiv 2106.03917).

Outliers at hand (textures, scenes) lie far from the classes, so training on them alone says nothing about the region
between the classes, where an unknown bird among birds lies. Each training image is therefore mixed with an outlier, and
the confidence asked for falls in proportion from its class to uniform. The score is MSP.

The paper claims that on birds, butterflies, cars and aircraft this flags both held-out classes (fine-grained) and
unrelated images (coarse) better, where outlier exposure hardly helps with the former; it counts TNR95.

Differences from the paper and the official code (zjysteven/MixOE):

- Training is any loop that adds up what ``losses`` returns. The code fine-tunes a trained classifier (10 epochs, SGD
  with Nesterov momentum 0.9, learning rate 1e-3 with a cosine, weight decay 1e-5, batches of 32) and keeps the epoch
  with the best accuracy on test data.
- The share of a batch is drawn from ``Beta(alpha, alpha)``, as in the code; OpenOOD's port draws it from
  ``Beta(0.1, 1)`` and weights the loss by 1, another method.
- Batch normalization sees images and mixtures in two passes, as in the code (``joint=True``: in one), while outlier
  exposure there sees both in one. Comparisons should try both with either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.ood._outlier_exposure import EnergyExposure, OutlierExposure, both
from farout.ood._soft import soft_cross_entropy

__all__ = ["EnergyExposure", "MixOE", "OutlierExposure", "cutmix", "exposed_targets", "mixup"]

ALPHA = {"mixup": 1.0, "cutmix": 2.0}  # as the official runs have it


@paper(
    "MixOE",
    title="Mixture Outlier Exposure: Towards Out-of-Distribution Detection in Fine-grained Environments",
    authors="Zhang, Inkawhich, Linderman, Chen, Li",
    year=2023,
    arxiv="2106.03917",
    kind="training",
    extra="torch",
    claim="Training on mixtures of images with outliers, with confidence falling from one to the other, flags held-out "
    "classes and unrelated images better than MSP and outlier exposure, on birds, butterflies, cars and aircraft.",
    differs="Losses for any training loop, where the code fine-tunes and keeps the epoch that is best on test data. "
    "The share is drawn from Beta(alpha, alpha) as in the code, not from Beta(0.1, 1) as in OpenOOD's port.",
)
@dataclass(frozen=True)
class MixOE:
    """Losses on images and on their mixtures with outliers.

    ``CE(f(x), y) + weight * SoftCE(f(mixture), share * onehot(y) + (1 - share) / C)``, with one share a batch.

    Parameters
    ----------
    mix : {"mixup", "cutmix"}
        Average both images, or paste a box of the outlier into the image.
    concentration : float, optional
        The share of the image is drawn from ``Beta(concentration, concentration)``; by default 1 for mixup (uniform)
        and 2 for cutmix, as in the official runs.
    weight : float
        Of the loss on mixtures.
    joint : bool
        Whether batch normalization sees images and mixtures as one batch.

    Raises
    ------
    UnknownName
        ``mix`` is another.
    BadInput
        ``concentration`` is not above zero, or ``weight`` is below.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    >>> x, outliers = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    >>> generator = torch.Generator().manual_seed(0)
    >>> losses = MixOE().losses(net, x, torch.tensor([0, 1, 2, 3]), outliers, generator)
    >>> sorted(losses)
    ['classes', 'mixtures']
    """

    mix: str = "mixup"
    concentration: float | None = None  # alpha
    weight: float = 5.0  # beta
    joint: bool = False

    def __post_init__(self) -> None:
        if self.mix not in ALPHA:
            raise UnknownName("mixture", self.mix, ALPHA)
        if (self.concentration is not None and not self.concentration > 0) or not self.weight >= 0:
            raise BadInput(
                f"concentration is above zero and weight not below, but they are {self.concentration} and {self.weight}"
            )

    def losses(
        self, model: nn.Module, x_BCHW: Tensor, y: Tensor, outliers_BCHW: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the two terms of the loss; their sum is what to differentiate.

        Parameters
        ----------
        model : torch.nn.Module
            Images in, logits (B, classes) out.
        x_BCHW, y : tensors (B, channels, height, width) and (B,)
            Images and their classes.
        outliers_BCHW : tensor
            As many, which went through the same augmentation and normalization: else the coding of images is learned.
        generator : torch.Generator
            On the CPU.

        Returns
        -------
        dict of str to Tensor
            ``"classes"`` and ``"mixtures"``, the latter weighted.

        Raises
        ------
        BadInput
            The shapes of images and outliers differ.
        """
        mixed_BCHW, share = self.mixed(x_BCHW, outliers_BCHW, generator)
        logits, mixed_logits = both(model, x_BCHW, mixed_BCHW, self.joint)
        targets = exposed_targets(y, logits.shape[1], share)
        return {
            "classes": cross_entropy(logits, y),
            "mixtures": self.weight * soft_cross_entropy(mixed_logits, targets),
        }

    def mixed(self, x_BCHW: Tensor, outliers_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return mixtures of images with outliers, and the share of the images in them."""
        share = self.share(generator)
        if self.mix == "mixup":
            return mixup(x_BCHW, outliers_BCHW, share), share
        return cutmix(x_BCHW, outliers_BCHW, share, generator)

    def share(self, generator: torch.Generator) -> float:
        """Draw the share of the images of a batch."""  # lambda
        alpha = ALPHA[self.mix] if self.concentration is None else self.concentration
        seed = int(torch.randint(2**62, (), generator=generator))  # torch draws no Beta from a generator
        return float(np.random.default_rng(seed).beta(alpha, alpha))


def mixup(x_BCHW: Tensor, outliers_BCHW: Tensor, share: float) -> Tensor:
    """Return ``share * x + (1 - share) * outliers``.

    Parameters
    ----------
    x_BCHW, outliers_BCHW : tensors of one shape
    share : float

    Returns
    -------
    Tensor

    Raises
    ------
    BadInput
        The shapes differ.

    Examples
    --------
    >>> float(mixup(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0.25))
    0.25
    """
    _same_shape(x_BCHW, outliers_BCHW)
    return share * x_BCHW + (1 - share) * outliers_BCHW


def cutmix(x_BCHW: Tensor, outliers_BCHW: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Paste one box of the outliers into the images, at the same place of all.

    Its sides are ``sqrt(1 - share)`` of the image's and its centre is uniform; what would lie beyond the border is cut
    off, so the share of pixels that stay is returned.

    Parameters
    ----------
    x_BCHW, outliers_BCHW : tensors of one shape
    share : float
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor, float
        The mixtures, and the share of their pixels that are the image's.

    Raises
    ------
    BadInput
        The shapes differ, or are not those of images.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> mixed, share = cutmix(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), 0.75, generator)
    >>> share == float(mixed.mean())
    True
    """
    _same_shape(x_BCHW, outliers_BCHW)
    if x_BCHW.ndim != 4:
        raise BadInput(f"boxes are cut from images (n, channels, height, width), not from {tuple(x_BCHW.shape)}")
    spans = []
    for length in x_BCHW.shape[2:]:
        half = int(length * math.sqrt(1 - share)) // 2
        centre = int(torch.randint(length, (), generator=generator))
        spans.append(slice(max(centre - half, 0), min(centre + half, length)))
    rows, columns = spans
    mixed_BCHW = x_BCHW.clone()
    mixed_BCHW[:, :, rows, columns] = outliers_BCHW[:, :, rows, columns]
    pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed_BCHW, 1 - pasted / (x_BCHW.shape[2] * x_BCHW.shape[3])


def exposed_targets(y: Tensor, classes: int, share: float) -> Tensor:
    """Return ``share * onehot(y) + (1 - share) / classes``: confidence in proportion to what is left of the image.

    Parameters
    ----------
    y : integer tensor (B,)
    classes : int
    share : float

    Returns
    -------
    Tensor (B, classes)

    Examples
    --------
    >>> exposed_targets(torch.tensor([1]), 2, 0.5).tolist()
    [[0.25, 0.75]]
    """
    return share * one_hot(y, classes) + (1 - share) / classes


def _same_shape(x_BCHW: Tensor, outliers_BCHW: Tensor) -> None:
    if x_BCHW.shape != outliers_BCHW.shape:
        raise BadInput(
            f"each image is mixed with one outlier of its size: {tuple(x_BCHW.shape)} cannot be mixed with "
            f"{tuple(outliers_BCHW.shape)}; draw as many outliers and resize them alike"
        )
