"""Steps of a grid that round best, and not those of the least and the greatest value.

Shape legend: O outputs, I inputs, c candidates.
"""

from __future__ import annotations

import torch

from farout.errors import UnknownName
from farout.quantize.grid import Grid, Steps

__all__ = ["SEARCHES", "searched_steps"]

SEARCHES = ("hessian", "mse", "minmax")
SHRINKS = 80  # ranges are tried at 1, 0.99, ..., 0.21 of their size
POWER = 2.4  # of errors, for "mse"
HELD = {"cpu": 1 << 21}  # numbers of candidates at a time: few enough for a cache
MOST_HELD = 1 << 26


def searched_steps(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, search: str = "hessian") -> Steps:
    """Search the steps of each row, or of each group, that round it best to nearest.

    Ranges from the least to the greatest weight are tried at 1, 0.99, ..., 0.21 of their size, and zero points rounded
    down and up.

    Parameters
    ----------
    weight : tensor (O, I)
    hessian : tensor (I, I)
        Of groups, the blocks on its diagonal count.
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
    v = grid.view(weight)
    low, high = v.amin(-1, keepdim=True), v.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), None if grid.symmetric else torch.zeros_like(low)
    shrinks = (1 - torch.arange(SHRINKS, device=v.device) / 100).to(v).view(-1, *[1] * v.ndim)
    held = HELD.get(v.device.type, MOST_HELD)
    for some in shrinks.split(max(1, held // v.numel())):
        steps = grid.steps_between(some * low, some * high)
        for tried in _zeros(grid, some * low, steps):
            error = _error(v - grid.nearest(v, Steps(steps.scale, tried)), hessian, search)
            least, place = error.min(0)
            better = least < best
            best = torch.where(better, least, best)
            scale = torch.where(better, steps.scale.take_along_dim(place[None], 0)[0], scale)
            if zero is not None and tried is not None:
                zero = torch.where(better, tried.take_along_dim(place[None], 0)[0], zero)
    return Steps(scale, zero)


def _zeros(grid: Grid, low: torch.Tensor, steps: Steps) -> list[torch.Tensor | None]:
    """Return the zero points to try: below and above the exact one."""
    if steps.zero is None:
        return [None]
    exact = -low / steps.scale
    if grid.rule != "free":
        exact = exact.clamp(*grid.ends)
    return [exact.floor(), exact.ceil()]


def _error(e: torch.Tensor, hessian: torch.Tensor, search: str) -> torch.Tensor:
    """Return what errors (c, O, I) cost each row, or (c, O, groups, inputs) each group, with a last axis of 1."""
    if search == "mse":
        return e.abs().pow(POWER).sum(-1, keepdim=True)
    if e.ndim == 3:
        return (e @ hessian * e).sum(-1, keepdim=True)
    n, g = e.shape[-2:]
    blocks = hessian.view(n, g, n, g).diagonal(dim1=0, dim2=2)  # (g, g, n)
    return (torch.einsum("cong,gkn->conk", e, blocks) * e).sum(-1, keepdim=True)
