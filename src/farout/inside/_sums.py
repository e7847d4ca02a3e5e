"""The sums behind :class:`ChannelStats`, taken from rows in pieces that stay in a core's cache; loads torch.

Every piece is shifted by its own column means and scaled by powers of two of its own, so that float32 holds the powers
of deviations; pieces are then joined in float64 (Chan, Golub, LeVeque; Pebay for the higher moments). The floor is one
pass over the recorded tensor. In the cache some twenty operations follow, at about a tenth of a nanosecond a value, and
the count of bins, which takes as long as ten of them.

Shape legend: N rows, C channels, K pieces, R rows of a piece.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from farout.inside._accumulators import BINS, DROPPED_BITS, LARGE, joined_powers

_PIECE = {"cpu": 1 << 17, "cuda": 1 << 24}  # values; on a CPU three buffers of them fit in a core's cache
_FEWEST_ROWS = 32  # of a piece, so that what is kept of it is much smaller than it
_PLAIN = 1e-7, 1e8  # rows whose peaks lie here are taken to the fourth power as they are


class Sums(NamedTuple):
    """What was added up: float64 arrays.

    Attributes
    ----------
    powers : array (5, C)
        Count of finite values, mean, and sums of the second to fourth powers of deviations from it.
    extremes : array (2, C)
        Smallest and largest finite value; ``inf`` and ``-inf`` where there is none.
    others : array (4, C)
        Sum of absolute values, and how many values are large, NaN and infinite.
    rows : array (7, N)
        Largest and summed absolute value of each row; its mean, and sums of the second and fourth powers of deviations
        from it, all three in units of the power of two that follows (and without meaning where a value is not finite);
        how many values are not finite.
    histogram : int64 array (4080,)
    """

    powers: np.ndarray
    extremes: np.ndarray
    others: np.ndarray
    rows: np.ndarray
    histogram: np.ndarray


def sums_of(x_NC: torch.Tensor) -> Sums:
    """Add up rows, of which there is at least one, by as many threads as torch would use."""
    N, C = x_NC.shape
    R = min(N, max(_FEWEST_ROWS, _PIECE.get(x_NC.device.type, N * C) // C))
    work = _Pieces(x_NC, R)
    threads = min(torch.get_num_threads() if x_NC.device.type == "cpu" else 1, work.K)
    if threads == 1:
        histogram = work.run(0, 1)
    else:
        parts = _pool(threads).map(lambda first: work.run_alone(first, threads), range(threads))
        histogram = torch.stack(list(parts)).sum(0)
        torch.set_num_threads(torch.get_num_threads())  # the number for threads to come, which the pool has changed
    return work.joined(histogram)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; operations of torch on a piece are too short to be split among threads themselves."""
    return ThreadPoolExecutor(threads, "farout-sums")


