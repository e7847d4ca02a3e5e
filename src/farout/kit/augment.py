"""Random changes of images that leave their class as it is; loads torch, so import it lazily.

All numbers are drawn on the CPU from the generator that is given, so that a seed means the same images on every device.

Shape legend: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from farout.errors import BadInput

__all__ = ["crop_and_flip", "two_views"]

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


def crop_and_flip(x_BCHW: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image by up to ``pad`` pixels with zeros around it, and mirror half of them.

    Parameters
    ----------
    x_BCHW : tensor (B, C, H, W)
        Zeros come in at the edges: black where pixels are 0 to 1, the mean colour where they are normalised.
    generator : torch.Generator
        Of the CPU.
    pad : int

    Returns
    -------
    tensor (B, C, H, W)

    Examples
    --------
    >>> crop_and_flip(torch.ones(1, 1, 2, 2), torch.Generator().manual_seed(0), pad=0)
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    B, C, H, W = x_BCHW.shape
    top, left = (torch.randint(2 * pad + 1, (B, 1), generator=generator) for _ in "yx")
    mirrored = torch.rand(B, 1, generator=generator) < 0.5
    columns = torch.arange(W)
    rows_BH = top + torch.arange(H)
    columns_BW = left + torch.where(mirrored, columns.flip(0), columns)
    rows_BH, columns_BW = rows_BH.to(x_BCHW.device), columns_BW.to(x_BCHW.device)
    images = torch.arange(B, device=x_BCHW.device)[:, None, None, None]
    channels = torch.arange(C, device=x_BCHW.device)[None, :, None, None]
    padded = F.pad(x_BCHW, (pad, pad, pad, pad))
    return padded[images, channels, rows_BH[:, None, :, None], columns_BW[:, None, None, :]]


def two_views(
    x_BCHW: Tensor, generator: torch.Generator, *, least_area: float = 0.2, strength: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return two independent views of each image, by the changes of SimCLR (Chen et al., ICML 2020) for small images.

    A part of the image is scaled to its size, mirrored half of the time; with chance 0.8 brightness, contrast,
    saturation and hue change; with chance 0.2 it turns grey. Nothing is blurred, as in SimCLR on CIFAR. Unlike there,
    colours change in that order always, and a part that does not fit is cut to the image and not drawn again.

    Parameters
    ----------
    x_BCHW : tensor (B, 3, H, W)
        Pixels of 0 to 1.
    generator : torch.Generator
        Of the CPU.
    least_area : float
        Smallest share of the area of the image that a view shows, in (0, 1].
    strength : float
        Of the changes of colour: factors lie in 1 -+ 0.8 strength, hues turn by up to 0.2 strength.

    Returns
    -------
    tuple of two tensors (B, 3, H, W)
        Pixels of 0 to 1.

    Raises
    ------
    BadInput
        Images without three channels, or ``least_area`` outside (0, 1].

    Examples
    --------
    >>> a, b = two_views(torch.rand(4, 3, 32, 32), torch.Generator().manual_seed(0))
    >>> a.shape, bool(torch.equal(a, b))
    (torch.Size([4, 3, 32, 32]), False)
    """
    if x_BCHW.ndim != 4 or x_BCHW.shape[1] != 3:
        raise BadInput(f"views change colours and need images (B, 3, H, W); the shape is {tuple(x_BCHW.shape)}")
    if not 0 < least_area <= 1:
        raise BadInput(f"'least_area' must be above 0 and at most 1; it is {least_area}")
    first, second = (_view(x_BCHW, generator, least_area, strength) for _ in "ab")
    return first, second


def _view(x_BCHW: Tensor, generator: torch.Generator, least_area: float, strength: float) -> Tensor:
    x_BCHW = _part(x_BCHW, generator, least_area)

    def drawn(chance: float) -> Tensor:
        return (torch.rand(len(x_BCHW), generator=generator) < chance).to(x_BCHW.device).view(-1, 1, 1, 1)

    changed = torch.where(drawn(0.8), _jitter(x_BCHW, generator, strength), x_BCHW)
    return torch.where(drawn(0.2), _grey(changed).expand_as(changed), changed)


def _part(x_BCHW: Tensor, generator: torch.Generator, least_area: float) -> Tensor:
    """Scale a random part of each image to the whole size, mirrored half of the time."""
    B = len(x_BCHW)
    area, ratio, x, y, mirror = torch.rand(5, B, generator=generator)
    share = least_area + (1 - least_area) * area
    stretch = (4 / 3) ** (2 * ratio - 1)  # width over height of the part, even on a log scale
    width, height = (share * stretch).sqrt().clamp(max=1), (share / stretch).sqrt().clamp(max=1)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = torch.where(mirror < 0.5, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    grid = F.affine_grid(theta.to(x_BCHW), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


def _jitter(x_BCHW: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image."""
    drawn = (2 * torch.rand(4, len(x_BCHW), 1, 1, 1, generator=generator) - 1).to(x_BCHW)
    brightness, contrast, saturation = 1 + 0.8 * strength * drawn[:3]
    x_BCHW = (brightness * x_BCHW).clamp(0, 1)
    mean = _grey(x_BCHW).mean((2, 3), keepdim=True)
    x_BCHW = (mean + contrast * (x_BCHW - mean)).clamp(0, 1)
    grey = _grey(x_BCHW)
    x_BCHW = (grey + saturation * (x_BCHW - grey)).clamp(0, 1)
    return _turned(x_BCHW, 0.2 * strength * drawn[3])


def _grey(x_BCHW: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W)."""
    return (x_BCHW * torch.tensor(GREY, device=x_BCHW.device, dtype=x_BCHW.dtype).view(3, 1, 1)).sum(1, keepdim=True)


def _turned(x_BCHW: Tensor, turn: Tensor) -> Tensor:
    """Turn hues by a share of the circle; value and saturation of HSV stay."""
    value, place = x_BCHW.max(1, keepdim=True)
    chroma = value - x_BCHW.amin(1, keepdim=True)
    red, green, blue = x_BCHW.split(1, 1)
    safe = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(place == 0, (green - blue) / safe, torch.where(place == 1, 2 + (blue - red) / safe, 0))
    sixth = torch.where(place == 2, 4 + (red - green) / safe, sixth) + 6 * turn.view(-1, 1, 1, 1)
    k = (sixth + torch.tensor([5.0, 3.0, 1.0], device=x_BCHW.device).to(x_BCHW).view(3, 1, 1)) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
