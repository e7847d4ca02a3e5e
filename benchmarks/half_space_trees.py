"""Half-space trees on a stream: events a second in batches, beside river and beside one row at a time.

python benchmarks/half_space_trees.py [events]
"""

from __future__ import annotations

import sys

import numpy as np
from river import anomaly

from _timing import best
from farout.table import HalfSpaceTrees

LIMIT = 20  # times as many events a second as river


def main(events: int = 10_000, few: int = 1_000) -> None:
    X = np.random.default_rng(0).beta(2, 5, size=(events, 10))
    rows = [dict(enumerate(row)) for row in X[:few].tolist()]
    model = anomaly.HalfSpaceTrees(n_trees=25, height=15, window_size=250, seed=0)
    model.learn_one(rows[0])  # makes the trees, which takes river seconds

    def river() -> None:
        for row in rows:
            model.score_one(row)
            model.learn_one(row)

    scores: dict[int, np.ndarray] = {}

    def in_batches(of: int, n: int) -> None:
        trees = HalfSpaceTrees(random_state=0)
        scores[of] = np.concatenate([trees.score_partial_fit(X[i : i + of]) for i in range(0, n, of)])

    seconds = best(
        {
            "river, one by one": river,
            "farout, batches of 1,000": lambda: in_batches(1_000, events),
            "farout, one by one": lambda: in_batches(1, few),
        },
        rounds=3,
    )
    counts = dict(zip(seconds, (few, events, few)))
    rates = {name: counts[name] / time for name, time in seconds.items()}
    print("score, then learn; 25 trees of height 15, windows of 250 rows, 10 columns")
    for name, rate in rates.items():
        print(f"  {name:26} {rate:10,.0f} events a second   {rate / rates['river, one by one']:6.1f} x")
    ratio = rates["farout, batches of 1,000"] / rates["river, one by one"]
    print(f"{ratio:.0f} times river's rate (at least {LIMIT}): {'ok' if ratio >= LIMIT else 'TOO SLOW'}")
    same = np.array_equal(scores[1], scores[1_000][:few])
    print(f"scores in batches are {'' if same else 'NOT '}those of one row at a time")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