class _Pieces:
    """A matrix, and room for the sums of its pieces."""

    def __init__(self, x_NC: torch.Tensor, R: int) -> None:
        N, C = x_NC.shape
        self.x_NC, self.R, self.K = x_NC, R, -(-N // R)
        dtype = torch.float64 if x_NC.dtype == torch.float64 else torch.float32
        self.like: dict[str, Any] = {"dtype": dtype, "device": x_NC.device}
        self.columns = torch.zeros(self.K, 13, C, **self.like)  # in the order in which _piece names them
        self.rows = torch.zeros(7, N, **self.like)

    def run_alone(self, first: int, step: int) -> torch.Tensor:
        """Run in a thread of the pool, whose operations stay in it."""
        torch.set_num_threads(1)
        with torch.no_grad():
            return self.run(first, step)

    def run(self, first: int, step: int) -> torch.Tensor:
        """Add up every ``step``-th piece; the histogram (4096,) is returned, since others count at the same time."""
        buffers = [torch.empty(self.R, self.x_NC.shape[1], **self.like) for _ in range(3)]
        histogram = torch.zeros(1 << (31 - DROPPED_BITS), dtype=torch.int64, device=self.x_NC.device)
        for k in range(first, self.K, step):
            at = slice(k * self.R, min((k + 1) * self.R, len(self.x_NC)))
            x_RC = self.x_NC[at]
            a_RC, b_RC, c_RC = (buffer[: len(x_RC)] for buffer in buffers)
            if x_RC.dtype != c_RC.dtype or not x_RC.is_contiguous():
                x_RC = c_RC.copy_(x_RC)
            histogram += _piece(x_RC, self.columns[k], self.rows[:, at], a_RC, b_RC)
        return histogram

    def joined(self, histogram: torch.Tensor) -> Sums:
        """Join the pieces."""
        columns_KC = self.columns.double().cpu().numpy().transpose(1, 0, 2)
        n, shift, unit, p1, p2, p3, p4, low, high, *others = columns_KC
        p1, p2, p3, p4 = p1 * unit, p2 * unit**2, p3 * unit**3, p4 * unit**4
        step = p1 / np.maximum(n, 1)  # what rounding left between the shift and the mean
        m2 = p2 - step * p1
        m3 = p3 - 3 * step * p2 + 2 * step**2 * p1
        m4 = p4 - 4 * step * p3 + 6 * step**2 * p2 - 3 * step**3 * p1
        return Sums(
            joined_powers(np.stack([n, shift + step, np.maximum(m2, 0.0), m3, np.maximum(m4, 0.0)])),
            np.stack([low.min(0), high.max(0)]),
            np.stack([other.sum(0) for other in others]),
            self.rows.double().cpu().numpy(),
            histogram.cpu().numpy()[:BINS],
        )


def _piece(
    x_RC: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor, a_RC: torch.Tensor, b_RC: torch.Tensor
) -> torch.Tensor:
    """Add up one piece, with two buffers of its size; return its histogram."""
    count, shift, unit, p1, p2, p3, p4, low, high, magnitude, large, nan, infinite = columns
    peak_R, magnitude_R, mean_R, m2_R, m4_R, unit_R, bad_R = rows
    torch.amin(x_RC, 0, out=low)
    torch.amax(x_RC, 0, out=high)
    count.fill_(len(x_RC))
    finite_RC = None
    if not bool((low.isfinite() & high.isfinite()).all()):
        finite_RC = x_RC.isfinite()
        count.copy_(finite_RC.sum(0))
        nan.copy_(x_RC.isnan().sum(0))
        torch.sub(len(x_RC) - count, nan, out=infinite)
        bad_R.copy_((~finite_RC).sum(1))
        low.copy_(x_RC.masked_fill(~finite_RC, torch.inf).amin(0))
        high.copy_(x_RC.masked_fill(~finite_RC, -torch.inf).amax(0))
        x_RC = x_RC.masked_fill(~finite_RC, 0.0)
    torch.sum(x_RC, 0, out=shift)
    shift.div_(count.clamp(min=1)).clamp_(low, high).nan_to_num_(0.0, 0.0, 0.0)
    reach = torch.maximum(high - shift, shift - low).nan_to_num_(0.0, 3e38, 0.0)
    # Powers of deviations of 1e-12, or of 1e10, leave float32. A power of two brings them near 1, without rounding.
    unit.copy_(_power_of_two(reach))

    torch.abs(x_RC, out=a_RC)
    torch.sum(a_RC, 0, out=magnitude)
    torch.amax(a_RC, 1, out=peak_R)
    torch.sum(a_RC, 1, out=magnitude_R)
    least, most = float(peak_R.min()), float(peak_R.max())
    if most >= LARGE:
        large.copy_((a_RC >= LARGE).sum(0))
    room = b_RC.view(torch.int32) if b_RC.dtype == torch.float32 else None
    bits_RC = torch.bitwise_right_shift(a_RC.float().view(torch.int32), DROPPED_BITS, out=room)
    histogram = torch.bincount(bits_RC.view(-1), minlength=1 << (31 - DROPPED_BITS))

    deviant_RC = x_RC
    if finite_RC is not None:
        histogram[0] -= int(bad_R.sum())  # zeros stood in for them
        deviant_RC = torch.where(finite_RC, x_RC, shift)  # no deviation: adds nothing to the sums of powers
    torch.addcmul(-shift / unit, deviant_RC, 1 / unit, out=a_RC)
    torch.sum(a_RC, 0, out=p1)
    torch.mul(a_RC, a_RC, out=b_RC)
    torch.sum(b_RC, 0, out=p2)
    torch.mul(a_RC, b_RC, out=a_RC)
    torch.sum(a_RC, 0, out=p3)
    torch.mul(b_RC, b_RC, out=b_RC)
    torch.sum(b_RC, 0, out=p4)

    unit_R.fill_(1.0)
    if least < _PLAIN[0] or most > _PLAIN[1]:
        unit_R.copy_(_power_of_two(peak_R))
        x_RC = torch.mul(x_RC, (1 / unit_R)[:, None], out=b_RC)
    torch.sum(x_RC, 1, out=mean_R)
    mean_R.div_(x_RC.shape[1])
    torch.sub(x_RC, mean_R[:, None], out=a_RC)
    a_RC.square_()
    torch.sum(a_RC, 1, out=m2_R)
    m4_R.copy_(torch.linalg.vector_norm(a_RC, 2, 1).square_())
    return histogram


def _power_of_two(size: torch.Tensor) -> torch.Tensor:
    """Return the power of two above each size, within the range of float32; 1 for 0."""
    return torch.exp2(torch.frexp(size).exponent.clamp_(-120, 120).to(size.dtype))
