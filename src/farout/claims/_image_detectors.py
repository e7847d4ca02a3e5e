"""What claims about detectors of defects in images share: all methods on the same images, and means over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from farout.bench.defects import defects
from farout.claims._tables import SEEDS, Progress

# The small budget is there to see that all runs: few images, and small ones.
SMALL: dict[str, Any] = {"size": 96, "batch_size": 8, "device": "cpu"}
FULL: dict[str, Any] = {"device": "auto"}
MOST = 30


@dataclass(frozen=True)
class Found:
    """What :func:`farout.bench.defects.defects` measured."""

    table: pl.DataFrame

    def mean(self, method: str, measure: str = "auroc", sets: Sequence[str] | None = None) -> float:
        """Return the mean over seeds and then over sets, all by default; sets without the measure are left out."""
        rows = self.table.filter(pl.col("method") == method)
        if sets is not None:
            rows = rows.filter(pl.col("set").is_in(sets))
        return float(rows.group_by("set").agg(pl.col(measure).mean()).sort("set")[measure].mean())  # type: ignore

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return means over seeds by set, and all rows, for a claim."""
        numbers = ["auroc", "ap", "pixel_auroc", "aupro", "fit_seconds", "images_per_second"]
        means = self.table.group_by("set", "method", maintain_order=True).agg(pl.col(numbers).mean())
        seeds = self.table.select("set", "method", "seed", "fitted", "tested", "auroc", "pixel_auroc")
        return {"Means over seeds": means.to_dicts(), "By seed": seeds.to_dicts()}


def on_defects(
    kinds: Mapping[str, Callable[..., Any]], sets: Sequence[str], budget: str, progress: Progress
) -> tuple[Found, tuple[int, ...]]:
    """Fit and score every kind of detector on every set.

    Parameters
    ----------
    kinds : mapping of str to callable
        What makes a detector of ``size``, ``device``, ``batch_size`` and ``random_state``.
    sets : sequence of str
    budget : {"small", "full"}
    progress : callable

    Returns
    -------
    Found
    seeds : tuple of int
    """
    small = budget == "small"
    settings, seeds = (SMALL, SEEDS[:1]) if small else (FULL, SEEDS)

    def maker(kind: Callable[..., Any]) -> Callable[[int], Any]:
        return lambda seed: kind(random_state=seed, **settings)

    methods = {name: maker(kind) for name, kind in kinds.items()}
    return Found(defects(methods, sets, seeds, most=MOST if small else None, progress=progress)), tuple(seeds)
