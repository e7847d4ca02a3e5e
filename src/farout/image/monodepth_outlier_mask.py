"""Unsupervised Monocular Depth Perception: Focusing on Moving Objects: outlier masking.

Hualie Jiang, Laiyan Ding, Zhenglong Sun, Rui Huang, IEEE Sensors Journal 2021 (arXiv 2108.13062); the earlier form is
DiPE (IROS 2020).

A network learns depth from video without labels: a frame's neighbours are warped into it by its depth and the camera's
motion, and should then look like it. Where something moves or is hidden they do not, whatever the depth; such pixels
are outliers of the map of photometric errors, far from its mean in units of its deviation, and are left out. Pixels
that fit too well are left out too. Coarser scales are compared at their own resolution, and weigh less.

The paper claims, with a ResNet-18 on the Eigen split of KITTI at 640 x 192, an absolute relative error of 0.112, on the
background of 0.107 and on moving objects of 0.215; on Cityscapes 0.155 and 0.365.

Differences from the paper and the official code (HalleyJiang/DiPE):

- Poses of the camera are given. The paper learns them with a second network, whose output may be put here.
- The middle of the first pixel lies at (0.5, 0.5), so that intrinsics scale with the image; the code puts it at (0, 0),
  and samples as if at (0.5, 0.5). A neighbour's edge is the outer edge of its pixels.
- Points behind a neighbour's camera count as outside of its image.
- Coarser images are means of pixels, where the code resamples with Lanczos' filter.
- The network and its training here are small, for drawn scenes; the paper's is a ResNet-18 that knows ImageNet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.cards import paper
from farout.errors import BadInput
from farout.image._depth_errors import depth_errors, garg_crop
from farout.image._monodepth_net import DepthNet, fit_depth
from farout.image._warping import TINY, depth_of, photometric_error, smoothness, warped

__all__ = [
    "DepthNet",
    "OutlierMaskedLoss",
    "depth_errors",
    "depth_of",
    "fit_depth",
    "garg_crop",
    "outlier_mask",
    "smoothness",
]

STACKED = "targets (B, 3, H, W), sources (B, S, 3, H, W), intrinsics (B, 3, 3) and poses (B, S, 4, 4)"


def outlier_mask(errors_BSHW: Tensor, low: float = 1.0, high: float = 0.5) -> Tensor:
    """Keep pixels whose photometric error is near the mean of their frame.

    Mean and deviation are those of all neighbours and pixels of a frame together. No gradient flows through them.

    Parameters
    ----------
    errors_BSHW : tensor (B, S, H, W)
        Of each frame and neighbour, before anything else is left out.
    low, high : float
        Deviations below and above the mean between which a pixel is kept.

    Returns
    -------
    bool tensor (B, S, H, W)

    Examples
    --------
    >>> errors_BSHW = torch.randn(1, 2, 100, 100, generator=torch.Generator().manual_seed(0))
    >>> round(float(outlier_mask(errors_BSHW).float().mean()), 2)
    0.53
    """
    errors_BSHW = errors_BSHW.detach()
    mean = errors_BSHW.mean((1, 2, 3), keepdim=True)
    deviation = errors_BSHW.std((1, 2, 3), keepdim=True)
    return (errors_BSHW > mean - low * deviation) & (errors_BSHW < mean + high * deviation)


@paper(
    "Monodepth Outlier Mask",
    title="Unsupervised Monocular Depth Perception: Focusing on Moving Objects",
    authors="Jiang, Ding, Sun, Huang",
    year=2021,
    arxiv="2108.13062",
    kind="training",
    takes=("image",),
    extra="torch",
    claim="KITTI Eigen split, 640 x 192, ResNet-18: abs rel 0.112, on the background 0.107, on moving objects 0.215; "
    "Cityscapes 0.155 and 0.365.",
    differs="Poses are given; the middle of a pixel lies at a half in warping; coarser images are means of pixels; the "
    "network is small.",
)
class OutlierMaskedLoss(nn.Module):
    """The loss of depth from video, in which four masks say what counts. It has no weights.

    Parameters
    ----------
    boundary : bool
        Leave out pixels that fall outside of the neighbour's image.
    minimum : bool
        Take each pixel from the neighbour that fits it best alone (minimum re-projection); the paper leaves it away
        with five frames.
    stationary : bool
        Leave out pixels that fit better without warping: what moves along with the camera, and the sky.
    outliers : bool
        Leave out outliers of the photometric error, see :func:`outlier_mask`.
    low, high : float
        For these, in deviations.
    own_scale : bool
        Compare each scale at its own resolution, weighted by a quarter to the power of the scale. Otherwise all are
        compared at full resolution and weigh alike, as in Monodepth2.
    smooth : float
        Weight of smoothness, halved from scale to scale.
    least, most : float
        Depths in metres, see :func:`depth_of`.

    Attributes
    ----------
    kept : float tensor
        Share of pixels and neighbours that counted in the last call, at the finest scale. Where it stays below a half
        in the beginning, training may stall.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> frames = torch.rand(2, 3, 3, 32, 64)
    >>> loss, net = OutlierMaskedLoss(), DepthNet(width=4)
    >>> eye, K = torch.eye(4).expand(2, 2, 4, 4), torch.tensor([[32.0, 0, 32], [0, 32, 16], [0, 0, 1]]).expand(2, 3, 3)
    >>> sorted(loss.losses(net(frames[:, 0]), frames[:, 0], frames[:, 1:], K, eye))
    ['photometric', 'smoothness']
    """

    kept: Tensor

    def __init__(
        self,
        *,
        boundary: bool = True,
        minimum: bool = True,
        stationary: bool = True,
        outliers: bool = True,
        low: float = 1.0,
        high: float = 0.5,
        own_scale: bool = True,
        smooth: float = 1e-3,
        least: float = 0.1,
        most: float = 100.0,
    ) -> None:
        super().__init__()
        if not (0 < least < most and smooth >= 0):
            raise BadInput(
                f"depths lie between 0 and 'most', and smoothness weighs 0 at least; 'least' is {least}, 'most' {most} "
                f"and 'smooth' {smooth}"
            )
        self.boundary, self.minimum, self.stationary, self.outliers = boundary, minimum, stationary, outliers
        self.low, self.high, self.own_scale, self.smooth = low, high, own_scale, smooth
        self.least, self.most = least, most

    def losses(
        self,
        disparities: list[Tensor],
        target_BCHW: Tensor,
        sources_BSCHW: Tensor,
        intrinsics_B33: Tensor,
        poses_BS44: Tensor,
        trusted_BHW: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the parts of the loss, which are added.

        Parameters
        ----------
        disparities : list of tensors (B, 1, H / 2^k, W / 2^k)
            From 0 to 1, the finest first.
        target_BCHW : tensor (B, 3, H, W)
            Pixels from 0 to 1.
        sources_BSCHW : tensor (B, S, 3, H, W)
            Its neighbours in time.
        intrinsics_B33 : tensor (B, 3, 3)
        poses_BS44 : tensor (B, S, 4, 4)
            From the target's camera to the source's.
        trusted_BHW : bool tensor (B, H, W), optional
            Pixels that may count at all, such as those that a segmentation finds to stand still.

        Raises
        ------
        BadInput
            Shapes do not fit.
        """
        B, S = sources_BSCHW.shape[:2]
        if not (
            target_BCHW.shape == sources_BSCHW.shape[:1] + sources_BSCHW.shape[2:]
            and intrinsics_B33.shape == (B, 3, 3)
            and poses_BS44.shape == (B, S, 4, 4)
        ):
            shapes = [tuple(x.shape) for x in (target_BCHW, sources_BSCHW, intrinsics_B33, poses_BS44)]
            raise BadInput(f"a loss needs {STACKED}; the shapes are {shapes}")
        photometric, uneven = [], []
        with torch.autocast(target_BCHW.device.type, enabled=False):
            for k, disparity_B1HW in enumerate(disparities):
                disparity_B1HW, small = disparity_B1HW.float(), F.avg_pool2d(target_BCHW, 2**k)
                scale = k if self.own_scale else 0
                errors, mask = self._compared(
                    disparity_B1HW, target_BCHW, sources_BSCHW, intrinsics_B33, poses_BS44, trusted_BHW, scale
                )
                if k == 0:
                    self.kept = mask.float().mean().detach()
                each = (mask * errors).sum((0, 2, 3)) / (mask.sum((0, 2, 3)) + TINY)
                photometric.append(each.sum() * 0.25**scale)
                uneven.append(smoothness(disparity_B1HW, small) * self.smooth / 2**k)
        n = len(disparities)
        return {"photometric": sum(photometric[1:], photometric[0]) / n, "smoothness": sum(uneven[1:], uneven[0]) / n}

    def _compared(
        self,
        disparity_B1HW: Tensor,
        target_BCHW: Tensor,
        sources_BSCHW: Tensor,
        intrinsics_B33: Tensor,
        poses_BS44: Tensor,
        trusted_BHW: Tensor | None,
        scale: int,
    ) -> tuple[Tensor, Tensor]:
        """Return photometric errors and what counts of them (B, S, H, W), at a scale."""
        B, S = sources_BSCHW.shape[:2]
        target = F.avg_pool2d(target_BCHW, 2**scale).repeat_interleave(S, 0)
        sources = F.avg_pool2d(sources_BSCHW.flatten(0, 1), 2**scale)
        size = target.shape[2:]
        if disparity_B1HW.shape[2:] != size:
            disparity_B1HW = F.interpolate(disparity_B1HW, size, mode="bilinear", align_corners=False)
        depth = depth_of(disparity_B1HW, self.least, self.most).repeat_interleave(S, 0)
        shrink = torch.tensor([0.5**scale, 0.5**scale, 1.0], device=depth.device)[:, None]
        intrinsics = (shrink * intrinsics_B33).repeat_interleave(S, 0)
        moved, inside = warped(sources, depth, intrinsics, poses_BS44.flatten(0, 1))
        errors = photometric_error(moved, target).view(B, S, *size)
        mask = torch.ones_like(errors, dtype=torch.bool)
        if self.boundary:
            mask &= inside.view(B, S, *size)
        if self.minimum:
            mask &= errors <= errors.amin(1, keepdim=True) + TINY
        if self.stationary:
            mask &= errors < photometric_error(sources, target).view(B, S, *size)
        if self.outliers:
            mask &= outlier_mask(errors, self.low, self.high)
        if trusted_BHW is not None:
            mask &= F.avg_pool2d(trusted_BHW[:, None].float(), 2**scale) == 1
        return errors, mask
