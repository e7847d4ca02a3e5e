"""EfficientAD's networks: patch description networks S and M, the autoencoder, and the whole of them as a detector.

Layers lie in the order of the public re-implementation's, so that published weights of teachers fit by position.

Shape legend: B images, C channels, H and W pixels of an image, h and w places of a map, ``size / 4 - 8`` a side.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput, UnknownName
from farout.image._maps import scaled

CHANNELS = 384  # that the teacher describes a patch with
EDGE = 4  # places that a network without padding loses on each side
LATENT = 64  # channels of the autoencoder's code
VARIANTS = ("S", "M")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, behind which teachers are made


def patch_network(variant: str, outputs: int = CHANNELS, padding: bool = False) -> nn.Sequential:
    """Build a patch description network: a vector for each 33 x 33 pixels, four pixels apart.

    Parameters
    ----------
    variant : {"S", "M"}
    outputs : int
        Channels; a student has twice those of its teacher.
    padding : bool
        Zeros around, so that a side of the map is a quarter of the image's and not eight places less.

    Raises
    ------
    UnknownName
        There is no such variant.

    Examples
    --------
    >>> patch_network("S")(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 384, 8, 8])
    """
    if variant not in VARIANTS:
        raise UnknownName("variant of EfficientAD", variant, VARIANTS)
    one = int(padding)

    def pooled(inputs: int, width: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, width, 4, padding=3 * one), nn.ReLU(), nn.AvgPool2d(2, 2, padding=one)]

    if variant == "S":
        return nn.Sequential(
            *pooled(3, 128),
            *pooled(128, 256),
            nn.Conv2d(256, 256, 3, padding=one),
            nn.ReLU(),
            nn.Conv2d(256, outputs, 4),
        )
    return nn.Sequential(
        *pooled(3, 256),
        *pooled(256, 512),
        nn.Conv2d(512, 512, 1),
        nn.ReLU(),
        nn.Conv2d(512, 512, 3, padding=one),
        nn.ReLU(),
        nn.Conv2d(512, outputs, 4),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1),
    )


def autoencoder(size: int, outputs: int = CHANNELS) -> nn.Sequential:
    """Build the autoencoder: an image to 64 numbers, and these to a map as large as the teacher's.

    At 256 pixels the decoder's sides are 3, 8, 15, 32, 63, 127 and 56, as in the paper; elsewhere they are in
    proportion, and so is the kernel that makes the code.

    Examples
    --------
    >>> autoencoder(64)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 384, 8, 8])
    """
    parts: list[nn.Module] = []
    for inputs, width in pairwise((3, 32, 32, 64, 64, LATENT)):
        parts += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU()]
    parts.append(nn.Conv2d(LATENT, LATENT, size // 32))
    for side in (size // 64 - 1, size // 32, size // 16 - 1, size // 8, size // 4 - 1, size // 2 - 1):
        parts += [
            nn.Upsample(size=max(side, 1), mode="bilinear"),
            nn.Conv2d(LATENT, LATENT, 4, padding=2),
            nn.ReLU(),
            nn.Dropout(0.2),
        ]
    return nn.Sequential(
        *parts,
        nn.Upsample(size=size // 4 - 2 * EDGE, mode="bilinear"),
        nn.Conv2d(LATENT, LATENT, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(LATENT, outputs, 3, padding=1),
    )


class EfficientADNet(nn.Module):
    """Pixels from 0 to 1 in; a score and a map an image out.

    Attributes
    ----------
    teacher, student, autoencoder : nn.Sequential
        The student's first 384 channels imitate the teacher (S_st), the others the autoencoder (S_ae). The teacher's
        outputs are normalised by its own last layer, see :func:`normalise`.
    start, spread : Tensor (2,)
        Of the teacher's and of the autoencoder's map: the value that becomes 0, q_a, and the way from there to the
        value that becomes 0.1, ``q_b - q_a``.
    """

    mean: Tensor
    deviation: Tensor
    start: Tensor
    spread: Tensor

    def __init__(self, variant: str, size: int) -> None:
        super().__init__()
        if size < 64 or size % 32:
            raise BadInput(f"'size' must be a multiple of 32 pixels, and 64 at least, not {size}; take 256")
        self.size = size
        self.teacher = patch_network(variant).requires_grad_(False)
        self.student = patch_network(variant, 2 * CHANNELS)
        self.autoencoder = autoencoder(size)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.register_buffer("start", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))

    def normalised(self, x_BCHW: Tensor) -> Tensor:
        """Return pixels as the three networks take them."""
        return (x_BCHW - self.mean) / self.deviation

    def raw_maps(self, x_BCHW: Tensor) -> Tensor:
        """Return how far the student is from the teacher, and from the autoencoder: float32 (2, B, h, w)."""
        x_BCHW = self.normalised(x_BCHW)
        student = self.student(x_BCHW).float()
        taught = (self.teacher(x_BCHW).float() - student[:, :CHANNELS]).square().mean(1)
        coded = (self.autoencoder(x_BCHW).float() - student[:, CHANNELS:]).square().mean(1)
        return torch.stack([taught, coded])

    def quantile_maps(self, x_BCHW: Tensor) -> Tensor:
        """Return both maps on one scale: 0 at the one quantile of normal images, 0.1 at the other."""
        return 0.1 * (self.raw_maps(x_BCHW) - self.start.view(2, 1, 1, 1)) / self.spread.view(2, 1, 1, 1)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, H, W)."""
        return judged(self.quantile_maps(x_BCHW).mean(0), self.size)


