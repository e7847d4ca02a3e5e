"""LOF: outliers that are far out only for their own neighbourhood, which one distance for all cannot see."""

from __future__ import annotations

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, sweep, verdict
from farout.table import KNN, LOF, IForest

THRESHOLD = (
    "On the paper's construction, a loose and a dense cluster with an outlier near each, LOF ranks both outliers first "
    "in every draw, while the distance to the fifth neighbour ranks the one beside the dense cluster behind more than "
    "half of the loose cluster; and over four real sets LOF's mean AUROC is above that of the distance."
)
SETS = ("adbench/letter", "adbench/vowels", "adbench/fault", "adbench/Wilt")
LOOSE, DENSE = 400, 100


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold."""
    drawn = [{"seed": seed} | _ranks(seed) for seed in SEEDS]
    worst, hidden = max(row["LOF, worse of both"] for row in drawn), [row["KNN, beside dense"] for row in drawn]
    planted = worst == 2 and min(hidden) > LOOSE / 2
    methods = {"LOF": LOF(), "KNN": KNN(), "IForest": IForest()}
    found = sweep(SETS, methods, budget, progress, rows=1_500)
    ours, knn, forest = (found.mean(name) for name in methods)
    real = ours > knn
    return Claim(
        paper="LOF",
        published="a factor local to each row finds outliers that global notions miss",
        measure="mean AUROC over letter, vowels, fault and Wilt",
        ours=ours,
        baseline=("KNN", knn),
        peer=("IForest", forest),
        threshold=THRESHOLD,
        holds=planted and real,
        note=f"Planted outliers: {verdict(planted)}; LOF ranks both at {worst} or better, the distance ranks the one "
        f"beside the dense cluster at {', '.join(map(str, hidden))} of {LOOSE + DENSE + 2}. Real sets: "
        f"{verdict(real)}; mean AUROC {ours:.3f} against {knn:.3f} (distance) and {forest:.3f} (forest)."
        + ("" if real else f" {found.behind('LOF', 'KNN')}"),
        numbers={"Ranks of the planted outliers (1 is farthest out)": drawn} | found.tables(),
        seeds=SEEDS,
        budget=budget,
    )


def _ranks(seed: int) -> dict[str, int]:
    """Rank an outlier far from all, and one that is near the dense cluster by the measure of the loose one."""
    rng = np.random.default_rng(seed)
    loose = rng.uniform(-10, 10, size=(LOOSE, 2))
    dense = rng.uniform([24.5, -0.5], [25.5, 0.5], size=(DENSE, 2))
    X = np.concatenate((loose, dense, [[12.0, 25.0], [25.0, 1.2]]))
    lof, knn = (
        len(X) - np.argsort(np.argsort(method.fit_score(X), kind="stable"))[-2:]
        for method in (LOF(standardize=False), KNN(standardize=False))
    )
    return {"LOF, worse of both": int(lof.max()), "KNN, beside dense": int(knn[1])}
