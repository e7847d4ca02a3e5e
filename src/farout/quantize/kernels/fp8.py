"""Per-token E4M3 for both sides of a product, in Triton: a pass that quantizes rows, then a product of 8 bits.

The pass reads x once, a program a row. The product is PyTorch's (``torch._scaled_mm`` with a scale a row and a column)
where it takes the type of the output, and otherwise :func:`farout.quantize.kernels.int8.product`, which is the same
tile of codes and scales. Both sum with the tensor core's fast accumulation, of some 14 bits: next to the 4 bits of the
codes that is not seen.

Shapes: M tokens, K inputs, N outputs. Products need compute capability 9.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from farout.quantize.kernels.int8 import Tile, product, rows_for
from farout.quantize.kernels.reference import FP8, FP8_MAX


@triton.jit
def quantize_rows(x_ptr, codes_ptr, scale_ptr, M, K, limit, unit, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """E4M3 codes and the scale of some rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    absmax = tl.max(tl.abs(x), 1)
    inverse = tl.where(absmax > 0, tl.div_rn(tl.zeros_like(absmax) + limit, absmax), 0.0)
    tl.store(codes_ptr + at, (x * inverse[:, None]).to(tl.float8e4nv), mask=inside)
    tl.store(scale_ptr + row, absmax * unit, mask=row < M)


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K] in E4M3 and the scale of each row [M]."""
    M, K = x.shape
    codes = torch.empty(M, K, dtype=FP8, device=x.device)
    scale = torch.empty(M, dtype=torch.float32, device=x.device)
    rows, columns, warps, registers = rows_for(K)
    quantize_rows[(triton.cdiv(M, rows),)](
        x, codes, scale, M, K, FP8_MAX, 1 / FP8_MAX, ROWS=rows, COLUMNS=columns, num_warps=warps, maxnreg=registers
    )
    return codes, scale


def linear(
    x: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, tile: Tile | None = None
) -> torch.Tensor:
    """The product [M, N]; with a ``tile``, or for an output that is not bfloat16, by the kernel of this package."""
    codes, scale = quantize(x)
    if x.dtype == torch.bfloat16 and tile is None and x.is_cuda:
        return torch._scaled_mm(
            codes, w.T, scale[:, None], w_scale[None, :], bias, out_dtype=x.dtype, use_fast_accum=True
        )
    return product(codes, scale, w, w_scale, bias, 1.0, x.dtype, tile)
