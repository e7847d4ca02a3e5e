"""What the Triton kernels of this package compute, in PyTorch: the definition, and the path on a CPU.

Scales are float32. Codes are rounded half to even, as ``torch.round`` and the hardware's conversions do. The division
that makes a scale's inverse is written once, as ``limit / absmax``, in the kernels too: codes then agree bit for bit.

Shapes: M tokens, K inputs, N outputs; ``x`` [M, K], weight codes [N, K], a scale a row.
"""

from __future__ import annotations

import math

import torch

from farout.errors import BadInput

__all__ = [
    "fp8_linear",
    "hadamard",
    "hadamard_block",
    "int4_linear",
    "int8_linear",
    "integer_product",
    "quantize_fp8",
    "quantize_hadamard",
    "quantize_int8",
    "two_halves",
]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def _inverse(limit: float, absmax: torch.Tensor) -> torch.Tensor:
    """``limit / absmax``, rounded once (a number over a tensor is a product with a reciprocal); 0 where a row is 0."""
    return torch.where(absmax > 0, torch.full_like(absmax, limit) / absmax, torch.zeros_like(absmax))


def quantize_int8(x: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [M, K] int8, absmax [M] of what is below the threshold, and the columns [C] that reach it."""
    values = x.float()
    columns = torch.empty(0, dtype=torch.int64, device=x.device)
    if threshold > 0:
        flagged = values.abs() >= threshold
        columns = flagged.any(0).nonzero()[:, 0]
        values = values.masked_fill(flagged, 0.0)
    absmax = values.abs().amax(1)
    codes = torch.round(values * _inverse(127.0, absmax)[:, None]).to(torch.int8)
    codes[:, columns] = 0
    return codes, absmax, columns


def integer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a b'`` of int8 matrices [M, K], [N, K], exact, as int32."""
    if a.is_cuda:  # cuBLAS wants more than 16 rows, and multiples of 8
        rows, (outputs, inputs) = a.shape[0], b.shape
        if inputs % 8 or outputs % 8:
            return (a.double() @ b.double().T).to(torch.int32)
        if rows <= 16:
            a = torch.cat([a, a.new_zeros(17 - rows, inputs)])
        return torch._int_mm(a, b.T)[:rows]
    return torch._int_mm(a, b.T)


def int8_linear(
    x: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> torch.Tensor:
    """The product [M, N] of LLM.int8(): int8 but for the columns that reach the threshold."""
    x_codes, x_absmax, columns = quantize_int8(x, threshold)
    y = integer_product(x_codes, codes).float() * (x_absmax[:, None] * absmax[None, :] * (1 / 127**2))
    if bias is not None:
        y = y + bias.float()
    if len(columns):
        weight = (codes[:, columns].float() * (absmax[:, None] * (1 / 127))).to(x.dtype)
        y = y + x[:, columns].float() @ weight.float().T
    return y.to(x.dtype)


def quantize_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K] in E4M3 and the scale [M] that each row is to be multiplied by."""
    absmax = x.float().abs().amax(1)
    codes = (x.float() * _inverse(FP8_MAX, absmax)[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    return codes, absmax * (1 / FP8_MAX)


def fp8_linear(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product [M, N] of E4M3 codes, summed in float32."""
    x_codes, x_scale = quantize_fp8(x)
    y = (x_codes.float() @ codes.float().T) * (x_scale[:, None] * scale[None, :])
    return (y if bias is None else y + bias.float()).to(x.dtype)


def int4_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product [M, N] with a float32 weight, summed in float32."""
    y = x.float() @ weight.T
    return (y if bias is None else y + bias.float()).to(x.dtype)


def hadamard_block(width: int, block: int | None = None) -> int:
    """The block a row of ``width`` is transformed by: ``block``, or the largest power of two that divides the width."""
    largest = width & -width
    if block is None:
        return largest
    if block < 1 or block & (block - 1) or width % block:
        raise BadInput(
            f"block must be a power of two that divides the width {width}, got {block}; {largest} is the largest"
        )
    return block


def two_halves(block: int) -> tuple[int, int]:
    """Factors ``a <= b`` of a power of two, as close as can be: H_block is the Kronecker product of H_a and H_b."""
    power = block.bit_length() - 1
    return 1 << power // 2, 1 << (power + 1) // 2


def hadamard(x: torch.Tensor, block: int | None = None) -> torch.Tensor:
    """Each block of the last axis times the orthonormal Hadamard matrix (Sylvester's order), in float32."""
    block = hadamard_block(x.shape[-1], block)
    y = x.float().reshape(-1, block)
    half = 1
    while half < block:
        pairs = y.view(-1, block // (2 * half), 2, half)
        y = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(-1, block)
        half *= 2
    return (y / math.sqrt(block)).reshape(x.shape)


def quantize_hadamard(x: torch.Tensor, bits: int, block: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [M, K] int8 of the transformed rows in ``+-(2^(bits-1) - 1)``, and the step [M] of each row."""
    limit = float(2 ** (bits - 1) - 1)
    y = hadamard(x, block)
    absmax = y.abs().amax(1)
    return torch.round(y * _inverse(limit, absmax)[:, None]).to(torch.int8), absmax * (1 / limit)
