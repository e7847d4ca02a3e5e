"""OutRank a feature, against scikit-learn's mutual information; growth with rows, features and values.

python benchmarks/outrank.py
"""

from __future__ import annotations

import numpy as np
import polars as pl
from sklearn.feature_selection import mutual_info_classif

from _timing import best, report
from farout.table import OutRank


def main() -> None:
    rng = np.random.default_rng(0)
    n = 1_000_000
    y = rng.integers(0, 2, n)
    for levels in (10, 100, 2_000, 50_000):
        X = rng.integers(0, levels, (n, 8))
        frame = pl.DataFrame(X)
        seconds = best(
            {
                "OutRank, frame": lambda frame=frame: OutRank().fit(frame, y),
                "OutRank, array": lambda X=X: OutRank().fit(X, y),
                "OutRank, permutation, frame": lambda frame=frame: OutRank(background="permutation").fit(frame, y),
            }
        )
        seconds |= best({"peer": lambda X=X: mutual_info_classif(X, y, discrete_features=True)}, rounds=2)
        floor = "a tenth of mutual_info_classif"
        seconds[floor] = seconds.pop("peer") / 10
        report(f"8 features of {levels:,} values, 1M rows", seconds, floor, {"OutRank, frame": 1.0})

    wide = pl.DataFrame(rng.integers(0, 1_000, (400_000, 32)))
    many = pl.DataFrame(rng.integers(0, 50_000, (200_000, 16)))
    grown = {
        "200,000 x 16, 1,000 values": lambda: OutRank().fit(wide[:200_000, :16], y[:200_000]),
        "twice the rows": lambda: OutRank().fit(wide[:, :16], y[:400_000]),
        "twice the features": lambda: OutRank().fit(wide[:200_000], y[:200_000]),
        "50 times the values": lambda: OutRank().fit(many, y[:200_000]),
    }
    limits = {"twice the rows": 2.4, "twice the features": 2.4, "50 times the values": 4.0}
    report("growth", best(grown), "200,000 x 16, 1,000 values", limits)


if __name__ == "__main__":
    main()
