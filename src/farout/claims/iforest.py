"""Isolation Forest: at least as accurate as distances and densities on the paper's sets, in time linear in rows."""

from __future__ import annotations

from functools import partial

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, exponent, sweep, times, verdict
from farout.table import KNN, LOF, IForest

LARGEST_EXPONENT = 1.15
THRESHOLD = (
    "On the sets of the paper that are at hand, the mean AUROC of IForest is at least that of the mean distance to "
    "five neighbours (ORCA's score) and that of LOF, and its time grows with an exponent of at most "
    f"{LARGEST_EXPONENT} in rows."
)
SETS = ("http", "cover", "mammography", "annthyroid", "shuttle", "satellite", "Pima", "breastw", "Ionosphere", "smtp")
ROWS = {"small": 10_000, "full": 100_000}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold. The small budget leaves out smtp: 30 anomalies do not survive its cut."""
    sets = [f"adbench/{name}" for name in SETS if budget == "full" or name != "smtp"]
    methods = {"IForest": IForest(), "KNN": KNN(distance="mean"), "LOF": LOF()}
    found = sweep(sets, methods, budget, progress)
    sizes = [ROWS[budget] * k for k in (1, 2, 4)]
    X = np.random.default_rng(0).normal(size=(sizes[-1], 10))
    seconds = times({n: partial(IForest(random_state=0).fit_score, X[:n]) for n in sizes})
    growth = exponent(sizes, seconds)
    ours, knn, lof = (found.mean(name) for name in methods)
    accurate, linear = ours >= max(knn, lof), growth <= LARGEST_EXPONENT
    took = ", ".join(f"{name} {found.total(name):.1f} s" for name in methods)
    return Claim(
        paper="IForest",
        published="better AUROC than ORCA, LOF and random forests on most of 12 sets, in time linear in rows",
        measure=f"mean AUROC over {len(sets)} of the paper's sets",
        ours=ours,
        baseline=("KNN, mean distance", knn),
        peer=("LOF", lof),
        threshold=THRESHOLD,
        holds=accurate and linear,
        note=f"Accuracy {verdict(accurate)}: mean AUROC {ours:.3f} against {knn:.3f} (distance) and {lof:.3f} (LOF). "
        f"Time {verdict(linear)}: exponent {growth:.2f}. On these sets: {took}.",
        numbers=found.tables() | {"Time": [{"rows": n, "seconds": t} for n, t in zip(sizes, seconds)]},
        seeds=SEEDS,
        budget=budget,
    )
