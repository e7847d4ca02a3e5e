"""kNN: the distance to the k-th neighbour finds outliers, and an index finds the same ones far faster than a loop."""

from __future__ import annotations

from functools import partial

import numpy as np

from farout.bench.adbench import BUDGETS
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, sweep, times, verdict
from farout.table import HBOS, KNN, IForest

FASTER = 10
THRESHOLD = (
    "The mean AUROC of the distance to the fifth neighbour over the sets of ADBench is at least that of HBOS, which "
    "looks at one feature at a time; and on the paper's construction, 100 clusters in the plane and uniform outliers, "
    f"the index finds the same top rows as the nested loop over all pairs, at least {FASTER} times faster."
)
PER_CLUSTER = {"small": 100, "full": 500}  # the paper has 1,000


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold."""
    methods = {"KNN": KNN(), "HBOS": HBOS(), "IForest": IForest()}
    found = sweep(BUDGETS[budget], methods, budget, lambda what, done: progress(what, 0.8 * done))
    progress("index against nested loop", 0.8)
    n = PER_CLUSTER[budget]
    X, search = _clusters(n), KNN(standardize=False)
    same = set(np.argsort(-search.fit_score(X))[:n]) == set(np.argsort(-_all_pairs(X))[:n])
    index, loop = times({0: partial(search.fit_score, X), 1: partial(_all_pairs, X)}, repeats=2)
    ours, hbos, forest = (found.mean(name) for name in methods)
    accurate, fast = ours >= hbos, same and loop >= FASTER * index
    note = f"Accuracy {verdict(accurate)}: mean AUROC {ours:.3f}, HBOS's {hbos:.3f}, the forest's {forest:.3f}. "
    if not accurate:
        note += f"{found.behind('KNN', 'HBOS')} Anomalies that come in crowds are each other's neighbours. "
    note += (
        f"Speed {verdict(fast)}: the top {n} of {len(X):,} rows are {'' if same else 'not '}the same, "
        f"{loop / index:.0f} times faster than the nested loop."
    )
    return Claim(
        paper="KNN",
        published="ranking by the distance to the k-th neighbour finds outliers; partitions make that fast",
        measure=f"mean AUROC over {len(found.sets)} sets of ADBench",
        ours=ours,
        baseline=("HBOS", hbos),
        peer=("IForest", forest),
        threshold=THRESHOLD,
        holds=accurate and fast,
        note=note,
        numbers=found.tables()
        | {"Time on the clusters": [{"rows": len(X), "index": index, "nested loop": loop, "ratio": loop / index}]},
        seeds=SEEDS,
        budget=budget,
    )


def _clusters(n: int) -> np.ndarray:
    """Make a grid of 100 round clusters of n rows in the plane, and n uniform outliers."""
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), axis=-1).reshape(-1, 1, 2)
    rows = centres + rng.normal(scale=0.1, size=(100, n, 2))
    return np.concatenate((rows.reshape(-1, 2), rng.uniform(-1, 10, size=(n, 2))))


def _all_pairs(X: np.ndarray) -> np.ndarray:
    """Return the distance to the fifth neighbour from all pairs of rows, compiled like the index."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=5, algorithm="brute").fit(X).kneighbors()[0][:, -1]
