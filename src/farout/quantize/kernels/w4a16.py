"""A product with four-bit weights for a few tokens, in Triton: bound by reading the words, so by nothing else.

A program takes some outputs and a share of the inputs. It reads runs of words (see
:mod:`farout.quantize.kernels.packing`), turns each into eight groups of 16-bit integers without a conversion, a code's
bits being put where they are the mantissa of 1024 + code (bfloat16: 128 + code), multiplies on the tensor cores and
applies a group's scale to its float32 sum. The shares of the inputs are summed in order by the last program to arrive,
so one launch is enough and the result does not vary.

Shapes: M tokens, at most 16; K inputs, N outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from farout.quantize.kernels.int8 import processors, zeros
from farout.quantize.kernels.packing import Int4Weight

MOST_TOKENS = 16
GROUPS = (32, 64, 128, 256)  # what a program can multiply at a time


class Share(NamedTuple):
    """Outputs of a program, shares of the inputs, warps and stages of the pipeline."""

    outputs: int
    splits: int
    warps: int
    stages: int


def share_for(N: int, blocks: int, processors: int) -> Share:
    """One share where a program reads few blocks or programs are many; else as many as run at once."""
    outputs = 32
    tiles = triton.cdiv(N, outputs)
    splits = 1 if blocks <= 4 else max(1, min(blocks, 4 * processors // tiles))
    return Share(outputs, splits, 4, 3 if splits == 1 and tiles <= processors else 2)


@triton.constexpr_function
def _assembly(j, half):
    """Nibble j, less 8, of two words as a pair of float16 (``half``) or bfloat16."""
    text = "{.reg .b32 t, c, d; prmt.b32 t, $1, $2, " + ("0x5410; " if j < 4 else "0x7632; ")
    if not half:
        shift = f"shr.b32 t, t, {4 * (j % 4)}; " if j % 4 else ""
        text += shift + "lop3.b32 t, t, 0x000f000f, 0x43004300, 0xea; mov.b32 d, 0x3f803f80; "  # 128 + code
        return text + "mov.b32 c, 0xc308c308; fma.rn.bf16x2 $0, t, d, c;}"
    text += "shr.b32 t, t, 8; " if j % 4 >= 2 else ""
    if j % 2 == 0:
        text += "lop3.b32 t, t, 0x000f000f, 0x64006400, 0xea; "  # 1024 + code
        return text + "mov.b32 c, 0xe408e408; add.rn.f16x2 $0, t, c;}"
    text += "lop3.b32 t, t, 0x00f000f0, 0x64006400, 0xea; mov.b32 d, 0x2c002c00; "  # 1024 + 16 code
    return text + "mov.b32 c, 0xd480d480; fma.rn.f16x2 $0, t, d, c;}"


@triton.jit
def _group(words, J: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Nibble J of each word less 8, in DTYPE."""
    if ASSEMBLY:
        if tl.float16 == DTYPE:
            text: tl.constexpr = _assembly(J, True)
            return tl.inline_asm_elementwise(text, "=r,r,r", [words], tl.float16, True, 2)
        else:
            other: tl.constexpr = _assembly(J, False)
            return tl.inline_asm_elementwise(other, "=r,r,r", [words], tl.bfloat16, True, 2)
    else:
        return (((words >> (4 * J)) & 15) - 8).to(tl.float32).to(DTYPE)


@triton.jit
def decode(
    x_ptr, words_ptr, scale_ptr, zero_ptr, bias_ptr, y_ptr, partial_ptr, ticket_ptr, M, N, K, blocks,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    ZERO: tl.constexpr, BIAS: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    """Some outputs of all tokens, over a share of the inputs; the last share to be ready adds them up."""
    tile, share = tl.program_id(0), tl.program_id(1)
    row, column, inner = tl.arange(0, ROWS), tile * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, GROUP)
    real = column < N
    each = tl.cdiv(blocks, SPLITS)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for block in range(share * each, tl.minimum(share * each + each, blocks)):
        word_at = column[:, None] * (blocks * GROUP) + block * GROUP + inner[None, :]
        words = tl.load(words_ptr + word_at, mask=real[:, None], other=0)
        for j in tl.static_range(8):
            k = (block * 8 + j) * GROUP + inner
            x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=(row < M)[:, None] & (k < K)[None, :], other=0.0)
            y = tl.dot(x, _group(words, j, x.dtype, ASSEMBLY).T)
            if ZERO:  # a sum of the inputs a row, as the tensor cores leave it where it is wanted
                zero = tl.load(zero_ptr + (block * 8 + j) * N + column, mask=real, other=8)
                y -= (
                    tl.dot(x, tl.full([GROUP, OUTPUTS], 1.0, tl.float32).to(x.dtype))
                    * (zero.to(tl.float32) - 8)[None, :]
                )
            scale = tl.load(scale_ptr + (block * 8 + j) * N + column, mask=real, other=0.0)
            total += y * scale.to(tl.float32)[None, :]

    at = row[:, None] * N + column[None, :]
    mine = (row < M)[:, None] & real[None, :]
    last = True
    if SPLITS > 1:
        tl.store(partial_ptr + share * M * N + at, total, mask=mine)
        tl.debug_barrier()
        last = tl.atomic_add(ticket_ptr + tile, 1) == SPLITS - 1
    if last:
        if SPLITS > 1:
            total = tl.zeros([ROWS, OUTPUTS], tl.float32)
            for other in tl.static_range(SPLITS):
                total += tl.load(partial_ptr + other * M * N + at, mask=mine, other=0.0, cache_modifier=".cg")
            tl.store(ticket_ptr + tile, 0)
        if BIAS:
            total += tl.load(bias_ptr + column, mask=real, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=mine)


def linear(x: torch.Tensor, weight: Int4Weight, bias: torch.Tensor | None, share: Share | None = None) -> torch.Tensor:
    """The product [M, N] of at most 16 tokens with a packed weight."""
    (M, K), N = x.shape, weight.outputs
    blocks = weight.words.shape[1] // weight.group
    share = share or share_for(N, blocks, processors(x.device))
    tiles = triton.cdiv(N, share.outputs)
    y = torch.empty(M, N, dtype=x.dtype, device=x.device)
    partial = tickets = None
    if share.splits > 1:
        partial = torch.empty(share.splits, M, N, dtype=torch.float32, device=x.device)
        tickets = zeros(x.device, tiles)
    decode[(tiles, share.splits)](
        x, weight.words, weight.scale, weight.zero, bias, y, partial, tickets, M, N, K, blocks,
        ROWS=16, OUTPUTS=share.outputs, GROUP=weight.group, SPLITS=share.splits, ZERO=weight.zero is not None,
        BIAS=bias is not None, ASSEMBLY=x.is_cuda, num_warps=share.warps, num_stages=share.stages,
    )  # fmt: skip
    return y
