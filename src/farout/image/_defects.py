"""Synthetic defects of graded strength: a piece pasted elsewhere, a blob of noise, a scratch.

Each takes an image, and returns it changed, with a mask that is true for the changed pixels and no others. All that is
drawn comes from the generator, one of the CPU, so that a seed means the same defects everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from farout.errors import BadInput, UnknownName

__all__ = ["KINDS", "cut_paste", "drawn_defect", "drawn_defects", "noise_blob", "scratch"]

SMALLEST, LARGEST = 1 / 16, 1 / 4  # of a defect, in shares of the image's side
TRIES = 10  # until a defect changes a pixel: a piece of an even background is pasted without a trace


def cut_paste(x_CHW: Tensor, generator: torch.Generator, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the image somewhere else in it.

    Parameters
    ----------
    x_CHW : tensor (C, H, W)
        Bytes, or floats from 0 to 1.
    generator : torch.Generator
    strength : float
        How far pixels go from what they were (0) to what the defect makes of them (1).

    Returns
    -------
    changed : tensor (C, H, W)
        Of the same type.
    mask : bool tensor (H, W)
        Where it differs from the image.

    Raises
    ------
    BadInput
        The strength is not between 0 and 1, or the image is no image.

    Examples
    --------
    >>> image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    >>> changed, mask = cut_paste(image, torch.Generator().manual_seed(0))
    >>> bool(((changed != image)[0] == mask).all())
    True
    """
    _check(x_CHW)
    sides = [_side(length, generator) for length in x_CHW.shape[1:]]
    top, left, to_top, to_left = (
        int(_between(0, length - side + 1, generator)) for _ in range(2) for length, side in zip(x_CHW.shape[1:], sides)
    )
    other_CHW = x_CHW.clone()
    piece = x_CHW[:, top : top + sides[0], left : left + sides[1]]
    other_CHW[:, to_top : to_top + sides[0], to_left : to_left + sides[1]] = piece
    return _moved(x_CHW, _floats(other_CHW), strength)


