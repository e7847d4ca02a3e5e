"""What the claims about mean-shift share: sets cut to some thousand rows by the seed, and many scores a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from farout import data
from farout.bench.metrics import auroc, average_precision
from farout.table import APRE
from farout.table._shift import Shift, usual_neighbours

ROWS = {"small": 300, "full": 2_000}
FEW = ("adbench/glass", "adbench/WBC")
MOST_COLUMNS, LEAST_OUTLIERS = 500, 5


def draws(budget: str, seeds: Sequence[int]) -> Iterator[tuple[str, float, int, np.ndarray, np.ndarray]]:
    """Yield name, share done, seed, rows and labels of each draw from each set of ADBench.

    A set with more than 500 columns is left out, and one of which some draw holds fewer than 5 outliers.
    """
    names = FEW if budget == "small" else data.adbench_names()
    for place, name in enumerate(names):
        found = data.load(name)
        X = np.asarray(found.X)
        orders = [np.random.default_rng(seed).permutation(len(found.y))[: ROWS[budget]] for seed in seeds]
        if X.shape[1] > MOST_COLUMNS or min(found.y[rows].sum() for rows in orders) < LEAST_OUTLIERS:
            continue
        for seed, rows in zip(seeds, orders):
            done = (place + seeds.index(seed) / len(seeds)) / len(names)
            yield name.removeprefix("adbench/"), done, seed, X[rows], found.y[rows]


def moved(fitted: APRE, X: np.ndarray) -> np.ndarray:
    """Shift training rows as APRE does by default: the same for all networks, so that one search serves them all."""
    matrix = fitted._matrix(X, reset=False)
    return Shift.of(matrix, usual_neighbours(None, len(matrix)), 3, counts_itself=True, n_jobs=None)[1]


def rescored(fitted: APRE, X: np.ndarray, shifted_rows: np.ndarray, **parameters: Any) -> np.ndarray:
    """Score training rows with networks that are trained, against shifted ones, under other parameters of the score."""
    other = copy(fitted).set_params(**parameters)
    return other._calibrate(other._matrix(X, reset=False), shifted_rows)


def judged(y: np.ndarray, scores: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Return AUROC and average precision of each method's scores."""
    return {method: (auroc(y, score), average_precision(y, score)) for method, score in scores.items()}


class Means:
    """AUROC and average precision of methods, by set and seed."""

    def __init__(self) -> None:
        self.cells: dict[str, list[dict[str, tuple[float, float]]]] = {}

    def add(self, name: str, cells: dict[str, tuple[float, float]]) -> None:
        """Take in the numbers of one draw."""
        self.cells.setdefault(name, []).append(cells)

    def of(self, method: str) -> tuple[float, float]:
        """Return a method's mean AUROC and average precision: over the seeds, then over the sets."""
        by_set = [np.mean([cells[method] for cells in of_set], axis=0) for of_set in self.cells.values()]
        area, precision = np.mean(by_set, axis=0).tolist()
        return area, precision

    def above(self, method: str, other: str) -> bool:
        """Whether a method is above another in both means."""
        return all(ours > theirs for ours, theirs in zip(self.of(method), self.of(other)))

    def behind(self, method: str, other: str) -> str:
        """Say on which sets a method is farthest behind another in AUROC: five at most."""
        gaps = {
            name: float(np.mean([cells[method][0] - cells[other][0] for cells in of_set]))
            for name, of_set in self.cells.items()
        }
        worst = [name for name in sorted(gaps, key=gaps.__getitem__)[:5] if gaps[name] < 0]
        return f"{method} is farthest behind {other} on {', '.join(worst)}."

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the means, and both measures by set."""
        methods = list(next(iter(self.cells.values()))[0])
        tables = {"Means over the sets": [dict(zip(("method", "AUROC", "AP"), (m, *self.of(m)))) for m in methods]}
        for place, measure in enumerate(("AUROC", "AP")):
            tables[f"{measure} by set"] = [
                {"set": name} | {m: float(np.mean([cells[m][place] for cells in of_set])) for m in methods}
                for name, of_set in self.cells.items()
            ]
        return tables
