"""The solver of BoA and TurboBoA: rounding where errors of different outputs are weighed together, as in attention.

Kim et al., "BoA: Attention-aware Post-training Quantization without Backpropagation", arXiv 2406.13474, and
"TurboBoA: Faster and Exact Attention-aware Quantization without Backpropagation", arXiv 2602.04929. Written from the
equations; official code (SamsungLabs/TurboBoA) was not used. What the papers claim stands in
:mod:`farout.quantize.turboboa`.

Rows that share the Hessian of their inputs are independent given the rows before them, so those of a block are rounded
in one pass of :func:`farout.quantize.round.gptq.gptq`, and so are the blocks of all heads: heads do not meet.

Shape legend: h heads, d outputs of a head, N rows of a block, I inputs, O = h d outputs, c candidates.
"""

from __future__ import annotations

from typing import Any

import torch

from farout.errors import BadInput, UnknownName
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import TRIES, Rounded, checked_weight
from farout.quantize.round._search import SEARCHES, searched_steps
from farout.quantize.round.gptq import factored, gptq

__all__ = ["boa"]


def boa(
    weight: torch.Tensor,
    hessian_in: torch.Tensor,
    hessian_out: torch.Tensor | None,
    grid: Grid,
    *,
    rows: int = 16,
    cross: torch.Tensor | None = None,
    alpha: float = 0.25,
    steps: Steps | None = None,
    adaptive: bool = True,
    refine: int = 1,
    order_columns: bool = True,
    order_rows: bool = False,
    search: str = "hessian",
    damping: float = 0.01,
) -> Rounded:
    """Round a weight so that ``tr(H_out D H_in D')`` is small in each head, with ``D = W - V``.

    Rows of a head are taken in blocks ``b``. The columns of a block are rounded one after another as GPTQ does, each
    error made up for by the columns behind it; then all rows ``r`` behind the block move to their optimum given its
    error,

        ``W_r -= U_br' U_bb^-T (W_b - V_b)``,  ``H_out^-1 = U'U``, ``U`` upper triangular.

    With ``cross``, what the layer gives for inputs in full precision is the target: ``R = alpha cross`` enters the pass
    over columns by ``P = triu(R U', 1) U`` with the ``U`` of ``H_in``, and that over rows by ``W_b R H_in^-1`` beside
    ``W_b - V_b``. At last the codes are kept, and steps improved row after row, each to its optimum given the others.

    Cost: ``d / rows`` passes over the columns, each over ``rows`` rows of all heads; ``O(I^3 + h d^3)`` for factors;
    and a product of ``O(I^2)`` for each row and each of 80 candidates of its steps, or 160 with zero points, most of
    which ends early.

    Parameters
    ----------
    weight : tensor (O, I)
        Heads one after another.
    hessian_in : tensor (I, I) or (h, I, I)
        ``(2/n) sum x x'``; one for each head where heads see different inputs.
    hessian_out : tensor (h, d, d), optional
        What weighs errors of a head's outputs, with ``h d = O``; the identity where there is none.
    grid : Grid
    rows : int
        Of a block; 1 is BoA.
    cross : tensor (I, I) or (h, I, I), optional
        ``(2/n) sum (x_full - x) x'``, in the unit of ``hessian_in``: the inputs of the full model beside those that the
        layer will see.
    alpha : float
        How much of ``cross`` is corrected for.
    steps : Steps, optional
        In place of those that are searched.
    adaptive : bool
        Whether the steps of a row are searched when its turn comes, on what it was moved to, and not before. Steps that
        rows share, and formats with scales of their own (mxfp4, nvfp4), always come from ``weight``.
    refine : int
        Passes of improving steps; none where a row has more than one step or shares it.
    order_columns, order_rows : bool
        Whether inputs, or rows of a head, are taken by falling diagonal of their Hessian.
    search : {"hessian", "mse", "minmax"}
        What the steps of a row minimise when all of it is rounded to nearest: its error weighed by ``hessian_in``; the
        sum of its 2.4th power; or none of these, and steps are taken from the least and the greatest weight.
    damping : float
        The share of the mean diagonal that is added to both Hessians, and more where one is singular.

    Returns
    -------
    Rounded
        In float32, or in float64 where the weight is.

    Raises
    ------
    BadInput
        Shapes do not fit, numbers are not finite, or a Hessian cannot be factored.
    UnknownName
        There is no such ``search``.

    Examples
    --------
    Both rows would be rounded down. Their errors add up, so the second goes up to make good for the first:

    >>> weight, steps = torch.tensor([[0.4], [0.4]]), Steps(torch.ones(2, 1))
    >>> together = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
    >>> boa(weight, torch.eye(1), together, Grid(4), rows=1, steps=steps, refine=0).weight.T
    tensor([[0., 1.]])
    >>> boa(weight, torch.eye(1), None, Grid(4), steps=steps, refine=0).weight.T
    tensor([[0., 0.]])
    """
    if search not in SEARCHES:
        raise UnknownName("search of steps", search, SEARCHES)
    weight = checked_weight(weight)
    if hessian_in.ndim == 3:  # heads that see different inputs share nothing
        settings: dict[str, Any] = dict(rows=rows, alpha=alpha, adaptive=adaptive, refine=refine, search=search)
        settings |= dict(order_columns=order_columns, order_rows=order_rows, damping=damping)
        return _by_head(weight, hessian_in, hessian_out, grid, cross, steps, settings)
    _check(weight, hessian_out, grid, rows)

    R = None if cross is None or not alpha else alpha * cross.detach().to(weight)
    factor = factored(hessian_in.to(weight), damping=damping, order=order_columns, cross=R)
    H_in = _damped(hessian_in.detach().to(weight), factor.dead, factor.damping)
    weight = weight.masked_fill(factor.dead, 0.0)
    own_steps = grid.per in ("channel", "group") and grid.kind in ("int", "float")
    if steps is None and not (adaptive and own_steps):
        steps = searched_steps(weight, H_in, grid, search if own_steps else "minmax")

    H_out, U, lift = None, None, None
    order_hd = torch.arange(len(weight), device=weight.device)[None]
    if hessian_out is not None:
        H_out, U, order_hd = _of_outputs(hessian_out.to(weight), damping, order_rows)
        lift = None if R is None else torch.cholesky_solve(R.mT, torch.linalg.cholesky(H_in)).mT  # R H_in^-1
    else:
        rows = len(weight)  # without a Hessian of outputs rows do not meet
    now_hdI = weight[order_hd]
    values_hdI, found = torch.empty_like(now_hdI), []
    for start in range(0, now_hdI.shape[1], rows):
        block, rest = slice(start, start + rows), slice(start + rows, None)
        W_hNI = now_hdI[:, block]
        flat = W_hNI.flatten(0, 1)
        some = _of_rows(steps, order_hd[:, block]) if steps is not None else searched_steps(flat, H_in, grid, search)
        found.append(some)
        values_hdI[:, block] = gptq(flat, factor, grid, steps=some).weight.view_as(W_hNI)
        if U is not None and start + rows < now_hdI.shape[1]:
            off = W_hNI - values_hdI[:, block]
            if lift is not None:
                off += W_hNI @ lift
            pull = torch.linalg.solve_triangular(U[:, block, block], U[:, block, rest], upper=True)
            now_hdI[:, rest] -= pull.mT @ off

    back = order_hd.flatten().argsort()
    steps = _of_rows(_joined(found, len(order_hd)), back) if steps is None else steps
    codes = grid.codes(values_hdI.flatten(0, 1)[back], steps)
    if grid.per == "channel" and grid.kind in ("int", "float"):
        for _ in range(refine):
            steps = _refined(weight, codes, steps, H_in, H_out, R)
    return Rounded(grid.values(codes, steps, tuple(weight.shape)), steps, grid)


