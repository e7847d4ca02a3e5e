"""Rounding to nearest, with the range of the weights or with the range that rounds them best.

No paper: it is what every solver is measured against. The search is the option "mse" of GPTQ's official code
(IST-DASLab/gptq): of the whole range and 79 smaller ones, weights that share a step get the one with the least sum of
``|x - v|^2.4``. Large weights are clipped then, and the others stand nearer to their values.
"""

from __future__ import annotations

import torch

from farout.errors import BadInput
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import Rounded, checked_weight

__all__ = ["clipped_steps", "rtn"]

SHRINKS = 80  # ranges are tried at 1, 0.99, ..., 0.21 of their size


def rtn(weight: torch.Tensor, grid: Grid, *, clip: bool = False, power: float = 2.4) -> Rounded:
    """Round each weight to the nearest number of its grid.

    Parameters
    ----------
    weight : tensor (O, I)
    grid : Grid
    clip : bool
        Whether ranges are searched with :func:`clipped_steps`, and not those from the least to the greatest weight.
    power : float
        Of errors, for the search.

    Returns
    -------
    Rounded
        In float32, or in float64 where the weight is.

    Raises
    ------
    BadInput
        The weight is no matrix, or a number is not finite.

    Examples
    --------
    >>> rtn(torch.tensor([[0.2, -0.6, 1.5]]), Grid(3, rule="narrow")).weight
    tensor([[ 0.0000, -0.5000,  1.5000]])
    """
    weight = checked_weight(weight)
    steps = clipped_steps(weight, grid, power=power) if clip else grid.steps(weight)
    return Rounded(grid.rounded(weight, steps), steps, grid)


def clipped_steps(weight: torch.Tensor, grid: Grid, *, power: float = 2.4) -> Steps:
    """Search the range of what shares a step that rounds it best: the least sum of ``|x - v|^power``.

    Both ends are taken at 1, 0.99, ..., 0.21 of their size; of ranges that do equally well, the widest.

    Parameters
    ----------
    weight : tensor (O, I)
    grid : Grid
    power : float

    Returns
    -------
    Steps

    Examples
    --------
    One weight far out would have all others rounded to 0, which costs more than to clip it:

    >>> weight = torch.tensor([[5.0, 2.2, 2.2, 2.2, 2.2, 2.2, 2.2, 2.2]])
    >>> clipped_steps(weight, Grid(2, rule="narrow"), power=2).scale
    tensor([[2.5500]])
    """
    if not power > 0:
        raise BadInput(f"'power' is that of errors, above 0; {power:g} was given")
    v = grid.view(weight)
    low, high = v.amin(-1, keepdim=True), v.amax(-1, keepdim=True)
    best = grid.steps_between(low, high)
    least = _error(v, grid, best, power)
    for i in range(1, SHRINKS):
        share = 1 - i / 100
        tried = grid.steps_between(share * low, share * high, best.global_scale)
        error = _error(v, grid, tried, power)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried.scale, best.scale)
        zero = None if best.zero is None or tried.zero is None else torch.where(better, tried.zero, best.zero)
        best = Steps(scale, zero, best.global_scale)
    return best


def _error(v: torch.Tensor, grid: Grid, steps: Steps, power: float) -> torch.Tensor:
    """Return what rounding costs the values that share a step, in the shape of the view with a last axis of 1."""
    return (v - grid.nearest(v, steps)).abs_().pow_(power).sum(-1, keepdim=True)
