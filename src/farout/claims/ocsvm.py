"""OCSVM: nu bounds the share of training rows outside and of support vectors, and the boundary finds new digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, sweep, verdict
from farout.data import Dataset, load
from farout.table import KNN, OCSVM

SOLVER = 1e-3  # libsvm's tolerance: rows nearer than this to the boundary count as on it
CLOSE = 0.02
THRESHOLD = (
    "For nu of 0.05, 0.1, 0.2 and 0.5, in every draw, the share of training rows outside is at most nu and the share "
    f"of support vectors at least nu, both within {CLOSE} of it at the largest number of rows; and with each "
    "handwritten digit learned from half of its pictures, the mean AUROC is at least that of Parzen windows."
)
NUS, SIZES = (0.05, 0.1, 0.2, 0.5), {"small": (250, 1_000), "full": (250, 1_000, 4_000)}
NU = 0.05  # the paper's, for novelties among digits


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; where nu comes near 1, all rows are support vectors of equal weight: Parzen windows."""
    shares = [_shares(seed, nu, n) for nu in NUS for n in SIZES[budget] for seed in SEEDS]
    most = SIZES[budget][-1]
    bounded = all(row["outside"] <= row["nu"] <= row["support vectors"] for row in shares)
    final = [row for row in shares if row["rows"] == most]
    apart = max(abs(row[share] - row["nu"]) for row in final for share in ("outside", "support vectors"))
    sets: list[str | Dataset] = [_one_digit(digit) for digit in range(10)]
    if budget == "full":
        sets.append("adbench/optdigits")
    methods = {"OCSVM": OCSVM(nu=NU), "Parzen": OCSVM(nu=0.99), "KNN": KNN()}
    found = sweep(sets, methods, budget, progress, protocol="one-class")
    ours, parzen, knn = (found.mean(name) for name in methods)
    nu_property, novelty = bounded and apart <= CLOSE, ours >= parzen
    return Claim(
        paper="OCSVM",
        published="nu bounds the share outside from above and that of support vectors from below, and both reach it",
        measure=f"mean AUROC over {len(sets)} sets of digits, learned from one class",
        ours=ours,
        baseline=("Parzen windows", parzen),
        peer=("KNN", knn),
        threshold=THRESHOLD,
        holds=nu_property and novelty,
        note=f"The bounds: {verdict(nu_property)}; kept in {'all' if bounded else 'not all'} of {len(shares)} fits, "
        f"and at {most:,} rows at most {apart:.3f} from nu. Novel digits: {verdict(novelty)}; mean AUROC {ours:.3f} "
        f"against {parzen:.3f} (Parzen windows) and {knn:.3f} (neighbours).",
        numbers={"Shares of the training rows": shares} | found.tables(),
        seeds=SEEDS,
        budget=budget,
    )


def _shares(seed: int, nu: float, n: int) -> dict[str, Any]:
    """Count which of n normal rows in the plane are outside, and which are support vectors."""
    X = np.random.default_rng(seed).normal(size=(n, 2))
    detector = OCSVM(nu=nu).fit(X)
    outside = -detector.outlier_score(X) < detector.machine_.offset_[0] - SOLVER
    n_vectors = len(detector.machine_.support_)
    return {"nu": nu, "rows": n, "seed": seed, "outside": float(outside.mean()), "support vectors": n_vectors / n}


def _one_digit(digit: int) -> Dataset:
    """Take the handwritten digits of scikit-learn, all but one of them as anomalies."""
    data = load("digits")
    return Dataset(f"digit {digit}", data.X, (data.y != digit).astype(np.int8), data.columns, data.source, data.licence)
