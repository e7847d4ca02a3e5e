"""Random changes of images that leave their class as it is; loads torch, so import it lazily.

All numbers are drawn on the CPU from the generator that is given, so that a seed means the same images on every device.

Shape legend: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from farout.errors import BadInput

__all__ = ["colour_jitter", "crop_and_flip", "cut_and_paste", "quarter_turns", "shuffled_quarters", "two_views"]

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
SHUFFLES = tuple(permutations(range(4)))[1:]  # of quarters, without the order that they have


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
    x_BCHW: Tensor,
    generator: torch.Generator,
    *,
    least_area: float = 0.2,
    strength: float = 0.5,
    jitter: float = 0.8,
    grey: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """Return two independent views of each image, by the changes of SimCLR (Chen et al., ICML 2020) for small images.

    A part of the image is scaled to its size, mirrored half of the time; brightness, contrast, saturation and hue
    change with one chance, and it turns grey with another. Nothing is blurred, as in SimCLR on CIFAR. Unlike there,
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
    jitter, grey : float
        Chances that colours change, and that they are lost.

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
    first, second = (_view(x_BCHW, generator, least_area, strength, jitter, grey) for _ in "ab")
    return first, second


def colour_jitter(x_BCHW: Tensor, generator: torch.Generator, *, strength: float = 0.5, chance: float = 0.8) -> Tensor:
    """Change brightness, contrast, saturation and hue of some images, as :func:`two_views` does.

    Parameters
    ----------
    x_BCHW : tensor (B, 3, H, W)
        Pixels of 0 to 1.
    generator : torch.Generator
        Of the CPU.
    strength, chance : float
        Of a change.

    Returns
    -------
    tensor (B, 3, H, W)

    Examples
    --------
    >>> x_BCHW = torch.full((4, 3, 2, 2), 0.5)
    >>> bool(torch.equal(colour_jitter(x_BCHW, torch.Generator().manual_seed(0), chance=0.0), x_BCHW))
    True
    """
    drawn = _drawn(x_BCHW, generator, chance)
    return torch.where(drawn, _jitter(x_BCHW, generator, strength), x_BCHW)


def quarter_turns(x_BCHW: Tensor) -> Tensor:
    """Turn square images by 90, 180 and 270 degrees.

    Returns
    -------
    tensor (3 B, C, H, H)
        First all images by 90 degrees, then by 180, then by 270.

    Examples
    --------
    >>> quarter_turns(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))[0, 0]
    tensor([[2., 4.],
            [1., 3.]])
    """
    return torch.cat([torch.rot90(x_BCHW, k, (2, 3)) for k in (1, 2, 3)])


def cut_and_paste(
    x_BCHW: Tensor, generator: torch.Generator, *, areas: tuple[float, float] = (0.02, 0.15), stretch: float = 3.3
) -> Tensor:
    """Copy a rectangle of each image to another place in it, as CutPaste (Li et al., CVPR 2021) does.

    Parameters
    ----------
    x_BCHW : tensor (B, C, H, W)
    generator : torch.Generator
        Of the CPU.
    areas : (float, float)
        Smallest and largest share of the image, even between them.
    stretch : float
        Largest ratio of the sides, either way, even on a log scale.

    Returns
    -------
    tensor (B, C, H, W)

    Examples
    --------
    >>> x_BCHW = torch.rand(2, 3, 16, 16)
    >>> changed = (cut_and_paste(x_BCHW, torch.Generator().manual_seed(0)) != x_BCHW).any(1)
    >>> bool(changed.flatten(1).any(1).all()), bool(changed.float().mean() < 0.2)
    (True, True)
    """
    B, C, H, W = x_BCHW.shape
    area, ratio, *corners = torch.rand(6, B, generator=generator)
    share = areas[0] + (areas[1] - areas[0]) * area
    sides = stretch ** (2 * ratio - 1)
    height = ((share / sides).sqrt() * H).round().clamp(1, H)
    width = ((share * sides).sqrt() * W).round().clamp(1, W)
    rows_BH, columns_BW = torch.arange(H).expand(B, H), torch.arange(W).expand(B, W)
    from_y, to_y = (((H + 1 - height) * corner).long()[:, None] for corner in corners[:2])
    from_x, to_x = (((W + 1 - width) * corner).long()[:, None] for corner in corners[2:])
    tall_BH = (rows_BH >= to_y) & (rows_BH < to_y + height[:, None])
    broad_BW = (columns_BW >= to_x) & (columns_BW < to_x + width[:, None])
    inside_BHW = tall_BH[:, :, None] & broad_BW[:, None]
    read_y = torch.where(inside_BHW, (rows_BH - to_y + from_y)[:, :, None], rows_BH[:, :, None])
    read_x = torch.where(inside_BHW, (columns_BW - to_x + from_x)[:, None], columns_BW[:, None])
    places = (read_y * W + read_x).view(B, 1, H * W).to(x_BCHW.device)
    return x_BCHW.flatten(2).gather(2, places.expand(B, C, H * W)).view(B, C, H, W)


def shuffled_quarters(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Bring the quarters of each image into another order: one of the 23 that are not its own.

    Parameters
    ----------
    x_BCHW : tensor (B, C, H, W)
        Height and width are even.
    generator : torch.Generator
        Of the CPU.

    Returns
    -------
    tensor (B, C, H, W)

    Raises
    ------
    BadInput
        Height or width is odd.

    Examples
    --------
    >>> x_BCHW = torch.arange(4.0).view(1, 1, 2, 2)
    >>> x_BCHW = shuffled_quarters(x_BCHW, torch.Generator().manual_seed(0))
    >>> sorted(x_BCHW.flatten().tolist()), x_BCHW.flatten().tolist() == [0, 1, 2, 3]
    ([0.0, 1.0, 2.0, 3.0], False)
    """
    B, C, H, W = x_BCHW.shape
    if H % 2 or W % 2:
        raise BadInput(f"quarters need an even height and width, not {H} x {W}; scale the images")
    order = torch.tensor(SHUFFLES)[torch.randint(len(SHUFFLES), (B,), generator=generator)].to(x_BCHW.device)
    quarters = x_BCHW.view(B, C, 2, H // 2, 2, W // 2).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, 4, C, h, w)
    moved = quarters[torch.arange(B, device=x_BCHW.device)[:, None], order].unflatten(1, (2, 2))
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


def _view(
    x_BCHW: Tensor, generator: torch.Generator, least_area: float, strength: float, jitter: float, grey: float
) -> Tensor:
    x_BCHW = colour_jitter(_part(x_BCHW, generator, least_area), generator, strength=strength, chance=jitter)
    return torch.where(_drawn(x_BCHW, generator, grey), _grey(x_BCHW).expand_as(x_BCHW), x_BCHW)


def _drawn(x_BCHW: Tensor, generator: torch.Generator, chance: float) -> Tensor:
    """Draw which images are changed (B, 1, 1, 1)."""
    return (torch.rand(len(x_BCHW), generator=generator) < chance).to(x_BCHW.device).view(-1, 1, 1, 1)


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
