"""What a recording knows of the channels of a site, and what follows from it.

Magnitudes are counted in bins that are cut from the bits of float32: 16 to an octave, at no cost but a shift. A rank
sketch as in :mod:`farout.kit.sketch` must sort, which costs ten times everything else here, and its error grows with
merging; bins add up exactly in any order, and what is asked of activations is relative anyway.

Shape legend: C channels, P positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DROPPED_BITS = 19  # of the 23 bits of mantissa of a float32
BINS = 0x7F800000 >> DROPPED_BITS  # from the bits of infinity on there are no numbers
SAMPLED = 16  # of many rows in a call, one in so many has its values counted in bins, so many times
LARGE = 6.0  # where LLM.int8() begins to count a value as an outlier
HASH = 2654435761  # spreads those rows: row r is one of them if the upper four bits of 32 of r * HASH are zero


@dataclass
class ChannelFacts:
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
        Absolute values in bins of a sixteenth of an octave; of a call with more than 512 rows and 262,144
        values a fixed sixteenth of the rows is counted, sixteen times.
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


def _ratio(total: float, count: float) -> float:
    """Divide, with NaN for nothing."""
    return float(total / count) if count else float("nan")


def is_sampled(N: int, C: int) -> bool:
    """Whether only a part of the rows of a call is counted in bins."""
    return N > 512 and N * C > 1 << 18


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """Lengthen the last axis with zeros."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
