"""QuantEase: Optimization-based Quantization for Language Models.

Kayhan Behdin, Ayan Acharya, Aman Gupta, Qingquan Song, Siyu Zhu, Sathiya Keerthi, Rahul Mazumder, 2023 (arXiv
2309.01885).

Take the weights of a layer one input at a time, over and over, and set each to the number of its grid that makes the
layer's error least while all others stay. The error is a parabola in each weight, so that this number is the one
nearest to the parabola's lowest point: there is nothing to invert or to decompose, and nothing to damp.

The paper claims up to 15 % better perplexity and zero-shot accuracy than GPTQ and, with some weights left out of the
grid, up to half the perplexity of SpQR near 3 bits: OPT-1.3B has 14.62 on WikiText-2, at 3 bits 21.30, with 1 % of the
weights outside 16.25, with 1 % of the inputs outside 18.51.

**Changes, not weights.** With ``D = V - W`` for weights ``V``, the lowest point of input ``j`` is ``W_j + c_j``,
``c_j = -sum_{k != j} D_k H_kj / H_jj``. The paper takes the difference of ``W H`` and ``V H``, which are large and
nearly equal. Products are made for a block of inputs at a time, so that a sweep costs about one product (I, I) by
(I, O).

Other differences from the paper and the official code (linkedin/QuantEase):

- The answer is the best rounded one of all sweeps, for each output on its own, not the last; sweeps end where nothing
  moves any more.
- Relaxed weights stay within the range of their grid, since an input that is hardly used could throw them anywhere.
- Groups always take their steps from the weights in their own order.
- Starting from GPTQ's weights, the aim is still the original weight; the code aims at GPTQ's own, which leaves little
  to gain.
- The code's variant with outliers computes new weights and does not store them, and its last term is not divided by
  ``H_jj``. Here it follows the equations, with the step ``1 / L`` of the paper, where the code takes half of it, and
  trims ranges evenly, where the code cuts one value less below than above.
"""

from __future__ import annotations

import torch

from farout.errors import BadInput
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import Rounded, checked_weight
from farout.quantize.round._descent import Descent

__all__ = ["coordinate_descent", "with_outliers"]

LAST_RELAXED = 25  # sweep, counted from 0


def coordinate_descent(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    *,
    sweeps: int = 30,
    relax: bool = True,
    order: bool = True,
    start: torch.Tensor | None = None,
    steps: Steps | None = None,
) -> Rounded:
    """Round a weight by sweeps over its inputs, each set to what is best for the layer while the others stay.

    Parameters
    ----------
    weight : tensor (O, I)
    hessian : tensor (I, I)
        ``(2/n) sum x x'``, or any multiple.
    grid : Grid
    sweeps : int
        Each costs about a product (I, I) by (I, O).
    relax : bool
        Whether in sweeps 1, 4, 7, ... 25, but never in the last, weights go to the lowest point itself, between the
        numbers of the grid, which leads out of answers that no single weight can improve.
    order : bool
        Whether inputs are visited by falling diagonal of the Hessian, and not as they stand.
    start : tensor (O, I), optional
        Where to begin, such as GPTQ's weights; it is rounded to the grid first, and no output ends up worse. By default
        the sweeps begin at ``weight``.
    steps : Steps, optional
        In place of those that the grid takes from ``weight``.

    Returns
    -------
    Rounded
        In float32, or in float64 where the weight is. Inputs that were never used are rounded to nearest.

    Raises
    ------
    BadInput
        The shapes do not fit, numbers are not finite, or there are no sweeps.

    Examples
    --------
    Rounded to nearest, both would err the same way; one goes up to make good for the other:

    >>> weight, hessian = torch.tensor([[2.4, 2.4, 7.5]]), torch.tensor([[2.0, 1.9, 0], [1.9, 2.0, 0], [0, 0, 1.0]])
    >>> coordinate_descent(weight, hessian, Grid(4)).weight
    tensor([[2., 3., 7.]])
    """
    free = _relaxed(sweeps, relax)
    descent = Descent.of(weight, hessian, grid, order, steps)
    error = torch.zeros_like(descent.change[0], dtype=torch.float64) if start is None else descent.begin(start)
    least, best = torch.full_like(error, torch.inf), descent.change
    for t in range(sweeps):
        gained = descent.sweep(free[t])
        error = error + gained
        if not free[t]:
            best = torch.where(error < least, descent.change, best)
            least = torch.minimum(error, least)
        if not any(free[t:]) and not bool(gained.any()):
            break
    descent.change = best
    return descent.rounded()


