"""What every solver gives and needs: the rounded weight, its layer's error, and inputs that are fit to work with.

A solver minimises the error of a layer's output over the calibration tokens, ``tr((W - V) H (W - V)')`` with
``H = (2/n) sum x x'``, over the weights ``V`` on a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from farout.errors import BadInput
from farout.quantize.grid import Grid, Steps

__all__ = [
    "Damped",
    "Rounded",
    "checked_hessian",
    "checked_weight",
    "cholesky",
    "dead_inputs",
    "layer_error",
    "working",
]

TRIES = 8


@dataclass
class Rounded:
    """A weight on its grid.

    Attributes
    ----------
    weight : Tensor (O, I)
        What the layer multiplies with: ``grid.values(codes, steps)``, plus ``kept``.
    steps : Steps
    grid : Grid
    kept : Tensor (O, I), optional
        What stands beside the rounded numbers in 16 bits, mostly zeros; already added into ``weight``.
    """

    weight: torch.Tensor
    steps: Steps
    grid: Grid
    kept: torch.Tensor | None = None


def working(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without its history, in float32, or in float64 where it is that already."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def checked_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight (O, I) to work with.

    Raises
    ------
    BadInput
        It is no matrix, or a number is not finite.
    """
    if weight.ndim != 2:
        raise BadInput(f"a weight to round is a matrix (outputs, inputs); this one has the shape {tuple(weight.shape)}")
    return _finite("weight", working(weight))


def checked_hessian(hessian: torch.Tensor) -> torch.Tensor:
    """Return a Hessian (I, I) to work with.

    Raises
    ------
    BadInput
        It is not square, or a number is not finite.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise BadInput(f"a Hessian is a square matrix (inputs, inputs); this one has the shape {tuple(hessian.shape)}")
    return _finite("Hessian", working(hessian))


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(tensor.isfinite().all()):
        raise BadInput(
            f"a {name} {tuple(tensor.shape)} holds numbers that are not finite; look for them with farout inspect"
        )
    return tensor


def dead_inputs(hessian: torch.Tensor) -> torch.Tensor:
    """Return which inputs (I,) no token ever used; what stands in their columns of the weight does not matter.

    Raises
    ------
    BadInput
        All are: the map was not run.
    """
    dead = hessian.diagonal() <= 0
    if bool(dead.all()):
        raise BadInput("no input of this map was ever used: its Hessian is zero; calibrate on text that reaches it")
    return dead


@dataclass
class Damped:
    """A Cholesky factor, and what it took.

    Attributes
    ----------
    lower : Tensor (n, n)
        ``L`` with ``L L' = H + damping * mean(diag H) * I``.
    damping : float
        At least what was asked for.
    """

    lower: torch.Tensor
    damping: float


def cholesky(matrix: torch.Tensor, damping: float = 0.01) -> Damped:
    """Factor a symmetric matrix, with as much of its mean diagonal added to the diagonal as that takes.

    Parameters
    ----------
    matrix : Tensor (n, n)
        Left as it is.
    damping : float
        The share of the mean diagonal to begin with; ten times as much with each try, and not above 1.

    Raises
    ------
    BadInput
        It does not succeed.

    Examples
    --------
    >>> cholesky(torch.tensor([[2.0, 2.0], [2.0, 2.0]]), damping=0.01).lower
    tensor([[1.4213, 0.0000],
            [1.4072, 0.1995]])
    """
    if damping < 0:
        raise BadInput(f"'damping' is a share of the mean diagonal, 0 or more; {damping:g} was given")
    mean = matrix.diagonal().mean()
    share = damping
    for _ in range(TRIES):
        damped = matrix.clone()
        damped.diagonal().add_(share * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        failed = int(info)
        if not failed:
            return Damped(lower, share)
        last, share = share, max(10 * share, 1e-6)
        if share > max(1.0, damping):
            break
    raise BadInput(
        f"a Hessian of {len(matrix)} inputs is not positive definite, even with {last:g} times its mean diagonal "
        f"({float(mean):.3g}) added: the factorisation fails at input {failed}; is it a sum of x x'?"
    )


def layer_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return the squared error of a layer's output over its squared output, by its Hessian.

    ``tr((W - V) H (W - V)') / tr(W H W')``.

    Parameters
    ----------
    weight, rounded : Tensor (O, I)
    hessian : Tensor (I, I)

    Examples
    --------
    >>> round(layer_error(torch.tensor([[4.0, 2.0]]), torch.tensor([[4.0, 0.0]]), torch.eye(2)), 4)
    0.2
    """
    change = weight - rounded
    squared = (weight @ hessian * weight).sum().clamp(min=1e-30)
    return float((change @ hessian * change).sum() / squared)
