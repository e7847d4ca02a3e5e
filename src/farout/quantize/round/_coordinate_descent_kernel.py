"""A block of a sweep of coordinate descent in Triton: one launch visits its inputs one after the other.

Outputs do not depend on each other, so each program takes some of them through the block, with their moves in
registers. The floor is the product before it, which gives the lowest points of the block.
``visit`` of :mod:`farout.quantize.round.coordinate_descent` is the same in torch, and a test compares the two.

Shape legend: O outputs, I inputs, B inputs of a block, R outputs of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from farout.quantize.round._gptq_kernel import FLOATS, _half_even, _nearest_float

OUTPUTS, WARPS = 16, 4  # of a program


def visit(descent: Any, start: int, stop: int, lowest: torch.Tensor, relaxed: bool, gained: torch.Tensor) -> None:
    """Visit a block of inputs, as ``descent.visit`` does; ``lowest`` stays as it is."""
    grid, change = descent.grid, descent.change
    inputs, outputs = change.shape
    low, high = grid.ends
    mantissa, least = (0, 0) if grid.kind == "int" else FLOATS[grid.bits]
    _visit[triton.cdiv(outputs, OUTPUTS),](
        descent.target, change, lowest, gained, descent.pull, descent.use,
        descent.scale, descent.scale if descent.zero is None else descent.zero, descent.which,
        outputs, inputs, start, stop - start,
        LOW=low, HIGH=high, MANTISSA=mantissa, LEAST=least, ZERO=descent.zero is not None, RELAXED=relaxed,
        B=triton.next_power_of_2(stop - start), R=OUTPUTS, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _visit(
    target_ptr, change_ptr, lowest_ptr, gained_ptr, pull_ptr, use_ptr, scale_ptr, zero_ptr, which_ptr,
    outputs, inputs, start, width,
    LOW: tl.constexpr, HIGH: tl.constexpr, MANTISSA: tl.constexpr, LEAST: tl.constexpr, ZERO: tl.constexpr,
    RELAXED: tl.constexpr, B: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Take R outputs through a block; tensors are (I, O) and (I, I), row by row, and ``lowest`` is (B, O)."""
    output = tl.program_id(0) * R + tl.arange(0, R)
    inside = output < outputs
    input = tl.arange(0, B)
    moved = tl.zeros([B, R], tl.float32)
    gained = tl.zeros([R], tl.float32)
    for j in range(0, width):
        row = (start + j).to(tl.int64)
        at = row * outputs + output
        pull = tl.load(pull_ptr + row * inputs + start + input, mask=input < j, other=0.0)
        aim = tl.load(target_ptr + at, mask=inside, other=0.0)
        now = tl.load(change_ptr + at, mask=inside, other=0.0)
        steps = tl.load(which_ptr + row).to(tl.int64) * outputs + output
        scale = tl.load(scale_ptr + steps, mask=inside, other=1.0)
        zero = 0.0
        if ZERO:
            zero = tl.load(zero_ptr + steps, mask=inside, other=0.0)
        low = tl.load(lowest_ptr + j * outputs + output, mask=inside, other=0.0) - tl.sum(moved * pull[:, None], 0)
        code = tl.div_rn(aim + low, scale)
        if RELAXED:
            code = tl.minimum(tl.maximum(code, LOW - zero), HIGH - zero)
        elif MANTISSA > 0:
            code = _nearest_float(code, HIGH, MANTISSA, LEAST)
        else:
            code = tl.minimum(tl.maximum(_half_even(code), LOW - zero), HIGH - zero)
        new = code * scale - aim
        move = new - now
        gained += tl.load(use_ptr + row) * move * (2 * (new - low) - move)
        moved = tl.where(input[:, None] == j, move[None, :], moved)
        tl.store(change_ptr + at, new, mask=inside)
    tl.store(gained_ptr + output, tl.load(gained_ptr + output, mask=inside) + gained, mask=inside)
