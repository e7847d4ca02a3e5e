"""What a recording keeps of a tensor: sums, extremes and counts that merge, never the tensor.

A site is seen as rows: one for each token (or output of a weight), with a position in its sequence, and C channels.

Magnitudes are counted in bins that are cut from the bits of float32: 16 to an octave, at no cost but a shift. A rank
sketch as in :mod:`farout.kit.sketch` must sort, which costs ten times everything else here, and its error grows with
merging; bins add up exactly in any order, and what is asked of activations is relative anyway.

Shape legend: N rows, C channels, P positions, H heads, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput
from farout.io.state import saved

if TYPE_CHECKING:
    import torch

MOST_POSITIONS = 65_536  # a bound on memory; positions from here on count as the last
_MOST_PEAKS = 32  # positions whose channel is kept
DROPPED_BITS = 19  # of the 23 bits of mantissa of a float32
BINS = 0x7F800000 >> DROPPED_BITS  # from the bits of infinity on there are no numbers
LARGE = 6.0  # where LLM.int8() begins to count a value as an outlier


@saved("channel_stats")
@dataclass
class ChannelStats:
    """Streaming facts about the rows of one site; NaN and infinities are counted apart and enter nothing else.

    Attributes
    ----------
    count : int64 array (C,)
        Finite values of each channel.
    mean, m2, m3, m4 : float64 array (C,)
        Mean, and sums of the second to fourth powers of the deviations from it.
    low, high : float64 array (C,)
        Extremes; ``inf`` and ``-inf`` where a channel has no finite value.
    magnitude : float64 array (C,)
        Sum of absolute values.
    large : int64 array (C,)
        Finite values of at least 6 in absolute value, which LLM.int8() calls outliers.
    nan, infinite : int64 array (C,)
        Values that are no numbers.
    row_sums : float64 array (7,)
        Over rows whose values are all finite: how many there are; how many vary; how many are not all zero; and sums of
        their kurtosis, of their ratio of the largest to the mean absolute value, of their unbiased variance, and of
        its square.
    position_count, position_bad : int64 array (P,)
        Rows at each position, and values there that are NaN or infinite.
    position_peak, position_magnitude : float64 array (P,)
        Largest absolute value at each position, and the sum of absolute values.
    top_position, top_channel : int64 array (at most 32,)
        The positions with the largest peaks, farthest first, and the channels where these stand.
    histogram : int64 array (4080,)
        Absolute values in bins of a sixteenth of an octave.

    Examples
    --------
    >>> import torch
    >>> stats = ChannelStats.of(torch.tensor([[1.0, -8.0], [3.0, 2.0]]))
    >>> stats.mean, stats.absmax
    (array([ 2., -3.]), array([3., 8.]))
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    m3: np.ndarray
    m4: np.ndarray
    low: np.ndarray
    high: np.ndarray
    magnitude: np.ndarray
    large: np.ndarray
    nan: np.ndarray
    infinite: np.ndarray
    row_sums: np.ndarray
    position_count: np.ndarray
    position_bad: np.ndarray
    position_peak: np.ndarray
    position_magnitude: np.ndarray
    top_position: np.ndarray
    top_channel: np.ndarray
    histogram: np.ndarray

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
        mine, theirs = _padded(self.position_peak, P), _padded(other.position_peak, P)
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
            _padded(self.position_count, P) + _padded(other.position_count, P),
            _padded(self.position_bad, P) + _padded(other.position_bad, P),
            np.maximum(mine, theirs),
            _padded(self.position_magnitude, P) + _padded(other.position_magnitude, P),
            top,
            np.array([channel[p] for p in top.tolist()], np.int64),
            self.histogram + other.histogram,
        )

    @property
    def absmax(self) -> np.ndarray:
        """Largest absolute value of each channel (C,); 0 where none is finite."""
        return np.where(self.count > 0, np.maximum(np.abs(self.low), np.abs(self.high)), 0.0)

    @property
    def variance(self) -> np.ndarray:
        """Biased variance of each channel (C,)."""
        return self.m2 / np.maximum(self.count, 1)

    @property
    def rms(self) -> np.ndarray:
        """Root of the mean square of each channel (C,)."""
        return np.sqrt(self.variance + self.mean**2)

    @property
    def kurtosis(self) -> float:
        """Kurtosis of all values of the site together, biased and not in excess (Gaussian: 3); NaN if all are equal."""
        n = self.count.sum()
        if n == 0:
            return float("nan")
        mean = (self.mean * self.count).sum() / n
        step = self.mean - mean
        m2 = (self.m2 + self.count * step**2).sum()
        m4 = (self.m4 + 4 * step * self.m3 + 6 * step**2 * self.m2 + self.count * step**4).sum()
        return float(n * m4 / m2**2) if m2 > 0 else float("nan")

    @property
    def spread(self) -> np.ndarray:
        """Share of rows that carry the fourth powers of each channel (C,), ``(sum x^2)^2 / (n sum x^4)`` about zero.

        About 1/3 for Gaussian values around zero and 1 for a constant; k/n where k of n rows are huge, as massive
        activations of a few tokens are. 1 where all values are zero.
        """
        n, mean = self.count, self.mean
        squares = self.m2 + n * mean**2
        fourths = self.m4 + 4 * mean * self.m3 + 6 * mean**2 * self.m2 + n * mean**4
        with np.errstate(all="ignore"):
            return np.where(fourths > 0, np.minimum(squares**2 / (n * fourths), 1.0), 1.0)

    @property
    def tokens(self) -> int:
        """Number of rows whose values are all finite; what is said of tokens is about these."""
        return int(self.row_sums[0])

    @property
    def token_kurtosis(self) -> float:
        """Mean over tokens of the kurtosis over channels, biased and not in excess; NaN if no token's values vary."""
        return _ratio(self.row_sums[3], self.row_sums[1])

    @property
    def token_ratio(self) -> float:
        """Mean over tokens that are not all zero of the largest over the mean absolute value; NaN if there are none."""
        return _ratio(self.row_sums[4], self.row_sums[2])

    @property
    def pattern(self) -> tuple[float, float]:
        """How much variances differ among rows, and among columns: AdaHOP's detector, near (1, 1) for Gaussian noise.

        For the variances v of n rows (columns) over k values each, the score is the unbiased ``std(v) / mean(v)``
        over ``sqrt(2 / (k - 1))``, which Gaussian noise would give. NaN for fewer than two rows or columns.
        """
        r, c = self.tokens, len(self.count)
        if r < 2 or c < 2:
            return float("nan"), float("nan")
        total, squares = self.row_sums[5:]
        rows = np.sqrt(max(squares - total**2 / r, 0.0) / (r - 1)) / (total / r + 1e-8)
        columns = self.m2 / np.maximum(self.count - 1, 1)
        return float(rows / np.sqrt(2 / (c - 1))), float(
            columns.std(ddof=1) / (columns.mean() + 1e-8) / np.sqrt(2 / (r - 1))
        )

    def quantile(self, share: float) -> float:
        """Return the absolute value with this share of all values at or below it, to 1/32 of itself."""
        upto = self.histogram.cumsum()
        if not upto[-1]:
            return float("nan")
        at = np.searchsorted(upto, max(share * upto[-1] * (1 - 1e-12), 1))
        edges = (np.array([at, at + 1], np.uint32) << DROPPED_BITS).view(np.float32).astype(float)
        return float(min(edges[0] if at == 0 else edges.mean(), self.absmax.max()))

    def peaks(self, most: int = 8) -> list[tuple[float, int, int]]:
        """Return the positions that reach farthest (32 are kept): absolute value, position, channel."""
        places = list(zip(self.top_position.tolist(), self.top_channel.tolist()))[:most]
        return [(float(self.position_peak[position]), position, channel) for position, channel in places]


