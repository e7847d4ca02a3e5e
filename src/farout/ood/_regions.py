"""What regions of an image say of prompts: the losses and the confidence of Local-Prompt, and random crops.

Shape legend: B images, R regions, C local prompts (one a class), N negative prompts, D features; k regions are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def local_loss(a_BRC: Tensor, b_BRN: Tensor, labels: Tensor, regions: int = 20, temperature: float = 1.0) -> Tensor:
    """Return the mean of ``-log [ sum_k exp(a_y^k / T) / (sum_c sum_k exp(a_c^k / T) + sum_j sum_k exp(b_j^k / T)) ]``.

    Every prompt sums over its own k regions with the largest logits.

    Parameters
    ----------
    a_BRC, b_BRN : tensor (B, R, C), tensor (B, R, N)
        Logits of regions for local and for negative prompts, scaled.
    labels : tensor (B,)
    regions : int
        k.
    temperature : float
        T.

    Examples
    --------
    >>> local_loss(torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), torch.tensor([0, 2]), regions=2)
    tensor(1.3863)
    """
    top_BkP = torch.cat([a_BRC, b_BRN], dim=2).topk(_count(regions, a_BRC), dim=1).values / temperature
    ours = top_BkP[torch.arange(len(labels), device=labels.device), :, labels].logsumexp(1)
    return (top_BkP.flatten(1).logsumexp(1) - ours).mean()


def negative_loss(a_BRC: Tensor, b_BRN: Tensor, labels: Tensor, regions: int = 20, temperature: float = 1.0) -> Tensor:
    """Return the mean of ``-log [ M / (M + sum_c sum_k exp(a_c^k / T)) ]`` of images that lack their class.

    ``M`` sums ``exp(b_rj / T)`` over all negative prompts j and those k regions r that look most like the label.

    Parameters
    ----------
    a_BRC, b_BRN, labels, regions, temperature
        As in :func:`local_loss`.

    Examples
    --------
    >>> negative_loss(torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), torch.tensor([0, 2]), regions=2)
    tensor(1.3863)
    """
    k = _count(regions, a_BRC)
    rows = torch.arange(len(labels), device=labels.device)
    at_Bk = a_BRC[rows, :, labels].topk(k, dim=1).indices
    negative = (b_BRN[rows[:, None], at_Bk] / temperature).flatten(1).logsumexp(1)
    others = (a_BRC.topk(k, dim=1).values / temperature).flatten(1).logsumexp(1)
    return (torch.logaddexp(negative, others) - negative).mean()


def diversity(negative_ND: Tensor) -> Tensor:
    """Return ``sum_ij cos(n_i, n_j) / (N (N - 1))`` of rows of length one; each with itself is counted too.

    Examples
    --------
    >>> diversity(torch.eye(3)), diversity(torch.ones(3, 1))
    (tensor(0.5000), tensor(1.5000))
    """
    N = len(negative_ND)
    return (negative_ND @ negative_ND.T).sum() / (N * (N - 1))


def regional_confidence(a_BRC: Tensor, b_BRN: Tensor, regions: int = 10, temperature: float = 1.0) -> Tensor:
    """Return R: the mean of the k largest probabilities of a class, over all regions and classes (B,).

    Parameters
    ----------
    a_BRC, b_BRN : tensor (B, R, C), tensor (B, R, N)
        Cosines, not scaled: scaled, the largest would all be one. Negative prompts are classes like any other here.
    regions : int
        k.
    temperature : float

    Examples
    --------
    >>> regional_confidence(torch.zeros(1, 4, 3), torch.zeros(1, 4, 1))
    tensor([0.2500])
    """
    p_BRC = F.softmax(torch.cat([a_BRC, b_BRN], dim=2) / temperature, dim=2)[:, :, : a_BRC.shape[2]]
    flat = p_BRC.flatten(1)
    return flat.topk(min(regions, flat.shape[1]), dim=1).values.mean(1)


def random_crops(x_BCHW: Tensor, count: int, generator: torch.Generator, least_area: float = 0.08) -> Tensor:
    """Return random parts of images, scaled to their size, half of them mirrored (count, B, C, H, W).

    Parameters
    ----------
    x_BCHW : tensor (B, C, H, W)
    count : int
    generator : torch.Generator
        Of the CPU.
    least_area : float
        Smallest share of the image.

    Examples
    --------
    >>> random_crops(torch.ones(2, 3, 8, 8), 4, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 2, 3, 8, 8])
    """
    area, ratio, x, y, mirror = torch.rand(5, count * len(x_BCHW), generator=generator)
    share, stretch = least_area + (1 - least_area) * area, (4 / 3) ** (2 * ratio - 1)
    width, height = (share * stretch).sqrt().clamp(max=1), (share / stretch).sqrt().clamp(max=1)
    theta = torch.zeros(len(area), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(mirror < 0.5, -width, width), height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    images = x_BCHW.repeat(count, 1, 1, 1)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    crops = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return crops.unflatten(0, (count, len(x_BCHW)))


def _count(regions: int, x_BRC: Tensor) -> int:
    """Return how many regions are taken: all, where an image has fewer."""
    return min(regions, x_BRC.shape[1])
