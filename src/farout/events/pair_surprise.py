"""PairSurprise: Detecting Anomalous Records in Categorical Datasets.

Kaustav Das, Jeff Schneider, KDD 2007 (pages 220-229).

An event is odd when two of its values, each of them usual, hardly ever come together: compare how often a pair was seen
with how often it should have been if its types had nothing to do with each other.

The paper claims that comparing with marginal distributions finds anomalies in records of categories better than the
likelihood under a Bayes net, which mostly finds rare values.

Differences from the paper: pairs of single types only, where the paper also compares sets of types. Pairs get half an
event more than was seen, where the paper adds whole ones. Values that are rare by themselves, which the paper leaves
out, are kept; one never seen has a surprise of its own. The sum over pairs, and the plain pair frequency, are added
as rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.events._common import EventDetector
from farout.events._pair_counts import PairCounts
from farout.kit.profile import number

_RULES = ("max", "sum", "frequency")


@paper(
    "PairSurprise",
    title="Detecting Anomalous Records in Categorical Datasets",
    authors="Das, Schneider",
    url="https://doi.org/10.1145/1281192.1281219",
    year=2007,
    claim="Comparing with marginal distributions finds anomalous records better than the likelihood under a Bayes net.",
    differs="Pairs of single types only, half an event added to every pair. Rare values are kept; unseen ones have a "
    "surprise of their own. Two more rules: the sum over pairs, and the plain pair frequency.",
    takes=("numeric", "missing", "category", "date"),
    explains=True,
)
class PairSurprise(EventDetector):
    """The largest surprise of an event: that of two entities together, or of one that was never seen.

    A pair that was seen ``n_ij`` times among ``n`` events has the surprise ``log n_i n_j / (n (n_ij + 1/2))``: how many
    times as often independence expects it. An entity that was never seen pairs with nothing; alone it has the surprise
    ``-log (s + 1) / (n + 1)``, where ``s`` entities of its type were seen once: where new users come every day, one
    more is no surprise (Good's estimate, Biometrika 1953). A missing value says nothing. An event of one type has no
    pairs.

    Cost: a sort of n keys for each pair of types to fit, a search among them to score.

    Parameters
    ----------
    rule : {"max", "sum", "frequency"}
        The largest surprise, their sum, or the sum of ``-log (n_ij + 1/2) / n`` (and of unseen entities' surprises).

    Attributes
    ----------
    profile_ : Profile
        Rank tables and level counts of all types.
    vocabularies_ : list of Vocabulary
        By type.
    pairs_ : int64 array (pairs, 2)
        The pairs of types.
    pair_counts_ : PairCounts
        How often each two entities came together.

    Examples
    --------
    >>> import polars as pl
    >>> events = pl.DataFrame({"user": ["ann", "bob"] * 40, "host": ["a", "b"] * 40})
    >>> detector = PairSurprise().fit(events)
    >>> crossed = pl.DataFrame({"user": ["ann", "ann"], "host": ["a", "b"]})
    >>> detector.outlier_score(crossed).round(2)
    array([-0.71,  3.69])
    >>> detector.words(crossed)[1]
    ["user 'ann' with host 'b': never together in 80 events (20 expected)"]
    """

    def __init__(self, rule: str = "max") -> None:
        self.rule = rule

    def reasons(self, X: Any) -> np.ndarray:
        """Return each entity's part: half of a pair that it is in; parts add up to the score.

        Returns
        -------
        float64 array (n, m)
            In nats.
        """
        codes = self._codes(self._features(X, reset=False))
        parts, rows = np.zeros(codes.shape), np.arange(len(codes))
        best, winner = np.full(len(codes), -np.inf), np.zeros((len(codes), 2), np.int64)
        for types, values in self._surprises(codes):
            if self.rule == "max":
                better = values > best
                best[better], winner[better] = values[better], types
            else:
                for t in types:
                    parts[:, t] += np.nan_to_num(values) / 2
        if self.rule == "max":
            for side in winner.T:
                parts[rows, side] += np.where(best > -np.inf, best, 0.0) / 2
        return parts

    def _learn(self, codes: np.ndarray) -> None:
        if self.rule not in _RULES:
            raise BadInput(f"rule is {', '.join(map(repr, _RULES))}, not '{self.rule}'")
        self.pair_counts_ = PairCounts.of(codes, self.vocabularies_)

    def _score(self, codes: np.ndarray) -> np.ndarray:
        best, total = np.full(len(codes), -np.inf), np.zeros(len(codes))
        for _, values in self._surprises(codes):
            if self.rule == "max":
                np.fmax(best, values, out=best)
            else:
                total += np.nan_to_num(values)
        return np.where(best > -np.inf, best, total)

    def _surprises(self, codes: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Yield each type twice, then each pair of types, with its surprises (n,); NaN where it says nothing."""
        n = self.profile_.n
        for t, values in enumerate(self._unseen(codes).T):
            yield (t, t), np.where(values > 0, values, np.nan)
        known = [np.append(vocabulary.counts[:-2], [np.nan, np.nan]) for vocabulary in self.vocabularies_]
        with np.errstate(divide="ignore"):  # of empty bins, which no code leads to
            logs = [np.log(count)[column] for count, column in zip(known, codes.T)]
        for i, j in self.pairs_.tolist():
            expected = logs[i] + logs[j] - np.log(n)  # log n_i n_j / n
            if self.rule == "frequency":
                expected = np.where(np.isnan(expected), np.nan, np.log(n))
            yield (i, j), expected - np.log(self.pair_counts_.lookup(i, j, codes[:, i], codes[:, j]) + 0.5)

    def _novelty(self) -> np.ndarray:
        once = np.array([(vocabulary.counts == 1).sum() for vocabulary in self.vocabularies_])
        return -np.log((once + 1) / (self.profile_.n + 1))

    def _oddness(self, codes: np.ndarray) -> np.ndarray:
        found = np.column_stack([np.nan_to_num(values) for _, values in self._surprises(codes)])
        return np.where(found > np.log(2), found, 0.0)  # less than half as often as expected

    def _pair_words(self, codes: np.ndarray, pair: int) -> str:
        i, j = self.pairs_[pair].tolist()
        together = int(self.pair_counts_.lookup(i, j, codes[None, i], codes[None, j])[0])
        n_i, n_j = (self.vocabularies_[t].counts[codes[t]] for t in (i, j))
        often = "never" if together == 0 else "once" if together == 1 else f"{together:,} times"
        n = self.profile_.n
        return f"{often} together in {n:,} events ({number(float(f'{n_i * n_j / n:.2g}'))} expected)"