@saved("attention_stats")
@dataclass
class AttentionStats:
    """Where attention goes: probabilities of each head, summed over sequences and queries.

    Of a sequence with more than 64 queries, 64 that are spread evenly are looked at.

    Attributes
    ----------
    mass : float64 array (H, K)
        Sum of the probabilities that a key position received.
    queries : int64 array (K,)
        Queries that were looked at, in sequences that have this key position.
    high : float64 array (H,)
        Largest probability.
    bad : int64 array (H,)
        Probabilities that are NaN, as rows without any visible key give; they count as 0.
    """

    mass: np.ndarray
    queries: np.ndarray
    high: np.ndarray
    bad: np.ndarray

    @classmethod
    def of(cls, mass: torch.Tensor, high: torch.Tensor, bad: torch.Tensor, queries: Any) -> AttentionStats:
        """Take what :func:`farout.inside._attention.attention_sums` has added up."""
        counted = np.full(mass.shape[1], int(queries))
        return cls(mass.cpu().numpy(), counted, high.cpu().numpy(), bad.cpu().numpy().astype(np.int64))

    def merge(self, other: AttentionStats) -> AttentionStats:
        """Return the facts about both sets of sequences together."""
        if len(self.mass) != len(other.mass):
            raise BadInput(f"facts about {len(self.mass)} heads do not merge with those about {len(other.mass)}")
        K = max(len(self.queries), len(other.queries))
        return AttentionStats(
            _padded(self.mass, K) + _padded(other.mass, K),
            _padded(self.queries, K) + _padded(other.queries, K),
            np.maximum(self.high, other.high),
            self.bad + other.bad,
        )

    @property
    def share(self) -> np.ndarray:
        """Mean attention that each key position gets from a query (H, K); a sink is a column near 1."""
        return self.mass / np.maximum(self.queries, 1)


def same(a: Any, b: Any) -> bool:
    """Whether two facts agree in every field."""
    return type(a) is type(b) and all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=True) for f in fields(a)
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


def _ratio(total: float, count: float) -> float:
    """Divide, with NaN for nothing."""
    return float(total / count) if count else float("nan")


def farthest(peak: np.ndarray) -> np.ndarray:
    """Return the positions with the largest peaks, farthest first, earlier ones first among equals."""
    return np.argsort(-peak, kind="stable")[:_MOST_PEAKS]


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Lengthen the last axis with zeros."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
