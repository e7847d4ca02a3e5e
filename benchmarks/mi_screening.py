"""Screening 5,000 columns by kernel mutual information: time a column beside scikit-learn's and a transform's.

python benchmarks/mi_screening.py [columns]
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.fft import irfft2, rfft2
from sklearn.feature_selection import mutual_info_regression

from _timing import best, report
from farout.table.mi_screening import PLANE, MIScreening


def main(columns: int = 5_000, few: int = 500) -> None:
    rng = np.random.default_rng(0)
    for rows in (1_000, 5_000):
        X = rng.normal(size=(rows, columns))
        y = X[:, 0] ** 2 + rng.normal(size=rows)
        grid = rng.random((PLANE, PLANE))
        rivals = {
            "kernels": lambda X=X, y=y: MIScreening().fit(X, y),
            "neighbours, scikit-learn": lambda X=X, y=y: mutual_info_regression(X[:, :few], y, random_state=0),
            "histograms": lambda X=X, y=y: MIScreening(method="histogram").fit(X[:, :few], y),
            "correlation": lambda X=X, y=y: MIScreening(method="pearson").fit(X, y),
            "transform": lambda grid=grid: [irfft2(rfft2(grid), grid.shape) for _ in range(few)],
        }
        counts = dict(zip(rivals, (columns, few, few, columns, few)))
        seconds = {name: time / counts[name] for name, time in best(rivals, rounds=2).items()}
        floor = "transform there and back"
        seconds[floor] = seconds.pop("transform")
        report(f"a column of {rows:,} rows, {columns:,} columns", seconds, floor, {"kernels": 5.0})
        ratio = seconds["kernels"] / seconds["neighbours, scikit-learn"]
        print(f"  kernels take {ratio:.2f} times as long as scikit-learn's neighbours")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
