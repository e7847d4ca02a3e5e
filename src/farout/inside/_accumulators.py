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

_MOST_POSITIONS = 65_536  # a bound on memory; positions from here on count as the last
_MOST_PEAKS = 32  # positions whose channel is kept
_DROPPED_BITS = 19  # of the 23 bits of mantissa of a float32
_BINS = 0x7F800000 >> _DROPPED_BITS  # from the bits of infinity on there are no numbers
_CHUNK = 1 << 17  # elements that stay in a core's cache through all passes
_LARGE = 6.0  # where LLM.int8() begins to count a value as an outlier


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
        import torch

        position_N = np.minimum(np.arange(len(x_NC)) % max(period, 1), _MOST_POSITIONS - 1)
        if keep_N is not None:
            x_NC, position_N = x_NC[keep_N], position_N[keep_N.cpu().numpy()]
        if not len(x_NC):
            return cls._empty(x_NC.shape[1])
        x_NC = (x_NC if x_NC.dtype == torch.float64 else x_NC.float()).contiguous()
        N = len(x_NC)
        count = np.full(x_NC.shape[1], N)
        low, high = x_NC.amin(0), x_NC.amax(0)
        nan = infinite = np.zeros_like(count)
        bad_N = np.zeros(N)
        whole = bool((low.isfinite() & high.isfinite()).all())
        if not whole:
            finite_NC = x_NC.isfinite()
            nan = x_NC.isnan().sum(0).cpu().numpy()
            count = finite_NC.sum(0).cpu().numpy()
            infinite, bad_N = N - count - nan, (~finite_NC).sum(1).cpu().numpy()
            low = x_NC.masked_fill(~finite_NC, torch.inf).amin(0)
            high = x_NC.masked_fill(~finite_NC, -torch.inf).amax(0)
            x_NC = x_NC.masked_fill(~finite_NC, 0.0)
        shift = (x_NC.sum(0) / torch.from_numpy(np.maximum(count, 1)).to(x_NC)).nan_to_num()
        shift = torch.where(low <= high, torch.minimum(torch.maximum(shift, low), high), 0.0)
        if not whole:
            x_NC = torch.where(finite_NC, x_NC, shift)  # no deviation: adds nothing to the sums of powers
        reach = torch.where(low <= high, torch.maximum(high - shift, shift - low), 0.0).double()
        # Powers of deviations of 1e-12, or of 1e10, leave float32. A power of two brings them near 1, without rounding.
        unit = torch.exp2(torch.frexp(reach).exponent.clamp(-120, 120))
        sums, peak_N, magnitude_N, histogram = _sums(x_NC, shift, unit.to(x_NC.dtype))
        if not whole:  # the stand-ins have magnitudes, which must go again
            clean_NC = torch.where(finite_NC, x_NC, 0.0)
            sums[0], magnitude_N = clean_NC.abs().double().sum(0), clean_NC.abs().double().sum(1)
            peak_N, histogram = (
                clean_NC.abs().amax(1),
                _sums(x_NC[finite_NC][:, None], shift[:1], unit[:1].to(shift))[-1],
            )
            x_NC = clean_NC
        large = (x_NC.abs() >= _LARGE).sum(0).cpu().numpy()
        row_sums = _row_sums(x_NC, peak_N, magnitude_N, torch.from_numpy(bad_N == 0).to(x_NC.device))
        magnitude, *powers = sums.cpu().numpy()
        scale = unit.double().cpu().numpy()
        p1, p2, p3, p4 = (power * scale ** (k + 1) for k, power in enumerate(powers))
        step = p1 / np.maximum(count, 1)  # what rounding left between the shift and the mean
        m2 = p2 - step * p1
        m3 = p3 - 3 * step * p2 + 2 * step**2 * p1
        m4 = p4 - 4 * step * p3 + 6 * step**2 * p2 - 3 * step**3 * p1
        mean = shift.double().cpu().numpy() + step
        return cls(
            count,
            mean,
            np.maximum(m2, 0.0),
            m3,
            np.maximum(m4, 0.0),
            low.double().cpu().numpy(),
            high.double().cpu().numpy(),
            magnitude,
            large,
            nan,
            infinite,
            row_sums,
            np.bincount(position_N),
            np.bincount(position_N, bad_N).astype(np.int64),
            *_by_position(x_NC, position_N, peak_N, magnitude_N),
            histogram.cpu().numpy()[:_BINS],
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
            histogram=np.zeros(_BINS, np.int64),
        )

    def merge(self, other: ChannelStats) -> ChannelStats:
        """Return the facts about both sets of rows together (Chan, Golub, LeVeque; Pebay for the higher moments)."""
        if len(self.count) != len(other.count):
            raise BadInput(f"facts about {len(self.count)} channels do not merge with those about {len(other.count)}")
        a, b, n = self.count, other.count, np.maximum(self.count + other.count, 1)
        step = other.mean - self.mean
        m2 = self.m2 + other.m2 + step**2 * a * b / n
        m3 = self.m3 + other.m3 + step**3 * (a * b / n) * ((a - b) / n) + 3 * step * (a * other.m2 - b * self.m2) / n
        m4 = self.m4 + other.m4 + step**4 * (a * b / n) * ((a / n) ** 2 - (a / n) * (b / n) + (b / n) ** 2)
        m4 += 6 * step**2 * ((a / n) ** 2 * other.m2 + (b / n) ** 2 * self.m2)
        m4 += 4 * step * (a * other.m3 - b * self.m3) / n
        P = max(len(self.position_count), len(other.position_count))
        mine, theirs = _padded(self.position_peak, P), _padded(other.position_peak, P)
        channel = {p: c for p, c in zip(other.top_position.tolist(), other.top_channel.tolist())}
        channel |= {p: c for p, c in zip(self.top_position.tolist(), self.top_channel.tolist()) if mine[p] >= theirs[p]}
        top = np.array([p for p in _farthest(np.maximum(mine, theirs)).tolist() if p in channel], np.int64)
        return ChannelStats(
            a + b,
            self.mean + step * b / n,
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
        edges = (np.array([at, at + 1], np.uint32) << _DROPPED_BITS).view(np.float32).astype(float)
        return float(min(edges[0] if at == 0 else edges.mean(), self.absmax.max()))

    def peaks(self, most: int = 8) -> list[tuple[float, int, int]]:
        """Return the positions that reach farthest (32 are kept): absolute value, position, channel."""
        places = list(zip(self.top_position.tolist(), self.top_channel.tolist()))[:most]
        return [(float(self.position_peak[position]), position, channel) for position, channel in places]


@saved("attention_stats")
@dataclass
class AttentionStats:
    """Where attention goes: probabilities of each head, summed over sequences and queries.

    Attributes
    ----------
    mass : float64 array (H, K)
        Sum of the probabilities that a key position received.
    queries : int64 array (K,)
        Queries in sequences that have this key position.
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
    def of(cls, probs_BHQK: torch.Tensor, keep_BQ: torch.Tensor | None = None) -> AttentionStats:
        """Summarise probabilities; queries outside ``keep_BQ`` are left out."""
        probs = probs_BHQK.float()
        B, H, Q, K = probs.shape
        queries = B * Q
        if keep_BQ is not None:
            probs, queries = probs * keep_BQ[:, None, :, None], int(keep_BQ.sum())
        mass, bad = probs.sum(2), np.zeros(H, np.int64)
        if not bool(mass.isfinite().all()):
            bad = probs.isnan().sum((0, 2, 3)).cpu().numpy()
            probs = probs.nan_to_num(0.0)
            mass = probs.sum(2)
        return cls(
            mass.double().sum(0).cpu().numpy(),
            np.full(K, queries),
            probs.amax(2).amax((0, 2)).double().cpu().numpy(),
            bad,
        )

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


def _sums(x_NC: torch.Tensor, shift: torch.Tensor, unit: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Take all sums in one pass, in pieces that stay in the cache.

    Returns
    -------
    sums : float64 tensor (5, C)
        Of |x| and of the first four powers of (x - shift) / unit.
    peak_N, magnitude_N : tensor (N,)
        Largest |x| and sum of |x| of each row.
    histogram : int64 tensor (4096,)
    """
    import torch

    N, C = x_NC.shape
    rows = min(N, max(1, _CHUNK // C)) if x_NC.device.type == "cpu" else N
    a_RC, b_RC = x_NC.new_empty(rows, C), x_NC.new_empty(rows, C)
    bits_RC = torch.empty(rows, C, dtype=torch.int32, device=x_NC.device)
    peak_N, magnitude_N = x_NC.new_empty(N), x_NC.new_empty(N)
    sums = torch.zeros(5, C, dtype=torch.float64, device=x_NC.device)
    histogram = torch.zeros(1 << (31 - _DROPPED_BITS), dtype=torch.int64, device=x_NC.device)
    inverse, offset = 1 / unit, -shift / unit
    for start in range(0, N, rows):
        chunk = x_NC[start : start + rows]
        a, b, bits = a_RC[: len(chunk)], b_RC[: len(chunk)], bits_RC[: len(chunk)]
        torch.abs(chunk, out=a)
        sums[0] += a.sum(0)
        torch.amax(a, 1, out=peak_N[start : start + rows])
        torch.sum(a, 1, out=magnitude_N[start : start + rows])
        torch.bitwise_right_shift(a.float().view(torch.int32), _DROPPED_BITS, out=bits)
        histogram += torch.bincount(bits.view(-1), minlength=len(histogram))
        torch.addcmul(offset, chunk, inverse, out=a)
        sums[1] += a.sum(0)
        torch.mul(a, a, out=b)
        sums[2] += b.sum(0)
        torch.mul(a, b, out=a)
        sums[3] += a.sum(0)
        torch.mul(b, b, out=b)
        sums[4] += b.sum(0)
    return sums, peak_N, magnitude_N, histogram


def _row_sums(x_NC: torch.Tensor, peak_N: torch.Tensor, magnitude_N: torch.Tensor, keep_N: torch.Tensor) -> np.ndarray:
    """Sum facts about the rows that are kept, in the order of ``ChannelStats.row_sums``."""
    import torch

    C = x_NC.shape[1]
    x_NC, peak_N, magnitude_N = x_NC[keep_N], peak_N[keep_N], magnitude_N[keep_N].double()
    unit = torch.exp2(torch.frexp(peak_N).exponent.clamp(-120, 120).to(x_NC.dtype))
    x_NC = x_NC / unit[:, None]
    square_NC = (x_NC - x_NC.mean(1, keepdim=True)).square()
    m2, m4 = square_NC.sum(1).double(), square_NC.square().sum(1).double()
    varies, lives = m2 > C * (x_NC.mean(1).double() * 1e-6).square(), magnitude_N > 0
    variance = m2 * unit.double().square() / (C - 1) if C > 1 else torch.zeros_like(m2)
    sums = [
        keep_N.sum(),
        varies.sum(),
        lives.sum(),
        (C * m4 / m2.square())[varies].sum(),
        (C * peak_N / magnitude_N)[lives].sum(),
        variance.sum(),
        variance.square().sum(),
    ]
    return torch.stack([term.double() for term in sums]).cpu().numpy()


def _ratio(total: float, count: float) -> float:
    """Divide, with NaN for nothing."""
    return float(total / count) if count else float("nan")


def _by_position(
    x_NC: torch.Tensor, position_N: np.ndarray, peak_N: torch.Tensor, magnitude_N: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Largest |x| and sum of |x| at each position (P,); the farthest positions and their channels (at most 32,)."""
    import torch

    peaks, magnitudes = peak_N.double().cpu().numpy(), magnitude_N.double().cpu().numpy()
    peak = np.zeros(position_N.max() + 1)
    np.maximum.at(peak, position_N, peaks)
    top = _farthest(peak)
    reached = np.flatnonzero((peaks == peak[position_N]) & np.isin(position_N, top))
    row = dict(zip(position_N[reached].tolist(), reached.tolist()))
    top = np.array([p for p in top.tolist() if p in row], np.int64)
    best = torch.tensor([row[p] for p in top.tolist()], device=x_NC.device)
    return peak, np.bincount(position_N, magnitudes), top, x_NC[best].abs().argmax(1).cpu().numpy()


def _farthest(peak: np.ndarray) -> np.ndarray:
    """Return the positions with the largest peaks, farthest first, earlier ones first among equals."""
    return np.argsort(-peak, kind="stable")[:_MOST_PEAKS]


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Lengthen the last axis with zeros."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])])
