"""Pair surprise: comparing pairs with their marginals finds odd combinations that a likelihood of values misses."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.bench.metrics import auroc
from farout.claims._claim import Claim
from farout.claims._events import TASKS, categorical, swap_tables
from farout.claims._tables import SEEDS, Progress, sweep, verdict
from farout.events import MarginalRarity, PairSurprise
from farout.table import ECOD

BEHIND = 0.1
THRESHOLD = (
    "On authentication events with swapped entities, the mean AUROC over four tasks and three seeds is above that of "
    "the sum of -log marginals and of the smoothed pair frequency, a likelihood of pairs; and on six labelled tables "
    "of categories, whose anomalies are mostly rare values, its mean AUROC is at most "
    f"{BEHIND} behind the sum of -log marginals."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold. The small budget takes fewer events, and no table of more than 64 types."""
    small = budget == "small"
    known, tables = swap_tables(small)
    methods = {
        "PairSurprise": PairSurprise(),
        "sum of surprises": PairSurprise(rule="sum"),
        "pair frequency": PairSurprise(rule="frequency"),
        "marginals": MarginalRarity(),
        "ECOD": ECOD(),
    }
    rows: list[dict[str, Any]] = []
    for drawn, swapped in TASKS:
        row: dict[str, Any] = {"entities": drawn, "swapped": swapped}
        for name, method in methods.items():
            method.fit(known)
            found = [auroc(y, method.outlier_score(X)) for X, y in (tables[drawn, swapped, seed] for seed in SEEDS)]
            row[name] = float(np.mean(found))
        rows.append(row)
        progress(f"{drawn}, {swapped}", len(rows) / (2 * len(TASKS)))
    swaps = {name: float(np.mean([row[name] for row in rows])) for name in methods}
    sets = [one for one in categorical() if not small or one.X.shape[1] <= 64]
    labelled = sweep(sets, methods, budget, progress)
    kinds = {name: labelled.mean(name) for name in methods}
    odd_pairs = swaps["PairSurprise"] > max(swaps["marginals"], swaps["pair frequency"])
    rare_kinds = kinds["PairSurprise"] >= kinds["marginals"] - BEHIND
    return Claim(
        paper="PairSurprise",
        published="finds anomalous records of categories better than the likelihood under a Bayes net",
        measure="mean AUROC over four tasks of swapped entities",
        ours=swaps["PairSurprise"],
        baseline=("sum of -log marginals", swaps["marginals"]),
        peer=("smoothed pair frequency", swaps["pair frequency"]),
        threshold=THRESHOLD,
        holds=odd_pairs and rare_kinds,
        note=f"Swapped entities {verdict(odd_pairs)}: mean AUROC {swaps['PairSurprise']:.3f} against "
        f"{swaps['marginals']:.3f} (marginals) and {swaps['pair frequency']:.3f} (pair frequency). Rare kinds "
        f"{verdict(rare_kinds)}: {kinds['PairSurprise']:.3f} against {kinds['marginals']:.3f} on {len(sets)} tables, "
        "where values that are rare by themselves give the anomalies away.",
        numbers={"AUROC by task": rows} | labelled.tables(),
        seeds=SEEDS,
        budget=budget,
    )
