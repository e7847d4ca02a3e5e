"""Products and quantizers that run on integers: Triton kernels on an NVIDIA GPU, the same in PyTorch elsewhere.

=========================== ============================================================================
:func:`quantize_int8`        8-bit codes a row, outlier columns found in the same pass (LLM.int8())
:func:`int8_linear`          the product of such codes, outlier columns in 16 bits
:func:`quantize_fp8`         E4M3 codes a row
:func:`fp8_linear`           the product of such codes
:class:`Int4Weight`          a weight in four bits of groups, packed
:func:`int4_linear`          its product with 16-bit inputs; a kernel for up to 16 tokens
:func:`quantize_hadamard`    a Hadamard transform of the last axis, and integer codes a row
=========================== ============================================================================

A kernel is taken where the input is on a GPU, Triton is there and the shape fits, as each function says; otherwise the
reference computes. Both give the same codes and scales. Nothing here has a gradient.

The kernels are tuned on an H100; ``benchmarks/quantize_kernels.py`` times them.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

import torch

from farout.errors import BadInput
from farout.quantize.kernels import reference
from farout.quantize.kernels.packing import Int4Weight
from farout.quantize.kernels.reference import hadamard, hadamard_block

__all__ = [
    "Int4Weight",
    "fp8_linear",
    "hadamard",
    "hadamard_block",
    "int4_linear",
    "int8_linear",
    "quantize_fp8",
    "quantize_hadamard",
    "quantize_int8",
]

WIDEST = 32768  # a row that one program holds
HALVES = (torch.float16, torch.bfloat16)


@lru_cache
def _capability(device: torch.device) -> int:
    """Compute capability of a GPU that kernels can be built for, 0 where they cannot."""
    if device.type != "cuda" or torch.version.hip or find_spec("triton") is None:
        return 0
    return torch.cuda.get_device_capability(device)[0]


def _rows(x: torch.Tensor, inputs: int | None = None) -> torch.Tensor:
    """``x`` as a matrix of tokens, contiguous and without a gradient."""
    if not x.is_floating_point() or x.dim() == 0:
        raise BadInput(f"x must be a tensor of floating-point rows, got {x.dtype} of shape {tuple(x.shape)}")
    if inputs is not None and x.shape[-1] != inputs:
        raise BadInput(f"x has {x.shape[-1]} inputs a token, the weight takes {inputs}")
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _multiplies(x: torch.Tensor, codes: torch.Tensor) -> bool:
    """Whether the kernel for 8-bit codes takes this product."""
    N, K = codes.shape
    whole = K % 16 == 0 and N % 8 == 0 and codes.is_contiguous() and codes.data_ptr() % 16 == 0
    return len(x) > 0 and x.dtype in HALVES and whole and K <= WIDEST and _capability(x.device) >= 9


def quantize_int8(x: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize rows to 8 bits by the greatest magnitude below a threshold, and find the columns that reach it.

    A code is ``round(127 x / absmax)``. Elements of magnitude ``threshold`` and more are outliers; they are not counted
    in ``absmax``, and every column that has one is 0 in the codes, though its ordinary elements count. For a weight,
    leave the threshold at 0: no column is an outlier.

    The kernel takes rows of up to 32,768 elements.

    Parameters
    ----------
    x : tensor [..., K]
        Floating point.
    threshold : float
        LLM.int8() takes 6.0 for inputs; 0 turns the search off.

    Returns
    -------
    codes : int8 [..., K]
    absmax : float32 [...]
        The value of code 127, as bitsandbytes keeps it (its ``SCA`` and ``SCB``).
    columns : int64 [C]
        In ascending order.

    Raises
    ------
    BadInput
        ``x`` is not floating point.

    Examples
    --------
    >>> import torch
    >>> codes, absmax, columns = quantize_int8(torch.tensor([[1.0, -0.5, 9.0], [0.1, 0.0, 4.0]]), threshold=6.0)
    >>> codes.tolist(), columns.tolist()
    ([[127, -64, 0], [3, 0, 0]], [2])
    >>> absmax
    tensor([1., 4.])
    """
    rows = _rows(x)
    if len(rows) and rows.shape[1] <= WIDEST and _capability(x.device) >= 8:
        from farout.quantize.kernels import int8

        with torch.cuda.device(x.device):
            codes, absmax, listed = int8.quantize(rows, threshold)
            columns = torch.empty(0, dtype=torch.int64, device=x.device)
            if listed is not None:
                columns = listed[: int(listed[-1])].long()
                codes[:, columns] = 0
    else:
        codes, absmax, columns = reference.quantize_int8(rows, threshold)
    return codes.reshape(x.shape), absmax.reshape(x.shape[:-1]), columns


