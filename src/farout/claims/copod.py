"""COPOD: without a parameter the best of its peers on average, and among the fastest."""

from __future__ import annotations

from farout.bench.adbench import BUDGETS
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, sweep, verdict
from farout.table import COPOD, HBOS, KNN, LOF, MCD, OCSVM, PCA, IForest

THRESHOLD = (
    "COPOD, as its authors compute it, has the best mean AUROC over the sets of ADBench of eight methods that are "
    "older than ECOD, and is among the three that take the least time."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold."""
    methods = {
        "COPOD": COPOD(),
        "IForest": IForest(),
        "KNN": KNN(),
        "LOF": LOF(),
        "HBOS": HBOS(),
        "PCA": PCA(),
        "MCD": MCD(),
        "OCSVM": OCSVM(),
    }
    found = sweep(BUDGETS[budget], methods, budget, progress, rows=500)
    ranks = found.ranks(list(methods))
    best, by_time = max(methods, key=found.mean), sorted(methods, key=found.total)
    accurate, fast = best == "COPOD", "COPOD" in by_time[:3]
    return Claim(
        paper="COPOD",
        published="better than nine other detectors in most cases on 30 sets, without parameters, among the fastest",
        measure=f"mean AUROC over {len(found.sets)} sets of ADBench",
        ours=found.mean("COPOD"),
        baseline=("KNN", found.mean("KNN")),
        peer=("IForest", found.mean("IForest")),
        threshold=THRESHOLD,
        holds=accurate and fast,
        note=f"Accuracy {verdict(accurate)}: COPOD's mean AUROC is {found.mean('COPOD'):.3f} (rank "
        f"{ranks['COPOD']:.2f} of eight), the best is {best}'s, {found.mean(best):.3f}. Time {verdict(fast)}: place "
        f"{by_time.index('COPOD') + 1} of eight." + ("" if accurate else f" {found.behind('COPOD', best)}"),
        numbers={"Mean ranks": [{"method": name, "rank": rank} for name, rank in ranks.items()]} | found.tables(),
        seeds=SEEDS,
        budget=budget,
    )
