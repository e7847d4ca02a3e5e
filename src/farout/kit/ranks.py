"""Ranks of a column at the price of a plain sort.

``numpy.argsort`` costs four times a sort, because it moves pairs and reads memory at random. Here a float becomes an
integer of the same order, its last bits are overwritten by the row number, and the packed keys are sorted as plain
integers: row numbers travel inside the keys. Only where two values agree in all the bits that are left does the order
have to be repaired, which for measured data is rare.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 14  # a chunk and its temporaries stay in the first cache levels


class Ranker:
    """Ranks columns of one length, reusing its buffers, since fresh memory costs as much as the sort itself.

    Parameters
    ----------
    n : int
        Length of the columns, at least 1.

    Examples
    --------
    >>> values, left, right = Ranker(4)(np.array([3.0, 1.0, 3.0, 2.0]))
    >>> values, left, right
    (array([1., 2., 3., 3.]), array([4., 1., 4., 2.]), array([2., 4., 2., 3.]))
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._bits = max(1, int(n - 1).bit_length())
        self._keys = np.empty(n, np.int64)
        self._order = np.empty(n, np.int64)
        self._left = np.empty(n)
        self._right = np.empty(n)
        self._ranks = np.arange(1.0, n + 1)

    def order(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sort a column and say where each value came from.

        Parameters
        ----------
        x : float64 array (n,), contiguous
            NaN sorts to the ends, negative NaN to the front.

        Returns
        -------
        order : int64 array (n,)
            A view into a buffer that the next call overwrites.
        values : float64 array (n,)
            ``x[order]``, never decreasing.
        """
        low = np.int64((1 << self._bits) - 1)
        keys = _ordered_keys(x, self._keys)
        np.bitwise_and(keys, ~low, out=keys)
        for start in range(0, self.n, _CHUNK):
            part = keys[start : start + _CHUNK]
            part |= np.arange(start, start + len(part), dtype=np.int64)
        keys.sort()
        order = np.bitwise_and(keys, low, out=self._order)
        values = np.take(x, order)
        if (values[1:] < values[:-1]).any():
            _repair(keys, order, values, low)
        return order, values

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sort a column and count, for each row, the rows at or below it and at or above it.

        Parameters
        ----------
        x : float64 array (n,), contiguous
            NaN is a missing value.

        Returns
        -------
        values : float64 array (m,)
            The m values that are there, sorted.
        left, right : float64 array (n,)
            ``#{x_k <= x_i}`` and ``#{x_k >= x_i}`` among them, NaN where x is missing; a tied block counts in full from
            both sides. Buffers that the next call overwrites.
        """
        order, values = self.order(x)
        left, right = self._left, self._right
        if np.isnan(values[0]) or np.isnan(values[-1]):
            there = np.flatnonzero(~np.isnan(x))
            left[:] = right[:] = np.nan
            if len(there) == 0:
                return np.empty(0), left, right
            values, left[there], right[there] = Ranker(len(there))(x[there])
            return values, left, right
        tied = values[1:] == values[:-1]
        if tied.any():
            starts = np.flatnonzero(np.concatenate(([True], ~tied)))
            lengths = np.diff(starts, append=self.n)
            left[order] = np.repeat((starts + lengths).astype(float), lengths)
            right[order] = np.repeat((self.n - starts).astype(float), lengths)
        else:
            left[order] = self._ranks
            np.subtract(self.n + 1, left, out=right)
        return values, left, right


def _ordered_keys(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fill ``out`` with integers that order as the floats do; -0.0 and 0.0 get one key."""
    for start in range(0, len(x), _CHUNK):
        bits = (x[start : start + _CHUNK] + 0.0).view(np.int64)
        flip = bits >> 63  # -1 for negative numbers, whose magnitude bits order the other way round
        flip &= np.int64(0x7FFFFFFFFFFFFFFF)
        np.bitwise_xor(bits, flip, out=out[start : start + _CHUNK])
    return out


def _repair(keys: np.ndarray, order: np.ndarray, values: np.ndarray, low: np.int64) -> None:
    """Sort, in place, within the groups of values that the shortened keys could not tell apart."""
    same = (keys[1:] & ~low) == (keys[:-1] & ~low)
    same &= ~np.isnan(values[1:])  # missing values would all sort to the end
    member = np.zeros(len(keys), bool)
    member[1:] |= same
    member[:-1] |= same
    at = np.flatnonzero(member)
    # groups stand in the right places already, so one sort of all members sorts each group in its own place
    inner = np.argsort(values[at], kind="stable")
    values[at] = values[at][inner]
    order[at] = order[at][inner]


def column_major(X: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Copy columns ``start:stop`` into rows of a new array, in pieces that stay in cache.

    Parameters
    ----------
    X : float array (n, d)
        In any memory order.

    Returns
    -------
    float64 array (stop - start, n), contiguous
    """
    columns = np.empty((stop - start, len(X)))
    for row in range(0, len(X), 2048):
        columns[:, row : row + 2048] = X[row : row + 2048, start:stop].T
    return columns
