"""How often each two entities came together, for all pairs of types."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farout.events._common import Vocabulary
from farout.io.state import saved

_DENSE = 1 << 22  # cells of a pair's table up to which it is laid out whole while events are scored


@saved("pair_counts")
@dataclass(frozen=True)
class PairCounts:
    """Counts of the pairs that occurred, pair of types after pair of types.

    Attributes
    ----------
    keys : int64 array (k,)
        ``code_i * sizes[j] + code_j``, ascending within each pair of types.
    counts : uint32 array (k,)
    starts : int64 array (pairs + 1,)
        Where each pair of types begins.
    sizes : int64 array (m,)
        Codes of each type.
    """

    keys: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, vocabularies: list[Vocabulary]) -> PairCounts:
        """Count the codes (n, m) of events."""
        sizes = np.array([len(vocabulary.counts) for vocabulary in vocabularies], np.int64)
        keys, counts = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
        for i, j in zip(*np.triu_indices(len(sizes), 1)):
            key = codes[:, i] * sizes[j] + codes[:, j]
            if sizes[i] * sizes[j] <= max(4 * len(key), 1024):  # a table costs less than a sort
                count = np.bincount(key, minlength=1)
                found = np.flatnonzero(count)
                count = count[found]
            else:
                found, count = np.unique(key, return_counts=True)
            keys.append(found)
            counts.append(count.astype(np.uint32))
        starts = np.cumsum([len(found) for found in keys])
        return cls(np.concatenate(keys), np.concatenate(counts), starts, sizes)

    def lookup(self, i: int, j: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return how often entities of two types came together: float64 (n,); 0 for those that never did.

        Parameters
        ----------
        i, j : int
            The types, i < j.
        first, second : int64 array (n,)
            Codes.
        """
        pair = i * (2 * len(self.sizes) - i - 1) // 2 + j - i - 1
        keys, counts = (a[self.starts[pair] : self.starts[pair + 1]] for a in (self.keys, self.counts))
        asked = first * self.sizes[j] + second
        cells = int(self.sizes[i] * self.sizes[j])
        if cells <= min(_DENSE, 4 * len(asked)):
            table = np.zeros(cells)
            table[keys] = counts
            return table[asked]
        if not len(keys):
            return np.zeros(len(asked))
        place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        return np.where(keys[place] == asked, counts[place], 0.0)
