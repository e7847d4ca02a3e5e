"""LLM.int8()'s product in two kernels, in Triton: quantize rows and find the outlier columns, then multiply.

The first kernel reads x once: a program holds a row, so its absmax and its codes come from one read, and marks the
columns where an element reaches the threshold. The last program to arrive lists the marked columns and wipes the marks
for the next launch. Only then is it known which columns are outliers, so their ordinary elements have codes. The second
kernel multiplies all codes on the tensor cores, scales, and adds ``(X_C - D(CA_C)) D(CB_C)'`` in 16 bits for the
outlier columns C, D(.) being codes dequantized and 0 for outliers: what these columns gave in 8 bits goes, and what
LLM.int8() gives them comes. Nothing waits for the host: the number of columns stays on the device.

Shapes: M tokens, K inputs, N outputs. The product needs a GPU with tensor memory access (compute capability 9).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

CHUNK = 16  # outlier columns in one product of 16 bits
WIDEST = 32768  # a row that a program can hold
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves the integer, rounded half to even, in the low bits


class Tile(NamedTuple):
    """A tile of the product: rows, columns, depth; rows of tiles that run together; warps; stages of the pipeline."""

    rows: int
    columns: int
    depth: int
    group: int
    warps: int
    stages: int


def tile_for(rows: int) -> Tile:
    """The tile for so many tokens: decoding, a short prompt, a long one."""
    if rows <= 16:
        return Tile(16, 64, 256, 1, 4, 4)
    return Tile(64, 128, 128, 4, 4, 4) if rows <= 256 else Tile(128, 128, 128, 8, 4, 3)


@triton.jit
def quantize_rows(
    x_ptr, codes_ptr, absmax_ptr, mark_ptr, list_ptr, M, K, threshold,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Codes and absmax of some rows; the last program lists the columns with an element that reaches the threshold."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.abs(x)
    if SPLIT:
        flagged = size >= threshold
        # One reduction for both greatest magnitudes: warps wait for each other once.
        absmax, greatest = tl.split(tl.max(tl.join(tl.where(flagged, 0.0, size), size), 1))
        if tl.max(greatest, 0) >= threshold:
            tl.store(mark_ptr + column[None, :] + tl.zeros_like(at), 1, mask=flagged)
        # Before the codes are stored, so that the ticket, which waits for the marks, does not wait for them.
        tl.debug_barrier()
        last = tl.atomic_add(mark_ptr + K, 1) == tl.num_programs(0) - 1
        x = tl.where(flagged, 0.0, x)
    else:
        absmax = tl.max(size, 1)
    inverse = tl.where(absmax > 0, tl.div_rn(tl.zeros_like(absmax) + 127.0, absmax), 0.0)
    rounded = x * inverse[:, None] + ROUNDER
    tl.store(codes_ptr + at, rounded.to(tl.int32, bitcast=True).to(tl.int8), mask=inside)
    tl.store(absmax_ptr + row, absmax, mask=row < M)
    if SPLIT:  # noqa: SIM102 (a constant decides what is compiled only where it stands alone)
        if last:
            mark = tl.load(mark_ptr + column, mask=column < K, other=0, cache_modifier=".cg")
            tl.store(list_ptr + tl.cumsum(mark, 0) - mark, column, mask=mark != 0)
            tl.store(list_ptr + K, tl.sum(mark, 0))
            tl.store(mark_ptr + column, 0, mask=mark != 0)
            tl.store(mark_ptr + K, 0)


@triton.jit
def multiply(
    a, b, y, a_scale_ptr, b_scale_ptr, bias_ptr, unit, M, N, K, x_ptr, a_ptr, b_ptr, list_ptr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SUM: tl.constexpr,
    BIAS: tl.constexpr, SPLIT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One tile of ``a b'`` of 8-bit codes, times the scales of its rows and columns, outlier columns made good."""
    program = tl.program_id(0)
    down, across = tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = program // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    m = (first + program % (GROUP * across) % height) * BM
    n = program % (GROUP * across) // height * BN

    total = tl.zeros([BM, BN], SUM)
    for k in range(0, K, BK):
        total = tl.dot(a.load([m, k]), b.load([n, k]).T, total, out_dtype=SUM)

    row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
    a_scale = tl.load(a_scale_ptr + row, mask=row < M, other=0.0)
    b_scale = tl.load(b_scale_ptr + column, mask=column < N, other=0.0)
    result = total.to(tl.float32) * (a_scale[:, None] * b_scale[None, :] * unit)
    if BIAS:
        result += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    if SPLIT:
        count = tl.load(list_ptr + K)
        for start in tl.range(0, count, CHUNK, num_stages=1):
            chunk = start + tl.arange(0, CHUNK)
            real = chunk < count
            outlier = tl.load(list_ptr + chunk, mask=real, other=0)
            a_at = row.to(tl.int64)[:, None] * K + outlier[None, :]
            b_at = column.to(tl.int64)[:, None] * K + outlier[None, :]
            mine = (row < M)[:, None] & real[None, :]
            x = tl.load(x_ptr + a_at, mask=mine, other=0.0)
            code = tl.load(a_ptr + a_at, mask=mine, other=0).to(tl.float32)
            w = tl.load(b_ptr + b_at, mask=(column < N)[:, None] & real[None, :], other=0).to(tl.float32)
            rest = (x.to(tl.float32) - code * (a_scale * (1 / 127))[:, None]).to(x.dtype)
            result = tl.dot(rest, (w * (b_scale * (1 / 127))[:, None]).to(x.dtype).T, result)
    y.store([m, n], result.to(y.dtype))


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few where Triton interprets."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@lru_cache
def _kept_zeros(device: torch.device, stream: int, size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int32, device=device)


