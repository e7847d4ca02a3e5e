"""EfficientAD's parts that wait for memory, in Triton: the first layer, bias with ReLU and pooling, and the maps.

What a convolution writes is read once more and written a quarter as large; the first layer's is not written at all.

Shape legend: B images, C channels, channels last. A place is a pixel of what is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DEPTH = 64  # of the first layer's product: 4 x 4 pixels of 3 colours, filled up to what tensor cores take


@triton.jit
def _first(
    x_ptr, weight_ptr, bias_ptr, out_ptr, places, size, side,
    C: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The mean over 2 x 2 pixels of ReLU of a 4 x 4 convolution of bytes; N outputs, in networks of C channels each."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    image = place // (side * side)
    row, column = (place // side) % side, place % side
    start = (image * 3 * size + 2 * row) * size + 2 * column
    step = ((k // 16) * size + (k % 16) // 4) * size + k % 4
    inside = (place < places)[:, None] & (k < 48)[None, :]
    weight = tl.load(weight_ptr + k[:, None] * N + n[None, :])
    bias = tl.load(bias_ptr + n)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            at = (start + dy * size + dx)[:, None] + step[None, :]
            x = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float16) * 0.00390625  # exact: bytes over 256
            total += tl.maximum(tl.dot(x, weight) + bias[None, :], 0.0)
    network, channel = n // C, n % C
    out = out_ptr + (network * places)[None, :].to(tl.int64) * C + place[:, None].to(tl.int64) * C + channel[None, :]
    tl.store(out, (0.25 * total).to(tl.float16), mask=(place < places)[:, None])


def first_layer(x_BCHW: Tensor, weight: Tensor, bias: Tensor, networks: int) -> list[Tensor]:
    """Run the first layers of several networks on bytes, with ReLU and pooling.

    Parameters
    ----------
    x_BCHW : uint8 Tensor (B, 3, size, size)
        Contiguous.
    weight : float16 Tensor (64, N)
        For bytes over 256, by colour, row and column; 0 from the 48th row on.
    bias : float32 Tensor (N,)
    networks : int
        Among which the N outputs are divided.

    Returns
    -------
    list of float16 Tensor (B, N / networks, side, side), channels last
    """
    B, _, size, _ = x_BCHW.shape
    side, N = (size - 3) // 2, weight.shape[1]
    C, places = N // networks, B * side * side
    out = torch.empty(networks, B, side, side, C, dtype=torch.float16, device=x_BCHW.device)
    grid = (triton.cdiv(places, 64), N // 128)
    _first[grid](x_BCHW, weight, bias, out, places, size, side, C, N, DEPTH, 64, 128, num_warps=8)
    return [one.permute(0, 3, 1, 2) for one in out]


@triton.jit
def _pool(x_ptr, bias_ptr, out_ptr, elements, height, width, C: tl.constexpr, BLOCK: tl.constexpr):
    """The mean over 2 x 2 pixels of ReLU of a sum with a bias."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    channel, place = element % C, element // C
    rows, columns = height // 2, width // 2
    image, row, column = place // (rows * columns), (place // columns) % rows, place % columns
    at = ((image * height + 2 * row) * width + 2 * column) * C + channel
    bias = tl.load(bias_ptr + channel)
    total = tl.zeros((BLOCK,), tl.float32)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            x = tl.load(x_ptr + at + (dy * width + dx) * C, mask=inside, other=0.0).to(tl.float32)
            total += tl.maximum(x + bias, 0.0)
    tl.store(out_ptr + element, (0.25 * total).to(out_ptr.dtype.element_ty), mask=inside)


def pooled(x_BCHW: Tensor, bias: Tensor) -> Tensor:
    """Add a bias (float32), and take ReLU and the mean over 2 x 2 pixels; channels last, a power of two of them."""
    B, C, height, width = x_BCHW.shape
    out = torch.empty(B, height // 2, width // 2, C, dtype=x_BCHW.dtype, device=x_BCHW.device)
    _pool[(triton.cdiv(out.numel(), 1024),)](x_BCHW, bias, out, out.numel(), height, width, C, 1024, num_warps=4)
    return out.permute(0, 3, 1, 2)


@triton.jit
def _map(
    teacher_ptr, student_ptr, code_ptr, bias_ptr, scale_ptr, out_ptr, places,
    C: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Two mean squared differences over the channels of a place, each with its factor, and their sum."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)
    inside = (place < places)[:, None] & (channel < C)[None, :]
    at = place[:, None].to(tl.int64) * C + channel[None, :]
    twice = place[:, None].to(tl.int64) * 2 * C + channel[None, :]
    teacher = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32)
    taught = tl.load(student_ptr + twice, mask=inside, other=0.0).to(tl.float32)
    coded = tl.load(student_ptr + twice + C, mask=inside, other=0.0).to(tl.float32)
    code = tl.load(code_ptr + at, mask=inside, other=0.0).to(tl.float32)
    d = teacher - taught + tl.load(bias_ptr + channel, mask=channel < C, other=0.0)[None, :]
    e = code - coded + tl.load(bias_ptr + C + channel, mask=channel < C, other=0.0)[None, :]
    a, b, c = tl.load(scale_ptr), tl.load(scale_ptr + 1), tl.load(scale_ptr + 2)
    found = a * tl.sum(d * d, 1) + b * tl.sum(e * e, 1) + c
    tl.store(out_ptr + place, found, mask=place < places)


def combined_map(teacher: Tensor, student: Tensor, code: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Return ``a sum_c (teacher - taught + bias)^2 + b sum_c (code - coded + bias)^2 + c``.

    Parameters
    ----------
    teacher, student, code : Tensor (B, C, h, w), (B, 2 C, h, w) and (B, C, h, w), channels last
    bias : float32 Tensor (2, C)
    scale : float32 Tensor (3,)

    Returns
    -------
    float32 Tensor (B, h, w)
    """
    B, C, h, w = teacher.shape
    out = torch.empty(B, h, w, dtype=torch.float32, device=teacher.device)
    grid = (triton.cdiv(out.numel(), 4),)
    wide = triton.next_power_of_2(C)
    _map[grid](teacher, student, code, bias, scale, out, out.numel(), C, wide, 4, num_warps=4)
    return out
