"""What the runner of many small sets costs beside the methods themselves.

python benchmarks/macrodata.py [sets of a kind]

The floor is the seconds that the methods took, over the number of processes. Drawn sets, two quick methods: here the
runner weighs most.
"""

from __future__ import annotations

import sys
import time

from farout.bench import _cells, suites
from farout.data import synbench
from farout.table import ECOD, HBOS, KNN

LIMIT = 10.0  # milliseconds a cell beside the methods, in one process


def main(seeds: int = 8) -> None:
    sets = [name for seed in range(seeds) for name in synbench.names(seed)]
    methods = {"ECOD": ECOD(), "HBOS": HBOS(), "KNN": KNN()}
    suites.run(sets[:4], methods, "split", n_jobs=2)  # starts the processes and loads what they import
    started = time.perf_counter()
    for name in sets:
        synbench.load(name)
    drawing = time.perf_counter() - started
    n_cells = len(sets) * len(methods)
    print(f"{len(sets)} sets x {len(methods)} methods; drawing the sets takes {drawing:.2f} s of each run")
    together = _cells.TOGETHER
    beside = {}
    for words, jobs, size in (
        ("one process", 1, together),
        ("two processes, a task for each set", 2, together),
        ("two processes, a task for each cell", 2, 0),
    ):
        _cells.TOGETHER = size
        started = time.perf_counter()
        table = suites.run(sets, methods, "split", n_jobs=jobs)
        wall, floor = time.perf_counter() - started - drawing, table["seconds"].sum() / jobs
        beside[words] = 1_000 * (wall - floor) / n_cells
        print(
            f"  {words:36} {wall:6.2f} s, {wall / floor:5.2f} x the methods; {beside[words]:5.2f} ms a cell beside them"
        )
    _cells.TOGETHER = together
    ours = beside["one process"]
    print(f"{ours:.2f} ms a cell (at most {LIMIT:g}): {'ok' if ours <= LIMIT else 'TOO SLOW'}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
