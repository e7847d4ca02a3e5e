"""GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers.

Elias Frantar, Saleh Ashkboos, Torsten Hoefler, Dan Alistarh, ICLR 2023 (arXiv 2210.17323).

Round one column of a weight (one input) after the other, and after each move the columns that are still to come so that
they make good for its error as well as they can; how, the second moments ``H`` of the inputs say.

The paper claims that this quantizes a model of 175 billion parameters in four GPU hours to 4 bits almost without loss:
OPT-175B has a perplexity of 8.37 on WikiText-2 and 8.34 before, where rounding to nearest has 10.54; at 3 bits 8.68
against 7,300.

**No inverse.** The paper works with ``U``, the upper Cholesky factor of ``H^-1``: a column ``w_j`` is rounded to
``v_j``, and then ``w_k -= e_j U_jk`` for all ``k > j`` with ``e_j = (w_j - v_j) / U_jj``. Added up, the rounded weight
is ``V = W - E U``. So ``E = (W - V) M`` with ``M = U^-1``; and since ``H = M M'`` with ``M`` upper triangular, ``M``
comes from one Cholesky decomposition of ``H``, read from its other end. Just before it is rounded, a column is then

    ``w_j = W_j + sum_{i < j} (W_i - V_i) N_ij``, ``N_ij = M_ij / M_jj``:

the same numbers for a third of the work (no inverse, no second decomposition), and more exact in float32, since errors
are measured from the original weights each time and nothing is divided by small pivots of an inverse.

Other differences from the official code (IST-DASLab/gptq):

- Groups that take their steps when they are reached take them from weights that hold all corrections so far. The code
  reads them without those of the running block of 128 columns, so they are stale for groups of less than 128.
- Inputs that were never used count with the mean of the others in damping, not with 1, so that the unit of ``H`` does
  not matter; damping grows where the decomposition fails.
- Steps along the outputs of an input (``per="input"``), as AdaDim wants, and the correction for errors that come from
  earlier layers (GPTAQ, arXiv 2504.02692) are there.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._columns import Columns
from farout.quantize.round._common import Rounded, checked_hessian, checked_weight, cholesky, dead_inputs

__all__ = ["Factor", "factored", "gptq"]


@dataclass
class Factor:
    """What :func:`gptq` needs of a Hessian; maps that read the same inputs share it.

    Attributes
    ----------
    order : int64 tensor (I,)
        Inputs in the order in which they are rounded.
    pull : tensor (I, I)
        Unit lower triangular, in that order: row ``j`` says how errors of earlier columns move column ``j`` (``N'``).
    carry : tensor (I, I) or None
        The same for earlier columns themselves, where errors come from earlier layers.
    dead : bool tensor (I,)
        Inputs that were never used, in their own order.
    damping : float
        The share of the mean diagonal that was added.
    """

    order: torch.Tensor
    pull: torch.Tensor
    carry: torch.Tensor | None
    dead: torch.Tensor
    damping: float


def factored(
    hessian: torch.Tensor, *, damping: float = 0.01, order: bool = True, cross: torch.Tensor | None = None
) -> Factor:
    """Decompose a Hessian: ``H = M M'`` with ``M`` upper triangular, in the order of rounding.

    Parameters
    ----------
    hessian : tensor (I, I)
    damping, order, cross
        As for :func:`gptq`.

    Returns
    -------
    Factor

    Raises
    ------
    BadInput
        The Hessian is zero, not finite, or not positive definite even with damping.

    Examples
    --------
    >>> found = factored(torch.tensor([[1.0, 1.0], [1.0, 4.0]]), damping=0.0)
    >>> found.order  # the input that is used most goes first
    tensor([1, 0])
    >>> found.pull
    tensor([[1., 0.],
            [1., 1.]])
    """
    hessian = checked_hessian(hessian)
    dead = dead_inputs(hessian)
    use = hessian.diagonal()
    places = use.argsort(descending=True, stable=True) if order else torch.arange(len(use), device=use.device)
    back = places.flip(0)
    turned = hessian[back][:, back]
    turned.diagonal().add_(dead[back] * (use.sum() / (~dead).sum()))
    found = cholesky(turned, damping)
    upper = found.lower.flip(0, 1)  # M: what is lower triangular read from the end is upper triangular
    pivots = upper.diagonal()
    carry = None
    if cross is not None:
        if cross.shape != hessian.shape:
            raise BadInput(
                f"'cross' has the shape of the Hessian, {tuple(hessian.shape)}, and not {tuple(cross.shape)}"
            )
        cross = cross.detach().to(hessian)[places][:, places]
        carried = torch.linalg.solve_triangular(upper.mT, cross, upper=False, left=False).triu(1)
        carry = (carried / pivots).T.contiguous()
    return Factor(places, (upper / pivots).T.contiguous(), carry, dead, found.damping)


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor | Factor,
    grid: Grid,
    *,
    damping: float = 0.01,
    order: bool = True,
    block: int = 128,
    static_groups: bool = True,
    steps: Steps | None = None,
    cross: torch.Tensor | None = None,
) -> Rounded:
    """Round a weight column by column, each column making good for the errors of those before it.

    The error of the layer is ``tr((W - V) H (W - V)')``; when a column is rounded, it and those behind it stand where
    this error is smallest given the columns before. The cost is that of a Cholesky decomposition and of half a product
    (I, I) by (I, O).

    Parameters
    ----------
    weight : tensor (O, I)
    hessian : tensor (I, I) or Factor
        ``(2/n) sum x x'``, or any multiple; or what :func:`factored` made of it with ``damping``, ``order`` and
        ``cross``, which then are not looked at here.
    grid : Grid
        Per "tensor", "channel" or "group" with steps from ``weight``; per "input", each column takes its own steps when
        it is reached.
    damping : float
        The share of the mean diagonal that is added to the diagonal; more, tenfold each time, where the decomposition
        fails.
    order : bool
        Whether inputs are rounded by falling diagonal of the Hessian ("act-order"), and not as they stand.
    block : int
        Columns whose corrections are kept back and applied together to those behind them. Changes no result but for
        the rounding of sums.
    static_groups : bool
        Whether groups take their steps from ``weight``, and not from the corrected weights when they are reached, which
        ``order`` must then leave as they stand.
    steps : Steps, optional
        In place of those that the grid takes.
    cross : tensor (I, I), optional
        ``(2/n) sum (x_full - x) x'``, in the unit of the Hessian and times how much of it is wanted: the inputs of the
        full model beside those that the layer will see. ``W x_full`` is then what the layer is to give.

    Returns
    -------
    Rounded
        In float32, or in float64 where the weight is, or as a factor that is given. Columns of inputs that were never
        used are rounded zeros.

    Raises
    ------
    BadInput
        The shapes do not fit, numbers are not finite, the Hessian cannot be factored, or groups are to be taken as they
        are reached in an order that breaks them up.

    Examples
    --------
    Rounded down alone, both would err the same way; the second goes up to make good for the first:

    >>> weight, hessian = torch.tensor([[2.4, 2.4, 7.5]]), torch.tensor([[2.0, 1.9, 0], [1.9, 2.0, 0], [0, 0, 1.0]])
    >>> gptq(weight, hessian, Grid(4)).weight
    tensor([[2., 3., 7.]])
    """
    weight = checked_weight(weight)
    factor = hessian if isinstance(hessian, Factor) else None
    if factor is None:
        factor = factored(hessian.to(weight), damping=damping, order=order, cross=cross)  # type: ignore[union-attr]
    if len(factor.order) != weight.shape[1]:
        raise BadInput(f"a Hessian of {len(factor.order)} inputs does not fit a weight {tuple(weight.shape)}")
    work = Columns.of(weight.to(factor.pull), factor, grid, static_groups, steps)
    block = work.fitting(block)
    kernel = _kernel(work)
    for start in range(0, len(factor.order), block):
        stop = min(start + block, len(factor.order))
        work.reach(start)
        if kernel is None:
            work.round_block(start, stop)
        else:
            kernel.round_block(work, start, stop)
        work.correct(start, stop)
    return work.rounded()


def _kernel(work: Columns) -> Any:
    """Return the module of the GPU kernel where it can do this, and does it right, else None."""
    if not work.weight.is_cuda or find_spec("triton") is None or not _sound():
        return None
    from farout.quantize.round import _gptq_kernel

    return _gptq_kernel if _gptq_kernel.can_round(work) else None


@cache
def _sound() -> bool:
    """Whether the kernel gives here what torch gives: versions of Triton and kinds of GPU are many. Asked once."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, 48, generator=generator), torch.randn(200, 48, generator=generator)
    work = Columns.of(weight.cuda(), factored((x.T @ x).cuda()), Grid(4, "group", 16, "asymmetric"), True, None)
    work.round_block(0, 48)
    expected = work.values.clone()
    try:
        from farout.quantize.round import _gptq_kernel

        _gptq_kernel.round_block(work, 0, 48)
        apart = float((work.values - expected).norm() / expected.norm())
    except Exception as error:
        why = f"it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    else:
        if apart < 0.02:  # a weight near the middle between two steps goes either way
            return True
        why = f"its weights differ by {apart:.2g}"
    warnings.warn(f"the GPU kernel of GPTQ is not used, since {why}; torch rounds instead", stacklevel=4)
    return False