def zeros(device: torch.device, size: int) -> torch.Tensor:
    """int32 zeros for a kernel that leaves them zeros; streams and captured graphs do not share them."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(size, dtype=torch.int32, device=device)
    return _kept_zeros(device, torch.cuda.current_stream(device).cuda_stream, size)


def rows_for(K: int) -> tuple[int, int, int, int]:
    """Rows of a program that reads whole rows, their padded width, its warps and the registers of a thread."""
    columns = triton.next_power_of_2(K)
    return max(1, 2048 // columns), columns, min(16, max(4, columns // 512)), 64 if columns <= 16384 else 128


def quantize(x: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes [M, K], 0 for outliers alone; absmax [M]; the outlier columns, with their number at the end of [K + 1]."""
    M, K = x.shape
    codes = torch.empty(M, K, dtype=torch.int8, device=x.device)
    absmax = torch.empty(M, dtype=torch.float32, device=x.device)
    marks = listed = None
    if threshold > 0:
        marks = zeros(x.device, K + 1)
        listed = torch.empty(K + 1, dtype=torch.int32, device=x.device)
    rows, columns, warps, registers = rows_for(K)
    quantize_rows[(triton.cdiv(M, rows),)](
        x, codes, absmax, marks, listed, M, K, float(threshold), SPLIT=threshold > 0, ROWS=rows, COLUMNS=columns,
        num_warps=warps, maxnreg=registers, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, absmax, listed


def product(
    codes: torch.Tensor, scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None,
    unit: float, dtype: torch.dtype, tile: Tile | None = None,
    x: torch.Tensor | None = None, listed: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """``codes w'`` times the scales and ``unit``, plus the bias; the ``listed`` columns of ``x`` in its 16 bits."""
    (M, K), N = codes.shape, w.shape[0]
    tile = tile or tile_for(M)
    y = torch.empty(M, N, dtype=dtype, device=codes.device)
    multiply[(triton.cdiv(M, tile.rows) * triton.cdiv(N, tile.columns),)](
        TensorDescriptor.from_tensor(codes, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(w, [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(y, [tile.rows, tile.columns]),
        scale, w_scale, bias, unit, M, N, K, x, codes, w, listed,
        BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=tile.group,
        SUM=tl.int32 if codes.dtype == torch.int8 else tl.float32, BIAS=bias is not None, SPLIT=listed is not None,
        CHUNK=CHUNK, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def linear(
    x: torch.Tensor, w: torch.Tensor, w_absmax: torch.Tensor, bias: torch.Tensor | None, threshold: float,
    tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """The product [M, N] of LLM.int8()."""
    codes, absmax, listed = quantize(x, threshold)
    return product(codes, absmax, w, w_absmax, bias, 1 / 127**2, x.dtype, tile, x, listed)