def int8_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float = 6.0,
) -> torch.Tensor:
    """Multiply by an 8-bit weight, inputs quantized a token, columns of outliers in 16 bits: LLM.int8().

    The integer product is exact. It, the bias and the outliers' product, whose weights are the codes dequantized to the
    type of ``x``, are added in float32 and rounded once.

    The kernel takes float16 and bfloat16 on compute capability 9, K a multiple of 16 up to 32,768 and N of 8, and any
    number of outlier columns (every 16 cost one more step). It does not wait for the device. It multiplies the ordinary
    elements of outlier columns in 8 bits as well and adds, for these columns, the product in 16 bits of what is left of
    them: the same sum, by the order of rounding.

    Parameters
    ----------
    x : tensor [..., K]
    codes, absmax : int8 [N, K], float32 [N]
        The weight by :func:`quantize_int8`.
    bias : tensor [N], optional
    threshold : float
        0 puts no column in 16 bits.

    Returns
    -------
    tensor [..., N]
        Of the type of ``x``.

    Raises
    ------
    BadInput
        The width of ``x`` is not the weight's.

    Examples
    --------
    >>> import torch
    >>> weight = torch.tensor([[1.0, 0.5], [0.25, -1.0]])
    >>> codes, absmax, _ = quantize_int8(weight)
    >>> int8_linear(torch.tensor([[1.0, 100.0], [2.0, 0.0]]), codes, absmax)
    tensor([[ 51.3937, -99.7480],
            [  2.0000,   0.5039]])
    """
    rows = _rows(x, codes.shape[1])
    if _multiplies(rows, codes):
        from farout.quantize.kernels import int8

        with torch.cuda.device(x.device):
            y = int8.linear(rows, codes, absmax, bias, threshold)
    else:
        y = reference.int8_linear(rows, codes, absmax, bias, threshold)
    return y.reshape(*x.shape[:-1], codes.shape[0])


def quantize_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to E4M3, the greatest magnitude of each to 448.

    The kernel takes rows of up to 32,768 elements on compute capability 9.

    Parameters
    ----------
    x : tensor [..., K]

    Returns
    -------
    codes : float8_e4m3fn [..., K]
    scale : float32 [...]
        What a row's codes are to be multiplied by.

    Examples
    --------
    >>> import torch
    >>> codes, scale = quantize_fp8(torch.tensor([[448.0, 17.0]]))
    >>> codes.float(), scale
    (tensor([[448.,  16.]]), tensor([1.]))
    """
    rows = _rows(x)
    if len(rows) and rows.shape[1] <= WIDEST and _capability(x.device) >= 9:
        from farout.quantize.kernels import fp8

        with torch.cuda.device(x.device):
            codes, scale = fp8.quantize(rows)
    else:
        codes, scale = reference.quantize_fp8(rows)
    return codes.reshape(x.shape), scale.reshape(x.shape[:-1])


def fp8_linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply by a weight in E4M3, inputs quantized to E4M3 a token.

    On compute capability 9, for float16 and bfloat16, N and K multiples of 16 and K up to 32,768, the tensor cores sum,
    with some 14 bits; the reference sums in float32.

    Parameters
    ----------
    x : tensor [..., K]
    codes, scale : float8_e4m3fn [N, K], float32 [N]
        The weight by :func:`quantize_fp8`.
    bias : tensor [N], optional

    Returns
    -------
    tensor [..., N]
        Of the type of ``x``.

    Raises
    ------
    BadInput
        The width of ``x`` is not the weight's.

    Examples
    --------
    >>> import torch
    >>> codes, scale = quantize_fp8(torch.eye(2))
    >>> fp8_linear(torch.tensor([[4.0, 1.0]]), codes, scale).round(decimals=4)
    tensor([[4., 1.]])
    """
    rows = _rows(x, codes.shape[1])
    if _multiplies(rows, codes) and codes.shape[0] % 16 == 0:
        from farout.quantize.kernels import fp8

        with torch.cuda.device(x.device):
            y = fp8.linear(rows, codes, scale, bias)
    else:
        y = reference.fp8_linear(rows, codes, scale, bias)
    return y.reshape(*x.shape[:-1], codes.shape[0])


