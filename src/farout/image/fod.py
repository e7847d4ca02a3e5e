"""FOD: Focus the Discrepancy: Intra- and Inter-Correlation Learning for Image Anomaly Detection.

Xincheng Yao, Ruoqi Li, Zefeng Qian, Yan Luo, Chongyang Zhang, ICCV 2023 (arXiv 2308.02983).

A defective patch is rebuilt badly from the others, looks like few patches of its image, and like few of a normal
reference. A transformer over a pretrained network's features learns all three: each layer attends within the image and
to the reference, and passes on the difference. Rows of attention are held against Gaussians around their position,
whose widths are learned: attention within the image is driven to look far away, that to the reference to look near by.

The paper claims the best results of its time on MVTec AD, BTAD and MVTec 3D (RGB): on MVTec AD an AUROC of images of
about 99.2 %, of pixels 98.3 %.

Differences from the paper and the official code (xcyao00/FOD):

- The backbone is EfficientNet-Lite0, at strides 8 and 16 (40 and 112 channels); the code has a WideResNet-50-2, the
  paper an EfficientNet-B6.
- 40 epochs in batches of 8 and of the last epoch; the code has 100 with single images, and keeps the epoch that is best
  on the test set.
- The code computes an output map of each attention and drops its result. There is none here.
- A position's weight has a floor, a hundredth of a uniform weight. In the code an image whose positions all correlate
  alike has the score 0.
- Maps are those after the blur; the code takes the AUROC of pixels before it.
- Where only one branch is learned, the input is added to what it attends to, and without inter-correlations the error
  is weighed by how near the intra-correlations are to their targets: as the code does.

Every position is correlated with every other: 1,024 x 1,024 of them a head and layer at 256 pixels, which is made for
a GPU. The reference is the mean image of features, so that objects must lie alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image._fod_net import FodNet
from farout.image.backbones import DEFAULT, Backbone
from farout.kit.training import seeded

__all__ = ["FOD"]

# of a mode: the branches of a layer, those that are held against targets, and the one that weighs the error
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str | None]] = {
    "both": (("intra", "inter"), ("intra", "inter"), "inter"),
    "intra": (("intra",), ("intra",), "intra"),
    "inter": (("inter",), ("inter",), "inter"),
    "none": (("intra",), (), None),
}


@paper(
    "FOD",
    title="Focus the Discrepancy: Intra- and Inter-Correlation Learning for Image Anomaly Detection",
    authors="Yao, Li, Qian, Luo, Zhang",
    year=2023,
    arxiv="2308.02983",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="The best of its time on MVTec AD, BTAD and MVTec 3D (RGB): on MVTec AD an AUROC of images of about 99.2 %, "
    "of pixels 98.3 %.",
    differs="EfficientNet-Lite0 at strides 8 and 16, where the code has a WideResNet-50-2; 40 epochs in batches of 8, "
    "the last one taken; the weight of a position has a floor.",
)
class FOD(ImageDetector):
    """How badly a patch is rebuilt, weighed by how oddly it correlates with a normal reference.

    Parameters
    ----------
    backbone : str, Path, OpenModel or torch.nn.Module
        As :class:`farout.image.Backbone` takes it.
    layers : sequence of str
        Whose features are rebuilt, each by a transformer of its own.
    widths : sequence of int
        Of the transformers, one a layer; a multiple of ``heads`` and of 4.
    depth, heads : int
        Of each.
    correlations : {"both", "intra", "inter", "none"}
        What is learned beside the reconstruction: correlations within the image, with the reference, or neither.
    weighted : bool
        Whether correlations weigh the error in the score; without them it is the error alone.
    epochs : int
    learning_rate : float
        Of Adam.
    size : int
        Pixels a side that images are squeezed to.
    batch_size : int
        Images of a step of training, and of a pass.
    device : str
        ``"auto"`` is the first GPU where there is one.
    random_state : int
        For the weights and the order of the images.

    Attributes
    ----------
    history_ : list of float
        The loss of each epoch, of both phases together; the mean over images and levels.

    Raises
    ------
    UnknownName
        There is no such choice of correlations.
    BadInput
        The widths do not fit to the layers or heads, a number is out of its range, or training diverges.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
    >>> images = torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8).numpy()
    >>> detector = FOD(backbone=net, layers=["0", "2"], widths=(16, 16), heads=2, epochs=2, size=32).fit(images)
    >>> detector.outlier_score(images[:2]).shape, detector.score_maps(images[:2]).shape
    ((2,), (2, 32, 32))
    """

    def __init__(
        self,
        *,
        backbone: Any = DEFAULT,
        layers: Sequence[str] | None = ("_blocks.4", "_blocks.10"),
        widths: Sequence[int] = (256, 512),  # d_model
        depth: int = 3,
        heads: int = 8,
        correlations: str = "both",
        weighted: bool = True,
        epochs: int = 40,
        learning_rate: float = 1e-4,
        size: int = 256,
        batch_size: int = 8,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.widths = widths
        self.depth = depth
        self.heads = heads
        self.correlations = correlations
        self.weighted = weighted
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _net(self) -> FodNet:
        if self.correlations not in MODES:
            raise UnknownName("choice of correlations", self.correlations, MODES)
        backbone = Backbone(self.backbone, self.layers)
        if len(self.widths) != len(backbone.layers):
            raise BadInput(
                f"each layer has a transformer of its own width, and there are {len(backbone.layers)} layers and "
                f"{len(self.widths)} widths; give one for each"
            )
        if min(self.depth, self.heads, self.epochs) < 1 or not self.learning_rate > 0:
            raise BadInput(
                "'depth', 'heads' and 'epochs' are at least 1 and 'learning_rate' is above 0, but they are "
                f"{self.depth}, {self.heads}, {self.epochs} and {self.learning_rate:g}"
            )
        odd = [width for width in self.widths if width < 1 or width % math.lcm(4, self.heads)]
        if odd:
            raise BadInput(f"a width is a multiple of 4 and of the {self.heads} heads, and {odd[0]} is not")
        branches, _, weighed_by = MODES[self.correlations]
        with seeded(self.random_state):
            return FodNet(
                backbone,
                self.size,
                self.widths,
                self.depth,
                self.heads,
                branches,
                weighed_by if self.weighted else None,
            )

    def _learn(self, net: FodNet, x_BCHW: Tensor, progress: Progress) -> None:
        place = self._place()
        learned = MODES[self.correlations][1]
        if "inter" in MODES[self.correlations][0]:
            self._remember(net, x_BCHW)
        optimizer = torch.optim.Adam(net.levels.parameters(), lr=self.learning_rate)
        order = torch.Generator().manual_seed(self.random_state)
        self.history_: list[float] = []
        for epoch in range(self.epochs):
            total = torch.zeros((), device=place)
            for rows in torch.randperm(len(x_BCHW), generator=order).split(self.batch_size):
                optimizer.zero_grad()
                for level, x_BLD in zip(net.levels, net.tokens(pixels(x_BCHW[rows].to(place)))):
                    for part_BLD in x_BLD.split(level.at_once):  # a step's gradients are summed part by part
                        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
                            first, second = level.losses(part_BLD, learned)
                        ((first + second) * (len(part_BLD) / len(rows))).backward()
                        total += (first + second).detach() * len(part_BLD)
                optimizer.step()
            self.history_.append(float(total) / len(x_BCHW) / len(net.levels))
            if not math.isfinite(self.history_[-1]):
                raise BadInput(
                    f"the loss is {self.history_[-1]} in epoch {epoch + 1}: lower the learning rate of "
                    f"{self.learning_rate:g}"
                )
            progress((epoch + 1) / self.epochs)

    def _remember(self, net: FodNet, x_BCHW: Tensor) -> None:
        """Take the mean features of all images, position by position, as the reference."""
        for part in x_BCHW.split(self.batch_size):
            for level, x_BLD in zip(net.levels, net.tokens(pixels(part.to(self._place())))):
                level.reference += x_BLD.sum(0) / len(x_BCHW)
