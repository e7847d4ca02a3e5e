"""What is done with maps of anomalies after a network: scaled to the image, smoothed, and reduced to a score."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled(map_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale maps bilinearly, corners not aligned.

    Returns
    -------
    tensor (B, height, width)
    """
    return F.interpolate(map_BHW[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def blurred(map_BHW: Tensor, deviation: float) -> Tensor:
    """Smooth maps with a Gaussian that is cut off at four deviations; edges are reflected, as scipy's do.

    Parameters
    ----------
    map_BHW : float tensor (B, H, W)
    deviation : float
        In pixels; 0 leaves maps as they are.

    Examples
    --------
    >>> flat = torch.ones(1, 16, 16)
    >>> torch.allclose(blurred(flat, 2.0), flat)
    True
    """
    if deviation == 0:
        return map_BHW
    with torch.autocast(map_BHW.device.type, enabled=False):
        rows, columns = (_smoothing(n, deviation).to(map_BHW) for n in map_BHW.shape[1:])
        return rows @ map_BHW @ columns.T  # quicker than a convolution with one channel


def _smoothing(n: int, deviation: float) -> Tensor:
    """Return the matrix (n, n) that smooths a column of n pixels, mirrored at its ends, edge pixels included."""
    half = int(4 * deviation + 0.5)
    steps = torch.arange(-half, half + 1)
    weight = torch.exp(-0.5 * (steps.double() / deviation) ** 2)
    place = (torch.arange(n)[:, None] + steps) % (2 * n)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    weights = (weight / weight.sum()).expand(n, -1)
    return matrix.scatter_add_(1, torch.minimum(place, 2 * n - 1 - place), weights)