def with_outliers(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    *,
    ratio: float = 0.01,
    structured: bool = False,
    sweeps: int = 30,
    relax: bool = True,
    order: bool = True,
) -> Rounded:
    """Round a weight, and leave a small part of it beside the grid, in 16 bits.

    The layer's error is made small over ``V + K`` with ``V`` on the grid and few numbers in ``K``: in turns a sweep for
    ``V``, and for ``K`` a step of iterative hard thresholding, which goes down the slope by ``1 / L`` and then keeps
    what is largest. The range of the grid leaves out the largest weights.

    Parameters
    ----------
    weight, hessian, grid, sweeps, relax, order
        As for :func:`coordinate_descent`.
    ratio : float
        Share of the weights that stand beside the grid, or of the inputs.
    structured : bool
        Whether whole inputs do (those whose weights are largest together), and not single weights.

    Returns
    -------
    Rounded
        With ``kept`` in numbers that float16 holds.

    Raises
    ------
    BadInput
        As for :func:`coordinate_descent`; or the ratio is not between 0 and 1.

    Examples
    --------
    >>> weight = torch.tensor([[0.5, -1.0, 60.0, 0.75]])
    >>> found = with_outliers(weight, torch.eye(4), Grid(3), ratio=0.25, structured=True)
    >>> found.kept
    tensor([[ 0.,  0., 60.,  0.]])
    >>> found.weight - found.kept
    tensor([[ 0.5714, -0.8571,  0.0000,  0.8571]])
    """
    weight = checked_weight(weight)
    if not 0 <= ratio <= 1:
        raise BadInput(f"'ratio' is a share between 0 and 1; {ratio:g} was given")
    free = _relaxed(sweeps, relax)
    count = round(ratio * (weight.shape[1] if structured else weight.numel()))
    largest = _largest_inputs if structured else _largest
    outside = largest(weight.T, count).T
    descent = Descent.of(weight, hessian, grid, order, _steps_within(weight, outside, grid, ratio, structured))
    kept = outside.T[descent.places]
    descent.target = descent.target - kept
    rate = 1 / _largest_eigenvalue(descent)
    least, best = torch.inf, (descent.target, descent.change, kept)
    for t in range(sweeps):
        descent.sweep(free[t])
        slope = descent.slope()
        error = float((descent.change * slope).sum(dtype=torch.float64))
        if not free[t] and error < least:
            least, best = error, (descent.target, descent.change.clone(), kept)
        kept = _aside(descent, kept, largest(kept - rate * slope, count))
    descent.target, descent.change, kept = best
    found = descent.rounded()
    kept = descent.in_place(largest(kept - rate * descent.slope(), count)).half().to(weight)
    return Rounded(found.weight + kept, found.steps, grid, kept)


def _aside(descent: Descent, kept: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Let other numbers stand beside the grid, which then has other targets; the weights on it stay."""
    descent.target = descent.target + (kept - now)
    descent.change -= kept - now
    return now


def _relaxed(sweeps: int, relax: bool) -> list[bool]:
    """Say of each sweep whether its weights may leave the grid."""
    if sweeps < 1:
        raise BadInput(f"'sweeps' is 1 at least; {sweeps} was given")
    return [relax and t % 3 == 1 and t <= LAST_RELAXED and t < sweeps - 1 for t in range(sweeps)]


def _largest(matrix_IO: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the largest numbers, and set the others to 0."""
    flat = matrix_IO.flatten()
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(count, sorted=False).indices
    kept[places] = flat[places]
    return kept.view_as(matrix_IO)


def _largest_inputs(matrix_IO: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the inputs whose weights are largest together, and set the others to 0."""
    kept = torch.zeros_like(matrix_IO)
    places = matrix_IO.norm(dim=1).topk(count, sorted=False).indices
    kept[places] = matrix_IO[places]
    return kept


def _steps_within(weight: torch.Tensor, outside: torch.Tensor, grid: Grid, ratio: float, structured: bool) -> Steps:
    """Take steps from the weights without the inputs that stand outside, or without the ends of each range."""
    if structured:
        out = (outside != 0).any(0)
        low = grid.view(weight.masked_fill(out, torch.inf)).amin(-1, keepdim=True)
        high = grid.view(weight.masked_fill(out, -torch.inf)).amax(-1, keepdim=True)
        return grid.steps_between(low.masked_fill(low.isinf(), 0), high.masked_fill(high.isinf(), 0))
    values = grid.view(weight).sort(-1).values
    cut = round(values.shape[-1] * ratio / 2)
    cut = min(cut, (values.shape[-1] - 1) // 2)
    return grid.steps_between(values[..., cut, None], values[..., -1 - cut, None])


def _largest_eigenvalue(descent: Descent) -> float:
    """Return the largest eigenvalue of the Hessian, by subspace iteration, plus what may be missing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(descent.pull), 8, generator=generator, dtype=torch.float64).to(descent.pull)

    def product(x: torch.Tensor) -> torch.Tensor:
        return descent.use[:, None] * (x + descent.pull @ x)

    for _ in range(30):
        x = torch.linalg.qr(product(x)).Q
    values, turn = torch.linalg.eigh(x.T @ product(x))
    top = x @ turn[:, -1:]
    return float(values[-1] + (product(top) - values[-1] * top).norm())
