"""MCD: robust distances find a crowd of outliers that hides from classical ones by moving mean and covariance."""

from __future__ import annotations

import numpy as np

from farout.bench.metrics import auroc
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, sweep, verdict
from farout.table import KNN, MCD, PCA

FOUND, MASKED, TIGHT = 0.99, 0.9, 0.1  # a tight cluster has a tenth of the spread of the other rows
THRESHOLD = (
    "With a fifth of the rows in one far and tight cluster, in 5, 10 and 20 dimensions, MCD's AUROC is at least "
    f"{FOUND} in every draw while that of the classical Mahalanobis distance is below {MASKED}; and on real sets with "
    "many outliers MCD's mean AUROC is above the classical one."
)
# The sets of ADBench of which more than a tenth of the rows are anomalies, up to 7,500 rows and 50 columns.
SETS = (
    "adbench/breastw",
    "adbench/Cardiotocography",
    "adbench/fault",
    "adbench/Hepatitis",
    "adbench/Ionosphere",
    "adbench/landsat",
    "adbench/Pima",
    "adbench/satellite",
    "adbench/vertebral",
    "adbench/WPBC",
    "adbench/yeast",
)
CLASSICAL = PCA(components="all", trim=0.0)  # over all components: the squared Mahalanobis distance


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold."""
    planted = [_planted(seed, d, spread) for spread in (TIGHT, 1.0) for d in (5, 10, 20) for seed in SEEDS]
    tight = [row for row in planted if row["spread"] == TIGHT]
    wide = [row for row in planted if row["spread"] != TIGHT]
    masked = all(row["MCD"] >= FOUND and row["classical"] < MASKED for row in tight)
    methods = {"MCD": MCD(), "classical": CLASSICAL, "KNN": KNN()}
    found = sweep(SETS, methods, budget, progress, rows=500)
    ours, classical, knn = (found.mean(name) for name in methods)
    real = ours > classical
    note = f"Planted cluster: {verdict(masked)}; {_range(tight)}."
    if not masked:
        note += (
            " With 10 columns or more the smallest ellipsoid over half of the rows contains a tight cluster, so that "
            "the exact estimate is misled as well; with 5 columns it does not, but the search may miss it. With a "
            f"cluster as wide as the other rows {_range(wide)}."
        )
    return Claim(
        paper="MCD",
        published="robust distances show outliers that mask each other in classical ones; fast on large data",
        measure=f"mean AUROC over {len(SETS)} sets with many outliers",
        ours=ours,
        baseline=("classical Mahalanobis distance", classical),
        peer=("KNN", knn),
        threshold=THRESHOLD,
        holds=masked and real,
        note=f"{note} Real sets: {verdict(real)}; mean AUROC {ours:.3f} against {classical:.3f} (classical) and "
        f"{knn:.3f} (neighbours).",
        numbers={"AUROC on planted clusters": planted} | found.tables(),
        seeds=SEEDS,
        budget=budget,
    )


def _planted(seed: int, d: int, spread: float, n: int = 500) -> dict[str, float]:
    """Compare both distances where a fifth of normal rows sit in a cluster far from the others."""
    X = np.random.default_rng(seed).normal(size=(n, d))
    label = np.arange(n) < n // 5
    X[label] = 10 + spread * X[label]
    robust, classical = (auroc(label, method.fit_score(X)) for method in (MCD(random_state=seed), CLASSICAL))
    return {"spread": spread, "columns": d, "seed": seed, "MCD": robust, "classical": classical}


def _range(rows: list[dict[str, float]]) -> str:
    """Say the least AUROC of MCD and the largest of the classical distance."""
    least, most = min(row["MCD"] for row in rows), max(row["classical"] for row in rows)
    return f"MCD's AUROC is at least {least:.3f}, that of the classical distance at most {most:.3f}"
