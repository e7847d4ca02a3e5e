"""Steps of a grid that round best, and not those of the least and the greatest value.

Shape legend: O outputs, I inputs, c candidates, n candidates of all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from farout.errors import UnknownName
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import cholesky

__all__ = ["SEARCHES", "searched_steps"]

SEARCHES = ("hessian", "mse", "minmax")
SHRINKS = 80  # ranges are tried at 1, 0.99, ..., 0.21 of their size
FIRST = 8  # every so many of them come first
LOOKS = (8, 4, 2, 1)  # shares of the columns of L after which a CPU drops candidates
POWER = 2.4  # of errors, for "mse"
HELD = 1 << 19  # numbers of candidates at a time: few enough for a CPU's cache
MOST_HELD = 1 << 26  # on a GPU

Errors = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of what values are off, and of the best so far


def searched_steps(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, search: str = "hessian") -> Steps:
    """Search the steps of each row, or of each group, that round it best to nearest.

    Ranges from the least to the greatest weight are tried at 1, 0.99, ..., 0.21 of their size, and zero points rounded
    down and up. Every eighth size is tried first. With ``H = L L'``, the error ``e' H e`` is the sum of squares of
    ``e' L``; what is beyond the best so far after some columns of ``L`` need not be known.

    Parameters
    ----------
    weight : tensor (O, I)
    hessian : tensor (I, I)
        Positive definite. Of groups, the blocks on its diagonal count.
    grid : Grid
        Per "channel" or "group"; any, where nothing is searched.
    search : {"hessian", "mse", "minmax"}

    Returns
    -------
    Steps

    Examples
    --------
    One weight far out would have all others rounded to 0, which costs more than to clip it:

    >>> weight = torch.tensor([[5.0, 2.2, 2.2, 2.2, 2.2, 2.2, -2.2, -2.2]])
    >>> searched_steps(weight, torch.eye(8), Grid(2, rule="narrow"), "minmax").scale
    tensor([[5.]])
    >>> searched_steps(weight, torch.eye(8), Grid(2, rule="narrow")).scale
    tensor([[2.5500]])
    """
    if search not in SEARCHES:
        raise UnknownName("search of steps", search, SEARCHES)
    if search == "minmax":
        return grid.steps(weight)
    errors: Errors
    if search == "mse":
        errors = _powers
    elif grid.per == "group":
        errors = _of_groups(hessian, grid.group)
    else:
        order = hessian.diagonal().argsort(descending=True)  # so that the first columns of L tell most
        weight, errors = weight[:, order], _Pruned(cholesky(hessian[order][:, order], 0.0).lower)
    if weight.device.type != "cpu":
        return _best(weight, grid, errors, MOST_HELD)
    rows = max(1, HELD // (SHRINKS // FIRST * weight.shape[1]))
    found = [_best(part, grid, errors, HELD) for part in weight.split(rows)]
    zeros = [one.zero for one in found if one.zero is not None]
    return Steps(torch.cat([one.scale for one in found]), torch.cat(zeros) if zeros else None)


def _best(weight: torch.Tensor, grid: Grid, errors: Errors, held: int) -> Steps:
    """Return the steps with the least error, with so many numbers of candidates held at a time."""
    v = grid.view(weight)
    scale, zero = _candidates(grid, v)
    best = torch.full_like(scale[0], torch.inf)
    found, found_zero = scale[0], None if zero is None else zero[0]
    for some in torch.arange(len(scale), device=v.device).split(max(1, held // v.numel())):
        tried, tried_zero = scale[some], None if zero is None else zero[some]
        least, place = errors(_off(grid, v, Steps(tried, tried_zero)), best).min(0)
        better = least < best
        best = torch.where(better, least, best)
        found = torch.where(better, tried.take_along_dim(place[None], 0)[0], found)
        if tried_zero is not None and found_zero is not None:
            found_zero = torch.where(better, tried_zero.take_along_dim(place[None], 0)[0], found_zero)
    return Steps(found, found_zero)


def _candidates(grid: Grid, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scales and zero points (c, ..., 1) to try, for values that share a step along the last axis."""
    places = torch.arange(SHRINKS, device=v.device)
    places = torch.cat([places[places % FIRST == 0], places[places % FIRST != 0]])
    shrinks = (1 - places.to(v) / 100).view(-1, *[1] * v.ndim)
    low, high = shrinks * v.amin(-1, keepdim=True), shrinks * v.amax(-1, keepdim=True)
    steps = grid.steps_between(low, high)
    if steps.zero is None:
        return steps.scale, None
    exact = -low / steps.scale
    if grid.rule != "free":
        exact = exact.clamp(*grid.ends)
    return steps.scale.repeat_interleave(2, 0), torch.stack([exact.floor(), exact.ceil()], 1).flatten(0, 1)


def _off(grid: Grid, v: torch.Tensor, steps: Steps) -> torch.Tensor:
    """Return how far values are from their nearest ones; of integers, in few passes over memory."""
    if grid.kind != "int":
        return v - grid.nearest(v, steps)
    low, high = (torch.as_tensor(end).to(v) for end in grid.ends)
    zero = torch.zeros_like(low) if steps.zero is None else steps.zero
    off = v / steps.scale
    return off.sub_(off.round().clamp_(low - zero, high - zero)).mul_(steps.scale)


def _powers(e: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Return the sum of the powers 2.4 of errors, with a last axis of 1."""
    return e.abs().pow(POWER).sum(-1, keepdim=True)


def _of_groups(hessian: torch.Tensor, group: int) -> Errors:
    """Return what weighs errors (c, O, groups, group) by blocks on a diagonal, with a last axis of 1."""
    n = len(hessian) // group
    blocks = hessian.view(n, group, n, group).diagonal(dim1=0, dim2=2)  # (group, group, n)
    return lambda e, best: (torch.einsum("cong,gkn->conk", e, blocks) * e).sum(-1, keepdim=True)


class _Pruned:
    """What weighs errors (c, O, I) by ``L L'``, with a last axis of 1; or infinite where not below ``best`` (O, 1)."""

    def __init__(self, lower: torch.Tensor) -> None:
        self.lower = lower

    def __call__(self, e: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        if e.device.type != "cpu":  # where to pick what is left takes longer than to multiply all
            return (e @ self.lower).square().sum(-1, keepdim=True)
        found = torch.full_like(e[..., 0], torch.inf)
        e, bound = e.flatten(0, 1), best.expand(*e.shape[:2], 1).reshape(-1)
        start = 0
        alive = torch.arange(len(e), device=e.device)
        total = torch.zeros_like(bound)
        for share in LOOKS:
            stop = len(self.lower) // share
            total += (e[:, start:] @ self.lower[start:, start:stop]).square().sum(1)
            near = (total < bound).nonzero()[:, 0]
            e, bound, alive, total, start = e[near], bound[near], alive[near], total[near], stop
        return found.view(-1).index_copy(0, alive, total).view_as(found)[..., None]