def int4_linear(x: torch.Tensor, weight: Int4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply 16-bit inputs by a packed four-bit weight.

    The kernel takes up to 16 tokens of float16 or bfloat16, groups of 32, 64, 128 or 256, on compute capability 9. More
    tokens on a GPU get the weight dequantized to their type and a product in it.

    Parameters
    ----------
    x : tensor [..., K]
    weight : Int4Weight
    bias : tensor [N], optional

    Returns
    -------
    tensor [..., N]
        Of the type of ``x``.

    Raises
    ------
    BadInput
        The width of ``x`` is not the weight's.

    Examples
    --------
    >>> import torch
    >>> weight = Int4Weight.from_codes(torch.tensor([[9, 7], [8, 10]]), torch.tensor([[0.5], [2.0]]))
    >>> int4_linear(torch.tensor([[1.0, 3.0]]), weight)
    tensor([[-1., 12.]])
    """
    rows = _rows(x, weight.inputs)
    if rows.dtype in HALVES and len(rows) > 0 and _capability(x.device) >= 9:
        from farout.quantize.kernels import w4a16

        if len(rows) <= w4a16.MOST_TOKENS and weight.group in w4a16.GROUPS:
            with torch.cuda.device(x.device):
                y = w4a16.linear(rows, weight, bias)
        else:
            y = torch.nn.functional.linear(rows, weight.dense().to(x.dtype), bias)
    else:
        y = reference.int4_linear(rows, weight.dense(), bias)
    return y.reshape(*x.shape[:-1], weight.outputs)


def quantize_hadamard(x: torch.Tensor, bits: int = 8, block: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Transform each block of the last axis by an orthonormal Hadamard matrix and quantize rows to integers.

    Codes lie in ``+-(2^(bits - 1) - 1)``. The kernel takes float16 and bfloat16, blocks of 256 to 16,384 and rows that,
    padded to a power of two of blocks, have up to 16,384 elements, on compute capability 8. Its codes may differ by
    one from the reference's where a value lies within some 1e-5 of a step's middle.

    Parameters
    ----------
    x : tensor [..., K]
    bits : int
        2..8.
    block : int, optional
        A power of two that divides K; the largest by default.

    Returns
    -------
    codes : int8 [..., K]
    step : float32 [...]
        What a row's codes are to be multiplied by.

    Raises
    ------
    BadInput
        ``bits`` or ``block`` is not as said.

    Examples
    --------
    >>> import torch
    >>> codes, step = quantize_hadamard(torch.tensor([[4.0, 0.0, 0.0, 0.0]]), bits=4)
    >>> codes.tolist(), bool(torch.isclose(codes[0, 0] * step[0], torch.tensor(2.0)))
    ([[7, 7, 7, 7]], True)
    """
    if not 2 <= bits <= 8:
        raise BadInput(f"bits must be 2..8, got {bits}")
    rows = _rows(x)
    block = hadamard_block(rows.shape[1], block)
    padded = block << (rows.shape[1] // block - 1).bit_length()
    fits = block >= 256 and padded <= 16384 and rows.dtype in HALVES and len(rows) > 0
    if fits and _capability(x.device) >= 8:
        from farout.quantize.kernels import hadamard_quantize as kernel

        with torch.cuda.device(x.device):
            codes, step = kernel.quantize(rows, bits, block)
    else:
        codes, step = reference.quantize_hadamard(rows, bits, block)
    return codes.reshape(x.shape), step.reshape(x.shape[:-1])
