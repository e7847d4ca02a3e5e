"""The networks of UniCon-HA: with heads in training, and with a bank of normal images afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from farout.kit.nets import ResNet18

DIMENSIONS = 128  # of an embedding
PART = 4096  # rows of the bank that are compared at once


class Nearest(nn.Module):
    """The encoder, and the directions of the training images in it."""

    bank: Tensor

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.encoder = ResNet18(1, width, seed=seed)
        self.encoder.linear = nn.Identity()
        self.register_buffer("bank", torch.zeros(0, self.encoder.width))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return directions (B, D) of images with pixels from 0 to 1."""
        return normalize(self.encoder.features(2 * x_BCHW - 1), dim=1)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, None]:
        return -(self.features(x_BCHW) @ self.bank.T).amax(1), None

    def apart(self) -> Tensor:
        """Score every image of the bank by the others (N,)."""
        found = []
        for start in range(0, len(self.bank), PART):
            rows = self.bank[start : start + PART] @ self.bank.T
            places = torch.arange(len(rows), device=rows.device)
            rows[places, places + start] = -torch.inf
            found.append(-rows.amax(1))
        return torch.cat(found)


class Stages(nn.Module):
    """An encoder with a projection head after each stage, or after the last alone; used in training."""

    def __init__(self, encoder: Any, hierarchical: bool) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.width // 8
        self.heads = nn.ModuleDict(
            {
                str(stage): nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, DIMENSIONS))
                for stage, wide in enumerate((width, 2 * width, 4 * width, 8 * width), 1)
                if hierarchical or stage == 4
            }
        )

    def forward(self, x_SBCHW: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return embeddings (B, D) after each stage that has a head, of the views in the strength meant for it."""
        net, found = self.encoder, {}
        for (stage, head), x_BCHW in zip(self.heads.items(), x_SBCHW):
            x_BCHW = torch.relu(net.bn1(net.conv1(2 * x_BCHW - 1)))
            for layer in (net.layer1, net.layer2, net.layer3, net.layer4)[: int(stage)]:
                x_BCHW = layer(x_BCHW)
            found[stage] = head(x_BCHW.mean((2, 3)))
        return found
