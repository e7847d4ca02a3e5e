"""What the page and the notebook view of a scored table both need to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.kit.columns import Codes, Features
from farout.kit.profile import number

Result = Any  # farout.scoring.Result, which stands above this room and so is not imported
LISTED = (20, 50)  # rows in the table: at least, if there are as many, and at most
MARKED = 100  # rows marked in the pictures at most


@dataclass(frozen=True)
class View:
    """The odd rows of a result, their values, and what makes them odd.

    Attributes
    ----------
    result : Result
    line : float or None
        Rows with this score or more ring; None when no score could.
    listed, marked : int
        How many of ``top_rows`` stand in the table, and are marked in pictures. The marked rows are those above the
        line; where there are none, the first tenth of all rows, as far as they are listed.
    features : Features
        Of the first ``max(listed, marked)`` top rows.
    parts : float64 array (rows, features)
        What each feature adds to their scores.
    named : bool array (rows, features)
        The up to three features that are a row's reasons in words.
    """

    result: Result
    line: float | None
    listed: int
    marked: int
    features: Features
    parts: np.ndarray
    named: np.ndarray

    @classmethod
    def of(cls, result: Result) -> View:
        """Read a result."""
        rang = int(result.alarms[result.top_rows].sum())
        listed = min(len(result.top_rows), max(LISTED[0], min(rang, LISTED[1])))
        marked = min(rang, MARKED) or min(listed, max(1, len(result.scores) // 10))
        rows = max(listed, marked)
        parts = result.reasons[:rows]
        features = result.features(result.top_frame[:rows])
        return cls(result, _line(result), listed, marked, features, parts, result.named(slice(rows)))

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the marked rows, farthest out first."""
        return self.result.top_rows[: self.marked]

    @property
    def who(self) -> str:
        """Name the marked rows in words."""
        rang = int(self.result.alarms.sum())
        where = "above the line" if rang == self.marked else "farthest out"
        return f"the row {where}" if self.marked == 1 else f"the {self.marked} rows {where}"

    def value(self, place: int, feature: int) -> float | str | None:
        """Return one cell of the row at ``top_rows[place]``: a number, a level, or None."""
        column = self.features.columns[feature]
        if isinstance(column, Codes):
            return column.levels[column.codes[place]] if column.codes[place] >= 0 else None
        return float(column[place])

    def said(self, place: int, feature: int) -> str:
        """Say where the value of a feature stands."""
        return self.result.profile.words(feature, self.value(place, feature))

    def words(self, place: int) -> list[str]:
        """Say why the row at ``top_rows[place]`` is far out."""
        return self.result.words(place)

    def shown(self, feature: int, value: float) -> str:
        """Write a number of a feature, a date as a date."""
        if self.result.profile.names[feature] in self.result.profile.dates:
            return str(np.datetime64(round(value * 86_400), "s"))[:10]
        return number(value)


def _line(result: Result) -> float | None:
    """Return the smallest score that rings: among the calibration scores, or else among the rows."""
    if not result.calibrated:
        return float(result.scores[result.alarms].min()) if result.alarms.any() else None
    known = result.detector.calibration_scores_
    ringing = int(np.floor(result.rate * (len(known) + 1) + 1e-9))
    return float(np.nextafter(known[len(known) - ringing], np.inf)) if ringing else None
