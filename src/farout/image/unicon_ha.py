"""UniCon-HA: Unilaterally Aggregated Contrastive Learning with Hierarchical Augmentation for Anomaly Detection.

Guodong Wang, Yunhong Wang, Jie Qin, Dongming Zhang, Xiuguo Bao, Di Huang, ICCV 2023 (arXiv 2308.10155).

Normal images should lie close together, and what is not normal should lie anywhere else. So a network is trained from
scratch to pull all views of normal images together (supervised contrast with one class), and to push virtual outliers,
turned copies of them, apart one by one (contrast of instances). Views that drift away from the others count for less
as something to be pulled to (soft aggregation). Shallow stages see weakly changed views and deep ones strongly changed
views, each with a head of its own (hierarchical augmentation). An image is scored by its nearest neighbour.

The paper claims, with a ResNet-18 and one class of CIFAR-10 after the other as normal, a mean AUROC of 95.4 (CSI 94.3),
of 92.4 on the 20 super-classes of CIFAR-100 (89.6) and of 93.2 on ImageNet-30 (91.6).

There is no official code, and this is written in the manner of the paper as a digest gives it. Our choices:

- The numbers of the four strengths of augmentation; the deepest has those of SimCLR and CSI.
- Soft weights are of the positives alone, and sum to one over those of each anchor; anchors weigh alike. They are taken
  at every stage, from the views of one batch.
- Each strength is a pass of its own, up to the stage that it belongs to; all share the batch norms.
- 100 epochs by default, where the paper has 2,048.
- Rotation is right where turned objects are strange. For material that looks alike from all sides there are copies
  with a part pasted elsewhere (cutpaste) or with quarters in another order (permute).
- Without outlier exposure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image._unicon_ha_losses import inlier_loss, outlier_loss, soft_weights
from farout.image._unicon_ha_net import DIMENSIONS, Nearest, Stages
from farout.kit.augment import cut_and_paste, quarter_turns, shuffled_quarters, two_views
from farout.kit.fitting import fit
from farout.kit.training import seeded

__all__ = ["UniConHA", "inlier_loss", "outlier_loss", "soft_weights"]

OUTLIERS = ("rotation", "cutpaste", "permute")
PULLED = ("inliers", "none", "both")
COPIES = 3  # virtual outliers of an image
# Of the four stages, from weak to strong.
STRENGTHS = (
    {"least_area": 0.75, "strength": 0.125, "jitter": 0.2, "grey": 0.05},
    {"least_area": 0.54, "strength": 0.25, "jitter": 0.4, "grey": 0.1},
    {"least_area": 0.3, "strength": 0.375, "jitter": 0.6, "grey": 0.15},
    {"least_area": 0.08, "strength": 0.5, "jitter": 0.8, "grey": 0.2},
)


@paper(
    "UniCon-HA",
    title="Unilaterally Aggregated Contrastive Learning with Hierarchical Augmentation for Anomaly Detection",
    authors="Wang, Wang, Qin, Zhang, Bao, Huang",
    year=2023,
    arxiv="2308.10155",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="ResNet-18 from scratch, mean AUROC of one-class CIFAR-10 95.4 (CSI 94.3), CIFAR-100 92.4 (89.6), "
    "ImageNet-30 93.2 (91.6).",
    differs="No official code: strengths of augmentation, where soft weights stand and passes by strength are choices; "
    "100 epochs by default instead of 2,048; cutpaste and permuted quarters as further outliers; no outlier exposure.",
)
class UniConHA(ImageDetector):
    """Distance to the nearest normal image, by a network that was trained to draw normal images together.

    For small images; the network is trained from scratch, in minutes on a GPU. There are no maps.

    Parameters
    ----------
    width : int
        Channels of the first stage of the ResNet-18; 64 is the paper's.
    outliers : {"rotation", "cutpaste", "permute"}
        What is done to normal images to make virtual outliers of them, three of each.
    pulled : {"inliers", "none", "both"}
        What is pulled together. The method pulls normal images. With ``"none"`` all views are told apart (SimCLR), with
        ``"both"`` outliers are a class as well (supervised contrast of two classes): to compare.
    soft : bool
        Soft aggregation of normal views.
    hierarchical : bool
        A loss at each of the four stages, with a strength of augmentation of its own; else only the last of them.
    labelled : bool
        Whether ``y`` holds classes of normal images: each is then pulled together by itself. Without, all normal
        images are pulled together, whatever classes they show.
    temperature, soft_temperature : float
    epochs : int
    learning_rate : float
        The highest, of SGD; it falls along half a cosine.
    size, batch_size : int
        A batch of training images has eight views of each.
    device : str
        On a GPU it trains in bfloat16.
    random_state : int

    Raises
    ------
    UnknownName
        ``outliers`` or ``pulled`` is something else.

    Notes
    -----
    The score is minus the largest cosine to a training image, from -1 to 1. All of them are kept.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8)
    >>> detector = UniConHA(width=2, epochs=1, size=16, batch_size=6).fit(images)
    >>> detector.outlier_score(images[:2]).round(4).tolist()
    [-1.0, -1.0]
    """

    net_: Nearest

    def __init__(
        self,
        *,
        width: int = 64,
        outliers: str = "rotation",
        pulled: str = "inliers",
        soft: bool = True,
        hierarchical: bool = True,
        labelled: bool = False,
        temperature: float = 0.5,  # tau
        soft_temperature: float = 0.5,  # tau_omega
        epochs: int = 100,
        learning_rate: float = 0.01,
        size: int = 32,
        batch_size: int = 128,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.width = width
        self.outliers = outliers
        self.pulled = pulled
        self.soft = soft
        self.hierarchical = hierarchical
        self.labelled = labelled
        self.temperature = temperature
        self.soft_temperature = soft_temperature
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit_score(self, X: Any, y: Any = None, progress: Progress | None = None) -> np.ndarray:
        """Fit, and return the scores of the training images, each compared with the others.

        Parameters
        ----------
        X : folder, list of paths, arrays or images, array or tensor
            Normal images only.
        y : array (n,), optional
            Their classes, if ``labelled``; else ignored.
        progress : callable, optional

        Returns
        -------
        float64 array (n,)

        Raises
        ------
        BadInput
            There are too few images, one cannot be read, or classes are missing or not as many.
        """
        for what, word, known in (("outliers", self.outliers, OUTLIERS), ("pulled", self.pulled, PULLED)):
            if word not in known:
                raise UnknownName(f"choice of '{what}'", word, known)
        if self.labelled and y is None:
            raise BadInput("'labelled' detectors need the classes of the images: fit(X, y)")
        self._classes = np.unique(np.asarray(y), return_inverse=True)[1].ravel() if self.labelled else None
        try:
            super().fit_score(X, y, progress)
        finally:
            del self._classes
        scores = self.net_.apart().double().cpu().numpy()
        self._set_offset(scores)
        return scores

    def _net(self) -> Nearest:
        return Nearest(self.width, self.random_state)

    def _learn(self, net: Nearest, x_BCHW: Tensor, progress: Progress) -> None:
        labels = torch.zeros(len(x_BCHW), dtype=torch.int64)
        if self._classes is not None:
            labels = torch.from_numpy(self._classes)
        if len(labels) != len(x_BCHW):
            raise BadInput(f"there are {len(x_BCHW)} images and {len(labels)} classes; give one of each image")
        place = self._place()
        with seeded(self.random_state):
            stages = Stages(net.encoder, self.hierarchical).to(place)
        fit(
            stages,
            self._step,
            (x_BCHW.to(place), labels.to(place)),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            augment=self._views,
            seed=self.random_state,
            amp=place.type == "cuda",
            progress=progress,
        )
        with torch.no_grad():
            net.bank = torch.cat([net.features(pixels(part.to(place))) for part in x_BCHW.split(self.batch_size)])

    def _views(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Draw for each strength two views of all images and of all their outliers (strengths, 2 * 4 * B, C, H, W)."""
        x_BCHW = pixels(x_BCHW)
        if self.outliers == "rotation":
            strange = quarter_turns(x_BCHW)
        else:
            change = cut_and_paste if self.outliers == "cutpaste" else shuffled_quarters
            strange = change(x_BCHW.repeat(COPIES, 1, 1, 1), generator)
        x_BCHW = torch.cat([x_BCHW, strange])
        strengths = STRENGTHS if self.hierarchical else STRENGTHS[-1:]
        return torch.stack([torch.cat(two_views(x_BCHW, generator, **strength)) for strength in strengths])

    def _step(self, stages: Stages, x_SBCHW: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of each stage, whose mean is what the method minimises."""
        embedded = stages(x_SBCHW)
        return {f"stage {stage}": self._loss(z, labels) / len(embedded) for stage, z in embedded.items()}

    def _loss(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of the views of one strength, in the order of ``_views``."""
        z = normalize(z.float(), dim=1).view(2, -1, DIMENSIONS)
        usual, strange = (part.flatten(0, 1) for part in z.split([len(labels), COPIES * len(labels)], 1))
        labels = labels.repeat(2)
        if self.pulled == "none":
            return outlier_loss(z[:0, 0], z.flatten(0, 1), self.temperature).mean()
        if self.pulled == "both":
            classes = torch.cat([labels, torch.full_like(labels[:1], -1).expand(len(strange))])
            return inlier_loss(torch.cat([usual, strange]), strange[:0], classes, None, self.temperature).mean()
        weights = soft_weights(usual, labels, self.soft_temperature) if self.soft else None
        inside = inlier_loss(usual, strange, labels, weights, self.temperature)
        return torch.cat([inside, outlier_loss(usual, strange, self.temperature)]).mean()