def noise_blob(x_CHW: Tensor, generator: torch.Generator, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fill a blob with an uneven edge by grey noise; parameters and results are those of :func:`cut_paste`.

    Examples
    --------
    >>> changed, mask = noise_blob(torch.zeros(3, 32, 32), torch.Generator().manual_seed(0))
    >>> 0 < int(mask.sum()) < 32 * 32 / 4
    True
    """
    y, x = _centred(x_CHW, generator)
    radii = [_side(length, generator) / 2 for length in x_CHW.shape[1:]]
    coarse = torch.rand(1, 1, 5, 5, generator=generator)
    uneven = F.interpolate(coarse, tuple(x_CHW.shape[1:]), mode="bilinear", align_corners=True)[0, 0].to(x_CHW.device)
    inside = (y / radii[0]).square() + (x / radii[1]).square() < (0.5 + uneven).square()
    noise = torch.rand(tuple(x_CHW.shape[1:]), generator=generator).to(x_CHW.device)
    return _moved(x_CHW, torch.where(inside, noise, _floats(x_CHW)), strength)


def scratch(x_CHW: Tensor, generator: torch.Generator, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw a thin bent line, black or white; parameters and results are those of :func:`cut_paste`.

    Examples
    --------
    >>> changed, mask = scratch(torch.full((3, 32, 32), 0.5), torch.Generator().manual_seed(0))
    >>> changed.unique().tolist() in ([0.0, 0.5], [0.5, 1.0])
    True
    """
    y, x = _centred(x_CHW, generator)
    angle = float(_between(0, math.pi, generator))
    along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    side = min(x_CHW.shape[1:])
    length, width = float(_between(side / 6, side / 2, generator)), float(_between(1, 1 + side / 64, generator))
    bend = float(_between(-0.3, 0.3, generator)) / length
    inside = (along.abs() <= length / 2) & ((across - bend * along.square()).abs() <= width / 2)
    shade = torch.randint(2, (), generator=generator).to(x_CHW.device)
    return _moved(x_CHW, torch.where(inside, shade, _floats(x_CHW)), strength)


KINDS = {"cut-paste": cut_paste, "noise": noise_blob, "scratch": scratch}


def drawn_defect(
    x_CHW: Tensor, generator: torch.Generator, strength: float = 1.0, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[Tensor, Tensor]:
    """Draw a defect of one of several kinds; drawn again, up to ten times, where it left no trace.

    Parameters
    ----------
    x_CHW, generator, strength
        As of :func:`cut_paste`.
    kinds : sequence of {"cut-paste", "noise", "scratch"}

    Returns
    -------
    changed : tensor (C, H, W)
    mask : bool tensor (H, W)

    Raises
    ------
    UnknownName
        There is no such kind.
    BadInput
        As of :func:`cut_paste`.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UnknownName("kind of drawn defect", unknown[0] if unknown else "", KINDS)
    changed_CHW, mask = x_CHW, torch.zeros(tuple(x_CHW.shape[1:]), dtype=torch.bool, device=x_CHW.device)
    for _ in range(TRIES):
        kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        changed_CHW, mask = KINDS[kind](x_CHW, generator, strength)
        if strength == 0 or bool(mask.any()):
            break
    return changed_CHW, mask


def drawn_defects(
    x_BCHW: Tensor, generator: torch.Generator, strength: float = 1.0, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[Tensor, Tensor]:
    """Draw a defect into each image of a batch, as :func:`drawn_defect` does.

    Returns
    -------
    changed : tensor (B, C, H, W)
    masks : bool tensor (B, H, W)

    Examples
    --------
    >>> changed, masks = drawn_defects(torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(0), strength=0.5)
    >>> changed.shape, masks.shape, bool(masks.flatten(1).any(1).all())
    (torch.Size([4, 3, 16, 16]), torch.Size([4, 16, 16]), True)
    """
    found = [drawn_defect(x_CHW, generator, strength, kinds) for x_CHW in x_BCHW]
    return torch.stack([changed for changed, _ in found]), torch.stack([mask for _, mask in found])


def _moved(x_CHW: Tensor, other_CHW: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Move pixels so far towards others, and say which have changed."""
    if not 0 <= strength <= 1:
        raise BadInput(f"the strength of a defect is between 0 and 1, not {strength:g}")
    floats_CHW = _floats(x_CHW)
    # both ends must come out exactly: pixels outside of the defect do not change by rounding
    moved_CHW = torch.where(other_CHW == floats_CHW, floats_CHW, torch.lerp(floats_CHW, other_CHW, strength))
    if x_CHW.dtype == torch.uint8:
        moved_CHW = (255 * moved_CHW).round().to(torch.uint8)
    return moved_CHW, (moved_CHW != x_CHW).any(0)


def _check(x_CHW: Tensor) -> None:
    if x_CHW.ndim != 3 or not (x_CHW.dtype == torch.uint8 or x_CHW.is_floating_point()):
        raise BadInput(
            f"an image is a tensor (channels, height, width) of bytes or floats, not {tuple(x_CHW.shape)} of "
            f"{x_CHW.dtype}"
        )


def _floats(x_CHW: Tensor) -> Tensor:
    return x_CHW.float() / 255 if x_CHW.dtype == torch.uint8 else x_CHW


def _between(low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand((), generator=generator)


def _side(length: int, generator: torch.Generator) -> int:
    """Draw how long a defect is, in pixels."""
    return max(1, round(float(_between(SMALLEST * length, LARGEST * length, generator))))


def _centred(x_CHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows (H, 1) and columns (1, W), counted from a drawn place."""
    _check(x_CHW)
    y, x = (
        torch.arange(length, device=x_CHW.device) - float(torch.randint(length, (), generator=generator))
        for length in x_CHW.shape[1:]
    )
    return y[:, None], x[None]
