"""What detectors of events share: an event is a row of entities, one of each type, and every column is a type.

A category's levels are entities as they are; so are the values of a number that takes few. Other numbers fall into
bins, even near the median and growing towards the tails, so that a number far out is alone in its bin.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.io.state import saved
from farout.kit.columns import Codes, Features
from farout.kit.profile import Profile, number
from farout.kit.sketch import LevelCounts, RankTable
from farout.rows import TableDetector

FEW = 32  # distinct values of a number that are always taken as they are
WIDTH = 0.5  # of a bin, on the scale asinh((x - median) / spread)
LEAST = 0.5  # share of the strongest reason from which another one is said too
CELLS = 1 << 22  # numbers held at a time while reasons are looked for


@saved("vocabulary")
@dataclass(frozen=True)
class Vocabulary:
    """The entities of one type, each with a code; two more codes stand for what was never seen, and for missing.

    Attributes
    ----------
    kind : {"level", "value", "bin"}
    known : list of str, or float64 array
        Sorted levels or values, or the left edges of the bins, followed by the end of the last one.
    counts : float64 array (entities + 2,)
        Events by code.

    Examples
    --------
    >>> vocabulary = Vocabulary.of(LevelCounts(["ann", "bob"], np.array([5, 4]), 9))
    >>> vocabulary.encode(Codes(np.array([0, 1, -1]), ["bob", "zoe"]))
    array([1, 2, 3])
    """

    kind: str
    known: Any
    counts: np.ndarray

    @classmethod
    def of(cls, column: RankTable | LevelCounts) -> Vocabulary:
        """Make the vocabulary of a column."""
        known: Any
        if isinstance(column, LevelCounts):
            order = sorted(range(len(column.levels)), key=column.levels.__getitem__)
            kind, known, seen = "level", [column.levels[i] for i in order], column.counts[order]
        else:
            values = np.unique(column.values)
            if len(values) <= min(max(FEW, np.sqrt(column.n)), column.n / 2):
                left, right = column.counts(values)
                kind, known, seen = "value", values, left + right - column.n
            else:
                kind, known = "bin", _edges(column)
                seen = -np.diff(column.counts(known)[1])
        return cls(kind, known, np.concatenate((seen, [0.0, column.missing])))

    @property
    def unseen(self) -> int:
        """The code of entities that were never seen; the codes of entities are those below it."""
        return len(self.counts) - 2

    @property
    def missing(self) -> int:
        """The code of a missing value."""
        return len(self.counts) - 1

    def encode(self, column: np.ndarray | Codes) -> np.ndarray:
        """Return the code of each event: int64 (n,)."""
        m = self.unseen
        if isinstance(column, Codes):
            found = [bisect_left(self.known, level) for level in column.levels]
            hit = [i if i < m and self.known[i] == level else m for i, level in zip(found, column.levels)]
            return np.array([*hit, self.missing])[column.codes]
        if self.kind == "bin":
            codes = np.searchsorted(self.known, column, side="right") - 1
            codes[(codes < 0) | (codes > m)] = m
            codes[self.counts[codes] < 0.5] = m  # bins between others can be empty
        else:
            codes = np.searchsorted(self.known, column)
            inside = codes < m
            codes[inside] = np.where(self.known[codes[inside]] == column[inside], codes[inside], m)
        codes[np.isnan(column)] = self.missing
        return codes


def _edges(column: RankTable) -> np.ndarray:
    """Edges of bins that hold all values: even near the median, growing with the distance from it."""
    values, weight = column.mass()
    middle = float(column.quantile(0.5)) if column.n else 0.0
    with np.errstate(over="ignore"):
        away = np.abs(values - middle)
        order = np.argsort(away, kind="stable")
        order = order[away[order] > 0]
        passed = np.cumsum(weight[order])
        spread = float(away[order][np.searchsorted(passed, passed[-1] / 2)]) if len(order) else 1.0
        ends = np.clip((np.array([values[0], values[-1]]) - middle) / spread, -1e300, 1e300) if len(values) else [0, 0]
        first, last = np.round(np.arcsinh(ends) / WIDTH)
        edges = middle + spread * np.sinh((np.arange(first, last + 2) - 0.5) * WIDTH)
    if len(values):  # rounding must not leave the ends outside
        edges[0], edges[-1] = min(edges[0], values[0]), max(edges[-1], np.nextafter(values[-1], np.inf))
    return np.unique(edges)


class EventDetector(TableDetector):
    """A detector of events: rows of entities that are read as codes.

    A subclass writes ``_learn``, ``_score``, ``_novelty`` and, for reasons in words, ``_oddness`` and ``_pair_words``.

    Attributes
    ----------
    profile_ : Profile
        Rank tables and level counts of all types.
    vocabularies_ : list of Vocabulary
        By type.
    pairs_ : int64 array (pairs, 2)
        The pairs of types, i < j.
    """

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        features = self._features(X, reset=True)
        self.profile_ = Profile.of(features)
        self.vocabularies_ = [Vocabulary.of(column) for column in self.profile_.columns]
        self.pairs_ = np.stack(np.triu_indices(len(features.names), 1), axis=1)
        codes = self._codes(features)
        self._learn(codes)
        scores = self._score(codes)
        self._set_offset(scores)
        return scores

    def outlier_score(self, X: Any) -> np.ndarray:
        return self._score(self._codes(self._features(X, reset=False)))

    def words(self, X: Any, most: int = 3) -> list[list[str]]:
        """Say which entities, and which pairs of them, make events odd.

        Parameters
        ----------
        X : array or data frame (n, m)
        most : int
            Reasons of an event at most.

        Returns
        -------
        list of list of str
            For each event its reasons, the strongest first; none for an event that is usual.
        """
        features = self._features(X, reset=False)
        codes = self._codes(features)
        step = max(1, CELLS // (len(self.pairs_) + len(features.names)))
        said: list[list[str]] = []
        for start in range(0, features.n, step):
            for row, odd in enumerate(self._oddness(codes[start : start + step]), start):
                order = np.argsort(-odd, kind="stable")[: 4 * most].tolist()
                reasons: dict[frozenset[str], str] = {}  # of two pairs of the same values, such as names, one is enough
                for k in order:
                    if odd[k] > LEAST * max(odd[order[0]], 0):
                        values, words = self._reason(features, codes, row, k)
                        reasons.setdefault(values, words)
                said.append(list(reasons.values())[:most])
        return said

    @abstractmethod
    def _learn(self, codes: np.ndarray) -> None:
        """Learn from the codes (n, m) of events."""

    @abstractmethod
    def _score(self, codes: np.ndarray) -> np.ndarray:
        """Return the scores (n,) of events."""

    @abstractmethod
    def _novelty(self) -> np.ndarray:
        """Return how odd an entity is that was never seen, by type: (m,)."""

    @abstractmethod
    def _oddness(self, codes: np.ndarray) -> np.ndarray:
        """Return how odd each entity by itself and each pair is: (n, m + pairs); 0 for what is usual."""

    @abstractmethod
    def _pair_words(self, codes: np.ndarray, pair: int) -> str:
        """Say what is odd about a pair of types in one event (m,)."""

    def _codes(self, features: Features) -> np.ndarray:
        """Return the codes of events, int64 (n, m), type by type in memory."""
        columns = [vocabulary.encode(column) for (_, column), vocabulary in zip(features, self.vocabularies_)]
        return np.array(columns).T

    def _unseen(self, codes: np.ndarray) -> np.ndarray:
        """Return the novelty of each entity that was never seen, 0 for the others.

        Parameters
        ----------
        codes : int64 array (n, m)

        Returns
        -------
        float64 array (n, m)
        """
        unseen = np.array([vocabulary.unseen for vocabulary in self.vocabularies_])
        return np.where(codes == unseen, self._novelty(), 0.0)

    def _reason(self, features: Features, codes: np.ndarray, row: int, k: int) -> tuple[frozenset[str], str]:
        """Say one reason, with the values that it speaks of."""
        m = len(features.names)
        types = [k] if k < m else self.pairs_[k - m].tolist()
        values = [_value(features.columns[t], row) for t in types]
        named = " with ".join(f"{features.names[t]} {value}" for t, value in zip(types, values))
        if k < m:
            never = "nothing near it" if self.vocabularies_[k].kind == "bin" else "never"
            return frozenset(values), f"{named}: {never} seen in {self.profile_.n:,} events"
        return frozenset(values), f"{named}: {self._pair_words(codes[row], k - m)}"


def surprise(counts: np.ndarray) -> np.ndarray:
    """Minus log share by code; 1 / (n + 1) for what was never seen, and the mean part for a missing value."""
    seen = counts[:-1]
    n = max(seen.sum(), 1.0)
    surprise = -np.log(np.maximum(seen / n, 1 / (n + 1))) + 0.0
    return np.append(surprise, seen @ surprise / n)


def _value(column: np.ndarray | Codes, row: int) -> str:
    """Write the value of one cell."""
    if isinstance(column, Codes):
        return "missing" if column.codes[row] < 0 else f"'{column.levels[column.codes[row]]}'"
    return "missing" if np.isnan(column[row]) else number(float(column[row]))
