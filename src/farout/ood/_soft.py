"""Losses whose target is a distribution, and distances between distributions: what methods that train share.

All work on the last axis, in log space where logits are given, and have finite gradients at the corners of the simplex.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import log_softmax

from farout.errors import BadInput

__all__ = ["hellinger", "kl_from_uniform", "normalized_entropy", "soft_cross_entropy"]


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of ``-sum_c targets_c log softmax(logits)_c``, in nats.

    Parameters
    ----------
    logits, targets : Tensor (n, C)
        A row of ``targets`` sums to one.

    Returns
    -------
    Tensor ()

    Raises
    ------
    BadInput
        The shapes differ.

    Examples
    --------
    >>> round(float(soft_cross_entropy(torch.zeros(3, 4), torch.full((3, 4), 0.25))), 4)  # log 4
    1.3863
    """
    if logits.shape != targets.shape:
        raise BadInput(f"logits of shape {tuple(logits.shape)} need targets of that shape, not {tuple(targets.shape)}")
    return -(targets * log_softmax(logits, dim=-1)).sum(-1).mean()


def kl_from_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of ``KL(U || softmax(logits))``, U uniform over the C classes; zero for equal logits.

    It is outlier exposure's cross-entropy to uniform less the constant ``log C``.

    Parameters
    ----------
    logits : Tensor (n, C)

    Returns
    -------
    Tensor ()

    Examples
    --------
    >>> round(float(kl_from_uniform(torch.tensor([[0.9, 0.1]]).log())), 4)
    0.5108
    """
    return (-math.log(logits.shape[-1]) - log_softmax(logits, dim=-1).mean(-1)).mean()


def hellinger(p: torch.Tensor, q: torch.Tensor, least: float = 1e-6) -> torch.Tensor:
    """Return ``sqrt(sum_c (sqrt p_c - sqrt q_c)^2) / sqrt 2`` of each row: 0 for equal, 1 for disjoint distributions.

    Where p equals q the gradient is taken as zero.

    Parameters
    ----------
    p, q : Tensor (..., C)
        Probabilities.
    least : float
        Smaller probabilities are raised to it, since the square root has no gradient at zero.

    Returns
    -------
    Tensor (...)

    Examples
    --------
    >>> halves, one = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    >>> round(float(hellinger(halves, one, least=0.0)), 4), float(hellinger(one, one))
    (0.5412, 0.0)
    """
    difference = p.clamp_min(least).sqrt() - q.clamp_min(least).sqrt()
    # vector_norm: a plain square root of the sum would give NaN gradients where p equals q
    return torch.linalg.vector_norm(difference, dim=-1) / math.sqrt(2)


def normalized_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return ``-sum_c p_c log p_c / log C`` of each row: 0 when certain, 1 when uniform.

    Parameters
    ----------
    probabilities : Tensor (..., C)

    Returns
    -------
    Tensor (...)

    Raises
    ------
    BadInput
        There are fewer than two classes.

    Examples
    --------
    >>> normalized_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    classes = probabilities.shape[-1]
    if classes < 2:
        raise BadInput(f"entropy is normalized by log C, which needs two classes or more, not {classes}")
    logs = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()  # 0 log 0 is 0
    return (probabilities * -logs).sum(-1) / math.log(classes)
