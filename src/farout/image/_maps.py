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
    half = int(4 * deviation + 0.5)
    weight = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / deviation) ** 2)
    weight = (weight / weight.sum()).to(map_BHW)
    x_BCHW = _mirrored(_mirrored(map_BHW[:, None], half, 2), half, 3)
    return F.conv2d(F.conv2d(x_BCHW, weight[None, None, :, None]), weight[None, None, None])[:, 0]


def _mirrored(x_BCHW: Tensor, half: int, side: int) -> Tensor:
    """Mirror the edges of one side, edge pixels included, as often as it takes."""
    n = x_BCHW.shape[side]
    wrapped = torch.arange(-half, n + half, device=x_BCHW.device) % (2 * n)
    return x_BCHW.index_select(side, torch.minimum(wrapped, 2 * n - 1 - wrapped))
