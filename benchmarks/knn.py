"""Distances to neighbours beside scikit-learn's exact searches, one thread; and what the approximate search misses.

python benchmarks/knn.py [exact | approximate | all]

The floor is the quickest of scikit-learn's exact searches (brute, kd_tree, ball_tree), which find the neighbours of the
same rows, already standardised, in the same run. A search that takes five times the quickest in a first round is left
out of the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from _timing import best, report
from farout import data
from farout.bench.metrics import auroc
from farout.table import KNN
from farout.table._neighbours import Neighbours

LIMIT = 1.2  # times the quickest of scikit-learn's
K = 5
TRAINED = ((20_000, 10), (100_000, 5), (20_000, 50))
ASKED = ((50_000, 10), (50_000, 50), (50_000, 512))
QUERIES = 512
SIZES = (200_000, 500_000, 1_000_000)
SETS = ("skin", "cover", "http", "donors", "celeba")
DRAWN = 2_000  # rows whose true neighbours are looked up


def main(part: str = "all") -> None:
    with threadpool_limits(1):
        if part in ("exact", "all"):
            for n, d in TRAINED:
                trained(n, d)
            for n, d in ASKED:
                asked(n, d)
        if part in ("approximate", "all"):
            for n in SIZES:
                compared(f"normal, {n:,} x 10", np.random.default_rng(0).normal(size=(n, 10)), None)
            for name in SETS:
                found = data.load(f"adbench/{name}")
                compared(f"{name}, {found.X.shape[0]:,} x {found.X.shape[1]}", found.X, found.y)


def trained(n: int, d: int) -> None:
    """Race for the scores of the training rows."""
    X = np.random.default_rng(0).normal(size=(n, d))
    rows = standardised(X)

    def sklearn(way: str) -> object:
        return NearestNeighbors(n_neighbors=K, algorithm=way).fit(rows).kneighbors()

    raced(f"fit_score, {n:,} x {d}", lambda: KNN(K).fit_score(X), sklearn)


def asked(n: int, d: int) -> None:
    """Race for the scores of new rows; both sides have been fitted before."""
    X = np.random.default_rng(0).normal(size=(n + QUERIES, d))
    rows = standardised(X)
    ways = ("brute", "kd_tree") if d <= 100 else ("brute",)  # a tree of so many columns takes minutes
    fitted = {way: NearestNeighbors(n_neighbors=K, algorithm=way).fit(rows[:n]) for way in ways}
    ours = Neighbours(rows[:n])
    ours.nearest(rows[n : n + 1], K, None)  # chooses its search, as fitting does
    title = f"{QUERIES} new rows against {n:,} x {d}"
    raced(title, lambda: ours.nearest(rows[n:], K, None), lambda way: fitted[way].kneighbors(rows[n:]), ways)


def raced(
    title: str,
    ours: Callable[[], object],
    theirs: Callable[[str], object],
    ways: tuple[str, ...] = ("brute", "kd_tree", "ball_tree"),
) -> None:
    """Print our ratio to the quickest of scikit-learn's searches."""
    first = {}
    for way in ways:
        start = time.perf_counter()
        theirs(way)
        first[way] = time.perf_counter() - start
    kept = [way for way in ways if first[way] < 5 * min(first.values())]
    rivals: dict[str, Callable[[], object]] = {f"scikit-learn, {way}": lambda way=way: theirs(way) for way in kept}
    seconds = best({"farout": ours, **rivals}, rounds=5)
    report(title, seconds, min(rivals, key=lambda name: seconds[name]), {"farout": LIMIT})


def compared(title: str, X: np.ndarray, y: np.ndarray | None) -> None:
    """Print how much time the approximate search saves, and what it misses among drawn rows.

    Seconds are of the processor, since the rivals do not take turns here.
    """
    near = KNN(K, search="approximate")
    start = time.process_time()
    scores = near.fit_score(X)
    quick = time.process_time() - start
    rows = near.neighbours_.rows
    drawn = np.random.default_rng(1).choice(len(rows), DRAWN, replace=False)
    exact = Neighbours(rows)
    exact.nearest(rows[:1], K, None)  # chooses its search
    start = time.process_time()
    truth, _ = exact.nearest(rows[drawn], K + 1, None)  # a row is the nearest to itself
    slow = (time.process_time() - start) / DRAWN * len(rows)
    about, _ = near.neighbours_.nearest(rows[drawn], K + 1, None)
    # by distance: of neighbours that are equally far, any will do
    recall = np.mean(about[:, 1:] <= truth[:, -1:] * (1 + 1e-12))
    far = truth[:, -1] > 0
    ratio = about[far, -1] / truth[far, -1]
    words = f"{title:24} {quick:6.1f} s, exact {slow:7.1f} s: {slow / quick:5.1f} x; looks {exact.visits:8,.0f}; "
    words += f"recall {recall:.3f}; distance {ratio.mean():.4f} x, 99 % below {np.quantile(ratio, 0.99):.3f} x"
    if y is not None:
        kept = np.zeros(len(y), bool)
        kept[drawn] = True
        kept |= (y == 1) & (np.random.default_rng(2).random(len(y)) < 2 * DRAWN / y.sum())
        true_scores = exact.nearest(rows[kept], K + 1, None)[0][:, -1]
        words += f"; AUROC {auroc(y[kept], scores[kept]):.4f}, exact {auroc(y[kept], true_scores):.4f}"
    print(words, flush=True)


def standardised(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(axis=0)) / X.std(axis=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
