"""LLM.int8()'s product in three kernels, in Triton: quantize rows, take the outlier columns out, multiply.

The first kernel reads x once: a program holds a row, so its absmax and its codes come from one read, and marks the
columns where an element reaches the threshold. Only when all rows are read is it known which columns are outliers. A
second kernel, small and parallel over rows, lists them in order, zeroes them in the codes and copies their 16-bit
values and their dequantized weights side by side. The third multiplies codes on the tensor cores, scales, and adds the
16-bit product of the columns before it writes. Nothing waits for the host: the number of columns stays on the device,
and more than :data:`KEPT` of them are gathered by the third kernel itself.

Shapes: M tokens, K inputs, N outputs. The product needs a GPU with tensor memory access (compute capability 9).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KEPT = 64  # outlier columns copied side by side; those beyond are gathered
CHUNK = 32  # columns in one product of 16 bits
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
    return Tile(64, 128, 128, 4, 4, 4) if rows <= 256 else Tile(128, 256, 128, 8, 8, 4)


@triton.jit
def quantize_rows(
    x_ptr, codes_ptr, absmax_ptr, flag_ptr, M, K, threshold,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Codes and absmax of some rows; a byte for each column with an element that reaches the threshold."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < M)[:, None] & (column < K)[None, :]
    at = row.to(tl.int64)[:, None] * K + column[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    size = tl.abs(x)
    if SPLIT:
        flagged = size >= threshold
        if tl.max(tl.max(size, 1), 0) >= threshold:
            tl.store(flag_ptr + column[None, :] + tl.zeros_like(at), 1, mask=flagged)
        x = tl.where(flagged, 0.0, x)
        size = tl.where(flagged, 0.0, size)
    absmax = tl.max(size, 1)
    inverse = tl.where(absmax > 0, tl.div_rn(tl.zeros_like(absmax) + 127.0, absmax), 0.0)
    rounded = x * inverse[:, None] + ROUNDER
    tl.store(codes_ptr + at, rounded.to(tl.int32, bitcast=True).to(tl.int8), mask=inside)
    tl.store(absmax_ptr + row, absmax, mask=row < M)


@triton.jit
def split_columns(
    x_ptr, codes_ptr, w_ptr, w_absmax_ptr, flag_ptr, list_ptr, count_ptr, x_kept_ptr, w_kept_ptr, M, K, N,
    WEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """List the marked columns; zero them in the codes; copy their values and dequantized weights side by side."""
    program = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    flag = tl.load(flag_ptr + column, mask=column < K, other=0).to(tl.int32)
    count = tl.sum(flag, 0)
    if program == 0:
        tl.store(count_ptr, count)
    if count > 0:
        # Every program writes the same list, so none waits for another.
        tl.store(list_ptr + tl.cumsum(flag, 0) - flag, column, mask=flag != 0)
        tl.debug_barrier()
        tokens = tl.cdiv(M, ROWS)
        for start in range(0, count, CHUNK):
            chunk = start + tl.arange(0, CHUNK)
            real = chunk < count
            outlier = tl.load(list_ptr + chunk, mask=real, other=0)
            if program < tokens:
                row = program * ROWS + tl.arange(0, ROWS)
                at = row.to(tl.int64)[:, None] * K + outlier[None, :]
                seen = (row < M)[:, None] & real[None, :]
                tl.store(codes_ptr + at, tl.zeros([ROWS, CHUNK], tl.int8), mask=seen)
                if start < KEPT:
                    kept = tl.load(x_ptr + at, mask=seen, other=0.0)
                    tl.store(x_kept_ptr + row[:, None] * KEPT + chunk[None, :], kept, mask=(row < M)[:, None])
            elif WEIGHT:  # noqa: SIM102 (a constant decides what is compiled only where it stands alone)
                if start < KEPT:
                    row = (program - tokens) * ROWS + tl.arange(0, ROWS)
                    at = row.to(tl.int64)[:, None] * K + outlier[None, :]
                    code = tl.load(w_ptr + at, mask=(row < N)[:, None] & real[None, :], other=0).to(tl.float32)
                    unit = tl.load(w_absmax_ptr + row, mask=row < N, other=0.0) * (1 / 127)
                    kept = (code * unit[:, None]).to(w_kept_ptr.dtype.element_ty)
                    tl.store(w_kept_ptr + row[:, None] * KEPT + chunk[None, :], kept, mask=(row < N)[:, None])


@triton.jit
def multiply(
    a, b, y, a_scale_ptr, b_scale_ptr, bias_ptr, unit, M, N, K,
    x_ptr, list_ptr, count_ptr, x_kept_ptr, w_kept_ptr, w_ptr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SUM: tl.constexpr,
    BIAS: tl.constexpr, SPLIT: tl.constexpr, CHUNK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """One tile of ``a b'`` of 8-bit codes, times the scales of its rows and columns, plus what stands beside."""
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
        count = tl.load(count_ptr)
        for start in tl.range(0, tl.minimum(count, KEPT), CHUNK, num_stages=1):
            chunk = start + tl.arange(0, CHUNK)
            x = tl.load(x_kept_ptr + row[:, None] * KEPT + chunk[None, :], mask=(row < M)[:, None], other=0.0)
            w = tl.load(w_kept_ptr + column[:, None] * KEPT + chunk[None, :], mask=(column < N)[:, None], other=0.0)
            result = tl.dot(x, w.T, result)
        for start in tl.range(KEPT, count, CHUNK, num_stages=1):
            chunk = start + tl.arange(0, CHUNK)
            real = chunk < count
            outlier = tl.load(list_ptr + chunk, mask=real, other=0)
            x_at = row.to(tl.int64)[:, None] * K + outlier[None, :]
            w_at = column.to(tl.int64)[:, None] * K + outlier[None, :]
            x = tl.load(x_ptr + x_at, mask=(row < M)[:, None] & real[None, :], other=0.0)
            w = tl.load(w_ptr + w_at, mask=(column < N)[:, None] & real[None, :], other=0)
            w = (w.to(tl.float32) * (b_scale * (1 / 127))[:, None]).to(x.dtype)
            result = tl.dot(x, w.T, result)
    y.store([m, n], result.to(y.dtype))


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few where Triton interprets."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def rows_for(K: int) -> tuple[int, int, int, int]:
    """Rows of a program that reads whole rows, their padded width, its warps and the registers of a thread."""
    columns = triton.next_power_of_2(K)
    return max(1, 2048 // columns), columns, min(16, max(4, columns // 512)), 64 if columns <= 16384 else 128


def quantize(x: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [M, K], absmax [M] and a byte a column [K]; whole outlier columns are not zeroed yet."""
    M, K = x.shape
    codes = torch.empty(M, K, dtype=torch.int8, device=x.device)
    absmax = torch.empty(M, dtype=torch.float32, device=x.device)
    flags = torch.zeros(K, dtype=torch.int8, device=x.device) if threshold > 0 else codes
    rows, columns, warps, registers = rows_for(K)
    quantize_rows[(triton.cdiv(M, rows),)](
        x, codes, absmax, flags, M, K, float(threshold), SPLIT=threshold > 0, ROWS=rows, COLUMNS=columns,
        num_warps=warps, maxnreg=registers, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, absmax, flags


def split(
    x: torch.Tensor, codes: torch.Tensor, flags: torch.Tensor, w: torch.Tensor | None, w_absmax: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The list of columns [K + 1] with their number at its end; the kept values [M + N, KEPT]; zeroes in ``codes``."""
    M, K = x.shape
    N = 0 if w is None else w.shape[0]
    listed = torch.empty(K + 1, dtype=torch.int32, device=x.device)
    kept = torch.empty(M + N, KEPT, dtype=x.dtype, device=x.device)
    rows = 32
    split_columns[(triton.cdiv(M, rows) + triton.cdiv(N, rows),)](
        x, codes, w, w_absmax, flags, listed, listed[K:], kept, kept[M:], M, K, N,
        WEIGHT=w is not None, ROWS=rows, COLUMNS=triton.next_power_of_2(K), CHUNK=CHUNK, KEPT=KEPT, num_warps=4,
    )  # fmt: skip
    return listed, kept, listed[K:]


def product(
    codes: torch.Tensor, scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None,
    unit: float, dtype: torch.dtype, tile: Tile | None = None,
    beside: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """``codes w'`` times the scales and ``unit``, plus the bias and the columns ``beside`` (x and what split gave)."""
    (M, K), N = codes.shape, w.shape[0]
    tile = tile or tile_for(M)
    y = torch.empty(M, N, dtype=dtype, device=codes.device)
    x, listed, kept, count = beside or (None, None, None, None)
    multiply[(triton.cdiv(M, tile.rows) * triton.cdiv(N, tile.columns),)](
        TensorDescriptor.from_tensor(codes, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(w, [tile.columns, tile.depth]),
        TensorDescriptor.from_tensor(y, [tile.rows, tile.columns]),
        scale, w_scale, bias, unit, M, N, K, x, listed, count, kept, None if kept is None else kept[M:], w,
        BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=tile.group,
        SUM=tl.int32 if codes.dtype == torch.int8 else tl.float32, BIAS=bias is not None, SPLIT=beside is not None,
        CHUNK=CHUNK, KEPT=KEPT, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def linear(
    x: torch.Tensor, w: torch.Tensor, w_absmax: torch.Tensor, bias: torch.Tensor | None, threshold: float,
    tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """The product [M, N] of LLM.int8()."""
    codes, absmax, flags = quantize(x, threshold)
    beside = (x, *split(x, codes, flags, w, w_absmax)) if threshold > 0 else None
    return product(codes, absmax, w, w_absmax, bias, 1 / 127**2, x.dtype, tile, beside)
