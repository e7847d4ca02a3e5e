"""What the claims of table detectors share: a sweep over sets, and times at growing sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from farout.bench import suites
from farout.bench.stats import mean_ranks
from farout.contract import Detector
from farout.data import Dataset
from farout.errors import BadInput

SEEDS = (0, 1, 2)
CELLS = "out/adbench/cells"  # where the full budgets share finished cells with one another and with the benchmark
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Sweep:
    """Methods on sets, each number the mean over seeds.

    Attributes
    ----------
    sets, methods : list of str
    auroc, ap, seconds : float64 array (n_sets, n_methods)
    cut : list of dict
        The sets of which rows were left out, and for which methods.
    left_out : list of dict
        The sets that are in no number because they are too large for a method, and for which.
    """

    sets: list[str]
    methods: list[str]
    auroc: np.ndarray
    ap: np.ndarray
    seconds: np.ndarray
    cut: list[dict[str, Any]]
    left_out: list[dict[str, Any]]

    def mean(self, method: str, values: np.ndarray | None = None) -> float:
        """Return the mean AUROC (or whatever is given) of a method over the sets."""
        return float((self.auroc if values is None else values)[:, self.methods.index(method)].mean())

    def total(self, method: str) -> float:
        """Return the seconds that a method took on all sets."""
        return float(self.seconds[:, self.methods.index(method)].sum())

    def ranks(self, methods: Sequence[str], values: np.ndarray | None = None) -> dict[str, float]:
        """Return mean ranks by AUROC (or whatever is given) among some of the methods; 1 is best."""
        chosen = [self.methods.index(method) for method in methods]
        return dict(zip(methods, mean_ranks((self.auroc if values is None else values)[:, chosen]).tolist()))

    def behind(self, method: str, other: str) -> str:
        """Say on which sets a method is farthest behind another: five at most."""
        gap = self.auroc[:, self.methods.index(method)] - self.auroc[:, self.methods.index(other)]
        worst = [self.sets[i] for i in np.argsort(gap, kind="stable")[:5] if gap[i] < 0]
        return f"{method} is farthest behind {other} on {', '.join(worst)}."

    def per_set(self) -> list[dict[str, Any]]:
        """Return a row for each set with the AUROC of each method."""
        return [{"set": name} | dict(zip(self.methods, row)) for name, row in zip(self.sets, self.auroc.tolist())]

    def means(self) -> list[dict[str, Any]]:
        """Return a row for each method with its means and its seconds."""
        return [
            {"method": m, "AUROC": self.mean(m), "AP": self.mean(m, self.ap), "seconds": self.total(m)}
            for m in self.methods
        ]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return all of it as tables of a claim."""
        tables = {"Means over the sets": self.means(), "AUROC by set": self.per_set()}
        tables |= {"Sets that were cut": self.cut, "Sets that were left out": self.left_out}
        return {title: rows for title, rows in tables.items() if rows}


def sweep(
    sets: Iterable[str | Dataset],
    methods: Mapping[str, Detector],
    budget: str,
    progress: Progress,
    protocol: str = "unsupervised",
    rows: int = 2_000,
) -> Sweep:
    """Run methods on sets; the small budget cuts sets to ``rows``, the full one to 50,000 and keeps finished cells.

    Raises
    ------
    BadInput
        A cell failed: a mean over fewer sets would be another number. Only sets that are too large for a method are
        left out, for all methods alike.
    """
    small = budget == "small"
    table = suites.run(
        sets,
        methods,
        protocol,
        SEEDS,
        out=None if small else CELLS,
        n_jobs=None if small else -1,
        limits=suites.Limits(rows=rows) if small else None,
        progress=progress,
    )
    failed = table.drop_nulls("error").select("set", "method", "error").unique(maintain_order=True)
    for name, method, error in failed.iter_rows():
        if not error.startswith(suites.OVER):
            raise BadInput(f"'{method}' failed on '{name}': {error}")
    table = table.filter(~pl.col("set").is_in(failed["set"].to_list()))
    used = pl.col("fitted") + (pl.col("rows") if protocol == "one-class" else 0)
    cut = table.filter(used < pl.col("rows_in_set")).group_by("set", "fitted", "rows_in_set", maintain_order=True)
    cuts = [
        {"set": _short(name), "methods": ", ".join(by), "learned from": fitted, "rows in the set": rows}
        for name, fitted, rows, by in cut.agg(pl.col("method").unique(maintain_order=True)).iter_rows()
    ]
    found, names, auroc = suites.matrix(table)
    ap, seconds = suites.matrix(table, "ap")[2], suites.matrix(table, "seconds")[2]
    left_out = [{"set": _short(name), "method": method, "why": error} for name, method, error in failed.iter_rows()]
    return Sweep([_short(name) for name in found], names, auroc, ap, seconds, cuts, left_out)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit the growth of time: the slope of log seconds over log size.

    Examples
    --------
    >>> exponent([10, 20, 40], [1.0, 4.0, 16.0])
    2.0
    """
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 6)


def times(runs: Mapping[int, Callable[[], Any]], repeats: int = 5) -> list[float]:
    """Time each run with one thread, taking turns, and return the best of its repeats: least disturbed by others."""
    from threadpoolctl import threadpool_limits

    best = dict.fromkeys(runs, np.inf)
    with threadpool_limits(1):
        for _ in range(repeats):
            for size, act in runs.items():
                started = time.perf_counter()
                act()
                best[size] = min(best[size], time.perf_counter() - started)
    return list(best.values())


def verdict(holds: bool) -> str:
    """Say plainly whether something holds."""
    return "holds" if holds else "does not hold"


def _short(name: str) -> str:
    return name.removeprefix("adbench/")
