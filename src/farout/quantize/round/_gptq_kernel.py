"""The column loop of GPTQ in Triton: one launch rounds a block of columns.

Outputs do not depend on each other, so each program takes some of them through all columns of the block, with their
errors in registers. The floor beside it is the product that corrects the columns behind the block.
:meth:`farout.quantize.round._columns.Columns.round_block` is the same in torch, and a test compares the two.

Shape legend: O outputs, I inputs, B columns of a block, R outputs of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from farout.quantize.grid import FARTHEST

OUTPUTS, WARPS = 8, 1  # of a program
GROUP = 256  # outputs, at most, that share a step where a column brings its own
FLOATS = {8: (3, -6), 4: (1, 0)}  # by bits: of mantissa, and exponent of the least normal number


def can_round(columns: Any) -> bool:
    """Whether the kernel is made for these columns."""
    own = columns.taken == "column"
    return columns.weight.dtype == torch.float32 and (not own or columns.grid.group <= GROUP)


def round_block(columns: Any, start: int, stop: int) -> None:
    """Round the columns of a block, as ``columns.round_block(start, stop)`` does."""
    grid, reached, carry = columns.grid, columns.reached, columns.factor.carry
    inputs, outputs = columns.weight.shape
    own = columns.taken == "column"
    taken, warps = (grid.group, 8) if own else (OUTPUTS, WARPS)  # a program takes a group, to find its range
    low, high = grid.ends
    mantissa, least = (0, 0) if grid.kind == "int" else FLOATS[grid.bits]
    none = columns.scale  # stands in where there is nothing
    _round_block[triton.cdiv(outputs, taken),](
        columns.weight, columns.current, columns.values, columns.errors, none if reached is None else reached,
        columns.factor.pull, none if carry is None else carry,
        columns.scale, none if columns.zero is None else columns.zero, columns.which,
        inputs, outputs, start, stop - start, taken,
        LOW=low, HIGH=high, MANTISSA=mantissa, LEAST=least, ZERO=columns.zero is not None, CARRY=carry is not None,
        OWN=own, RULE=grid.rule, HALF=high + 0.5 if (grid.kind, grid.rule) == ("int", "full") else high,
        FARTHEST=FARTHEST, B=triton.next_power_of_2(stop - start), R=triton.next_power_of_2(taken), num_warps=warps,
    )  # fmt: skip


@triton.jit
def _half_even(x):
    """Round to the nearest integer, half to even: float32 holds no fraction beside 1.5 * 2^23."""
    return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)


@triton.jit
def _nearest_float(x, MOST: tl.constexpr, MANTISSA: tl.constexpr, LEAST: tl.constexpr):
    """Round to the nearest small float, half to even; what lies beyond the greatest becomes that."""
    size = tl.minimum(tl.abs(x), MOST)
    exponent = tl.maximum((size.to(tl.int32, bitcast=True) >> 23) - 127, LEAST)
    between = ((exponent - MANTISSA + 127) << 23).to(tl.float32, bitcast=True)  # neighbours are so far apart
    size = _half_even(size / between) * between
    return tl.where(x < 0, -size, size)


@triton.jit
def _range_steps(low, high, RULE: tl.constexpr, HIGH: tl.constexpr, HALF: tl.constexpr, FARTHEST: tl.constexpr):
    """Return the scale and zero point of a range, as ``Grid.steps_between`` does."""
    if RULE == "full" or RULE == "narrow":
        most = tl.maximum(tl.abs(low), tl.abs(high))
        return tl.maximum(tl.div_rn(tl.where(most > 0, most, 1.0), HALF), 1.1754943508222875e-38), 0.0
    no_low = tl.minimum(low, 0.0)
    no_high = tl.maximum(high, 0.0)
    if RULE != "asymmetric":
        no_low = tl.where(low == high, no_low, low)
        no_high = tl.where(low == high, no_high, high)
    low = tl.where(no_low == no_high, -1.0, no_low)
    high = tl.where(no_low == no_high, 1.0, no_high)
    scale = tl.maximum(tl.div_rn(high - low, HIGH), 1.1754943508222875e-38)
    if RULE == "free":
        scale = tl.maximum(scale, tl.div_rn(tl.maximum(tl.abs(low), tl.abs(high)), FARTHEST))
    zero = _half_even(tl.div_rn(-low, scale))
    if RULE == "clamped":
        zero = tl.minimum(tl.maximum(zero, 0.0), HIGH)
    return scale, zero


@triton.jit
def _round_block(
    weight_ptr, current_ptr, values_ptr, errors_ptr, reached_ptr, pull_ptr, carry_ptr, scale_ptr, zero_ptr, which_ptr,
    inputs, outputs, start, width, taken,
    LOW: tl.constexpr, HIGH: tl.constexpr, MANTISSA: tl.constexpr, LEAST: tl.constexpr, ZERO: tl.constexpr,
    CARRY: tl.constexpr, OWN: tl.constexpr, RULE: tl.constexpr, HALF: tl.constexpr, FARTHEST: tl.constexpr,
    B: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Take some outputs through the columns of a block; tensors are (I, O) and (I, I), row by row."""
    output = tl.program_id(0) * taken + tl.arange(0, R)
    inside = (output < outputs) & (tl.arange(0, R) < taken)
    column = tl.arange(0, B)
    errors = tl.zeros([B, R], tl.float32)
    reached = tl.zeros([B, R], tl.float32)
    for j in tl.range(0, width, num_stages=3):  # loads of columns to come do not wait for sums
        row = (start + j).to(tl.int64)
        at = row * outputs + output
        w = tl.load(current_ptr + at, mask=inside, other=0.0)
        pull = tl.load(pull_ptr + row * inputs + start + column, mask=column < width, other=0.0)
        w += tl.sum(errors * pull[:, None], 0)  # those of columns to come are 0
        if CARRY:
            carry = tl.load(carry_ptr + row * inputs + start + column, mask=column < width, other=0.0)
            w += tl.sum(reached * carry[:, None], 0)
            reached = tl.where(column[:, None] == j, w[None, :], reached)
            tl.store(reached_ptr + at, w, mask=inside)
        steps = tl.load(which_ptr + row).to(tl.int64) * outputs + output
        zero = 0.0
        if OWN:
            low = tl.min(tl.where(inside, w, float("inf")), 0)
            high = tl.max(tl.where(inside, w, float("-inf")), 0)
            scale, zero = _range_steps(low, high, RULE, HIGH, HALF, FARTHEST)
            tl.store(scale_ptr + steps, tl.zeros([R], tl.float32) + scale, mask=inside)
            if ZERO:
                tl.store(zero_ptr + steps, tl.zeros([R], tl.float32) + zero, mask=inside)
        else:
            scale = tl.load(scale_ptr + steps, mask=inside, other=1.0)
            if ZERO:
                zero = tl.load(zero_ptr + steps, mask=inside, other=0.0)
        code = tl.div_rn(w, scale)
        if MANTISSA > 0:
            value = _nearest_float(code, HIGH, MANTISSA, LEAST) * scale
        else:
            code = _half_even(code)
            if ZERO:
                value = (tl.minimum(tl.maximum(code + zero, LOW), HIGH) - zero) * scale
            else:
                value = tl.minimum(tl.maximum(code, LOW), HIGH) * scale
        error = tl.load(weight_ptr + at, mask=inside, other=0.0) - value
        errors = tl.where(column[:, None] == j, error[None, :], errors)
        tl.store(values_ptr + at, value, mask=inside)
        tl.store(errors_ptr + at, error, mask=inside)
