"""Detectors that add up minus log tail probabilities over features: what ECOD and COPOD share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.kit.columns import Codes, Features
from farout.kit.engine import in_threads
from farout.kit.profile import Profile, RowSample
from farout.kit.ranks import Ranker
from farout.kit.sketch import LevelCounts, RankTable
from farout.rows import ProfileDetector

_GROUP = 8  # columns whose probabilities are multiplied before one logarithm is taken; (1 / n) ** 8 does not underflow


class TailDetector(ProfileDetector):
    """The score of a row is the largest of a few sums over features of minus log tail probabilities.

    A subclass names its ``RULES``, takes ``rule``, ``sketch`` and ``n_jobs``, and says in ``_sides`` which
    probabilities go into which sum.
    """

    RULES: tuple[str, ...]
    rule: str
    n_jobs: int | None
    _takes_infinity = True

    @abstractmethod
    def _sides(self, left: np.ndarray, right: np.ndarray, skewness: int | None) -> list[np.ndarray]:
        """Return the probabilities (n,) that go into each sum, from a feature's tails and the sign of its skewness.

        A category has one probability for both tails and no skewness (None).
        """

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        self._check_parameters()
        features = self._features(X, reset=True)
        tables, scores = self._scores(features, None)
        self._ladder = [Profile(features.names, tables, features.n, features.dates)]
        self._sample = RowSample.of(features)
        self._set_offset(scores)
        return scores

    def _against_profile(self, features: Features) -> np.ndarray:
        return self._scores(features, self.profile_)[1]

    def reasons(self, X: Any) -> np.ndarray:
        """Return each feature's part of the score; parts add up to it.

        Returns
        -------
        float64 array (n, d)
            In nats; where the rule takes the largest of several sums, the parts of the sum that won for the row.
        """
        features = self._features(X, reset=False)
        columns = [
            -np.log(self._sides(*_tails(column, table), _skewness(table)))
            for (_, column), table in zip(features, self.profile_.columns)
        ]
        parts = np.stack(columns, axis=-1)
        winner = parts.sum(axis=2).argmax(axis=0)
        return np.take_along_axis(parts, winner[None, :, None], axis=0)[0] + 0.0

    def _check_parameters(self) -> None:
        if self.rule not in self.RULES:
            raise BadInput(f"rule is {' or '.join(map(repr, self.RULES))}, not '{self.rule}'")
        super()._check_parameters()

    def _scores(self, features: Features, profile: Profile | None) -> tuple[list[RankTable | LevelCounts], np.ndarray]:
        """Score features against a profile, or against themselves while making theirs."""
        d = len(features.names)
        total: Any = 0.0
        tables: list[RankTable | LevelCounts] = []

        def group(start: int) -> tuple[list[RankTable | LevelCounts], np.ndarray]:
            known = profile.columns[start : start + _GROUP] if profile else None
            return self._group_sums(features.group(start, min(start + _GROUP, d)), known)

        # groups are fixed and added in order, so that scores are the same for any number of threads
        for made, sums in in_threads(group, range(0, d, _GROUP), self.n_jobs):
            tables += made
            sums += total
            total = sums
        return tables, np.max(total, axis=0) + 0.0  # + 0.0: no row scores -0.0

    def _group_sums(
        self, columns: Sequence[np.ndarray | Codes], known: list[RankTable | LevelCounts] | None
    ) -> tuple[list[RankTable | LevelCounts], np.ndarray]:
        """Sums over a few columns (sums, n): products of probabilities, and one logarithm at the end."""
        tables: list[RankTable | LevelCounts] = []
        products: np.ndarray | None = None
        ranker = None
        for j, column in enumerate(columns):
            if known is None and isinstance(column, np.ndarray):
                ranker = ranker or Ranker(len(column))
                values, left, right = ranker(column)
                made = RankTable.of(values, len(column) - len(values), self.sketch)
                left /= max(made.n, 1)
                right /= max(made.n, 1)
                if made.missing:
                    _fill(left, right, made)
                table: RankTable | LevelCounts = made
            else:
                table = known[j] if known is not None else _counted(column)
                left, right = _tails(column, table)
            tables.append(table)
            sides = self._sides(left, right, _skewness(table))
            if products is None:
                products = np.array(sides)
            else:
                for product, side in zip(products, sides):
                    product *= side
        assert products is not None  # a group has columns
        return tables, np.negative(np.log(products, out=products), out=products)


def _counted(column: np.ndarray | Codes) -> LevelCounts:
    assert isinstance(column, Codes)
    return LevelCounts.of(column.codes, column.levels)


def _tails(column: np.ndarray | Codes, table: RankTable | LevelCounts) -> tuple[np.ndarray, np.ndarray]:
    """Left and right tail probability of each cell; a category has one probability for both."""
    if isinstance(column, Codes):
        assert isinstance(table, LevelCounts)
        left = table.probabilities(column.codes, column.levels)
        gone = np.isnan(left)
        if gone.any():  # the mean part of a level is the entropy
            share = table.counts / max(table.n, 1)
            left[gone] = np.exp(share @ np.log(share))
        return left, left
    assert isinstance(table, RankTable)
    left, right = table.tails(column)
    if np.isnan(left).any():
        _fill(left, right, table)
    return left, right


def _fill(left: np.ndarray, right: np.ndarray, table: RankTable) -> None:
    """Give missing cells the mean part of their column, so that they say nothing."""
    gone = np.isnan(left)
    values, weight = table.mass()
    for side, tail in zip((left, right), table.tails(values)):
        side[gone] = np.exp(np.average(np.log(tail), weights=weight)) if table.n else 1.0


def _skewness(table: RankTable | LevelCounts) -> int | None:
    return table.skewness_sign() if isinstance(table, RankTable) else None
