"""What detectors of one float matrix share: encodings of categories, missing values and scales."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.io.state import saved
from farout.kit.columns import ArrayFeatures, Codes, Features
from farout.kit.sketch import LevelCounts
from farout.rows import TableDetector

FLAT = 1e-10  # least variance of a direction, in squared standard deviations of the features


class MatrixDetector(TableDetector):
    """A table detector that reads one float matrix.

    A subclass says how categories and scales enter it, and writes ``_learn`` and ``_score``.

    Attributes
    ----------
    encoder_ : Encoder
    """

    _categories = "surprise"
    standardize = True

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        scores = self._learn(self._matrix(X, reset=True))
        self._set_offset(scores)
        return scores

    def outlier_score(self, X: Any) -> np.ndarray:
        return self._score(self._matrix(X, reset=False))

    @abstractmethod
    def _learn(self, matrix: np.ndarray) -> np.ndarray:
        """Fit on a matrix (n, columns) and return the scores (n,) of its rows."""

    @abstractmethod
    def _score(self, matrix: np.ndarray) -> np.ndarray:
        """Return the scores (n,) of new rows."""

    def _matrix(self, X: Any, reset: bool) -> np.ndarray:
        """Return the matrix (n, columns) of a table; it can be ``X`` itself, so nobody may write to it."""
        features = self._features(X, reset)
        if reset:
            self.encoder_ = Encoder.fit(features, self._categories, self.standardize)
        return self.encoder_.transform(features)


@saved("encoder")
@dataclass
class Encoder:
    """Features to one float matrix, for methods that add, multiply or split numbers.

    A missing number becomes the training median (that of 2,048 drawn rows where there are more), a missing level the
    average code of its column, so that neither says anything. Categories become, by ``categories``:

    - ``"one_hot"``: a column a level, weighted by 1 / sqrt(2), so that two different levels are at distance 1; all but
      the ``LEVELS`` most frequent levels share one column.
    - ``"surprise"``: one column, ``-log(share of the level)``.

    Attributes
    ----------
    categories : str
    standardize : bool
        Whether numbers (and surprises) are brought to mean 0 and standard deviation 1; constant ones stay 0. What is
        more than 1e100 standard deviations out counts as that far, so that squares stay finite.
    fills, means, scales : float64 array (d,)
        By feature; 0 and 1 for one-hot features.
    levels : list of (list of str, float64 array) or None
        By feature: levels and the code table (levels + unseen + missing, columns).
    owner : int64 array (columns,)
        The feature that each column of the matrix belongs to.
    """

    LEVELS = 32
    DRAWN = 2048
    FARTHEST = 1e100

    categories: str
    standardize: bool
    fills: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    levels: list[tuple[list[str], np.ndarray] | None]
    owner: np.ndarray

    @classmethod
    def fit(cls, features: Features, categories: str, standardize: bool) -> Encoder:
        """Learn medians, scales and level tables."""
        d = len(features.names)
        made = cls(categories, standardize, np.zeros(d), np.zeros(d), np.ones(d), [None] * d, np.empty(0, np.int64))
        drawn = features
        if features.n > cls.DRAWN:
            drawn = features.take(np.random.default_rng(0).choice(features.n, cls.DRAWN, replace=False))
        owner: list[int] = []
        for j, (_, few) in enumerate(drawn):
            if isinstance(few, Codes):
                column = features.columns[j]
                assert isinstance(column, Codes)
                made.levels[j] = _code_table(LevelCounts.of(column.codes, column.levels), categories)
                width = made.levels[j][1].shape[1]  # type: ignore[index]
            else:
                there = few[~np.isnan(few)]
                made.fills[j], width = (np.median(there) if len(there) else 0.0), 1
            owner += [j] * width
            if standardize and not (isinstance(few, Codes) and categories == "one_hot"):
                made.means[j], made.scales[j] = _location(made._column(j, features.columns[j])[:, 0])
        made.owner = np.array(owner, np.int64)
        return made

    def transform(self, features: Features) -> np.ndarray:
        """Return the matrix (n, columns), float64; the array itself where features are one and nothing changes it."""
        if isinstance(features, ArrayFeatures):
            matrix = features.columns.array  # type: ignore[attr-defined]
            if np.isnan(matrix.min()):
                matrix = np.where(np.isnan(matrix), self.fills, matrix)
        else:
            matrix = np.hstack([self._column(j, column) for j, (_, column) in enumerate(features)])
        if not self.standardize:
            return matrix
        with np.errstate(over="ignore"):
            matrix = matrix - self.means[self.owner]
            matrix /= self.scales[self.owner]
        return np.clip(matrix, -self.FARTHEST, self.FARTHEST, out=matrix)

    def per_feature(self, parts: np.ndarray) -> np.ndarray:
        """Add up the parts (n, columns) of each feature's columns: (n, d)."""
        if len(self.owner) == len(self.levels):
            return parts
        total = np.zeros((len(parts), len(self.levels)))
        np.add.at(total.T, self.owner, parts.T)
        return total

    def decoded(self, j: int, row: np.ndarray) -> float | str:
        """Read a feature back from a row (columns,): a number, or the level whose code is the largest.

        Levels that share a column are ``"a rare level"``.
        """
        mine, found = row[self.owner == j], self.levels[j]
        if found is None:
            return float(mine[0] * self.scales[j] + self.means[j])
        levels, table = found
        place = int(mine.argmax())
        sharing = np.flatnonzero(table[: len(levels), place] > 0)
        return levels[sharing[0]] if len(sharing) == 1 else "a rare level"

    def _column(self, j: int, column: np.ndarray | Codes) -> np.ndarray:
        if isinstance(column, Codes):
            levels, table = self.levels[j]  # type: ignore[misc]
            place = {level: i for i, level in enumerate(levels)}
            # the last two rows of the table are for levels never seen and for missing values (code -1)
            rows = np.array([*(place.get(level, len(levels)) for level in column.levels), len(levels) + 1])
            return table[rows[column.codes]]
        return np.where(np.isnan(column), self.fills[j], column)[:, None]


def _code_table(counts: LevelCounts, categories: str) -> tuple[list[str], np.ndarray]:
    """Codes of the levels, then of an unseen level and of a missing value."""
    share = counts.counts / max(counts.n, 1)
    if categories == "surprise":
        codes = -np.log(np.append(share, 1 / (counts.n + 1)))[:, None]
    else:
        place = np.argsort(np.argsort(-share, kind="stable"), kind="stable")
        width = min(len(share), Encoder.LEVELS) + 1  # the last column: rare levels, and levels never seen
        codes = np.eye(width)[np.append(np.minimum(place, width - 1), width - 1)] * np.sqrt(0.5)
    missing = share @ codes[:-1] if len(share) else np.zeros(codes.shape[1])
    return counts.levels, np.vstack((codes, missing))


def _location(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, which neither overflow nor make a scale of the rounding of a constant."""
    low, high = values.min(), values.max()
    if low == high:
        return float(low), 1.0
    peak = max(abs(low), abs(high))
    values = values / peak
    return float(peak * values.mean()), float(peak * values.std()) or 1.0
