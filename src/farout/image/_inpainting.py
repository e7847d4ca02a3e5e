"""Reconstruction by inpainting with one fixed mask, and without a mask: the bases of FADeR, all of them our choice.

A U-Net paints images anew. With a mask, it sees the image twice, each time without the half that the other time shows,
and every pixel is taken from the pass that did not see it. What differs from the image in the magnitudes of gradients,
at several scales, is far out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.image._maps import blurred

BASES = ("checkerboard", "grating", "reconstruction")
SCALES = 4  # of gradient magnitudes, each half as fine as the one before
GRADIENT_SLACK = 0.0026  # of gradient magnitudes of pixels from 0 to 1, as the similarity's authors have it
WINDOW, DEVIATION = 11, 1.5  # pixels, of structural similarity
GROUPS = 8  # of channels that are normalised together

FLOOR = 0.05  # of what attenuation lets through: with less, edges would be painted without detail

Gates = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class UNet(nn.Module):
    """Images (B, 3, H, W) in, images with pixels from 0 to 1 out; sides are multiples of ``2 ** (depths - 1)``.

    Parameters
    ----------
    widths : sequence of int
        Channels at each depth, multiples of 8.

    Examples
    --------
    >>> UNet((8, 16))(torch.rand(1, 3, 8, 12)).shape
    torch.Size([1, 3, 8, 12])
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(before, after) for before, after in zip([3, *widths], widths))
        self.up = nn.ModuleList(_block(deep + skip, skip) for skip, deep in pairwise(widths))
        self.out = nn.Conv2d(widths[0], 3, 1)

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the features at each depth, finest first; all but the last go over skip connections."""
        features: list[Tensor] = []
        for block in self.down:
            features.append(block(F.max_pool2d(features[-1], 2) if features else x_BCHW))
        return features

    def decode(self, features: Sequence[Tensor], shares: Sequence[Tensor] | None = None) -> Tensor:
        """Paint an image from features.

        Parameters
        ----------
        features : sequence of tensor
            From :meth:`encode`.
        shares : sequence of tensor (B, 1, h, w), optional
            What of each skip connection is let through.
        """
        hidden = features[-1]
        for depth in reversed(range(len(self.up))):
            skip = features[depth] if shares is None else shares[depth] * features[depth]
            hidden = self.up[depth](torch.cat([F.interpolate(hidden, scale_factor=2.0), skip], 1))
        return torch.sigmoid(self.out(hidden))

    def forward(self, x_BCHW: Tensor, gates: Gates | None = None) -> Tensor:
        """Paint an image; ``gates`` tells from the skip connections' features what of them is let through."""
        features = self.encode(x_BCHW)
        return self.decode(features, None if gates is None else gates(features[:-1]))


