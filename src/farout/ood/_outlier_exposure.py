"""Outlier exposure (Hendrycks, Mazeika, Dietterich, ICLR 2019, arXiv 1812.04606) and its energy form (Liu, Wang, Owens,
Li, NeurIPS 2020, arXiv 2010.03759): losses that what trains on outliers is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from farout.ood._soft import kl_from_uniform


@dataclass(frozen=True)
class OutlierExposure:
    """Losses that ask for uniform answers to outliers: ``CE(f(x), y) + weight * CE(uniform, f(outliers))``.

    Parameters
    ----------
    weight : float
        1 as in the code of MixOE; 0.5 in the paper.
    joint : bool
        Whether batch normalization sees images and outliers as one batch, as in the official code.

    Examples
    --------
    >>> net = nn.Linear(4, 5)
    >>> losses = OutlierExposure().losses(net, torch.randn(6, 4), torch.arange(5).repeat(2)[:6], torch.randn(8, 4))
    >>> sorted(losses)
    ['classes', 'outliers']
    """

    weight: float = 1.0  # beta
    joint: bool = True

    def losses(
        self, model: nn.Module, x: Tensor, y: Tensor, outliers: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the two terms of the loss, the second weighted; ``generator`` is not used."""
        logits, out_logits = both(model, x, outliers, self.joint)
        to_uniform = kl_from_uniform(out_logits) + math.log(out_logits.shape[1])
        return {"classes": cross_entropy(logits, y), "outliers": self.weight * to_uniform}


@dataclass(frozen=True)
class EnergyExposure:
    """Losses that keep energies apart, where the energy is ``-logsumexp(f)``.

    ``CE(f(x), y) + weight * (mean relu(E(x) - inside)^2 + mean relu(outside - E(outliers))^2)``

    Parameters
    ----------
    weight : float
    inside, outside : float
        Energies of images stay below the first, those of outliers above the second; the defaults are those that MixOE's
        code has for cars.
    joint : bool
        Whether batch normalization sees images and outliers as one batch, as in the official code.
    """

    weight: float = 0.1  # beta
    inside: float = -13.0  # m_in
    outside: float = -6.0  # m_out
    joint: bool = True

    def losses(
        self, model: nn.Module, x: Tensor, y: Tensor, outliers: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the two terms of the loss, the second weighted; ``generator`` is not used."""
        logits, out_logits = both(model, x, outliers, self.joint)
        above = relu(-logits.logsumexp(1) - self.inside).square().mean()
        below = relu(self.outside + out_logits.logsumexp(1)).square().mean()
        return {"classes": cross_entropy(logits, y), "outliers": self.weight * (above + below)}


def both(model: nn.Module, x: Tensor, other: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
    """Return the logits of two batches, in one pass or in two; batch normalization tells the difference."""
    if not joint:
        return model(x), model(other)
    logits = model(torch.cat([x, other]))
    return logits[: len(x)], logits[len(x) :]
