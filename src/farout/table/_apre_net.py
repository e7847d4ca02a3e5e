"""The networks of APRE: several initialisations side by side, one definition for torch (training) and numpy (scoring).

Shapes: I initialisations, n rows, d columns. ``xp`` is numpy or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from farout.io.state import saved
from farout.kit.training import arrays_of, device_named, seeded, train

LOG_VARIANCE = (-6.0, 4.0)  # a column that is reconstructed exactly must not outweigh all others
NEARLY = 1e-9  # scores that differ by rounding alone are one score
ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "tanh": lambda xp, values: xp.tanh(values),
    "relu": lambda xp, values: xp.clip(values, 0, None),
}


def outputs(weights: Sequence[Any], rows: Any, activation: str, xp: Any = np) -> tuple[Any, Any]:
    """Run the networks.

    Parameters
    ----------
    weights : list of array
        Weights (I, in, out) and biases (I, 1, out), in turns.
    rows : array (n, d)
    activation : {"tanh", "relu"}
    xp : module

    Returns
    -------
    mean, log_variance : array (I, n, d)
        Zeros for the log variance of a network with one head.
    """
    d, hidden = rows.shape[1], rows
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2]):
        hidden = ACTIVATIONS[activation](xp, hidden @ weight + bias)
    out = hidden @ weights[-2] + weights[-1]
    mean, log_variance = out[..., :d], out[..., d:]
    if log_variance.shape != mean.shape:
        return mean, xp.zeros_like(mean)
    return mean, xp.clip(log_variance, *LOG_VARIANCE)


def apre(target: Any, mean: Any, log_variance: Any, alpha: float = 1.0, beta: float = 1.0, xp: Any = np) -> Any:
    """Return each column's part of the adjustable probabilistic reconstruction error.

    ``alpha (x - mean)^2 / variance + beta log variance``: how wrong the network is in units of how unsure it says that
    it is, and the price of being unsure. With a variance of 1 it is the squared error.

    Parameters
    ----------
    target, mean, log_variance : array
        Of shapes that broadcast.
    alpha, beta : float
    xp : module

    Examples
    --------
    >>> apre(np.array([3.0]), np.array([1.0]), np.array([0.0]))
    array([4.])
    """
    return alpha * (target - mean) ** 2 * xp.exp(-log_variance) + beta * log_variance


def trained(
    rows: np.ndarray,
    *,
    hidden: Sequence[int],
    heads: int,
    n_init: int,
    activation: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    patience: int | None,
    seed: int,
    device: str,
) -> list[np.ndarray]:
    """Train the networks to reconstruct rows (n, d), and return their weights as :func:`outputs` takes them.

    The loss is the sum over initialisations, whose gradients do not mix: each trains as it would alone, on the same
    batches. Both terms of the error count alike here; alpha and beta weigh scores.
    """
    import torch

    widths = (rows.shape[1], *hidden, heads * rows.shape[1])
    module = torch.nn.ParameterList()
    with seeded(seed):
        for before, after in pairwise(widths):
            for size in (before, 1):
                bound = max(before, 1) ** -0.5  # as torch draws linear layers
                module.append(torch.nn.Parameter(torch.empty(n_init, size, after).uniform_(-bound, bound)))
    place = device_named(device)
    module.to(place)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return apre(batch, *outputs(list(module), batch, activation, torch), xp=torch).sum(dim=2).sum(dim=0)

    train(
        module,
        loss,
        torch.from_numpy(rows.astype(np.float32)).to(place),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        patience=patience,
    )
    return list(arrays_of(module).values())


@saved("apre_ranks")
@dataclass
class Ranks:
    """Where an error stands among those of the training rows, as a share of them that errors on continuously.

    Between training errors the share is interpolated, below them all it is the least one, and beyond them all it goes
    on rising without bound, by 1 each time the error goes on by the distance between the median and the largest.

    Attributes
    ----------
    errors, shares : float64 array (m,)
        Distinct training errors, rising, and the mean share of the rows at or below each.
    unit : float

    Examples
    --------
    >>> ranks = Ranks.of(np.array([1.0, 2.0, 3.0, 5.0]))
    >>> ranks(np.array([2.0, 4.0, 5.0, 7.5]))
    array([0.375, 0.75 , 0.875, 1.875])
    """

    errors: np.ndarray
    shares: np.ndarray
    unit: float

    @classmethod
    def of(cls, errors: np.ndarray) -> Ranks:
        """Learn from training errors (n,); those that differ by rounding alone become one."""
        ordered = np.sort(errors)
        apart = np.diff(ordered) > NEARLY * np.maximum(np.abs(ordered[1:]), 1.0)
        starts = np.concatenate(([0], np.flatnonzero(apart) + 1))
        ends = np.append(starts[1:], len(ordered))
        unit = float(ordered[-1] - np.median(ordered))
        return cls(ordered[starts], (starts + ends) / 2 / len(ordered), unit if unit > NEARLY else 1.0)

    def __call__(self, errors: np.ndarray) -> np.ndarray:
        """Return the shares (n,) of errors (n,)."""
        beyond = np.maximum(errors - self.errors[-1], 0.0) / self.unit
        return np.interp(errors, self.errors, self.shares) + beyond