def judged(map_Bhw: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Bring a map to the image, with nothing far out at its edges, and take its largest value as the score."""
    map_BHW = scaled(F.pad(map_Bhw, (EDGE, EDGE, EDGE, EDGE)), (size, size))
    return map_BHW.amax((1, 2)), map_BHW


@torch.no_grad()
def normalise(network: nn.Sequential, mean: Tensor, deviation: Tensor) -> None:
    """Let a network's last layer subtract a mean and divide by a deviation: the same outputs, and no more work.

    Parameters
    ----------
    mean, deviation : Tensor (C,)
        Of the outputs; a channel that does not vary keeps its scale.

    Examples
    --------
    >>> network, x_BCHW = patch_network("S", 2), torch.rand(1, 3, 64, 64)
    >>> before = network(x_BCHW)
    >>> normalise(network, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0]))
    >>> torch.allclose(network(x_BCHW)[:, 0], (before[:, 0] - 1) / 2, atol=1e-6)
    True
    """
    last = network[-1]
    if not isinstance(last, nn.Conv2d) or last.bias is None:
        raise TypeError("the last layer must be a convolution with a bias")
    scale = torch.where(deviation > 0, deviation, 1)
    last.weight.div_(scale[:, None, None, None])
    last.bias.sub_(mean).div_(scale)


def hard_loss(distance: Tensor, hard: float = 0.999) -> Tensor:
    """Return the mean of the distances that reach their own quantile.

    As many are taken as lie at or above the quantile that ``torch.quantile`` interpolates, found by the largest
    values instead of a sort. At 0 it is the plain mean.

    Parameters
    ----------
    distance : Tensor
        Of any shape.
    hard : float
        p_hard, at least 0 and below 1.

    Examples
    --------
    >>> hard_loss(torch.arange(10.0), 0.8), hard_loss(torch.arange(10.0), 0)
    (tensor(8.5000), tensor(4.5000))
    """
    values = distance.flatten()
    below = math.ceil(round(hard * (len(values) - 1), 6))
    return values.topk(len(values) - below, sorted=False).values.mean() if below else values.mean()


def losses(
    net: EfficientADNet, x_BCHW: Tensor, jittered_BCHW: Tensor, penalty_BCHW: Tensor | None, hard: float
) -> dict[str, Tensor]:
    """Return the losses of a step by name, to be added: L_hard, L_AE, L_STAE, and the penalty where there is one.

    All images go through a network at once, which changes nothing, since no layer mixes them.

    Parameters
    ----------
    x_BCHW, jittered_BCHW : Tensor
        Normal images, and copies with other colours; pixels from 0 to 1.
    penalty_BCHW : Tensor, optional
        Images of anything else.
    hard : float
    """
    n = len(x_BCHW)
    both = net.normalised(torch.cat([x_BCHW, jittered_BCHW]))
    seen = both if penalty_BCHW is None else torch.cat([both, net.normalised(penalty_BCHW)])
    with torch.no_grad():
        teacher = net.teacher(both).float()
    taught, coded = net.student(seen).float().split(CHANNELS, 1)
    code = net.autoencoder(both[n:]).float()
    found = {
        "hard": hard_loss((teacher[:n] - taught[:n]).square(), hard),
        "autoencoder": F.mse_loss(code, teacher[n:]),
        "student_autoencoder": F.mse_loss(coded[n : 2 * n], code),  # also moves the autoencoder, as in the code
    }
    if penalty_BCHW is not None:
        found["penalty"] = taught[2 * n :].square().mean()
    return found
