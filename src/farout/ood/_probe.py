"""Linear probes on frozen features, and what they say of how classes lie there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from farout.errors import BadInput


def linear_probe(features: Tensor, labels: Tensor, inverse_penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return weight (C, d) and bias (C,) of logistic regression on frozen features, scaled to unit variance for it.

    Parameters
    ----------
    features : tensor (n, d)
    labels : tensor (n,)
        From 0 on, each class at least once.
    inverse_penalty : float
        Of the squared weights, C in scikit-learn.

    Raises
    ------
    BadInput
        A class has no row, or there is one only.

    Examples
    --------
    >>> weight, bias = linear_probe(torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
    >>> (torch.tensor([[-3.0], [3.0]]) @ weight.T + bias).argmax(1)
    tensor([0, 1])
    """
    from sklearn.linear_model import LogisticRegression

    x, y = features.numpy(force=True).astype(np.float64), labels.numpy(force=True)
    found = np.unique(y)
    if len(found) < 2 or found[0] != 0 or found[-1] != len(found) - 1:
        raise BadInput(f"a probe needs two classes or more, numbered from 0 without gaps, not {found[:9].tolist()}")
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    fitted = LogisticRegression(C=inverse_penalty, max_iter=1000).fit((x - mean) / scale, y)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(found) == 2:  # one row for the second class; the first has the opposite
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    return torch.from_numpy(weight).to(features), torch.from_numpy(bias - weight @ mean).to(features)


def separability(features: Tensor, labels: Tensor, folds: int = 2) -> float:
    """Return how well a linear probe names the classes of features that it was not fitted on: its mean accuracy.

    Parameters
    ----------
    features : tensor (n, d)
    labels : tensor (n,)
        ``folds`` rows of each class at least.
    folds : int

    Examples
    --------
    >>> separability(torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    _, y = labels.unique(return_inverse=True)
    if int(y.bincount().min()) < folds:
        raise BadInput(f"{folds} folds need {folds} rows of each class at least; one has {int(y.bincount().min())}")
    fold = torch.empty_like(y)
    for c in range(int(y.max()) + 1):  # each class is dealt out in turn
        fold[y == c] = torch.arange(int((y == c).sum()), device=y.device) % folds
    right = 0
    for held in range(folds):
        weight, bias = linear_probe(features[fold != held], y[fold != held])
        right += int(((features[fold == held] @ weight.T + bias).argmax(1) == y[fold == held]).sum())
    return right / len(y)


def spread(features: Tensor, labels: Tensor) -> float:
    """Return the share of the variance of features that lies within classes: 0 for points, 1 where classes coincide.

    Examples
    --------
    >>> spread(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), torch.tensor([0, 0, 1, 1]))
    0.2
    """
    _, y = labels.unique(return_inverse=True)
    x = features.double()
    means = torch.zeros(int(y.max()) + 1, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, y, x)
    means /= y.bincount()[:, None]
    total = (x - x.mean(0)).square().sum()
    return float((x - means[y]).square().sum() / total) if total > 0 else 0.0
