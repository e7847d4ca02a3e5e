"""ECOD against its floor, a plain sort of every column, and against PyOD; one new row; the fitted object's size.

python benchmarks/ecod.py
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from pyod.models.ecod import ECOD as PyODECOD

from _timing import best, report
from farout.table import ECOD

warnings.simplefilter("ignore")


def main() -> None:
    rng = np.random.default_rng(0)
    for n, d, one, two in ((100_000, 50, 2.0, 1.2), (1_000_000, 20, 2.5, 1.5)):
        X = rng.normal(size=(n, d))
        ties, fitted = np.round(X, 1), ECOD().fit(X)
        seconds = best(
            {
                "np.sort(X, axis=0)": lambda X=X: np.sort(X, axis=0),
                "ECOD fit + score, one thread": lambda X=X: ECOD().fit_score(X),
                "ECOD fit + score, two threads": lambda X=X: ECOD(n_jobs=2).fit_score(X),
                "the same, tied values, one thread": lambda X=ties: ECOD().fit_score(X),
                "score the same rows as new": lambda X=X, fitted=fitted: fitted.outlier_score(X),
            }
        )
        seconds |= best({"PyOD fit (peer)": lambda X=X: PyODECOD().fit(X)}, rounds=1)
        limits = {"ECOD fit + score, one thread": one, "ECOD fit + score, two threads": two}
        report(f"ECOD on {n:,} x {d}, float64", seconds, "np.sort(X, axis=0)", limits)

    row = X[:1].copy()
    start = time.perf_counter()
    for _ in range(200):
        fitted.outlier_score(row)
    print(f"\none new row after 1M x 20: {(time.perf_counter() - start) * 5:.3f} ms (limit 1)")
    for name, detector, limit in (
        ("exact", fitted, 1.2 * X.nbytes),
        ("sketch", ECOD(sketch=0.002).fit(X), 10_000_000),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ecod"
            detector.save(path)
            size = path.stat().st_size
        print(f"fitted object, {name}: {size / 1e6:.1f} MB (limit {limit / 1e6:.1f})")


if __name__ == "__main__":
    main()
