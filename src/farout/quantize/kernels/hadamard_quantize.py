"""A Hadamard transform of the last axis and a quantizer a token, in one pass, in Triton.

H of a block of a * b elements is the Kronecker product of H_a and H_b, so a block laid out as a matrix [a, b] is
multiplied from both sides: two small products on the tensor cores instead of log2(ab) exchanges. Signs are exact in 16
bits and so is x; between the two products the float32 values go as a sum of two bfloat16, 16 bits together, so codes
are those of a float32 transform but for values within some 1e-5 of a step's middle.

A program takes rows in turn, so that the sign matrices are read once. Tensors of a kernel are as long as powers of two,
so the blocks of a row are held in two parts where that wastes less: 43 blocks as 32 and 16, not as 64.

Shapes: M tokens, K inputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from farout.quantize.kernels.int8 import ROUNDER, processors
from farout.quantize.kernels.reference import two_halves

LEAST, MOST = 256, 16384  # a block that has both factors in 16..128
WIDEST = 16384  # a row, padded, that a program can hold


class Walk(NamedTuple):
    """Programs a processor, their warps, and the stages of the pipeline over rows."""

    programs: int
    warps: int
    stages: int


def walk_for(width: int) -> Walk:
    """How rows of a padded width are walked through: as many as the registers can hold."""
    if width <= 4096:
        return Walk(4, 4, 3)
    return Walk(2, 8, 3) if width <= 12288 else Walk(1, 16, 3)


@triton.jit
def _both(t, h):
    """``t h`` for float32 t: its two bfloat16 parts times h."""
    high = t.to(tl.bfloat16)
    low = (t - high.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(low, h, tl.dot(high, h))


@triton.jit
def _blocks(x_ptr, left, right, first, K, BLOCKS: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """BLOCKS blocks of a row from ``first``, transformed [BLOCKS * B, A], and where in the row they belong."""
    line, b = tl.arange(0, BLOCKS * A), tl.arange(0, B)
    at = first * (A * B) + line[:, None] * B + b[None, :]
    x = tl.load(x_ptr + at, mask=at < K, other=0.0)
    t = tl.dot(x, left).reshape(BLOCKS, A, B).permute(0, 2, 1).reshape(BLOCKS * B, A)
    turned, a = tl.arange(0, BLOCKS * B), tl.arange(0, A)
    back = first * (A * B) + (turned // B * (A * B) + turned % B)[:, None] + a[None, :] * B
    return _both(t, right), back


@triton.jit
def _integers(y, inverse):
    return (y * inverse + ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def transform_rows(
    x_ptr, left_ptr, right_ptr, codes_ptr, step_ptr, M, K, limit, unit,
    HEAD: tl.constexpr, TAIL: tl.constexpr, A: tl.constexpr, B: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Codes and step of every so manieth row."""
    a, b = tl.arange(0, A), tl.arange(0, B)
    ONE: tl.constexpr = HEAD + TAIL == 1
    if ONE:
        left = tl.load(left_ptr + a[:, None] * A + a[None, :])
        right = tl.load(right_ptr + b[:, None] * B + b[None, :])
    else:
        left = tl.load(left_ptr + b[:, None] * B + b[None, :])
        right = tl.load(right_ptr + a[:, None] * A + a[None, :])
    for row in tl.range(tl.program_id(0), M, tl.num_programs(0), num_stages=STAGES):
        start = row * K.to(tl.int64)
        if ONE:
            back = a[:, None] * B + b[None, :]
            x = tl.load(x_ptr + start + back, mask=back < K, other=0.0)
            y = _both(tl.dot(left, x), right)
        else:
            y, back = _blocks(x_ptr + start, left, right, 0, K, HEAD, A, B)
        absmax = tl.max(tl.max(tl.abs(y), 1), 0)
        if TAIL > 0:
            more, behind = _blocks(x_ptr + start, left, right, HEAD, K, TAIL, A, B)
            absmax = tl.maximum(absmax, tl.max(tl.max(tl.abs(more), 1), 0))
        inverse = tl.where(absmax > 0, limit / absmax, 0.0)
        tl.store(codes_ptr + start + back, _integers(y, inverse), mask=back < K)
        if TAIL > 0:
            tl.store(codes_ptr + start + behind, _integers(more, inverse), mask=behind < K)
        tl.store(step_ptr + row, absmax * unit)


def parts(blocks: int) -> tuple[int, int]:
    """Powers of two that hold so many blocks: two different ones, or one and 0."""
    head = 1 << blocks.bit_length() - 1
    tail = triton.next_power_of_2(blocks - head) if blocks > head else 0
    return (2 * head, 0) if tail == head else (head, tail)


@lru_cache
def signs(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The Hadamard matrix of order ``n`` in Sylvester's order, entries 1 and -1."""
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h.to(dtype).to(device)


def quantize(x: torch.Tensor, bits: int, block: int, walk: Walk | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K] int8 of the transformed rows, and their steps [M]."""
    M, K = x.shape
    a, b = two_halves(block)
    head, tail = parts(K // block)
    walk = walk or walk_for((head + tail) * block)
    limit = float(2 ** (bits - 1) - 1)
    codes = torch.empty(M, K, dtype=torch.int8, device=x.device)
    step = torch.empty(M, dtype=torch.float32, device=x.device)
    left, right = (a, b) if head + tail == 1 else (b, a)
    transform_rows[(min(M, walk.programs * processors(x.device)),)](
        x, signs(left, x.dtype, x.device), signs(right, torch.bfloat16, x.device), codes, step,
        M, K, limit, 1 / (limit * block**0.5),
        HEAD=head, TAIL=tail, A=a, B=b, STAGES=walk.stages, num_warps=walk.warps,
        maxnreg=min(255, 65536 // (32 * walk.programs * walk.warps)),
    )  # fmt: skip
    return codes, step
