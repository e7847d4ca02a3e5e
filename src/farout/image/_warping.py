"""A camera's image seen from another camera, how alike images are, and how smooth depth is.

The middle of the first pixel lies at (0.5, 0.5).

Shape legend: B images, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

C1, C2 = 0.01**2, 0.03**2  # of SSIM, for pixels from 0 to 1
SHARE = 0.85  # of SSIM in the photometric error
TINY = 1e-7  # added to what is divided by, and by which an error may be above the smallest
NEAR = 1e-3  # metres before a camera, below which a point counts as behind it


def depth_of(disparity: Tensor, least: float = 0.1, most: float = 100.0) -> Tensor:
    """Turn what a network says, from 0 to 1, into depth.

    Parameters
    ----------
    disparity : tensor
    least, most : float
        Depth at 1 and at 0, in metres; its inverse is linear between them.

    Examples
    --------
    >>> depth_of(torch.tensor([0.0, 1.0]), least=0.5, most=80.0)
    tensor([80.0000,  0.5000])
    """
    return 1 / (1 / most + (1 / least - 1 / most) * disparity)


def warped(source_BCHW: Tensor, depth_B1HW: Tensor, intrinsics_B33: Tensor, poses_B44: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a camera would see if its pixels were those of a source, by depth and motion.

    Parameters
    ----------
    source_BCHW : tensor (B, C, H, W)
    depth_B1HW : tensor (B, 1, H, W)
        Of the camera that looks, along its axis.
    intrinsics_B33 : tensor (B, 3, 3)
        Of both cameras.
    poses_B44 : tensor (B, 4, 4)
        From the camera that looks to the source's.

    Returns
    -------
    tensor (B, C, H, W)
        Sampled bilinearly; beyond its edge the source goes on as its last pixels.
    bool tensor (B, H, W)
        Which pixels fall inside of the source.

    Examples
    --------
    >>> image, depth = torch.rand(1, 3, 4, 6), torch.full((1, 1, 4, 6), 7.0)
    >>> K = torch.tensor([[[5.0, 0, 3], [0, 5, 2], [0, 0, 1]]])
    >>> same, inside = warped(image, depth, K, torch.eye(4)[None])
    >>> bool(torch.allclose(same, image, atol=1e-5)), bool(inside.all())
    (True, True)
    """
    B, _, H, W = source_BCHW.shape
    y, x = torch.meshgrid(*(torch.arange(n, device=depth_B1HW.device) + 0.5 for n in (H, W)), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, H W)
    points = torch.linalg.inv(intrinsics_B33) @ pixels * depth_B1HW.flatten(2)
    seen = intrinsics_B33 @ (poses_B44[:, :3, :3] @ points + poses_B44[:, :3, 3:])
    before = seen[:, 2:] > NEAR
    places = seen[:, :2] / seen[:, 2:].clamp(min=NEAR)
    grid = 2 * places / torch.tensor([[W], [H]], device=places.device) - 1
    inside = (before & (grid.abs() <= 1)).all(1).view(B, H, W)
    grid_BHW2 = grid.transpose(1, 2).reshape(B, H, W, 2)
    return F.grid_sample(source_BCHW, grid_BHW2, padding_mode="border", align_corners=False), inside


def ssim_error(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Return (1 - SSIM) / 2 of windows of 3 x 3 pixels, from 0 to 1 (B, C, H, W); edges are mirrored.

    Examples
    --------
    >>> image = torch.rand(1, 3, 5, 5)
    >>> bool(ssim_error(image, image).abs().max() < 1e-4)
    True
    """
    a, b = (F.pad(x, (1, 1, 1, 1), mode="reflect") for x in (a_BCHW, b_BCHW))
    mean_a, mean_b = F.avg_pool2d(a, 3, 1), F.avg_pool2d(b, 3, 1)
    own = F.avg_pool2d(a * a, 3, 1) - mean_a**2 + F.avg_pool2d(b * b, 3, 1) - mean_b**2
    shared = F.avg_pool2d(a * b, 3, 1) - mean_a * mean_b
    above = (2 * mean_a * mean_b + C1) * (2 * shared + C2)
    return ((1 - above / ((mean_a**2 + mean_b**2 + C1) * (own + C2))) / 2).clamp(0, 1)


def photometric_error(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Return how unlike two images are at each pixel, mean over channels (B, H, W).

    Examples
    --------
    >>> photometric_error(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).round(decimals=3)
    tensor([[[0.5750, 0.5750],
             [0.5750, 0.5750]]])
    """
    return (SHARE * ssim_error(a_BCHW, b_BCHW) + (1 - SHARE) * (a_BCHW - b_BCHW).abs()).mean(1)


def smoothness(disparity_B1HW: Tensor, image_BCHW: Tensor) -> Tensor:
    """Return how much disparity changes where the image does not: a scalar, without regard to the scale of disparity.

    Examples
    --------
    >>> float(smoothness(torch.full((1, 1, 4, 4), 0.3), torch.rand(1, 3, 4, 4)))
    0.0
    """
    scaled = disparity_B1HW / (disparity_B1HW.mean((2, 3), keepdim=True) + TINY)
    total = torch.zeros((), device=scaled.device)
    for side in (2, 3):
        edges = image_BCHW.diff(dim=side).abs().mean(1, keepdim=True)
        total = total + (scaled.diff(dim=side).abs() * torch.exp(-edges)).mean()
    return total
