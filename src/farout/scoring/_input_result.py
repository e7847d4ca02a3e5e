"""The scores of a model's inputs as one result: what a table and a page show of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.cards import Card
from farout.io.files import writing
from farout.io.tables import write_table

KNOWN = ("id", "ood")  # usual inputs, and outliers


@dataclass(frozen=True)
class Look:
    """What a watched model makes of some inputs.

    Attributes
    ----------
    names : list of str
    items : list or array
        The inputs themselves.
    scores : float64 array (n,)
    predicted : int64 array (n,)
    probability : float64 array (n,)
        Of the predicted class, by softmax.
    """

    names: list[str]
    items: Any
    scores: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray


@dataclass
class InputResult:
    """The scores of a model's inputs, and what they are compared with.

    Attributes
    ----------
    name, model : str
    what : str
        ``"images"``, ``"texts"`` or ``"rows"``.
    look : Look
        The scored inputs.
    held : Look or None
        Training inputs that were held out, or others that the line was set on.
    p_values : float64 array (n,)
        Conformal p-values when training inputs were given (``calibrated``), else the share of inputs that score as
        high.
    alarms : bool array (n,)
    rate : float
    calibrated : bool
    threshold : float or None
        The alarm line; None where it is a share and no score.
    card : Card
        Of the method.
    classes : list of str
        Names of the model's classes.
    columns : list of str
        Of rows from a table; empty for others.
    known : bool array (n,) or None
        Which inputs are known outliers.
    groups : list of str or None
        The sub-folder of each input.
    quality : dict of str to float
        How well known outliers are told apart.
    shift : float or None
        Chance that a scored input (of the usual ones, where outliers are known) scores higher than one that was held
        out; 0.5 where they are alike.
    watch : Watch
        Fitted and calibrated; ``result.watch.save(path)`` keeps it.
    notes : list of str
        What a user must know, in sentences.
    settings : dict
        What would repeat the run.
    """

    name: str
    model: str
    what: str
    look: Look
    held: Look | None
    p_values: np.ndarray
    alarms: np.ndarray
    rate: float
    calibrated: bool
    threshold: float | None
    card: Card
    classes: list[str]
    columns: list[str]
    known: np.ndarray | None
    groups: list[str] | None
    quality: dict[str, float]
    shift: float | None
    watch: Any
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> np.ndarray:
        """Scores (n,); larger is farther out."""
        return self.look.scores

    @property
    def order(self) -> np.ndarray:
        """The inputs, farthest out first."""
        return np.argsort(-self.scores, kind="stable")

    def frame(self) -> pl.DataFrame:
        """Return name, score, p-value, alarm, predicted class and its probability of each input, in the order given."""
        look = self.look
        columns: dict[str, Any] = {
            "row": np.arange(len(look.scores)),
            "name": look.names,
            "score": look.scores,
            "p_value": self.p_values,
            "alarm": self.alarms,
            "predicted": [self.classes[label] for label in look.predicted],
            "probability": look.probability,
        }
        if self.known is not None:
            columns["known"] = [KNOWN[outlier] for outlier in self.known.astype(int)]
        return pl.DataFrame(columns)

    def top(self, most: int = 20) -> pl.DataFrame:
        """Return the inputs that are farthest out."""
        return self.frame()[self.order[:most]]

    def lines(self, most: int = 20) -> list[tuple[int, float, float, bool, str]]:
        """Return row, score, p-value, alarm and words of the inputs that are farthest out."""
        return [
            (row, float(self.scores[row]), float(self.p_values[row]), bool(self.alarms[row]), self.words(row))
            for row in self.order[:most].tolist()
        ]

    def words(self, row: int) -> str:
        """Say what an input is and what the model takes it for."""
        look = self.look
        known = "" if self.known is None else f" ({'an outlier' if self.known[row] else 'usual'})"
        taken = f"{self.classes[look.predicted[row]]}, {100 * look.probability[row]:.0f} %"
        return f"{look.names[row]}{known}: taken for {taken}"

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the table of scores (parquet, feather, csv, jsonl, json), whole or not at all."""
        ending = Path(path).suffix.lower()
        if ending in (".html", ".htm"):
            from farout.report.inputs import write_page

            write_page(self, path)
        elif ending == ".json":
            with writing(path) as temporary:
                temporary.write_text(json.dumps(self.frame().to_dicts(), indent=1) + "\n", "utf-8")
        else:
            write_table(self.frame(), path)


def quality_of(scores: np.ndarray, known: np.ndarray, alarms: np.ndarray) -> dict[str, float]:
    """Measure how well known outliers are told apart; there is one of each kind at least, or nothing to measure."""
    from sklearn.metrics import average_precision_score, roc_curve

    if known.all() or not known.any():
        return {}

    def false_at_95(positive: np.ndarray, score: np.ndarray) -> float:
        false, true, _ = roc_curve(positive, score, drop_intermediate=False)
        return float(false[np.argmax(true >= 0.95)])

    return {
        "AUROC": above(scores[known], scores[~known]),
        "average precision": float(average_precision_score(known, scores)),
        "usual that ring": float(alarms[~known].mean()),
        "outliers that ring": float(alarms[known].mean()),
        "FPR at 95 % TPR, outliers positive": false_at_95(known, scores),
        "FPR at 95 % TPR, usual positive": false_at_95(~known, -scores),
    }


def above(these: np.ndarray, others: np.ndarray) -> float:
    """Return the chance that one of these is larger than one of the others; ties count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, these, "left") + np.searchsorted(ordered, these, "right")
    return float(below.sum() / (2 * len(these) * len(others)))
