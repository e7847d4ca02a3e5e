"""The losses of UniCon-HA: views of normal images are pulled together, and those of outliers apart one by one.

Shape legend: I views of normal images, O views of virtual outliers, D dimensions of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farout.errors import BadInput


def soft_weights(z_ID: Tensor, labels: Tensor | None = None, temperature: float = 0.5) -> Tensor:
    """Weigh views of normal images by how near they are to the others of their class; no gradient flows back.

    Parameters
    ----------
    z_ID : tensor (I, D)
        Of length 1.
    labels : int tensor (I,), optional
        Without, all are of one class.
    temperature : float

    Returns
    -------
    tensor (I,)
        They sum to 1 over each class.

    Examples
    --------
    >>> z_ID = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    >>> soft_weights(z_ID).round(decimals=3)
    tensor([0.4910, 0.4910, 0.0180])
    """
    with torch.no_grad(), torch.autocast(z_ID.device.type, enabled=False):
        z_ID = z_ID.float()
        kin_II = _kin(len(z_ID), labels, z_ID.device)
        nearness = torch.where(kin_II, (z_ID @ z_ID.T / temperature).exp(), 0).sum(1)
        whole = (kin_II | torch.eye(len(z_ID), dtype=torch.bool, device=z_ID.device)).to(nearness) @ nearness
        return nearness / whole


def inlier_loss(
    z_ID: Tensor,
    outliers_OD: Tensor,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 0.5,
) -> Tensor:
    """Pull every normal view to all others of its class, away from everything else: supervised contrast.

    Parameters
    ----------
    z_ID : tensor (I, D)
        Views of normal images, of length 1.
    outliers_OD : tensor (O, D)
        Views of virtual outliers, of length 1; there may be none.
    labels : int tensor (I,), optional
        Without, all are of one class.
    weights : tensor (I,), optional
        Of the views as something to be pulled to, such as :func:`soft_weights`; by default all weigh alike.
    temperature : float

    Returns
    -------
    tensor (I,)

    Raises
    ------
    BadInput
        A view is the only one of its class.

    Examples
    --------
    >>> same = torch.tensor([[1.0, 0.0]] * 4)
    >>> bool(torch.allclose(inlier_loss(same, same), torch.tensor(7.0).log()))
    True
    """
    kin_II = _kin(len(z_ID), labels, z_ID.device)
    if not kin_II.any(1).all():
        raise BadInput("a view of a normal image is the only one of its class; give two views of each image")
    shares = _log_shares(z_ID, torch.cat([z_ID, outliers_OD]), temperature)[:, : len(z_ID)]
    weight_II = kin_II.float() if weights is None else kin_II * weights.float()
    return -(weight_II / weight_II.sum(1, keepdim=True) * torch.where(kin_II, shares, 0)).sum(1)


def outlier_loss(z_ID: Tensor, outliers_OD: Tensor, temperature: float = 0.5) -> Tensor:
    """Pull every view of a virtual outlier to its twin, away from everything else: contrast of instances (NT-Xent).

    Parameters
    ----------
    z_ID : tensor (I, D)
        Views of normal images, of length 1; there may be none.
    outliers_OD : tensor (2 n, D)
        Views of virtual outliers, of length 1: the first view of each, then in the same order the second.
    temperature : float

    Returns
    -------
    tensor (2 n,)

    Examples
    --------
    >>> same = torch.tensor([[1.0, 0.0]] * 4)
    >>> bool(torch.allclose(outlier_loss(same, same), torch.tensor(7.0).log()))
    True
    """
    places = torch.arange(len(outliers_OD), device=outliers_OD.device)
    shares = _log_shares(outliers_OD, torch.cat([outliers_OD, z_ID]), temperature)
    return -shares[places, places.roll(len(places) // 2)]


def _kin(n: int, labels: Tensor | None, device: torch.device) -> Tensor:
    """Say which views are of one class and not the same view (n, n)."""
    others = ~torch.eye(n, dtype=torch.bool, device=device)
    return others if labels is None else others & (labels[:, None] == labels)


def _log_shares(anchors_AD: Tensor, z_ND: Tensor, temperature: float) -> Tensor:
    """Log of each view's share in the similarities to an anchor, itself left out; the anchors are the first views."""
    with torch.autocast(z_ND.device.type, enabled=False):
        logits = anchors_AD.float() @ z_ND.float().T / temperature
    itself = torch.eye(len(anchors_AD), len(z_ND), dtype=torch.bool, device=z_ND.device)
    return logits.masked_fill(itself, -torch.inf).log_softmax(1)
