"""Mergeable summaries: where a value stands in a column, how often a level occurs, a fair sample of rows.

A tail detector reads ``-log p``, and an error of eps in *relative* rank is an error of eps in ``-log p``. So the right
summary of a column keeps order statistics at log-spaced ranks from both ends: every value among the first ``1/eps``
from either end, then ranks that grow by ``1 + eps``. Evenly spaced quantiles would lose the very tails that matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from farout.io.state import saved
from farout.kit.ranks import Ranker

_MANY = 4096  # from here on sorting the queries first is cheaper than searching in their order


@saved("rank_table")
@dataclass
class RankTable:
    """Where a number stands among the values of a column.

    With ``eps = 0`` all values are kept and counts are exact. With ``eps > 0`` the counts of a value between two kept
    ones are known to a relative error of ``depth * eps`` at most, where ``depth`` is the number of compressions on the
    way (one for the first, one for each level of merging).

    Attributes
    ----------
    values : float64 array (m,)
        Sorted; all of them (with repeats) when exact, else the kept ones (distinct).
    at_or_below, below : float64 array (m,) or None
        Numbers of rows with a value at or below, and below, each kept one; None when exact.
    n, missing : int
        Rows with a value, rows without.
    eps : float
        Largest relative gap between kept ranks.
    depth : int
        Number of compressions so far.
    moments : float64 array (4,)
        Number, mean, and sums of squared and cubed deviations from it, of the finite values.

    Examples
    --------
    >>> table = RankTable.of(np.array([1.0, 2.0, 2.0, 5.0]))
    >>> table.counts(np.array([0.0, 2.0, 9.0]))
    (array([0., 3., 4.]), array([4., 3., 0.]))
    """

    values: np.ndarray
    n: int
    missing: int = 0
    eps: float = 0.0
    depth: int = 0
    at_or_below: np.ndarray | None = None
    below: np.ndarray | None = None
    moments: np.ndarray = field(default_factory=lambda: np.zeros(4))

    @classmethod
    def of(cls, values: np.ndarray, missing: int = 0, eps: float = 0.0) -> RankTable:
        """Summarise sorted values without NaN."""
        table = cls(values, len(values), missing, eps, moments=_moments(values))
        return table._compressed() if eps else table

    def counts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the rows at or below, and at or above, each of some numbers.

        Parameters
        ----------
        x : float64 array (m,)

        Returns
        -------
        left, right : float64 array (m,)
            NaN where x is NaN.
        """
        if len(x) < _MANY:
            at_or_below, below = self._search(x)
        else:
            order, ordered = Ranker(len(x)).order(np.ascontiguousarray(x))
            at_or_below, below = np.empty(len(x)), np.empty(len(x))
            at_or_below[order], below[order] = self._search(ordered)
        gone = np.isnan(x)
        if gone.any():
            at_or_below[gone] = below[gone] = np.nan
        return at_or_below, self.n - below

    def tails(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both tail probabilities: count / n, and 1 / (n + 1) where nothing was seen that far out.

        Parameters
        ----------
        x : float64 array (m,)

        Returns
        -------
        left, right : float64 array (m,)
            In (0, 1]; NaN where x is NaN.
        """
        left, right = self.counts(x)
        return _tail(left, self.n), _tail(right, self.n)

    def skewness_sign(self) -> int:
        """Return the sign of the third central moment: -1, 0 or 1; 0 where it overflows both ways."""
        return int(np.sign(np.nan_to_num(self.moments[3])))

    def quantile(self, share: float | np.ndarray) -> np.ndarray:
        """Return the smallest kept value with at least this share of the rows at or below it."""
        if self.n == 0:
            return np.full(np.shape(share), np.nan)
        counts = np.arange(1, self.n + 1) if self.at_or_below is None else self.at_or_below
        at = np.searchsorted(counts, np.asarray(share) * self.n * (1 - 1e-12))
        return self.values[np.minimum(at, len(self.values) - 1)]

    def mass(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values and how many rows each stands for, adding up to n."""
        if self.at_or_below is None or self.below is None:
            return self.values, np.ones(len(self.values))
        ends = np.concatenate((self.below[1:], [self.n]))
        # rows between two kept values count half to each
        between = (ends - self.at_or_below) / 2
        weight = self.at_or_below - self.below + between
        weight[1:] += between[:-1]
        return self.values, weight

    def merge(self, other: RankTable) -> RankTable:
        """Return the summary of both sets of rows together."""
        if self.eps != other.eps:
            raise ValueError(f"tables with eps {self.eps} and {other.eps} do not merge")
        missing = self.missing + other.missing
        if not self.eps:
            return RankTable.of(np.sort(np.concatenate((self.values, other.values)), kind="stable"), missing)
        values = np.union1d(self.values, other.values)
        mine, theirs = self._search(values), other._search(values)
        return RankTable(
            values,
            self.n + other.n,
            missing,
            self.eps,
            max(self.depth, other.depth),
            mine[0] + theirs[0],
            mine[1] + theirs[1],
            _merged_moments(self.moments, other.moments),
        )._compressed()

    def _search(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count rows at or below, and below, each number; between two kept values their mean stands for both."""
        after = np.searchsorted(self.values, x, side="right")
        before = np.searchsorted(self.values, x, side="left")
        if self.at_or_below is None or self.below is None:
            return after.astype(float), before.astype(float)
        at_or_below = np.concatenate(([0.0], self.at_or_below))
        below = np.concatenate((self.below, [float(self.n)]))
        hit = after > before
        between = (at_or_below[before] + below[before]) / 2
        return np.where(hit, at_or_below[after], between), np.where(hit, below[before], between)

    def _compressed(self) -> RankTable:
        """Keep the values at log-spaced ranks from both ends."""
        if self.at_or_below is None or self.below is None:
            values, first, repeats = np.unique(self.values, return_index=True, return_counts=True)
            at_or_below, below = (first + repeats).astype(float), first.astype(float)
        else:
            values, at_or_below, below = self.values, self.at_or_below, self.below
        if len(values):
            ranks = _log_ranks(self.n, self.eps)
            from_left = np.searchsorted(at_or_below, ranks)
            from_right = len(values) - 1 - np.searchsorted((self.n - below)[::-1], ranks)
            keep = np.unique(np.concatenate((from_left, from_right, [0, len(values) - 1])))
            keep = keep[(keep >= 0) & (keep < len(values))]
        else:
            keep = np.empty(0, int)
        depth = self.depth + (len(keep) < len(values))
        return RankTable(
            values[keep], self.n, self.missing, self.eps, depth, at_or_below[keep], below[keep], self.moments
        )


@saved("level_counts")
@dataclass
class LevelCounts:
    """How often each level of a category occurs.

    Attributes
    ----------
    levels : list of str
        Sorted.
    counts : int64 array (levels,)
    n, missing : int
        Rows with a level, rows without.

    Examples
    --------
    >>> counts = LevelCounts.of(np.array([0, 1, 1, -1]), ["blue", "red"])
    >>> counts.probabilities(np.array([0, 1]), ["green", "red"]).round(3)  # green was never seen
    array([0.25 , 0.667])
    """

    levels: list[str]
    counts: np.ndarray
    n: int
    missing: int = 0

    @classmethod
    def of(cls, codes: np.ndarray, levels: list[str]) -> LevelCounts:
        """Count codes into levels; -1 is a missing value."""
        counts = np.bincount(codes[codes >= 0], minlength=len(levels)).astype(np.int64)
        seen = [level for level, count in zip(levels, counts) if count]
        total = int(counts.sum())
        return cls(seen, counts[counts > 0], total, len(codes) - total)

    def lookup(self, levels: list[str]) -> np.ndarray:
        """Return the count of each of some levels, 0 for one never seen."""
        known = dict(zip(self.levels, self.counts.tolist()))
        return np.array([known.get(level, 0) for level in levels], dtype=float)

    def probabilities(self, codes: np.ndarray, levels: list[str]) -> np.ndarray:
        """Return count / n for each row's level, 1 / (n + 1) for a level never seen, NaN for a missing one."""
        table = np.append(_tail(self.lookup(levels), self.n), np.nan)
        return table[codes]

    def merge(self, other: LevelCounts) -> LevelCounts:
        """Return the counts of both sets of rows together."""
        levels = sorted(set(self.levels) | set(other.levels))
        counts = (self.lookup(levels) + other.lookup(levels)).astype(np.int64)
        return LevelCounts(levels, counts, self.n + other.n, self.missing + other.missing)


def hashed(start: int, n: int, seed: int = 0) -> np.ndarray:
    """Give rows ``start .. start + n`` fixed pseudo-random 64-bit keys (splitmix64), however they are batched."""
    x = np.arange(start, start + n, dtype=np.uint64) + np.uint64((seed * 0x9E3779B9 + 1) % 2**64)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def smallest(keys: np.ndarray, size: int) -> np.ndarray:
    """Return the positions of the ``size`` smallest keys, smallest first."""
    kept = np.argpartition(keys, size)[:size] if size < len(keys) else np.arange(len(keys))
    return kept[np.argsort(keys[kept], kind="stable")]


def _tail(count: np.ndarray, n: int) -> np.ndarray:
    """Turn counts into probabilities that are never 0."""
    tail = count / max(n, 1)
    tail[count < 1] = 1.0 / (n + 1)
    return tail


@lru_cache(maxsize=256)
def _log_ranks(n: int, eps: float) -> np.ndarray:
    """Ranks 1, 2, ... up to the middle, each at most (1 + eps) times the one before it, once that is a whole step."""
    ranks, rank = [], 1
    while rank <= n // 2 + 1:
        ranks.append(rank)
        rank = max(rank + 1, int(rank * (1 + eps)))
    return np.array(ranks, dtype=float)


def _moments(values: np.ndarray) -> np.ndarray:
    """Number, mean and sums of squared and cubed deviations of sorted values, infinities left out."""
    if len(values) and not (np.isfinite(values[0]) and np.isfinite(values[-1])):
        values = values[np.isfinite(values)]
    if len(values) == 0 or values[0] == values[-1]:
        return np.array([len(values), values[0] if len(values) else 0.0, 0.0, 0.0])
    with np.errstate(over="ignore", invalid="ignore"):
        mean, squares, cubes = values.mean(), 0.0, 0.0
        for start in range(0, len(values), 1 << 13):  # pieces so short that BLAS does not wake its threads
            deviation = values[start : start + (1 << 13)] - mean
            squared = deviation * deviation
            squares += np.dot(deviation, deviation)
            cubes += np.dot(squared, deviation)
    return np.array([len(values), mean, squares, cubes])


def _merged_moments(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Combine moments of two sets of rows (Chan, Golub, LeVeque; Pebay for the third)."""
    (n_a, mean_a, m2_a, m3_a), (n_b, mean_b, m2_b, m3_b) = a, b
    if n_a == 0 or n_b == 0:
        return a if n_b == 0 else b
    n = n_a + n_b
    with np.errstate(over="ignore", invalid="ignore"):
        step = mean_b - mean_a
        mean = mean_a + step * n_b / n
        m2 = m2_a + m2_b + step**2 * n_a * n_b / n
        m3 = m3_a + m3_b + step**3 * n_a * n_b * (n_a - n_b) / n**2 + 3 * step * (n_a * m2_b - n_b * m2_a) / n
    return np.array([n, mean, m2, m3])
