"""Detectors that add up minus log tail probabilities over features: what ECOD and COPOD share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from farout.errors import BadInput
from farout.kit.columns import Codes, Features
from farout.kit.engine import in_threads
from farout.kit.profile import Ladder, Profile, RowSample
from farout.kit.ranks import Ranker
from farout.kit.sketch import LevelCounts, RankTable
from farout.rows import TableDetector

_GROUP = 8  # columns whose probabilities are multiplied before one logarithm is taken; (1 / n) ** 8 does not underflow


class TailDetector(TableDetector):
    """The score of a row is the largest of a few sums over features of minus log tail probabilities.

    A subclass names its ``RULES``, takes ``rule``, ``sketch`` and ``n_jobs``, and says in ``_sides`` which
    probabilities go into which sum.
    """

    RULES: tuple[str, ...]
    rule: str
    sketch: float
    n_jobs: int | None
    _offset: float | None
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

    def outlier_score(self, X: Any) -> np.ndarray:
        features = self._features(X, reset=False)
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

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from more rows; any cut into batches gives the same state, exactly or within the sketch's error.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : ignored
        """
        self._check_parameters()
        first = not hasattr(self, "_ladder")
        features = self._features(X, reset=first)
        seen = 0 if first else sum(piece.n for piece in self._ladder)
        sample = RowSample.of(features, start=seen)
        if first:
            self._ladder, self._sample = [], sample
        else:
            self._sample = self._sample.merge(sample)
        Ladder(self._ladder).push(Profile.of(features, self.sketch))
        self._offset = None
        return self

    def merge(self, other: Self) -> Self:
        """Take in what another detector has learned from other rows.

        Parameters
        ----------
        other : detector of the same class
            Fitted by ``partial_fit`` with the same parameters on the same columns.
        """
        self._check_fitted()
        other._check_fitted()
        if self.feature_names_ != other.feature_names_ or self.sketch != other.sketch:
            raise BadInput(f"two '{type(self).__name__}' states merge only when columns and sketch are the same")
        for piece in other._ladder:
            Ladder(self._ladder).push(piece)
        self._sample = self._sample.merge(other._sample)
        self._offset = None
        return self

    @property
    def profile_(self) -> Profile:
        """Rank tables and level counts of all features."""
        return Ladder(self._ladder).whole()

    @property
    def offset_(self) -> float:
        """Threshold of ``predict``; after ``partial_fit`` it comes from a fair sample of 2,048 rows."""
        if self._offset is None:
            self._set_offset(self._scores(self._sample.features(), self.profile_)[1])
        assert self._offset is not None
        return self._offset

    @offset_.setter
    def offset_(self, value: float) -> None:
        self._offset = value

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_ladder")

    def _check_parameters(self) -> None:
        if self.rule not in self.RULES:
            raise BadInput(f"rule is {' or '.join(map(repr, self.RULES))}, not '{self.rule}'")
        if not 0 <= self.sketch < 0.5:
            raise BadInput(f"sketch is a relative rank error in [0, 0.5), not {self.sketch}")

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
