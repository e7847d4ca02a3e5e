"""PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization.

Thomas Defard, Aleksandr Setkov, Angelique Loesch, Romaric Audigier, ICPR workshops 2021 (arXiv 2011.08785).

At each place of the image one Gaussian is fitted to the features of normal images there, of several depths side by
side, of which random channels are kept. A place is as far out as its Mahalanobis distance. Objects must lie alike in
all images.

The paper claims, on MVTec AD, image AUROC 97.9 with EfficientNet-B5 and 95.3 with WideResNet-50-2, pixel AUROC 97.5
and AUPRO 92.1 with WideResNet-50-2 (550 channels), and with ResNet-18 and 100 channels pixel AUROC 96.7.

Differences from the paper:

- The backbone is EfficientNet-Lite0, whose weights a Python package carries, at the ends of its stages with strides 4,
  8 and 16, which is where the paper's ResNet layers 1 to 3 end; any other can be named.
- Images are squeezed to 256 pixels, and not scaled to 256 and cut to 224, so that nothing at the edge is missed.
- Covariances are summed up in double precision batch by batch, so that no features are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from farout.cards import paper
from farout.errors import BadInput
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image._maps import blurred, scaled
from farout.image._patches import at_strides
from farout.image.backbones import DEFAULT, Backbone

__all__ = ["PaDiM"]

STRIDES = (4, 8, 16)
AT_ONCE = 256  # places whose covariances are inverted together


@paper(
    "PaDiM",
    title="PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization",
    authors="Defard, Setkov, Loesch, Audigier",
    year=2021,
    arxiv="2011.08785",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="MVTec AD: image AUROC 97.9 with EfficientNet-B5 and 95.3 with WideResNet-50-2, pixel AUROC 97.5 and AUPRO "
    "92.1 with the latter.",
    differs="EfficientNet-Lite0 at strides 4, 8 and 16 by default; whole images of 256 pixels, none cut to 224.",
)
class PaDiM(ImageDetector):
    """The farthest Mahalanobis distance among the places of an image, each with a Gaussian of its own.

    A fitted detector holds ``dimensions**2`` numbers for each place: 160 MB by default.

    Parameters
    ----------
    dimensions : int
        Channels that are kept, drawn at random.
    ridge : float
        What is added to every variance.
    blur : float
        Deviation of the Gaussian that smooths maps, in pixels.
    backbone : str, Path or torch.nn.Module
        What :class:`farout.image.Backbone` takes.
    layers : sequence of str, optional
        The finest first, which sets the places; by default the last stages of strides 4, 8 and 16.
    size : int
        Pixels of a side.
    batch_size : int
    device : str
    random_state : int
        Of the channels.

    Raises
    ------
    BadInput
        When fitted: there are fewer channels than ``dimensions``, or a number is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1))
    >>> images = np.random.default_rng(0).integers(100, 150, (20, 32, 32, 3), dtype=np.uint8)
    >>> detector = PaDiM(dimensions=8, backbone=net, layers=["0", "1"], size=32, blur=1).fit(images)
    >>> broken = images[:1].copy()
    >>> broken[0, 20:26, 4:10] = 255
    >>> map_HW = detector.score_maps(broken)[0]
    >>> row, column = np.unravel_index(map_HW.argmax(), map_HW.shape)
    >>> bool(20 <= row < 26 and 4 <= column < 10)
    True
    """

    def __init__(
        self,
        *,
        dimensions: int = 100,  # d
        ridge: float = 0.01,  # epsilon
        blur: float = 4.0,
        backbone: Any = DEFAULT,
        layers: Sequence[str] | None = None,
        size: int = 256,
        batch_size: int = 32,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.dimensions = dimensions
        self.ridge = ridge
        self.blur = blur
        self.backbone = backbone
        self.layers = layers
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _net(self) -> _Net:
        if not self.ridge > 0 or self.blur < 0:
            raise BadInput(f"'ridge' is above 0 and 'blur' 0 at least, but they are {self.ridge} and {self.blur}")
        backbone = Backbone(self.backbone, self.layers)
        levels = at_strides(backbone.strides, STRIDES) if self.layers is None else range(len(backbone.layers))
        channels = sum(backbone.channels[level] for level in levels)
        if not 0 < self.dimensions <= channels:
            raise BadInput(f"the layers have {channels} channels, of which {self.dimensions} cannot be drawn")
        generator = torch.Generator().manual_seed(self.random_state)
        chosen = torch.randperm(channels, generator=generator)[: self.dimensions].sort().values
        return _Net(backbone, tuple(levels), chosen, self.size, self.blur)

    @torch.no_grad()
    def _learn(self, net: _Net, x_BCHW: Tensor, progress: Progress) -> None:
        parts = x_BCHW.split(self.batch_size)
        for done, part in enumerate(parts):
            x_PBD = net.embedded(pixels(part.to(self._place())))[0].double()
            if not done:
                shift_PD = x_PBD.mean(1)  # near the mean, so that little is lost when it is taken off
                sum_PD, product_PDD = torch.zeros_like(shift_PD), x_PBD.new_zeros(len(x_PBD), *[x_PBD.shape[2]] * 2)
            x_PBD -= shift_PD[:, None]
            sum_PD += x_PBD.sum(1)
            product_PDD.baddbmm_(x_PBD.mT, x_PBD)
            progress(0.9 * (done + 1) / len(parts))
        n = len(x_BCHW)
        mean_PD = sum_PD / n
        identity = torch.eye(mean_PD.shape[1]).to(mean_PD)
        whitening = []
        for product, mean in zip(product_PDD.split(AT_ONCE), mean_PD.split(AT_ONCE)):
            covariance = (product - n * mean[:, :, None] * mean[:, None]) / (n - 1) + self.ridge * identity
            root = torch.linalg.cholesky(covariance)
            whitening.append(torch.linalg.solve_triangular(root, identity, upper=False).mT.float())
        net.mean, net.whitening = (mean_PD + shift_PD).float(), torch.cat(whitening)
        progress(1.0)


class _Net(nn.Module):
    """Images in, scores and maps out; P places, D channels."""

    chosen: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, backbone: Backbone, levels: tuple[int, ...], chosen: Tensor, size: int, blur: float) -> None:
        super().__init__()
        self.backbone, self.levels, self.size, self.blur = backbone, levels, size, blur
        self.register_buffer("chosen", chosen)
        self.register_buffer("mean", torch.zeros(0, len(chosen)))  # (P, D)
        self.register_buffer("whitening", torch.zeros(0, len(chosen), len(chosen)))  # (P, D, D)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_PBD, grid = self.embedded(x_BCHW)
        with torch.autocast(x_PBD.device.type, enabled=False):
            distance_PB = torch.linalg.vector_norm((x_PBD - self.mean[:, None]) @ self.whitening, dim=2)
            map_BHW = blurred(scaled(distance_PB.T.unflatten(1, grid), (self.size, self.size)), self.blur)
        return map_BHW.amax((1, 2)), map_BHW

    def embedded(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the chosen channels at each place (P, B, D), and height and width of the grid of places."""
        features = self.backbone(x_BCHW)
        grid = tuple(features[self.levels[0]].shape[2:])
        # a place has the coarse vector that it lies in, as the paper has it
        levels = [interpolate(features[level].float(), grid, mode="nearest") for level in self.levels]
        return torch.cat(levels, 1)[:, self.chosen].flatten(2).permute(2, 0, 1), grid
