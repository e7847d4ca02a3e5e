"""Small floats: E4M3 and E2M1 by rounding half to even, and the two formats of FP4 whose steps are small floats too.

=======  ====================================  ========  ============================================
name     values                                greatest  step
=======  ====================================  ========  ============================================
E4M3     8 bits: 4 of exponent, 3 of mantissa  448       any
E2M1     0, .5, 1, 1.5, 2, 3, 4, 6 and minus   6         any
MXFP4    E2M1, 32 values a step                          a power of two
NVFP4    E2M1, 16 values a step                          E4M3 over one float32 of the whole tensor
=======  ====================================  ========  ============================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOST = {8: 448.0, 4: 6.0}  # the greatest value, by bits


class Through(torch.autograd.Function):
    """Round forwards, and pass the gradient backwards as it comes: the straight-through estimator.

    ``x + (round(x) - x).detach()`` has the same gradient, but its values are off the grid by a rounding error.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, nearest: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Round."""
        return nearest(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Pass the gradient."""
        return gradients[0], None


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest E4M3, half to even; what lies beyond 448 becomes 448.

    Examples
    --------
    >>> e4m3(torch.tensor([1.0624, 1.0625, 1.1875, 500.0]))
    tensor([  1.0000,   1.0000,   1.2500, 448.0000])
    """
    return x.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).to(x.dtype)  # the cast alone need not saturate


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest E2M1, half to even; what lies beyond 6 becomes 6.

    Examples
    --------
    >>> e2m1(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -7.0]))
    tensor([ 0.,  1.,  1.,  2.,  2.,  4.,  4., -6.])
    """
    x = x.clamp(-6.0, 6.0)
    size = x.abs()
    half = torch.full_like(x, 0.5)  # between neighbours: a half up to 2, one up to 4, then two
    between = torch.where(size < 2, half, torch.where(size < 4, 2 * half, 4 * half))
    return (x / between).round_().mul_(between)


NEAREST = {8: e4m3, 4: e2m1}


def mxfp4_scale(most: torch.Tensor) -> torch.Tensor:
    """Return the power of two over which groups with these greatest sizes are rounded to E2M1.

    ``2^(floor(log2 m) - 2)``, where an ``m`` in the upper quarter of its octave counts as the next power of two, so
    that it does not saturate at 6 (compressed-tensors; GGUF takes the plain floor).

    Examples
    --------
    >>> mxfp4_scale(torch.tensor([4.0, 6.9, 7.0, 8.0, 0.0]))
    tensor([1.0000, 1.0000, 2.0000, 2.0000, 0.1250])
    """
    mantissa, exponent = torch.frexp(most.detach())  # most = mantissa * 2^exponent, with 1/2 <= mantissa < 1
    exponent = exponent - 3 + (mantissa >= 0.875).to(exponent.dtype)
    one = torch.ones_like(most)
    return torch.ldexp(one, exponent.clamp(-126, 127))  # 2^-127 is no normal number


def nvfp4_scale(most: torch.Tensor, global_scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the steps of groups with these greatest sizes, and the global scale behind them.

    ``e4m3(g m / 6) / g`` with ``g = 448 * 6 / max m``, so that the largest group's step is the greatest E4M3. A step
    that E4M3 rounds to 0 becomes 0.125 / g.

    Parameters
    ----------
    most : torch.Tensor
    global_scale : torch.Tensor, optional
        ``g`` where it is known; else from ``most``.

    Examples
    --------
    >>> nvfp4_scale(torch.tensor([6.0, 3.1, 0.0]))
    (tensor([1.0000e+00, 5.0000e-01, 2.7902e-04]), tensor(448.))
    """
    if global_scale is None:
        whole = most.detach().amax()
        global_scale = 448.0 * 6.0 / torch.where(whole > 0, whole, torch.full_like(whole, 448.0 * 6.0))
        global_scale = global_scale.clamp(max=torch.finfo(most.dtype).max)
    local = Through.apply(most / 6.0 * global_scale, e4m3)
    return torch.where(local == 0, torch.full_like(local, 0.125), local) / global_scale, global_scale
