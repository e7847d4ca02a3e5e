"""Marginal rarity: counts of single values find anomalies of a rare kind as well as slower methods, in linear time."""

from __future__ import annotations

from functools import partial

import numpy as np

from farout.claims._claim import Claim
from farout.claims._events import categorical
from farout.claims._tables import Progress, exponent, sweep, times, verdict
from farout.events import MarginalRarity, PairSurprise
from farout.table import IForest

LARGEST_EXPONENT = 1.15
THRESHOLD = (
    "On the six labelled tables of categories, the mean AUROC is at least that of an isolation forest on encoded "
    "categories and of the smoothed pair frequency, which counts pairs of values, and time grows with an exponent of "
    f"at most {LARGEST_EXPONENT} in events."
)
ROWS = {"small": 20_000, "full": 200_000}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold. The small budget leaves out the tables of more than 64 types."""
    sets = [one for one in categorical() if budget == "full" or one.X.shape[1] <= 64]
    methods = {"MarginalRarity": MarginalRarity(), "pairs": PairSurprise(rule="frequency"), "IForest": IForest()}
    found = sweep(sets, methods, budget, progress)
    sizes = [ROWS[budget] * k for k in (1, 2, 4)]
    codes = np.random.default_rng(0).zipf(1.5, size=(sizes[-1], 8)) % 1000
    X = codes.astype(float)
    seconds = times({n: partial(MarginalRarity().fit_score, X[:n]) for n in sizes})
    growth = exponent(sizes, seconds)
    ours, pairs, forest = (found.mean(name) for name in methods)
    accurate, linear = ours >= max(pairs, forest), growth <= LARGEST_EXPONENT
    took = ", ".join(f"{name} {found.total(name):.1f} s" for name in methods)
    return Claim(
        paper="MarginalRarity",
        published="finds as many outliers as entropy, frequent itemsets and frequent patterns do, in linear time",
        measure=f"mean AUROC over {len(sets)} tables of categories",
        ours=ours,
        baseline=("smoothed pair frequency", pairs),
        peer=("IForest on encoded categories", forest),
        threshold=THRESHOLD,
        holds=accurate and linear,
        note=f"Accuracy {verdict(accurate)}: mean AUROC {ours:.3f} against {pairs:.3f} (pairs) and {forest:.3f} "
        f"(IForest). Time {verdict(linear)}: exponent {growth:.2f}. On these tables: {took}.",
        numbers=found.tables() | {"Time": [{"rows": n, "seconds": t} for n, t in zip(sizes, seconds)]},
        seeds=(0, 1, 2),
        budget=budget,
    )
