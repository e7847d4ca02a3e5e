"""A small network that reads depth off one frame, and its training on frames whose neighbours and poses are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput
from farout.kit.augment import colour_jitter
from farout.kit.training import seeded

SCALES = 4
DROPS, DROP = (0.75, 0.9), 0.2  # shares of the steps after which the learning rate falls to a fifth
JITTER = 0.25  # brightness, contrast and saturation change by a fifth


class DepthNet(nn.Module):
    """Images with pixels from 0 to 1 in, disparities from 0 to 1 at four scales out, in the form of Monodepth2.

    Convolutions halve the image four times; on the way back each scale joins what the way in saw, and says disparity.

    Parameters
    ----------
    width : int
        Channels of the first stage; each further one has twice as many, at most eight times.
    first : float
        Disparity that it says about everywhere before training. With known poses, depth must not begin so near that
        points fall behind the neighbours' cameras.
    seed : int, optional
        For the weights; without one they are drawn from torch's generator as it stands.

    Examples
    --------
    >>> [tuple(d.shape) for d in DepthNet(width=4, seed=0)(torch.rand(2, 3, 32, 64))]
    [(2, 1, 32, 64), (2, 1, 16, 32), (2, 1, 8, 16), (2, 1, 4, 8)]
    """

    def __init__(self, width: int = 16, *, first: float = 0.05, seed: int | None = None) -> None:
        super().__init__()
        wide = [width * min(2**k, 8) for k in range(SCALES)]
        with nullcontext() if seed is None else seeded(seed):
            self.down = nn.ModuleList(_twice(inputs, outputs, 2) for inputs, outputs in zip([3, *wide], wide))
            self.up = nn.ModuleList(
                _twice(wide[k + 1] + wide[k] if k + 1 < SCALES else wide[k], wide[k], 1) for k in range(SCALES)
            )
            self.heads = nn.ModuleList(_head(w, first) for w in wide)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return disparities (B, 1, H / 2^k, W / 2^k), the finest first."""
        if x_BCHW.shape[2] % 2**SCALES or x_BCHW.shape[3] % 2**SCALES:
            raise BadInput(f"height and width must be multiples of {2**SCALES}, not {tuple(x_BCHW.shape[2:])}")
        seen, x = [], (x_BCHW - 0.45) / 0.225
        for layer in self.down:
            x = layer(x)
            seen.append(x)
        found = []
        for k in reversed(range(SCALES)):
            x = x if k + 1 == SCALES else torch.cat([x, seen[k]], 1)
            x = F.interpolate(self.up[k](x), scale_factor=2, mode="nearest")
            found.append(torch.sigmoid(self.heads[k](x)))
        return found[::-1]


def fit_depth(
    net: nn.Module,
    loss: Any,
    data: Sequence[Tensor],
    *,
    epochs: int = 20,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    mirrored: bool = True,
    coloured: bool = True,
    seed: int = 0,
    amp: bool = False,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, float]]:
    """Train a network in place with Adam; the learning rate falls to a fifth after 75 % and 90 % of the steps.

    Parameters
    ----------
    net : torch.nn.Module
        Frames in, a list of disparities out. Left in evaluation mode.
    loss : OutlierMaskedLoss
    data : sequence of tensors
        On the device of the net: targets (n, 3, H, W), sources (n, S, 3, H, W), intrinsics (n, 3, 3), poses
        (n, S, 4, 4), and, where wanted, trusted pixels (n, H, W), as ``loss.losses`` takes them.
    epochs, batch_size : int
    learning_rate : float
        The paper's, for a network that starts from ImageNet; from scratch more is wanted.
    mirrored : bool
        Mirror half of the batches, their cameras with them.
    coloured : bool
        Change colours of half of the frames that the network sees; the loss compares frames as they are.
    seed : int
    amp : bool
        Run the network in bfloat16; the loss is always computed in float32.
    progress : callable, optional
        Called with the share of epochs done.

    Returns
    -------
    list of dict of str to float
        For each epoch the mean of each part of the loss, and of the share of pixels that were ``kept``.

    Raises
    ------
    BadInput
        The tensors are not equally long, or the loss is not finite.
    """
    lengths = {len(tensor) for tensor in data}
    if len(lengths) != 1 or 0 in lengths:
        raise BadInput(f"'data' must be tensors of one length, at least 1; their lengths are {sorted(lengths)}")
    n, device = lengths.pop(), data[0].device
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    generator = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    for epoch in range(epochs):
        net.train()
        optimizer.param_groups[0]["lr"] = learning_rate * DROP ** sum(epoch >= share * epochs for share in DROPS)
        totals: dict[str, Tensor] = {}
        for rows in torch.randperm(n, generator=generator).split(batch_size):
            batch = [tensor[rows.to(device)] for tensor in data]
            if mirrored and float(torch.rand((), generator=generator)) < 0.5:
                batch = _mirrored(*batch)
            frames = colour_jitter(batch[0], generator, strength=JITTER, chance=0.5) if coloured else batch[0]
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                disparities = net(frames)
            parts = loss.losses(disparities, *batch)
            optimizer.zero_grad()
            sum(parts.values(), torch.zeros((), device=device)).backward()
            optimizer.step()
            for name, part in {**parts, "kept": loss.kept}.items():
                totals[name] = totals.get(name, 0) + part.detach() * len(rows)
        history.append({name: float(total) / n for name, total in totals.items()})
        if not all(abs(value) < float("inf") for value in history[-1].values()):
            raise BadInput(f"the loss is not finite in epoch {epoch + 1}; lower the learning rate of {learning_rate:g}")
        if progress is not None:
            progress((epoch + 1) / epochs)
    net.eval()
    return history


def _mirrored(
    target_BCHW: Tensor, sources_BSCHW: Tensor, intrinsics_B33: Tensor, poses_BS44: Tensor, *trusted: Tensor
) -> list[Tensor]:
    """Mirror a scene left to right: its images, the middle of the camera, and its motion."""
    intrinsics = intrinsics_B33.clone()
    intrinsics[:, 0, 2] = target_BCHW.shape[3] - intrinsics[:, 0, 2]
    sides = torch.tensor([-1.0, 1, 1, 1], device=poses_BS44.device)
    poses = sides[:, None] * poses_BS44 * sides
    return [target_BCHW.flip(3), sources_BSCHW.flip(4), intrinsics, poses, *(one.flip(2) for one in trusted)]


def _twice(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions with ELU, edges mirrored; the first may halve the image."""
    first = nn.Conv2d(inputs, outputs, 3, stride, 1, padding_mode="reflect")
    return nn.Sequential(first, nn.ELU(), nn.Conv2d(outputs, outputs, 3, 1, 1, padding_mode="reflect"), nn.ELU())


def _head(inputs: int, first: float) -> nn.Conv2d:
    """Say disparity, before the sigmoid; about ``first`` after it in the beginning."""
    head = nn.Conv2d(inputs, 1, 3, padding=1, padding_mode="reflect")
    if head.bias is not None:
        nn.init.constant_(head.bias, math.log(first / (1 - first)))
    return head