class Attenuation(nn.Module):
    """Tells from each patch's features alone how much of them is let through, at each skip connection.

    Parameters
    ----------
    widths : sequence of int
        Channels of each.
    hidden : int

    Examples
    --------
    >>> gates = Attenuation([8, 16], hidden=4)
    >>> [tuple(share.shape) for share in gates([torch.rand(1, 8, 4, 4), torch.rand(1, 16, 2, 2)])]
    [(1, 1, 4, 4), (1, 1, 2, 2)]
    >>> sum(weight.numel() for weight in gates.parameters()) == 8 * 4 + 2 * 4 + 1 + 16 * 4 + 2 * 4 + 1
    True
    """

    def __init__(self, widths: Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1)) for width in widths
        )

    def logits(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """Return what the sigmoid is taken of, (B, 1, h, w) each."""
        return [perceptron(f_BCHW) for perceptron, f_BCHW in zip(self.perceptrons, skips)]

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """Return shares between 0.05 and 1, (B, 1, h, w) each."""
        return [FLOOR + (1 - FLOOR) * torch.sigmoid(logit) for logit in self.logits(skips)]


class Painter(nn.Module):
    """Images in, scores and maps out.

    Parameters
    ----------
    base : {"checkerboard", "grating", "reconstruction"}
    size : int
    cell : int
        Pixels a side of the checkerboard's squares, or across the grating's stripes.
    widths : sequence of int
    smoothing : float
        Deviation of the Gaussian that maps are smoothed with, in pixels.
    gates : Attenuation, optional
        Of the skip connections.
    """

    hidden: Tensor

    def __init__(
        self, base: str, size: int, cell: int, widths: Sequence[int], smoothing: float, gates: Attenuation | None = None
    ) -> None:
        super().__init__()
        self.unet, self.gates, self.smoothing = UNet(widths), gates, smoothing
        self.register_buffer("hidden", fixed_masks(base, size, cell), persistent=False)

    def painted(self, x_BCHW: Tensor, gated: bool = True) -> Tensor:
        """Paint images anew, every pixel by the pass that did not see it."""
        gates = self.gates if gated else None
        if not len(self.hidden):
            return self.unet(x_BCHW, gates)
        hidden = self.hidden[:, None]
        both_PBCHW = self.unet((x_BCHW * (1 - hidden)).flatten(0, 1), gates).unflatten(0, (2, -1))
        return (hidden * both_PBCHW).sum(0)

    def half_seen(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Hide one of the two halves, drawn for each image; nothing without a mask."""
        if not len(self.hidden):
            return x_BCHW
        chosen = torch.randint(2, (len(x_BCHW),), generator=generator).to(x_BCHW.device)
        return x_BCHW * (1 - self.hidden[chosen])

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, size, size)."""
        painted_BCHW = self.painted(x_BCHW).float()
        map_BHW = blurred(gradient_difference(x_BCHW.float(), painted_BCHW), self.smoothing)
        return map_BHW.amax((1, 2)), map_BHW


def fixed_masks(base: str, size: int, cell: int) -> Tensor:
    """Return both halves of a mask, 1 where a pixel is hidden: (2, 1, size, size), or (0, 1, size, size) without one.

    Examples
    --------
    >>> fixed_masks("checkerboard", 4, 2)[0, 0].int().tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    >>> fixed_masks("grating", 4, 1)[1, 0, 0].int().tolist()
    [1, 0, 1, 0]
    """
    if base == "reconstruction":
        return torch.zeros(0, 1, size, size)
    odd = torch.arange(size) // cell % 2
    first = (odd[:, None] + odd) % 2 if base == "checkerboard" else odd.expand(size, size)
    return torch.stack([first, 1 - first])[:, None].float()


def painting_loss(x_BCHW: Tensor, painted_BCHW: Tensor) -> Tensor:
    """Return the mean squared error, plus one minus the structural similarity, plus the gradients' difference."""
    squared = F.mse_loss(painted_BCHW, x_BCHW)
    return squared + 1 - structural_similarity(x_BCHW, painted_BCHW) + gradient_difference(x_BCHW, painted_BCHW).mean()


def structural_similarity(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return the mean similarity of luminance, contrast and structure in Gaussian windows that lie within the image.

    Images are compared in grey.

    Examples
    --------
    >>> x = torch.rand(1, 3, 16, 16)
    >>> float(structural_similarity(x, x))
    1.0
    """
    place = torch.arange(WINDOW, dtype=x_BCHW.dtype, device=x_BCHW.device) - WINDOW // 2
    weight = (-(place / DEVIATION).square() / 2).softmax(0)
    x, y = x_BCHW.mean(1, keepdim=True), y_BCHW.mean(1, keepdim=True)
    moments = torch.cat([x, y, x.square(), y.square(), x * y])
    averaged = F.conv2d(F.conv2d(moments, weight[None, None, :, None]), weight[None, None, None])
    mean_x, mean_y, square_x, square_y, product = averaged.unflatten(0, (5, -1))
    var_x, var_y, both = square_x - mean_x.square(), square_y - mean_y.square(), product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
    return (luminance * (2 * both + 0.03**2) / (var_x + var_y + 0.03**2)).mean()


def gradient_difference(x_BCHW: Tensor, y_BCHW: Tensor, scales: int = SCALES) -> Tensor:
    """Return one minus the similarity of gradient magnitudes, the mean over scales (B, H, W), from 0 to 1.

    Images are compared in grey, and halved from scale to scale as long as a side has two pixels.
    """
    x, y, found = x_BCHW.mean(1, keepdim=True), y_BCHW.mean(1, keepdim=True), []
    for _ in range(scales):
        a, b = _gradient(x), _gradient(y)
        apart = 1 - (2 * a * b + GRADIENT_SLACK) / (a.square() + b.square() + GRADIENT_SLACK)
        size = (x_BCHW.shape[2], x_BCHW.shape[3])
        found.append(F.interpolate(apart, size, mode="bilinear", align_corners=False))
        if min(x.shape[2:]) < 2:
            break
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return torch.cat(found, 1).mean(1)


def _gradient(x_B1HW: Tensor) -> Tensor:
    """Return the magnitude of Prewitt's gradient; edge pixels are repeated."""
    x = F.pad(x_B1HW, (1, 1, 1, 1), mode="replicate")
    right, down = x[..., 2:] - x[..., :-2], x[..., 2:, :] - x[..., :-2, :]
    right = (right[..., :-2, :] + right[..., 1:-1, :] + right[..., 2:, :]) / 3
    down = (down[..., :-2] + down[..., 1:-1] + down[..., 2:]) / 3
    return (right.square() + down.square() + 1e-12).sqrt()  # the slope of a root is infinite at 0


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, 1, 1), nn.GroupNorm(GROUPS, after), nn.ReLU()]
    return nn.Sequential(*layers)
