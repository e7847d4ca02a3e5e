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
LOOKS = (8, 4, 2, 1)  # shares of the columns of L after which candidates are dropped
POWER = 2.4  # of errors, for "mse"
HELD = {"cpu": 1 << 19}  # numbers at a time: few enough for a cache
MOST_HELD = 1 << 26


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
    errors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    if search == "mse":
        errors = _powers
    elif grid.per == "group":
        errors = _of_groups(hessian, grid.group)
    else:
        order = hessian.diagonal().argsort(descending=True)  # so that the first columns of L tell most
        weight, errors = weight[:, order], _Pruned(cholesky(hessian[order][:, order], 0.0).lower)
    rows = max(1, HELD.get(weight.device.type, MOST_HELD) // (SHRINKS // FIRST * weight.shape[1]))
    found = [_best(part, grid, errors) for part in weight.split(rows)]
    zeros = [one.zero for one in found if one.zero is not None]
    return Steps(torch.cat([one.scale for one in found]), torch.cat(zeros) if zeros else None)


def _best(weight: torch.Tensor, grid: Grid, errors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Steps:
    """Return the steps with the least error, of rows whose candidates are held at once, a tenth at a time."""
    v = grid.view(weight)
    low, high = v.amin(-1, keepdim=True), v.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), None if grid.symmetric else torch.zeros_like(low)
    shrinks = (1 - torch.arange(SHRINKS, device=v.device) / 100).to(v).view(-1, *[1] * v.ndim)
    first = torch.arange(SHRINKS, device=v.device) % FIRST == 0
    for some in (shrinks[first], *shrinks[~first].split(SHRINKS // FIRST)):
        steps = grid.steps_between(some * low, some * high)
        for tried in _zeros(grid, some * low, steps):
            least, place = errors(_off(grid, v, Steps(steps.scale, tried)), best).min(0)
            better = least < best
            best = torch.where(better, least, best)
            scale = torch.where(better, steps.scale.take_along_dim(place[None], 0)[0], scale)
            if zero is not None and tried is not None:
                zero = torch.where(better, tried.take_along_dim(place[None], 0)[0], zero)
    return Steps(scale, zero)


def _off(grid: Grid, v: torch.Tensor, steps: Steps) -> torch.Tensor:
    """Return how far values are from their nearest ones; of integers, in few passes over memory."""
    if grid.kind != "int":
        return v - grid.nearest(v, steps)
    low, high = (torch.as_tensor(end).to(v) for end in grid.ends)
    zero = torch.zeros_like(low) if steps.zero is None else steps.zero
    off = v / steps.scale
    return off.sub_(off.round().clamp_(low - zero, high - zero)).mul_(steps.scale)


def _zeros(grid: Grid, low: torch.Tensor, steps: Steps) -> list[torch.Tensor | None]:
    """Return the zero points to try: below and above the exact one."""
    if steps.zero is None:
        return [None]
    exact = -low / steps.scale
    if grid.rule != "free":
        exact = exact.clamp(*grid.ends)
    return [exact.floor(), exact.ceil()]


def _powers(e: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Return the sum of the powers 2.4 of errors, with a last axis of 1."""
    return e.abs().pow(POWER).sum(-1, keepdim=True)


def _of_groups(hessian: torch.Tensor, group: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return what weighs errors (c, O, groups, group) by blocks on a diagonal, with a last axis of 1."""
    n = len(hessian) // group
    blocks = hessian.view(n, group, n, group).diagonal(dim1=0, dim2=2)  # (group, group, n)
    return lambda e, best: (torch.einsum("cong,gkn->conk", e, blocks) * e).sum(-1, keepdim=True)


class _Pruned:
    """What weighs errors (c, O, I) by ``L L'``, with a last axis of 1; infinite where not below ``best`` (O, 1)."""

    def __init__(self, lower: torch.Tensor) -> None:
        self.lower = lower

    def __call__(self, e: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
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
