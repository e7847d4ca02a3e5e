"""Feature by feature: how its values are spread, and where the odd rows lie among them.

Drawn as inline SVG and as bars of HTML: light, sharp in print, and there without JavaScript.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from farout.kit.sketch import LevelCounts, RankTable
from farout.report._view import View

MOST = 24  # features
BINS = 48
LEVELS = (5, 4)  # of a category: the most frequent ones, and beside them those of odd rows
FAR = 6  # a range this many times as wide as the middle 90 % of the rows is drawn with its ends pulled in


@dataclass
class Mark:
    """An odd row on a strip."""

    x: float
    strong: bool
    words: str


@dataclass
class Level:
    """A level of a category: its share of the rows, and the width of its bar, 100 for the most frequent level."""

    name: str
    count: int
    percent: float
    width: float
    odd: int
    strong: bool


@dataclass
class Strip:
    """One feature.

    Attributes
    ----------
    name : str
    blamed : int
        Marked rows that have it among their reasons.
    gone : int
        Marked rows in which it is missing.
    counts : array (BINS,)
        Rows of the profile in each bar; empty for a category.
    pulled : bool
        Whether the axis is linear in the middle only.
    ends : list of str
        Smallest value, median, largest value.
    marks : list of Mark
        ``x`` runs from 0 to 100.
    levels : list of Level
    others : tuple of (int, float)
        Levels that are not shown, and their percentage of the rows.
    """

    name: str
    blamed: int
    gone: int
    counts: np.ndarray = field(default_factory=lambda: np.empty(0))
    pulled: bool = False
    ends: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    others: tuple[int, float] = (0, 0.0)

    @property
    def path(self) -> str:
        """The bars as an SVG path in a box of 100 by 40; a bar that holds any row at all can be seen."""
        width, highest = 100 / BINS, max(self.counts.max(), 1)
        return "".join(
            f"M{i * width:.2f} 40v-{max(40 * count / highest, 1):.1f}h{width:.2f}V40z"
            for i, count in enumerate(self.counts)
            if count > 0
        )


def strips(view: View) -> list[Strip]:
    """Draw the features that the odd rows are blamed on, most blamed first.

    A feature's blame is what it adds to the scores of all rows that ring (of the marked ones where none rings) beyond
    what it usually adds.
    """
    result = view.result
    rang = result.alarms[result.top_rows]
    parts = result.reasons[rang] if rang.any() else view.parts[: view.marked]
    blame = np.maximum(parts - result.usual_reasons, 0).sum(axis=0)
    order = np.argsort(-blame, kind="stable")[:MOST]
    return [_strip(view, int(j)) for j in order]


def _strip(view: View, feature: int) -> Strip:
    column = view.result.profile.columns[feature]
    values = [view.value(place, feature) for place in range(view.marked)]
    gone = sum(value is None or value != value for value in values)
    blamed = int(view.named[: view.marked, feature].sum())
    strip = Strip(view.result.profile.names[feature], blamed, gone)
    if isinstance(column, LevelCounts):
        _fill_levels(strip, view, feature, column, [str(value) for value in values if value is not None])
    else:
        _fill_numbers(strip, view, feature, column, np.array(values, dtype=float))
    return strip


def _fill_numbers(strip: Strip, view: View, feature: int, column: RankTable, odd: np.ndarray) -> None:
    kept = column.values[np.isfinite(column.values)]
    seen = np.concatenate((kept[:1], kept[-1:], odd[np.isfinite(odd)]))
    if len(seen) == 0:
        return
    low, high = float(seen.min()), float(seen.max())
    scale = _Scale.of(column, low, high)
    at_or_below = column.counts(scale.edges())[0]
    strip.counts = np.diff(at_or_below[1:-1], prepend=0.0, append=float(column.n))  # the outer bars hold infinities too
    strip.pulled = scale.pulled
    strip.ends = [view.shown(feature, value) for value in (low, float(column.quantile(0.5)) if column.n else low, high)]
    for place in np.flatnonzero(~np.isnan(odd)):
        words = f"row {view.rows[place]:,}: {view.said(int(place), feature)}"
        x = float(scale.place(np.clip(odd[place], low, high)))
        strip.marks.append(Mark(round(x, 2), bool(view.named[place, feature]), words))
    strip.marks.sort(key=lambda mark: mark.strong)  # strong ones on top


def _fill_levels(strip: Strip, view: View, feature: int, column: LevelCounts, odd: list[str]) -> None:
    frequent = [column.levels[i] for i in np.argsort(-column.counts, kind="stable")[: LEVELS[0]]]
    hits = {level: odd.count(level) for level in dict.fromkeys(odd)}
    rare = sorted((level for level in hits if level not in frequent), key=lambda level: -hits[level])[: LEVELS[1]]
    chosen = frequent + rare
    strong = {view.value(place, feature) for place in range(view.marked) if view.named[place, feature]}
    total, highest = max(column.n, 1), max(column.counts.max(initial=0), 1)
    for level, count in sorted(zip(chosen, column.lookup(chosen)), key=lambda pair: -pair[1]):
        shares = 100 * count / total, 100 * count / highest
        strip.levels.append(Level(level, int(count), *shares, hits.get(level, 0), level in strong))
    left = len(set(column.levels) - set(chosen))
    strip.others = (left, 100 - sum(level.percent for level in strip.levels)) if left else (0, 0.0)


@dataclass(frozen=True)
class _Scale:
    """An axis from 0 to 100: linear, or pulled in at its ends (asinh) where a few values lie far beyond the rest."""

    low: float
    high: float
    centre: float
    width: float
    pulled: bool

    @classmethod
    def of(cls, column: RankTable, low: float, high: float) -> _Scale:
        if not column.n or high <= low:
            return cls(low - 0.5, high + 0.5, low, 1.0, False)
        q = column.quantile(np.array([0.01, 0.05, 0.5, 0.95, 0.99]))
        spread = next((s for s in (q[3] - q[1], q[4] - q[0]) if 0 < s < np.inf), high - low)
        return cls(low, high, float(q[2]), spread / 4, bool(high - low > FAR * spread and np.isfinite(q[2])))

    def place(self, x: np.ndarray | float) -> np.ndarray:
        """Return where values lie."""
        low, high = self._bent(self.low), self._bent(self.high)
        return 100 * (self._bent(x) - low) / (high - low)

    def edges(self) -> np.ndarray:
        """Return the values at the edges of the bars."""
        bent = np.linspace(self._bent(self.low), self._bent(self.high), BINS + 1)
        return self.centre + self.width * np.sinh(bent) if self.pulled else bent

    def _bent(self, x: np.ndarray | float) -> np.ndarray:
        return np.arcsinh((x - self.centre) / self.width) if self.pulled else np.asarray(x, dtype=float)
