"""What a scoring run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.cards import Card
from farout.contract import Detector
from farout.io.tables import write_table
from farout.kit.columns import Codes, Columns, Features
from farout.kit.profile import Profile


@dataclass
class Result:
    """The scores of a table, and all that a reader needs to judge them.

    Attributes
    ----------
    name : str
        Of the table.
    scores : float64 array (n,)
        Larger is farther out.
    p_values : float64 array (n,)
        Conformal p-values when normal data was given (``calibrated``), else the share of rows that score as high.
    alarms : bool array (n,)
    rate : float
    calibrated : bool
    columns : Columns
        How each column was read, and which were left out and why.
    detector : Detector
    card : Card
        Of the method.
    profile : Profile
        Where every value stands among the rows that were fitted, or, for a saved detector that keeps no profile,
        among the rows that are scored.
    top_rows : int64 array (k,)
        The rows that got reasons, farthest out first: all that rang, and the top 100, at most 10,000.
    top_frame : polars.DataFrame
        Their values.
    reasons : float64 array (k, features)
        How much each feature adds to their scores.
    usual_reasons : float64 array (features,)
        What each feature adds to nine of ten rows at most; less than this is no reason.
    said : list of list of str
        Reasons of the top rows in the method's own words, which may name pairs of values; empty where it has none.
    sample_rows, sample_frame
        A fair sample of all rows, for pictures.
    settings : dict
        What would repeat the run: method, parameters, seeds, versions; and timings.

    Examples
    --------
    >>> from farout.data import load
    >>> from farout.scoring import score
    >>> result = score(load("wine").X, name="wine")
    >>> len(result.scores), int(result.alarms.sum())
    (178, 1)
    """

    name: str
    scores: np.ndarray
    p_values: np.ndarray
    alarms: np.ndarray
    rate: float
    calibrated: bool
    columns: Columns
    detector: Detector
    card: Card
    profile: Profile
    top_rows: np.ndarray
    top_frame: pl.DataFrame
    reasons: np.ndarray
    usual_reasons: np.ndarray
    sample_rows: np.ndarray
    sample_frame: pl.DataFrame
    said: list[list[str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def features(self, frame: pl.DataFrame) -> Features:
        """Read rows of ``top_frame`` or ``sample_frame`` as features."""
        return self.columns.features(frame)

    @cached_property
    def _top_features(self) -> Features:
        return self.features(self.top_frame)

    def words(self, place: int, most: int = 3) -> list[str]:
        """Say why the row at ``top_rows[place]`` is far out, the strongest reason first."""
        if self.said and self.said[place]:
            return self.said[place][:most]
        named = np.flatnonzero(self.named(slice(place, place + 1), most)[0])
        order = named[np.argsort(-self.reasons[place, named], kind="stable")]
        return [self.profile.words(j, _value(self._top_features.columns[j], place)) for j in order]

    def named(self, places: slice, most: int = 3) -> np.ndarray:
        """Mark the features that are reasons of some of the top rows.

        A feature is named when it adds more than it does to nine of ten rows, and at least 15 % of what the strongest
        such feature adds; where none is unusual, the one that adds most.

        Returns
        -------
        bool array (rows, features)
        """
        parts = self.reasons[places]
        unusual = np.where(parts > self.usual_reasons, parts, 0.0)
        unusual = np.where((unusual > 0).any(axis=1, keepdims=True), unusual, parts)
        strongest = np.argsort(-unusual, axis=1, kind="stable")[:, :most]
        first = np.take_along_axis(unusual, strongest[:, :1], axis=1)
        named = np.zeros(parts.shape, bool)
        np.put_along_axis(named, strongest, True, axis=1)
        return named & (unusual > 0) & (unusual > 0.15 * first)

    def top(self, most: int = 20) -> pl.DataFrame:
        """Return the rows that are farthest out, with reasons in words."""
        places = range(min(most, len(self.top_rows)))
        rows = self.top_rows[: len(places)]
        return pl.DataFrame(
            {
                "row": rows,
                "score": self.scores[rows],
                "p_value": self.p_values[rows],
                "alarm": self.alarms[rows],
                "reasons": ["; ".join(self.words(place)) for place in places],
            }
        )

    def frame(self) -> pl.DataFrame:
        """Return score, p-value, alarm and reasons of every row, in the order of the table.

        Reasons stand at the rows of ``top_rows`` and are empty elsewhere.
        """
        words = np.full(len(self.scores), None, dtype=object)
        for place, row in enumerate(self.top_rows):
            words[row] = "; ".join(self.words(place))
        return pl.DataFrame(
            {
                "row": np.arange(len(self.scores)),
                "score": self.scores,
                "p_value": self.p_values,
                "alarm": self.alarms,
                "reasons": pl.Series(words.tolist(), dtype=pl.String),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the table of scores (parquet, feather, csv, jsonl), whole or not at all."""
        if Path(path).suffix.lower() in (".html", ".htm"):
            from farout.report.scores import write_page

            write_page(self, path)
        else:
            write_table(self.frame(), path)

    def __repr__(self) -> str:
        rang = int(self.alarms.sum())
        return f"<{self.card.name} on '{self.name}': {len(self.scores):,} rows, {rang:,} above the alarm line>\n" + (
            "\n".join(f"  row {row:>8,}  {score:8.3f}  {why}" for row, score, _, _, why in self.top(5).iter_rows())
        )

    def _repr_html_(self) -> str:
        from farout.report.scores import notebook

        return notebook(self)


def _value(column: np.ndarray | Codes, row: int) -> float | str | None:
    """Return the number, or the level spelled out, of one cell."""
    if isinstance(column, Codes):
        return column.levels[column.codes[row]] if column.codes[row] >= 0 else None
    return float(column[row])
