"""Gaussian-AD: Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection.

Oliver Rippel, Patrick Mertens, Dorit Merhof, ICPR 2020 (arXiv 2005.14140).

Nothing is trained. The features of a classifier are averaged over the image at nine depths; at each depth one Gaussian
is fitted to those of normal images, and an image is as far out as the sum of its Mahalanobis distances. What varies
little among normal images tells most about anomalies.

The paper claims, on MVTec AD with EfficientNet-B4, image AUROC 95.8 +- 1.2 (mean and standard error over 15 classes),
and as much by a Gaussian on the components of little variance alone.

Differences from the paper and the official code (ORippler/gaussian-ad-mvtec):

- The backbone is EfficientNet-Lite0, whose weights a Python package carries; any other can be named.
- Principal and minor components split one Gaussian, so that the squared distances of both parts add up to that of the
  whole. The code shrinks anew in the components that it keeps, leaves out directions in which fewer images than
  channels do not vary, and keeps up to two components in both parts.
- Augmented passes change images in the manner of the code, which has other changes for each class of MVTec AD: here
  they are mirrored, moved, lightened and noised, and never turned, blurred or sharpened.
- The score is the sum over depths, as in the paper; the code has the mean, which ranks alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erf, sqrt
from typing import Any
from warnings import warn

import numpy as np
import torch
from scipy.stats import chi2
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image.backbones import DEFAULT, Backbone

__all__ = ["GaussianAD", "whitening"]

PARTS = ("all", "principal", "minor")
ALIKE = 1e-6  # features that vary by less than this share of their size differ by rounding only


@paper(
    "Gaussian-AD",
    title="Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection",
    authors="Rippel, Mertens, Merhof",
    year=2020,
    arxiv="2005.14140",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="MVTec AD, EfficientNet-B4: image AUROC 95.8 +- 1.2 over 15 classes without training; components of little "
    "variance alone keep the result.",
    differs="EfficientNet-Lite0 by default. Principal and minor components split one shrunk Gaussian, where the code "
    "shrinks anew in those it keeps. Augmentation in the manner of the code.",
)
class GaussianAD(ImageDetector):
    """Sum over depths of the Mahalanobis distance of averaged features; scores whole images and gives no maps.

    To raise alarms at a rate, wrap it in :class:`farout.Alarm`, which calibrates on normal images that were held out.
    Scores of the training images are too small where there are fewer of them than channels, and :meth:`threshold`
    believes the Gaussian.

    Parameters
    ----------
    components : {"all", "principal", "minor"}
        Of the covariance: all; the leading ones that have ``share`` of the variance (PCA); or all but those (NPCA).
    share : float
        Of the variance, between 0 and 1.
    shrinkage : float, optional
        Share of the covariance that is replaced by its mean variance times the identity; by default as Ledoit and Wolf
        estimate it.
    passes : int
        Augmented passes over the training images that the Gaussian is fitted to, instead of the images as they are; the
        paper has 0 or 100.
    backbone : str, Path or torch.nn.Module
        What :class:`farout.image.Backbone` takes.
    layers : sequence of str, optional
        By default the ends of all stages.
    size : int
        Pixels of a side.
    batch_size : int
    device : str
    random_state : int
        Of the augmentation.

    Raises
    ------
    BadInput
        When fitted: training images are alike; or without shrinkage there are too few of them.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    >>> images = np.random.default_rng(0).integers(100, 150, (30, 16, 16, 3), dtype=np.uint8)
    >>> detector = GaussianAD(backbone=net, layers=["0", "2"], size=16).fit(images)
    >>> usual, bright = detector.outlier_score(np.stack([images[0], images[0] + 50]))
    >>> bool(usual < 10 < bright)
    True
    """

    def __init__(
        self,
        *,
        components: str = "all",
        share: float = 0.99,
        shrinkage: float | None = None,
        passes: int = 0,
        backbone: Any = DEFAULT,
        layers: Sequence[str] | None = None,
        size: int = 224,
        batch_size: int = 32,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.components = components
        self.share = share
        self.shrinkage = shrinkage
        self.passes = passes
        self.backbone = backbone
        self.layers = layers
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def level_scores(self, X: Any) -> np.ndarray:
        """Return the distance at each depth, of which the score is the sum.

        Returns
        -------
        float64 array (n, depths)
        """
        batches, place, found = self._batches(X), self._place(), []
        net: Any = self.net_
        for part in batches:
            with torch.inference_mode():
                found.append(net.distances(pixels(torch.from_numpy(part).to(place))).double().cpu().numpy())
        return np.concatenate(found)

    def threshold(self, sigmas: float) -> np.ndarray:
        """Return the distance at each depth that a Gaussian stays below as often as a normal number below n sigma.

        Parameters
        ----------
        sigmas : float
            A depth alone would alarm for ``1 - erf(sigmas / sqrt(2))`` of the normal images: 0.27 % at 3. The paper
            saw other rates, and shrinkage lowers them. With fewer training images than channels it does not hold at
            all, and a warning says so; take held-out images instead (:class:`farout.Alarm`).

        Returns
        -------
        float64 array (depths,)
        """
        self._check_fitted()
        if not sigmas > 0:
            raise BadInput(f"a threshold lies at more than 0 sigma, not at {sigmas}")
        net: Any = self.net_
        kept = np.array([level.whitening.shape[1] for level in net.levels])
        if self.images_ <= kept.max():
            warn(
                f"thresholds of a Gaussian do not hold where {kept.max():,} components were fitted to "
                f"{self.images_:,} images; calibrate on held-out normal images with farout.Alarm",
                stacklevel=2,
            )
        return np.sqrt(chi2.isf(1 - erf(sigmas / sqrt(2)), kept))

    def alarms(self, X: Any, sigmas: float = 3.0) -> np.ndarray:
        """Say at which depths images are beyond :meth:`threshold`.

        Returns
        -------
        bool array (n, depths)
        """
        return self.level_scores(X) > self.threshold(sigmas)

    def _net(self) -> _Net:
        if self.components not in PARTS:
            raise UnknownName("part of the components", str(self.components), PARTS)
        if not 0 < self.share < 1 or not (self.shrinkage is None or 0 <= self.shrinkage <= 1) or self.passes < 0:
            raise BadInput(
                "'share' lies between 0 and 1, 'shrinkage' from 0 to 1 and 'passes' is 0 at least, but they are "
                f"{self.share}, {self.shrinkage} and {self.passes}"
            )
        return _Net(Backbone(self.backbone, self.layers))

    @torch.no_grad()
    def _learn(self, net: _Net, x_BCHW: Tensor, progress: Progress) -> None:
        generator = torch.Generator().manual_seed(self.random_state)
        parts = x_BCHW.split(self.batch_size) * max(self.passes, 1)
        found = []
        for done, part in enumerate(parts, 1):
            images_BCHW = pixels(part.to(self._place()))
            if self.passes:
                images_BCHW = _changed(images_BCHW, generator)
            found.append([features.cpu() for features in net.pooled(images_BCHW)])
            progress(0.8 * done / len(parts))
        level: Any
        for level, parted in zip(net.levels, zip(*found)):
            mean, white = whitening(torch.cat(parted), self.components, self.share, self.shrinkage)
            level.mean, level.whitening = mean.to(level.mean), white.to(level.whitening)
        self.images_ = len(x_BCHW) * max(self.passes, 1)
        progress(1.0)


class _Net(nn.Module):
    """Images in; the sum of the distances out."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = nn.ModuleList(_Level(channels) for channels in backbone.channels)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, None]:
        return self.distances(x_BCHW).sum(1), None

    def distances(self, x_BCHW: Tensor) -> Tensor:
        """Return the distance at each depth (B, depths)."""
        return torch.stack([level(f) for level, f in zip(self.levels, self.pooled(x_BCHW))], 1)

    def pooled(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return features averaged over the image, (B, channels) at each depth."""
        return [f_BCHW.float().mean((2, 3)) for f_BCHW in self.backbone(x_BCHW)]


class _Level(nn.Module):
    """The Gaussian at one depth: after whitening, the distance is a length."""

    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(channels))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # half precision would not do for small variances
            return torch.linalg.vector_norm((features - self.mean) @ self.whitening, dim=1)


def whitening(
    x: Tensor, components: str = "all", share: float = 0.99, shrinkage: float | None = None
) -> tuple[Tensor, Tensor]:
    """Fit a shrunk Gaussian to rows, or to a part of its components.

    Parameters
    ----------
    x : Tensor (n, d)
        On the CPU.
    components : {"all", "principal", "minor"}
        Principal ones are the fewest that have ``share`` of the variance of the rows, and never all.
    share : float
    shrinkage : float, optional
        By default as Ledoit and Wolf estimate it.

    Returns
    -------
    mean : float64 Tensor (d,)
    whitening : float64 Tensor (d, r)
        The length of ``(row - mean) @ whitening`` is the Mahalanobis distance.

    Raises
    ------
    BadInput
        The rows are alike, or some direction has no variance after shrinkage.

    Examples
    --------
    >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> mean, white = whitening(x, shrinkage=0.0)
    >>> torch.linalg.vector_norm((torch.tensor([0.0, 3.0]) - mean) @ white) ** 2  # variance of 0.5
    tensor(18.0000, dtype=torch.float64)
    """
    x = x.double()
    mean = x.mean(0)
    z = x - mean
    size = z.square().mean()  # mean variance
    if size <= ALIKE**2 * x.square().mean():
        raise BadInput(f"all {len(x)} training images have the same features, so that nothing is known of what varies")
    variances, vectors = torch.linalg.eigh(z.T @ z / len(x))
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)  # largest first
    strength = ledoit_wolf_shrinkage(z.numpy()) if shrinkage is None else shrinkage
    shrunk = (1 - strength) * variances + strength * size
    if shrunk[-1] <= shrunk[0] * len(shrunk) * torch.finfo(x.dtype).eps:
        raise BadInput(
            f"{len(x)} training images do not vary in every direction of {len(shrunk)} channels; shrink the "
            "covariance (shrinkage=None), or give more images"
        )
    if components != "all":
        explained = variances.cumsum(0) / variances.sum()
        leading = min(int((explained < share).sum()) + 1, len(shrunk) - 1)
        kept = slice(leading) if components == "principal" else slice(leading, None)
        vectors, shrunk = vectors[:, kept], shrunk[kept]
    return mean, vectors / shrunk.sqrt()


def _changed(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Change half of the images: mirrored, moved and scaled, lightened and noised, each with its own chance."""
    B = len(x_BCHW)

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, generator=generator)

    def with_chance(chance: float) -> Tensor:
        return torch.rand(B, generator=generator) < chance

    changed = with_chance(0.5)
    mirrored = torch.where(changed & with_chance(0.5), -1.0, 1.0)
    moved, lit, noised = (changed & with_chance(chance) for chance in (0.2, 0.3, 0.2))
    theta = torch.zeros(B, 2, 3)
    zoom = torch.where(moved, 1 / (1 + drawn(-0.05, 0.1)), torch.ones(B))
    theta[:, 0, 0], theta[:, 1, 1] = zoom * mirrored, zoom
    theta[:, :, 2] = 2 * torch.where(moved, torch.stack([drawn(-0.05, 0.05), drawn(-0.05, 0.05)]), torch.zeros(2, B)).T
    grid = affine_grid(theta.to(x_BCHW), list(x_BCHW.shape), align_corners=False)
    x_BCHW = grid_sample(x_BCHW, grid, padding_mode="reflection", align_corners=False)
    gain = torch.where(lit, 1 + drawn(-0.2, 0.2), torch.ones(B))
    light = torch.where(lit, drawn(-0.1, 0.2), torch.zeros(B))
    noise = torch.where(noised, drawn(0.01, 0.03), torch.zeros(B))
    gain, light, noise = (one[:, None, None, None].to(x_BCHW) for one in (gain, light, noise))
    grain = torch.randn(B, 1, *x_BCHW.shape[2:], generator=generator).to(x_BCHW)
    return ((x_BCHW - 0.5) * gain + 0.5 + light + noise * grain).clamp(0, 1)