def _check(weight: torch.Tensor, hessian_out: torch.Tensor | None, grid: Grid, rows: int) -> None:
    if rows < 1:
        raise BadInput(f"'rows' is a number of rows, 1 at least; {rows} was given")
    if grid.per == "input":
        raise BadInput("steps that outputs of an input share cannot be taken row by row; choose a grid per 'channel'")
    if hessian_out is None:
        return
    shape = tuple(hessian_out.shape)
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] * shape[1] != len(weight):
        raise BadInput(f"a Hessian of outputs (heads, d, d) has heads d = {len(weight)} outputs here; it is {shape}")


def _by_head(
    weight: torch.Tensor,
    hessian_in: torch.Tensor,
    hessian_out: torch.Tensor | None,
    grid: Grid,
    cross: torch.Tensor | None,
    steps: Steps | None,
    settings: dict[str, Any],
) -> Rounded:
    """Round heads that have Hessians of inputs of their own."""
    heads = len(hessian_in)
    if len(weight) % heads:
        raise BadInput(f"{len(weight)} outputs do not make {heads} heads, for each of which there is a Hessian")
    if steps is None and (grid.per == "tensor" or grid.kind in ("mxfp4", "nvfp4")):
        steps = grid.steps(weight)  # of which all heads share something
    done = []
    for i, own in enumerate(torch.arange(len(weight), device=weight.device).view(heads, -1)):
        others = None if hessian_out is None else hessian_out[i : i + 1]
        errors = cross if cross is None or cross.ndim == 2 else cross[i]
        some = None if steps is None else _of_rows(steps, own)
        done.append(boa(weight[own], hessian_in[i], others, grid, cross=errors, steps=some, **settings))
    if steps is None or grid.per == "channel":  # else none was refined
        steps = _joined([one.steps for one in done], 1)
    return Rounded(torch.cat([one.weight for one in done]), steps, grid)


