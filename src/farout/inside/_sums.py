"""The sums behind :class:`ChannelStats`, taken from rows in pieces that stay in a core's cache; loads torch.

Columns are shifted by the means of some of their rows and scaled by powers of two, so that float32 holds the powers of
deviations; sums of pieces are added in float64. Where the choice of rows turns out to say little about the others, it
is done again with what is known by then. The floor is one pass over the recorded tensor; in the cache some twenty
operations follow, at about a tenth of a nanosecond a value.

Shape legend: N rows, C channels, R rows of a piece.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from farout.inside._channel_facts import BINS, DROPPED_BITS, HASH, LARGE, SAMPLED, is_sampled

_PIECE = {"cpu": 1 << 17, "cuda": 1 << 24}  # values; on a CPU three buffers of them fit in a core's cache
_FEW = 2  # threads take turns at the interpreter, which costs so few more than they gain
_GUESSED = 64  # rows of which columns get their shifts and scales
_RANGE = 2.0**-20, 2.0**25  # of deviations in units: their fourth powers stay in float32
_PLAIN = 1e-7, 1e8  # rows whose peaks lie here are taken to the fourth power as they are
_KEPT = threading.local()


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
    """Add up rows, of which there is at least one, by as many threads as torch would use where that pays."""
    threads = torch.get_num_threads()
    with _undivided():
        return _summed(_Pieces(x_NC, threads if threads > _FEW else 1))


@contextmanager
def _undivided() -> Iterator[None]:
    """Let torch not divide operations among threads: they are short here, and waking a thread takes as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summed(work: _Pieces) -> Sums:
    """Add up pieces, and do it again where the guess was off."""
    work.guess()
    sums = work.sums()
    n, mean, m2, *_ = sums.powers
    away = np.abs(mean - work.shift.double().cpu().numpy())
    reach = np.where(n > 0, np.maximum(sums.extremes[1] - mean, mean - sums.extremes[0]), 0.0)
    ratio = reach / work.unit.double().cpu().numpy()
    outside = (ratio > _RANGE[1]) | ((ratio < _RANGE[0]) & (reach > 0))
    if np.any(outside | (away**2 * n > 9 * m2)):
        work.shift, work.unit = (torch.from_numpy(known).to(work.shift) for known in (mean, reach))
        work.unit = _power_of_two(work.unit)
        sums = work.sums()
    return sums


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work, and in which operations of torch on a piece, which are short, stay undivided."""
    pool = ThreadPoolExecutor(threads, "farout-sums", torch.set_num_threads, (1,))
    every, before = threading.Barrier(threads), torch.get_num_threads()
    list(pool.map(lambda _: every.wait(), range(threads)))  # all have begun
    torch.set_num_threads(before)  # the number for threads to come, which those of the pool have changed
    return pool


class _Pieces:
    """A matrix, what its columns are shifted and scaled by, and room for the sums of its rows."""

    def __init__(self, x_NC: torch.Tensor, threads: int) -> None:
        N, C = x_NC.shape
        self.x_NC, self.C = x_NC, C
        dtype = torch.float64 if x_NC.dtype == torch.float64 else torch.float32
        self.like: dict[str, Any] = {"dtype": dtype, "device": x_NC.device}
        self.threads = min(threads, N) if x_NC.device.type == "cpu" else 1
        self.R = max(1, min(_PIECE.get(x_NC.device.type, N * C) // C, -(-N // self.threads)))
        self.pieces = [slice(start, min(start + self.R, N)) for start in range(0, N, self.R)]
        self.rows = torch.zeros(7, N, **self.like)
        self.rows[5] = 1.0
        self.counted: torch.Tensor | None = None
        if is_sampled(N, C):
            hashed = (np.arange(N, dtype=np.uint32) * np.uint32(HASH)) >> np.uint32(28)
            self.counted = torch.from_numpy(hashed == 0).to(x_NC.device)

    def each(self, work: Callable[[list[slice]], Any]) -> list[Any]:
        """Let each thread work on its part of the pieces; what they return."""
        if self.threads == 1:
            return [work(self.pieces)]

        def alone(first: int) -> Any:
            with torch.no_grad():
                return work(self.pieces[first :: self.threads])

        return list(_pool(self.threads).map(alone, range(self.threads)))

    def read(self, at: slice, room_RC: torch.Tensor) -> torch.Tensor:
        """Return rows in the precision in which they are added up."""
        x_RC = self.x_NC[at]
        return x_RC if x_RC.dtype == room_RC.dtype and x_RC.is_contiguous() else room_RC[: len(x_RC)].copy_(x_RC)

    def room(self, count: int) -> list[torch.Tensor]:
        """Return buffers of the size of a piece; a thread keeps them, since new memory costs as much as the sums."""
        R = min(self.R, len(self.x_NC))
        key = self.like["dtype"], self.like["device"]
        if getattr(_KEPT, "key", None) != key or len(_KEPT.flat) < 3 * R * self.C:
            _KEPT.key, _KEPT.flat = key, torch.empty(3 * max(R * self.C, _PIECE["cpu"]), **self.like)
        return [part.view(R, self.C) for part in _KEPT.flat[: 3 * R * self.C].split(R * self.C)[:count]]

    def guess(self) -> None:
        """Choose what columns are shifted and scaled by, from rows that keep step with nothing."""
        N = len(self.x_NC)
        rows = np.unique(np.arange(N) if N <= _GUESSED else (np.arange(_GUESSED) * 0.6180339887 % 1 * N).astype(int))
        x_RC = self.x_NC[torch.from_numpy(rows).to(self.x_NC.device)].to(self.like["dtype"])
        finite_RC = x_RC.isfinite()
        x_RC = x_RC.masked_fill(~finite_RC, 0.0)
        self.shift = x_RC.double().sum(0).div_(finite_RC.sum(0).clamp_(min=1)).to(x_RC.dtype)
        self.unit = _power_of_two((x_RC - self.shift).abs_().masked_fill_(~finite_RC, 0.0).amax(0).clamp_(max=3e38))

    def sums(self) -> Sums:
        """Add up all pieces."""
        columns, extremes, histograms = (torch.stack(parts) for parts in zip(*self.each(self.add)))
        shift, unit = self.shift.double().cpu().numpy(), self.unit.double().cpu().numpy()
        p1, p2, p3, p4, magnitude, large, bad, nan = columns.sum(0).cpu().numpy()
        n = len(self.x_NC) - bad
        p1, p2, p3, p4 = p1 * unit, p2 * unit**2, p3 * unit**3, p4 * unit**4
        step = p1 / np.maximum(n, 1)  # from the shift to the mean
        with np.errstate(invalid="ignore"):  # powers that left float32 will be taken again
            m2 = p2 - step * p1
            m3 = p3 - 3 * step * p2 + 2 * step**2 * p1
            m4 = p4 - 4 * step * p3 + 6 * step**2 * p2 - 3 * step**3 * p1
        return Sums(
            np.stack([n, np.where(n > 0, shift + step, 0.0), np.maximum(m2, 0.0), m3, np.maximum(m4, 0.0)]),
            torch.stack([extremes[:, 0].amin(0), extremes[:, 1].amax(0)]).double().cpu().numpy(),
            np.stack([magnitude, large, nan, bad - nan]),
            self.rows.double().cpu().numpy(),
            histograms.sum(0).cpu().numpy()[:BINS] * (1 if self.counted is None else SAMPLED),
        )

    def add(self, pieces: list[slice]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add up pieces.

        Returns
        -------
        columns : float64 tensor (8, C)
            Four powers of (x - shift) / unit, |x|, and how many values are large, not finite, and NaN.
        extremes : tensor (2, C)
        histogram : int64 tensor (4096,)
        """
        room_RC, a_RC, b_RC = self.room(3)
        columns = torch.zeros(8, self.C, dtype=torch.float64, device=self.x_NC.device)
        extremes = torch.full((2, self.C), torch.inf, **self.like)
        extremes[1] = -torch.inf
        histogram = torch.zeros(1 << (31 - DROPPED_BITS), dtype=torch.int64, device=self.x_NC.device)
        part = torch.zeros(5, self.C, **self.like)
        p1, p2, p3, p4, magnitude = part
        lowest, highest = extremes
        inverse, offset = 1 / self.unit, -self.shift / self.unit
        for at in pieces:
            x_RC = deviant_RC = self.read(at, room_RC)
            a_RC, b_RC = a_RC[: len(x_RC)], b_RC[: len(x_RC)]  # the last piece is shorter
            peak_R, magnitude_R, *others = self.rows[:, at]
            low, high = x_RC.amin(0), x_RC.amax(0)
            bad_RC = None
            if not math.isfinite(float((high - low).sum())):
                bad_RC = ~x_RC.isfinite()
                columns[6] += bad_RC.sum(0)
                columns[7] += x_RC.isnan().sum(0)
                self.rows[6, at] = bad_RC.sum(1)
                low, high = x_RC.masked_fill(bad_RC, torch.inf).amin(0), x_RC.masked_fill(bad_RC, -torch.inf).amax(0)
                deviant_RC = torch.where(bad_RC, self.shift, x_RC)  # no deviation: adds nothing
                x_RC = x_RC.masked_fill(bad_RC, 0.0)
            torch.minimum(lowest, low, out=lowest)
            torch.maximum(highest, high, out=highest)

            torch.abs(x_RC, out=a_RC)
            torch.sum(a_RC, 0, out=magnitude)
            torch.amax(a_RC, 1, out=peak_R)
            torch.sum(a_RC, 1, out=magnitude_R)
            least, most = float(peak_R.min()), float(peak_R.max())
            if most >= LARGE:  # as ones in floats: counting truths takes ten times as long
                columns[5] += torch.ge(a_RC, LARGE, out=b_RC).sum(0)
            if self.counted is None:
                some: Any = slice(None)
                room = b_RC.view(torch.int32) if b_RC.dtype == torch.float32 else None
            else:
                some, room = self.counted[at], None
            bits_RC = torch.bitwise_right_shift(a_RC[some].float().view(torch.int32), DROPPED_BITS, out=room)
            histogram += torch.bincount(bits_RC.view(-1), minlength=len(histogram))
            if bad_RC is not None:
                histogram[0] -= bad_RC[some].sum()  # zeros stood in for them

            torch.addcmul(offset, deviant_RC, inverse, out=a_RC)
            torch.sum(a_RC, 0, out=p1)
            torch.mul(a_RC, a_RC, out=b_RC)
            torch.sum(b_RC, 0, out=p2)
            torch.mul(a_RC, b_RC, out=a_RC)
            torch.sum(a_RC, 0, out=p3)
            torch.mul(b_RC, b_RC, out=b_RC)
            torch.sum(b_RC, 0, out=p4)
            columns[:5] += part
            if least < _PLAIN[0] or most > _PLAIN[1]:  # fourth powers would leave float32: into units of powers of two
                others[3].copy_(_power_of_two(peak_R))
                x_RC = torch.mul(x_RC, (1 / others[3])[:, None], out=b_RC)
            _add_rows(x_RC, others, a_RC)
        return columns, extremes, histogram


def _add_rows(x_RC: torch.Tensor, rows: list[torch.Tensor], a_RC: torch.Tensor) -> None:
    """Find the mean of each row, and sums of the second and fourth powers of deviations from it."""
    mean_R, m2_R, m4_R, *_ = rows
    torch.sum(x_RC, 1, out=mean_R)
    mean_R.div_(x_RC.shape[1])
    torch.sub(x_RC, mean_R[:, None], out=a_RC)
    torch.mul(a_RC, a_RC, out=a_RC)
    torch.sum(a_RC, 1, out=m2_R)
    size_R = torch.linalg.vector_norm(a_RC, 2, 1)
    torch.mul(size_R, size_R, out=m4_R)


def _power_of_two(size: torch.Tensor) -> torch.Tensor:
    """Return the power of two above each size, within the range of float32; 1 for 0."""
    return torch.exp2(torch.frexp(size).exponent.clamp_(-120, 120).to(size.dtype))
