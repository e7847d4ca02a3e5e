"""ECOD: the most accurate of its peers on average, and time that grows in proportion to the table."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from farout.bench.adbench import BUDGETS
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, exponent, sweep, times, verdict
from farout.table import COPOD, ECOD, HBOS, KNN, LOF, MCD, OCSVM, PCA, IForest

LARGEST_EXPONENT = 1.15
THRESHOLD = (
    "ECOD, by the rule of the paper, has the best mean AUROC and the best mean rank of nine methods over the sets of "
    "ADBench (learned from and scored on all rows), and its time grows with exponents of at most "
    f"{LARGEST_EXPONENT} in rows and in columns."
)
SHAPES = {
    "small": [(20_000, 10), (40_000, 10), (80_000, 10), (5_000, 50), (5_000, 100), (5_000, 200)],
    "full": [(250_000, 10), (500_000, 10), (1_000_000, 10), (20_000, 50), (20_000, 100), (20_000, 200)],
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both halves must hold."""
    nine = {
        "ECOD": ECOD(),
        "COPOD": COPOD(),
        "IForest": IForest(),
        "KNN": KNN(),
        "LOF": LOF(),
        "HBOS": HBOS(),
        "PCA": PCA(),
        "MCD": MCD(),
        "OCSVM": OCSVM(),
    }
    methods = nine | {"ECOD per dimension": ECOD(rule="per_dimension")}
    found = sweep(BUDGETS[budget], methods, budget, lambda what, done: progress(what, 0.9 * done), rows=500)
    ranks, ranks_by_ap = found.ranks(list(nine)), found.ranks(list(nine), found.ap)
    best, first = max(nine, key=found.mean), min(nine, key=ranks.__getitem__)
    accurate = best == first == "ECOD"
    progress("time at n, 2n, 4n and d, 2d, 4d", 0.9)
    timed = _timed(SHAPES[budget])
    in_rows, in_columns = _growth(timed[:3], "rows", "seconds"), _growth(timed[3:], "columns", "seconds")
    linear = max(in_rows, in_columns) <= LARGEST_EXPONENT
    note = (
        f"Accuracy {verdict(accurate)}: ECOD's mean AUROC over {len(found.sets)} sets is {found.mean('ECOD'):.3f} "
        f"(rank {ranks['ECOD']:.2f} of nine) and {found.mean('ECOD per dimension'):.3f} by the rule that PyOD "
        f"computes; the best mean is {best}'s, {found.mean(best):.3f}, and the best rank {first}'s, "
        f"{ranks[first]:.2f}. Scaling {verdict(linear)}: exponents {in_rows:.2f} in rows and {in_columns:.2f} in "
        f"columns, where a bare sort of the columns has {_growth(timed[:3], 'rows', 'np.sort'):.2f} and "
        f"{_growth(timed[3:], 'columns', 'np.sort'):.2f}."
    )
    if not accurate:
        note += (
            f" {found.behind('ECOD', best)} Tails of single features cannot show rows that are odd only jointly, or "
            "that lie inside the range of every feature."
        )
    return Claim(
        paper="ECOD",
        published="best mean AUROC (0.825) and AP (0.565) of 12 detectors on 30 sets; time linear in rows and columns",
        measure=f"mean AUROC over {len(found.sets)} sets of ADBench",
        ours=found.mean("ECOD"),
        baseline=("COPOD", found.mean("COPOD")),
        peer=("IForest", found.mean("IForest")),
        threshold=THRESHOLD,
        holds=accurate and linear,
        note=note,
        numbers={
            "Mean ranks among the nine": [
                {"method": name, "by AUROC": ranks[name], "by AP": ranks_by_ap[name]} for name in nine
            ],
            **found.tables(),
            "Time": timed,
        },
        seeds=SEEDS,
        budget=budget,
    )


def _timed(shapes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Time ECOD on normal tables, beside a bare sort of their columns."""
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=shape) for shape in shapes]
    ours = times({i: partial(ECOD().fit_score, table) for i, table in enumerate(tables)})
    floor = times({i: partial(np.sort, table.T.copy(), axis=1) for i, table in enumerate(tables)})
    return [
        {"rows": n, "columns": d, "seconds": seconds, "np.sort": sort, "ratio": seconds / sort}
        for (n, d), seconds, sort in zip(shapes, ours, floor)
    ]


def _growth(timed: list[dict[str, Any]], size: str, seconds: str) -> float:
    """Fit the exponent of one column of the times over another."""
    return exponent([row[size] for row in timed], [row[seconds] for row in timed])
