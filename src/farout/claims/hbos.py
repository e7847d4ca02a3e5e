"""HBOS: on global outliers as good as neighbours, and several times faster."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._tables import Progress, sweep, verdict
from farout.table import HBOS, KNN, LOF

BEHIND, FASTER = 0.01, 7
THRESHOLD = (
    f"On sets whose anomalies are global, HBOS's mean AUROC is at most {BEHIND} behind that of the distance to the "
    f"fifth neighbour, and it is at least {FASTER} times faster."
)
# The paper's breast cancer, pen digits and KDD Cup sets, as ADBench has them, and shuttle, the usual global set.
SETS = ("adbench/WDBC", "adbench/breastw", "adbench/pendigits", "adbench/http", "adbench/shuttle")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold."""
    methods = {"HBOS": HBOS(), "KNN": KNN(), "LOF": LOF()}
    found = sweep(SETS, methods, budget, progress, rows=5_000)
    ours, knn, lof = (found.mean(name) for name in methods)
    faster = found.total("KNN") / found.total("HBOS")
    accurate, fast = ours >= knn - BEHIND, faster >= FASTER
    return Claim(
        paper="HBOS",
        published="on global outliers as reliable as the state of the art, and up to 7 times faster than neighbours",
        measure=f"mean AUROC over {len(SETS)} sets with global anomalies",
        ours=ours,
        baseline=("KNN", knn),
        peer=("LOF", lof),
        threshold=THRESHOLD,
        holds=accurate and fast,
        note=f"Accuracy {verdict(accurate)}: mean AUROC {ours:.3f} against {knn:.3f} (distance) and {lof:.3f} (LOF). "
        f"Speed {verdict(fast)}: {faster:.0f} times faster than the distance.",
        numbers=found.tables(),
        budget=budget,
    )
