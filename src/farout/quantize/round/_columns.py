"""A weight on its way through GPTQ: its columns in the order of rounding, and their steps.

Here a column of the weight (an input) is a row, so that it lies in one piece. On a GPU, a kernel stands in for
:meth:`Columns.round_block`.

Shape legend: O outputs, I inputs, G rows of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from farout.errors import BadInput
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import Rounded


@dataclass
class Columns:
    """Columns (I, O) of a weight, of which those up to some point are rounded.

    Attributes
    ----------
    factor : Factor
    grid : Grid
    weight : tensor (I, O)
        As it was.
    current : tensor (I, O)
        With the corrections for the errors of finished blocks.
    values, errors : tensor (I, O)
        Rounded, and the weight minus that.
    reached : tensor (I, O) or None
        Where each column stood when it was rounded, wanted where errors come from earlier layers.
    steps : Steps
        As given or as taken from the weight.
    taken : str
        Where steps come from: the "weight", the corrected weights of the "group", or those of the "column".
    scale, zero : tensor (G, O)
        Steps by row; no zero points for symmetric grids.
    which : int32 tensor (I,)
        The row of each column.
    """

    factor: Any
    grid: Grid
    weight: torch.Tensor
    current: torch.Tensor
    values: torch.Tensor
    errors: torch.Tensor
    reached: torch.Tensor | None
    steps: Steps
    taken: str
    scale: torch.Tensor
    zero: torch.Tensor | None
    which: torch.Tensor
    back: torch.Tensor | None = None

    @classmethod
    def of(cls, weight: torch.Tensor, factor: Any, grid: Grid, static: bool, steps: Steps | None) -> Columns:
        """Lay a weight (O, I) out."""
        outputs, inputs = weight.shape
        taken = "weight"
        if steps is None and (grid.per == "input" or (grid.per == "group" and not static)):
            taken = "column" if grid.per == "input" else "group"
        if taken == "group" and not bool((factor.order.diff() == 1).all()):
            raise BadInput(
                "groups cannot take their steps when they are reached where the order of inputs breaks them up; leave "
                "'static_groups' as it is, or set 'order' to False"
            )
        weight = weight.masked_fill(factor.dead, 0.0)
        steps = grid.steps(weight) if steps is None else _to(steps, weight)
        place = torch.arange(inputs, device=weight.device)
        which = {"group": place // max(grid.group, 1), "input": place}.get(grid.per, torch.zeros_like(place))
        columns = weight.T[factor.order]
        current, values, errors = columns.clone(), torch.empty_like(columns), torch.empty_like(columns)
        reached = None if factor.carry is None else torch.empty_like(columns)
        scale, zero = (None if one is None else _rows(one, grid, outputs) for one in (steps.scale, steps.zero))
        assert scale is not None
        which = which[factor.order].int()
        return cls(factor, grid, columns, current, values, errors, reached, steps, taken, scale, zero, which)

    def fitting(self, block: int) -> int:
        """Return the block size to use: groups that are taken when they are reached begin with a block."""
        if block < 1:
            raise BadInput(f"'block' is a number of columns, 1 at least; {block} was given")
        if self.taken != "group":
            return block
        return max(size for size in range(1, min(block, self.grid.group) + 1) if self.grid.group % size == 0)

    def reach(self, start: int) -> None:
        """Take steps of the group that begins here from its weights with all corrections so far.

        ``current`` says where a column will stand at its turn if those between are not moved. But they are: as long as
        none of the group is rounded, all stand where the error is smallest, ``W + (current - W) N^-1``.
        """
        if self.taken != "group" or start % self.grid.group:
            return
        group, at = start // self.grid.group, slice(start, start + self.grid.group)
        weight = self.weight[at] + self._back()[group] @ (self.current[at] - self.weight[at])
        self._set(group, self.grid.steps(weight.T, self.steps.global_scale))

    def _back(self) -> torch.Tensor:
        """Return the inverse of each group's part of ``pull``, (groups, group, group)."""
        if self.back is None:
            groups = self.factor.pull.unflatten(0, (-1, self.grid.group)).unflatten(2, (-1, self.grid.group))
            groups = groups.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            one = torch.eye(self.grid.group).to(groups)
            self.back = torch.linalg.solve_triangular(groups, one.expand_as(groups), upper=False, unitriangular=True)
        return self.back

    def round_block(self, start: int, stop: int) -> None:
        """Round the columns of a block one after the other."""
        pull, carry, reached = self.factor.pull, self.factor.carry, self.reached
        rows = self.which[start:stop].tolist()
        for j in range(start, stop):
            column = self.current[j]
            if j > start:
                column = torch.addmv(column, self.errors[start:j].T, pull[j, start:j])
                if carry is not None and reached is not None:
                    column = torch.addmv(column, reached[start:j].T, carry[j, start:j])
            if reached is not None:
                reached[j] = column
            self.values[j] = self._nearest(column, rows[j - start])
            torch.sub(self.weight[j], self.values[j], out=self.errors[j])

    def _nearest(self, column: torch.Tensor, row: int) -> torch.Tensor:
        """Round a column (O,) with a row of steps, taking them first where it brings its own."""
        if self.taken == "column":
            self._set(row, self.grid.steps(column[:, None]))
        return self.grid.nearest(column, Steps(self.scale[row], None if self.zero is None else self.zero[row]))

    def _set(self, row: int, steps: Steps) -> None:
        """Write a row of steps."""
        self.scale[row].unflatten(0, (steps.scale.numel(), -1)).copy_(steps.scale.view(-1, 1))
        if self.zero is not None and steps.zero is not None:
            self.zero[row].unflatten(0, (steps.zero.numel(), -1)).copy_(steps.zero.view(-1, 1))

    def correct(self, start: int, stop: int) -> None:
        """Move the columns behind a block that is rounded."""
        rest, done = slice(stop, None), slice(start, stop)
        self.current[rest].addmm_(self.factor.pull[rest, done], self.errors[done])
        if self.factor.carry is not None and self.reached is not None:
            self.current[rest].addmm_(self.factor.carry[rest, done], self.reached[done])

    def rounded(self) -> Rounded:
        """Bring the columns back into their own order."""
        steps = self.steps
        if self.taken != "weight":
            zero = None if self.zero is None else _unrows(self.zero, self.grid)
            steps = Steps(_unrows(self.scale, self.grid), zero, steps.global_scale)
        return Rounded(self.values.T[:, self.factor.order.argsort()], steps, self.grid)


def _to(steps: Steps, like: torch.Tensor) -> Steps:
    return Steps(steps.scale.to(like), None if steps.zero is None else steps.zero.to(like), steps.global_scale)


def _rows(steps: torch.Tensor, grid: Grid, outputs: int) -> torch.Tensor:
    """Lay steps out by row (G, O): for the columns of a group, for each column, or one for all."""
    if grid.per == "input":
        return steps.squeeze(-1).repeat_interleave(grid.group, 1)
    if grid.per == "group":
        return steps.squeeze(-1).T.contiguous()
    return steps.reshape(1, -1).expand(1, outputs).contiguous()


def _unrows(rows: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Undo :func:`_rows` for groups."""
    return (
        rows.unflatten(1, (-1, grid.group))[..., :1].contiguous()
        if grid.per == "input"
        else rows.T.unsqueeze(-1).contiguous()
    )
