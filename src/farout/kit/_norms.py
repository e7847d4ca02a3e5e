"""Normalisations of the tiny decoder, one class each; loads torch, so import it lazily."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6
RANK = 16  # of the gate's two matrices


class RMSNorm(nn.Module):
    """``g x / rms(x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Bring each token to root mean square 1, then apply the gain."""
        return F.rms_norm(x, x.shape[-1:], self.weight, EPS)


class PreAffineNorm(RMSNorm):
    """``g RMSNorm(a x)``: channels have a learned lever before the norm, so that none of them need be huge."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.lever = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale channels, and normalise."""
        return super().forward(self.lever * x)


class GatedNorm(RMSNorm):
    """``y sigmoid(W_up silu(W_down y))`` with ``y = RMSNorm(x)``: a gate shrinks channels, and no outlier.

    Both matrices are zero here, which has no gradient; the decoder draws them.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.down, self.up = nn.Parameter(torch.zeros(RANK, width)), nn.Parameter(torch.zeros(width, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, and gate every channel."""
        y = super().forward(x)
        return y * torch.sigmoid(F.linear(F.silu(F.linear(y, self.down)), self.up))


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with a gain and no bias, as in nanoGPT."""
    return nn.LayerNorm(width, eps=1e-5, bias=False)


NORMS = {"layer": layer_norm, "rms": RMSNorm, "pre affine": PreAffineNorm, "gated": GatedNorm}