def _of_rows(steps: Steps, rows: torch.Tensor) -> Steps:
    """Return the steps of some rows, one after another."""
    if len(steps.scale) == 1:
        return steps
    scale, zero = (None if one is None else one[rows.flatten()] for one in (steps.scale, steps.zero))
    return Steps(scale, zero, steps.global_scale)  # type: ignore[arg-type]


def _joined(found: list[Steps], heads: int) -> Steps:
    """Join the steps of blocks of rows, each of which has rows of every head."""
    scale = torch.cat([one.scale.unflatten(0, (heads, -1)) for one in found], 1).flatten(0, 1)
    zeros = [one.zero.unflatten(0, (heads, -1)) for one in found if one.zero is not None]
    return Steps(scale, torch.cat(zeros, 1).flatten(0, 1) if zeros else None)


def _damped(hessian: torch.Tensor, dead: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the Hessian that a factor was made of: unused inputs count with the mean of the others."""
    use = hessian.diagonal()
    filled = hessian + torch.diag(dead * (use.sum() / (~dead).sum()))
    return filled + torch.diag(damping * filled.diagonal().mean().expand_as(use))


def _of_outputs(hessian: torch.Tensor, damping: float, order_rows: bool) -> tuple[torch.Tensor, ...]:
    """Return damped Hessians (h, d, d); ``U`` with ``H^-1 = U'U`` in the order of rows; this order among all rows."""
    h, d = hessian.shape[:2]
    own, eye = torch.arange(d, device=hessian.device).repeat(h, 1), torch.eye(d).to(hessian)
    order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True) if order_rows else own
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    unheard = mean == 0  # heads that nothing ever listens to
    hessian, mean = torch.where(unheard, eye, hessian), torch.where(unheard, 1.0, mean)
    share = torch.full_like(mean, damping)
    for _ in range(TRIES):
        damped = hessian + share * mean * eye
        back = order.flip(1)
        turned = damped.take_along_dim(back[:, :, None], 1).take_along_dim(back[:, None], 2)
        lower, info = torch.linalg.cholesky_ex(turned)
        if not bool(info.any()):
            M = lower.flip(1, 2)  # upper triangular, with H = M M'; so U = M^-1
            U = torch.linalg.solve_triangular(M, eye.expand_as(M), upper=True)
            return damped, U, order + d * torch.arange(h, device=order.device)[:, None]
        share = torch.where(info[:, None, None] > 0, (10 * share).clamp(min=1e-6), share)
    raise BadInput(
        f"the Hessian of outputs of head {int(info.nonzero()[0])} is not positive definite, however much is added to "
        "its diagonal; is it finite, and a sum of k k'?"
    )


def _refined(
    weight: torch.Tensor,
    codes: torch.Tensor,
    steps: Steps,
    H_in: torch.Tensor,
    H_out: torch.Tensor | None,
    R: torch.Tensor | None,
) -> Steps:
    """Improve the step of each row once, in their order, each to its optimum given the others.

    With ``V = diag(s) Z``, the error is quadratic in ``s``: ``s' K s - 2 b' s`` plus what does not depend on it, with
    ``K = H_out * (Z H_in Z')`` entry by entry and ``b_r = (H_out W (H_in + R) Z')_rr``. To go through the rows once is
    to solve ``tril(K) s_new = b - triu(K, 1) s``. A row of zeros, or one whose step would not stay positive, keeps it.
    """
    Z = codes if steps.zero is None else codes - steps.zero
    target = weight @ (H_in if R is None else H_in + R)
    if H_out is None:
        curve = (Z @ H_in * Z).sum(1, keepdim=True)
        better = (target * Z).sum(1, keepdim=True) / curve
        return Steps(torch.where((curve > 0) & (better > 0), better, steps.scale), steps.zero)
    Z, target = (x.unflatten(0, (len(H_out), -1)) for x in (Z, target))
    K = H_out * (Z @ H_in @ Z.mT)
    b = (H_out * (Z @ target.mT)).sum(2, keepdim=True)
    s = steps.scale.view_as(b)
    eye = torch.eye(K.shape[1]).to(K)
    kept = K.diagonal(dim1=1, dim2=2)[..., None] <= 0
    while True:
        lower = torch.where(kept, eye, K.tril())
        better = torch.linalg.solve_triangular(lower, torch.where(kept, s, b - K.triu(1) @ s), upper=False)
        lost = better <= 0
        if not bool(lost.any()):
            return Steps(better.reshape(steps.scale.shape), steps.zero)
        kept = kept | lost
