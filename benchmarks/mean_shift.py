"""Mean-shift scoring: a step beside the neighbour search that it needs, and beside the loop over rows of the papers.

python benchmarks/mean_shift.py [rows]
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.neighbors import NearestNeighbors

from _timing import best, report
from farout.table import APRE
from farout.table._neighbours import Neighbours
from farout.table.mean_shift import shift

K = 30
STEP, LOOP, FIVE = 1.6, 5, 2.5  # limits: a step over its search, over a step of the loop, five networks over one


def main(n: int = 5_000, d: int = 10) -> None:
    X = np.random.default_rng(0).normal(size=(n, d))

    def row_by_row() -> None:
        search = NearestNeighbors(n_neighbors=K + 1).fit(X)
        for row in X:
            X[search.kneighbors(row[None], return_distance=False)[0, 1:]].mean(axis=0)

    seconds = best(
        {
            "a neighbour search": lambda: Neighbours(X).nearest(None, K, None),
            "one step": lambda: shift(X, K, 1),
            "one step, row by row": row_by_row,
        },
        rounds=3,
    )
    report(f"mean-shift of {n:,} rows, {d} columns, k = {K}", seconds, "a neighbour search", {"one step": STEP})
    ratio = seconds["one step, row by row"] / seconds["one step"]
    print(f"{ratio:.0f} times as fast as row by row (at least {LOOP}): {'ok' if ratio >= LOOP else 'TOO SLOW'}")

    rows = X[:1_000]
    seconds = best(
        {
            f"{count} network{'s' * (count > 1)}": lambda count=count: APRE(
                n_init=count, epochs=10, patience=None, device="cpu", random_state=0
            ).fit(rows)
            for count in (1, 5)
        },
        rounds=3,
    )
    report("APRE on 1,000 rows, 10 epochs", seconds, "1 network", {"5 networks": FIVE})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
