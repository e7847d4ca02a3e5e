"""A weight on its way through the sweeps of :mod:`farout.quantize.round.coordinate_descent`.

Here an input of the weight is a row, so that it lies in one piece.
:mod:`farout.quantize.round._coordinate_descent_kernel` does what :meth:`Descent.visit` does, on a GPU.

Shape legend: O outputs, I inputs, B inputs of a block, G rows of steps.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize._floats import NEAREST
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._columns import _rows, _to
from farout.quantize.round._common import Rounded, checked_hessian, checked_weight, dead_inputs

BLOCK = 128  # inputs between two products; for a GPU, whose kernel is launched once for each


@dataclass
class Descent:
    """A weight on its way: inputs are rows, in the order of their visits.

    Attributes
    ----------
    places : int64 tensor (I,)
        Inputs in that order.
    pull : tensor (I, I)
        Row ``j`` says how changes of the other inputs move the lowest point of ``j``: ``H_jk / H_jj``, 0 for itself.
    use : tensor (I,)
        The diagonal of the Hessian.
    target, change : tensor (I, O)
        What is to be matched, and the weights as they stand minus that.
    grid : Grid
    steps : Steps
    scale, zero : tensor (G, O)
        Steps by row; no zero points for symmetric grids.
    which : int32 tensor (I,)
        The row of each input.
    """

    places: torch.Tensor
    pull: torch.Tensor
    use: torch.Tensor
    target: torch.Tensor
    change: torch.Tensor
    grid: Grid
    steps: Steps
    scale: torch.Tensor
    zero: torch.Tensor | None
    which: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, order: bool, steps: Steps | None) -> Descent:
        """Lay a weight (O, I) out; it begins unchanged."""
        weight = checked_weight(weight)
        outputs, inputs = weight.shape
        hessian = checked_hessian(hessian).to(weight)
        if len(hessian) != inputs:
            raise BadInput(f"a Hessian of {len(hessian)} inputs does not fit a weight {tuple(weight.shape)}")
        dead = dead_inputs(hessian)
        use = hessian.diagonal().clamp(min=0)
        place = torch.arange(inputs, device=weight.device)
        places = use.argsort(descending=True, stable=True) if order else place
        pull = hessian[places][:, places] / use[places, None]
        pull[dead[places]] = 0
        pull.fill_diagonal_(0)
        steps = grid.steps(weight) if steps is None else _to(steps, weight)
        which = {"group": place // max(grid.group, 1), "input": place}.get(grid.per, torch.zeros_like(place))
        scale, zero = (None if one is None else _rows(one, grid, outputs) for one in (steps.scale, steps.zero))
        assert scale is not None
        target = weight.T[places].contiguous()
        which = which[places].int()
        return cls(places, pull, use[places], target, torch.zeros_like(target), grid, steps, scale, zero, which)

    def begin(self, start: torch.Tensor) -> torch.Tensor:
        """Begin at weights (O, I); return the error of each output."""
        start = checked_weight(start).to(self.target)
        if start.shape != self.target.T.shape:
            raise BadInput(
                f"'start' has the shape of the weight, {tuple(self.target.T.shape)}, and not {tuple(start.shape)}"
            )
        self.change = self.grid.rounded(start, self.steps).T[self.places] - self.target
        return (self.change * self.slope()).sum(0, dtype=torch.float64)

    def slope(self) -> torch.Tensor:
        """Return ``H D`` (I, O), half the slope of the error."""
        return self.use[:, None] * torch.addmm(self.change, self.pull, self.change)

    def sweep(self, relaxed: bool) -> torch.Tensor:
        """Visit every input once; return what that adds to the error of each output (float64)."""
        kernel = _kernel(self.change)
        gained = torch.zeros(self.change.shape[1], dtype=torch.float64, device=self.change.device)
        for start in range(0, len(self.pull), BLOCK):
            stop = min(start + BLOCK, len(self.pull))
            lowest = (self.pull[start:stop] @ self.change).neg_()
            if kernel is None:
                self.visit(start, stop, lowest, relaxed, gained)
            else:
                kernel.visit(self, start, stop, lowest, relaxed, gained)
        return gained

    def visit(self, start: int, stop: int, lowest: torch.Tensor, relaxed: bool, gained: torch.Tensor) -> None:
        """Visit a block of inputs whose lowest points (B, O), relative to the target, hold but for moves in it.

        A move by ``m`` to ``d``, where ``c`` is lowest, adds ``H_jj m (2 (d - c) - m)`` to the error.
        """
        block, which = slice(start, stop), self.which[start:stop]
        target, change, new = self.target[block], self.change[block], torch.empty_like(lowest)
        before = self.pull[block, block].tril()
        lowest.addmm_(before, change)  # earlier inputs of the block count with their new weights, as these come
        parts = lowest, new, target / self.scale[which], -target, before
        for j, (row, low, to, aim, off, pull) in enumerate(zip(which.tolist(), *map(torch.unbind, parts))):
            if j:
                low.addmv_(new[:j].T, pull[:j], alpha=-1)
            inverse, least, most, step = self._steps[row]
            code = torch.addcmul(aim, low, inverse).clamp_(least, most)
            if not relaxed:
                code = code.round_() if self.grid.kind == "int" else NEAREST[self.grid.bits](code)
            torch.addcmul(off, code, step, out=to)
        moved = new - change
        gained += (self.use[block, None] * moved * (2 * (new - lowest) - moved)).sum(0, dtype=torch.float64)
        change.copy_(new)

    @cached_property
    def _steps(self) -> list[tuple[torch.Tensor, ...]]:
        """By row of steps: inverse of the scale, least and greatest code without zero points, scale; each (O,)."""
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero
        low, high = (end - zero for end in self.grid.ends)
        return list(zip(*map(torch.unbind, (1 / self.scale, low, high, self.scale))))

    def in_place(self, rows: torch.Tensor) -> torch.Tensor:
        """Bring rows (I, O) back into the order and shape of the weight."""
        return rows[self.places.argsort()].T.contiguous()

    def rounded(self) -> Rounded:
        """Return the weights as they stand, exactly on the grid."""
        values = self.grid.rounded(self.in_place(self.target + self.change), self.steps)
        return Rounded(values, self.steps, self.grid)


def _kernel(like: torch.Tensor) -> Any:
    """Return the module of the GPU kernel where it can do this, and does it right, else None."""
    if not like.is_cuda or like.dtype != torch.float32 or find_spec("triton") is None or not _sound():
        return None
    from farout.quantize.round import _coordinate_descent_kernel

    return _coordinate_descent_kernel


@cache
def _sound() -> bool:
    """Whether the kernel gives here what torch gives: versions of Triton and kinds of GPU are many. Asked once."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(40, 48, generator=generator), torch.randn(200, 48, generator=generator)
    grid = Grid(4, "group", 16, "asymmetric")
    one, other = (Descent.of(weight.cuda(), (x.T @ x).cuda(), grid, True, None) for _ in range(2))
    lowest, gained = torch.zeros_like(one.change), torch.zeros(2, 40, dtype=torch.float64, device="cuda")
    one.visit(0, 48, lowest.clone(), False, gained[0])
    try:
        from farout.quantize.round import _coordinate_descent_kernel

        _coordinate_descent_kernel.visit(other, 0, 48, lowest, False, gained[1])
        apart = float((other.change - one.change).norm() / one.change.norm())
        apart = max(apart, float((gained[1] - gained[0]).norm() / gained[0].norm()))
    except Exception as error:
        why = f"it failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    else:
        if apart < 0.02:  # a weight near the middle between two steps goes either way
            return True
        why = f"its weights differ by {apart:.2g}"
    warnings.warn(f"the GPU kernel of QuantEase is not used, since {why}; torch rounds instead", stacklevel=4)
    return False
