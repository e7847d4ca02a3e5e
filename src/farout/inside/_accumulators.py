"""What a recording keeps of a tensor: sums, extremes and counts that merge, never the tensor.

A site is seen as rows: one for each token (or output of a weight), with a position in its sequence, and C channels.

Shape legend: N rows, C channels, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from farout.errors import BadInput
from farout.inside._channel_facts import BINS, ChannelFacts, padded
from farout.io.state import saved

if TYPE_CHECKING:
    import torch

__all__ = ["ChannelStats"]

MOST_POSITIONS = 65_536  # a bound on memory; positions from here on count as the last
_MOST_PEAKS = 32  # positions whose channel is kept


@saved("channel_stats")
@dataclass
class ChannelStats(ChannelFacts):
    """Streaming facts about the rows of one site: taken from tensors, and merged.

    Examples
    --------
    >>> import torch
    >>> stats = ChannelStats.of(torch.tensor([[1.0, -8.0], [3.0, 2.0]]))
    >>> stats.mean, stats.absmax
    (array([ 2., -3.]), array([3., 8.]))
    """

    @classmethod
    def of(cls, x_NC: torch.Tensor, period: int = 1, keep_N: torch.Tensor | None = None) -> ChannelStats:
        """Summarise rows.

        Parameters
        ----------
        x_NC : floating tensor (N, C)
            On any device and of any precision; sums of half precision are taken in float32.
        period : int
            Row ``i`` stands at position ``i % period``.
        keep_N : bool tensor (N,), optional
            Rows that count, such as those that are no padding.
        """
        from farout.inside._sums import sums_of

        N, C = x_NC.shape
        kept = np.arange(N)
        if keep_N is not None:
            x_NC, kept = x_NC[keep_N], np.flatnonzero(keep_N.cpu().numpy())
        if not len(kept):
            return cls._empty(C)
        sums = sums_of(x_NC)
        count, mean, m2, m3, m4 = sums.powers
        magnitude, large, nan, infinite = sums.others
        places = _Places(kept, N, period)
        position_peak, top, row = places.peaks(sums.rows[0])
        best = x_NC[row].abs()
        return cls(
            count.astype(np.int64),
            mean,
            m2,
            m3,
            m4,
            sums.extremes[0],
            sums.extremes[1],
            magnitude,
            large.astype(np.int64),
            nan.astype(np.int64),
            infinite.astype(np.int64),
            _row_sums(sums.rows, C),
            places.sums(np.ones(len(kept))).astype(np.int64),
            places.sums(sums.rows[6]).astype(np.int64),
            position_peak,
            places.sums(sums.rows[1]),
            top,
            best.masked_fill_(~best.isfinite(), 0.0).argmax(1).cpu().numpy(),
            sums.histogram,
        )

    @classmethod
    def _empty(cls, C: int) -> ChannelStats:
        """No rows at all."""
        zero, ints, none, no_ints = np.zeros(C), np.zeros(C, np.int64), np.zeros(0), np.zeros(0, np.int64)
        sums = dict.fromkeys(("mean", "m2", "m3", "m4", "magnitude"), zero)
        positions = dict.fromkeys(("position_peak", "position_magnitude"), none)
        places = dict.fromkeys(("position_count", "position_bad", "top_position", "top_channel"), no_ints)
        return cls(
            **sums,
            **dict.fromkeys(("count", "large", "nan", "infinite"), ints),
            **positions,
            **places,
            low=np.full(C, np.inf),
            high=np.full(C, -np.inf),
            row_sums=np.zeros(7),
            histogram=np.zeros(BINS, np.int64),
        )

    def merge(self, other: ChannelStats) -> ChannelStats:
        """Return the facts about both sets of rows together."""
        if len(self.count) != len(other.count):
            raise BadInput(f"facts about {len(self.count)} channels do not merge with those about {len(other.count)}")
        mine, theirs = (np.stack([x.count, x.mean, x.m2, x.m3, x.m4]) for x in (self, other))
        _, mean, m2, m3, m4 = joined_powers(np.stack([mine, theirs], 1))
        P = max(len(self.position_count), len(other.position_count))
        mine, theirs = padded(self.position_peak, P), padded(other.position_peak, P)
        channel = {p: c for p, c in zip(other.top_position.tolist(), other.top_channel.tolist())}
        channel |= {p: c for p, c in zip(self.top_position.tolist(), self.top_channel.tolist()) if mine[p] >= theirs[p]}
        top = np.array([p for p in farthest(np.maximum(mine, theirs)).tolist() if p in channel], np.int64)
        return ChannelStats(
            self.count + other.count,
            mean,
            m2,
            m3,
            m4,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.magnitude + other.magnitude,
            self.large + other.large,
            self.nan + other.nan,
            self.infinite + other.infinite,
            self.row_sums + other.row_sums,
            padded(self.position_count, P) + padded(other.position_count, P),
            padded(self.position_bad, P) + padded(other.position_bad, P),
            np.maximum(mine, theirs),
            padded(self.position_magnitude, P) + padded(other.position_magnitude, P),
            top,
            np.array([channel[p] for p in top.tolist()], np.int64),
            self.histogram + other.histogram,
        )


class _Places:
    """Rows by their positions: row i of N stands at position i % period, and those of ``kept`` count."""

    def __init__(self, kept: np.ndarray, N: int, period: int) -> None:
        self.kept, self.period = kept, period
        self.size = -(-N // period) * period
        last = int((kept % period).max()) + 1
        self.starts = np.arange(min(last, MOST_POSITIONS))  # what follows the last start belongs to it

    def laid(self, values: np.ndarray, nothing: float) -> np.ndarray:
        """Lay values of rows out by sequence and position, up to the last position with a row."""
        out = np.full(self.size, nothing)
        out[self.kept] = values
        return out.reshape(-1, self.period)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add up by position."""
        return np.add.reduceat(self.laid(values, 0.0).sum(0), self.starts)

    def peaks(self, peak_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the peak at each position; the positions that reach farthest, and the number of a row that does."""
        laid = self.laid(peak_N, -1.0)
        columns = laid.max(0)
        peak = np.maximum.reduceat(columns, self.starts)
        top = farthest(peak)
        top = top[peak[top] >= 0]
        end = MOST_POSITIONS - 1
        column = np.where(top == end, end + columns[end:].argmax(), top) if len(columns) > end else top
        row = laid[:, column].argmax(0) * self.period + column
        return np.maximum(peak, 0.0), top, np.searchsorted(self.kept, row)


def joined_powers(parts_5KC: np.ndarray) -> np.ndarray:
    """Join counts, means and sums of powers of deviations over parts (Chan, Golub, LeVeque; Pebay for the higher ones).

    Parameters
    ----------
    parts_5KC : float64 array (5, K, C)
        Counts, means, and sums of the second to fourth powers of deviations from the mean of the part.

    Returns
    -------
    array (5, C)
    """
    n, mean, m2, m3, m4 = parts_5KC
    total = n.sum(0)
    middle = (n * mean).sum(0) / np.maximum(total, 1)
    step = mean - middle
    return np.stack(
        [
            total,
            middle,
            (m2 + n * step**2).sum(0),
            (m3 + 3 * step * m2 + n * step**3).sum(0),
            (m4 + 4 * step * m3 + 6 * step**2 * m2 + n * step**4).sum(0),
        ]
    )


def _row_sums(rows_7N: np.ndarray, C: int) -> np.ndarray:
    """Add up facts about the rows that are finite, in the order of ``ChannelStats.row_sums``."""
    peak, magnitude, mean, m2, m4, unit, _ = rows_7N[:, rows_7N[6] == 0]
    varies, lives = m2 > C * (mean * 1e-6) ** 2, magnitude > 0  # beyond what rounding makes of equal values
    variance = m2 * unit**2 / max(C - 1, 1)
    return np.array(
        [
            len(peak),
            varies.sum(),
            lives.sum(),
            (C * m4[varies] / m2[varies] ** 2).sum(),
            (C * peak[lives] / magnitude[lives]).sum(),
            variance.sum(),
            (variance**2).sum(),
        ]
    )


def farthest(peak: np.ndarray) -> np.ndarray:
    """Return the positions with the largest peaks, farthest first, earlier ones first among equals."""
    return np.argsort(-peak, kind="stable")[:_MOST_PEAKS]
