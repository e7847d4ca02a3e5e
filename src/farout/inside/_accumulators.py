"""What a recording keeps of a tensor: sums, extremes and counts that merge, never the tensor.

A site is seen as rows: one for each token (or output of a weight), with a position in its sequence, and C channels.

Shape legend: N rows, C channels, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from farout.errors import BadInput
from farout.inside._attention_stats import AttentionStats  # a file that holds one is read by its word
from farout.inside._channel_facts import BINS, ChannelFacts, padded
from farout.io.state import saved

if TYPE_CHECKING:
    import torch

__all__ = ["AttentionStats", "ChannelStats"]

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

        position_N = np.minimum(np.arange(len(x_NC)) % max(period, 1), MOST_POSITIONS - 1)
        if keep_N is not None:
            x_NC, position_N = x_NC[keep_N], position_N[keep_N.cpu().numpy()]
        if not len(x_NC):
            return cls._empty(x_NC.shape[1])
        sums = sums_of(x_NC)
        count, mean, m2, m3, m4 = sums.powers
        magnitude, large, nan, infinite = sums.others
        peak_N, magnitude_N, *_, bad_N = sums.rows
        position_peak = np.zeros(position_N.max() + 1)
        np.maximum.at(position_peak, position_N, peak_N)
        top = farthest(position_peak)
        reached = np.flatnonzero((peak_N == position_peak[position_N]) & np.isin(position_N, top))
        row = dict(zip(position_N[reached[::-1]].tolist(), reached[::-1].tolist()))  # the first one
        best = x_NC[[row[p] for p in top.tolist()]].abs()
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
            _row_sums(sums.rows, x_NC.shape[1]),
            np.bincount(position_N),
            np.bincount(position_N, bad_N).astype(np.int64),
            position_peak,
            np.bincount(position_N, magnitude_N),
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
