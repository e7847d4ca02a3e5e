"""What a user waits for: import, help, scoring a small csv from the shell; and the forest against scikit-learn.

python benchmarks/command_line.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.ensemble import IsolationForest

from _timing import best, report
from farout.table import IForest


def main() -> None:
    python = [sys.executable]
    seconds = best(
        {
            "import numpy": _run([*python, "-c", "import numpy"]),
            "import farout": _run([*python, "-c", "import farout"]),
            "python -m farout --help": _run([*python, "-m", "farout", "--help"]),
        }
    )
    report("start", seconds, "import numpy", {"import farout": 1.5})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        _run([*python, "-m", "farout", "--help"])()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 5
    print(f"  farout --help: {cpu:.2f} s of CPU (limit 0.4)")

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.csv"
        pl.DataFrame(rng.normal(size=(10_000, 20))).write_csv(path)
        score = [*python, "-m", "farout", "score", str(path), "-o", f"{folder}/x.html", "-o", f"{folder}/x.parquet"]
        runs = {method: _run([*score, "--method", method]) for method in ("ecod", "default")}
        seconds = best({"import scikit-learn": _run([*python, "-c", "import sklearn.base"]), **runs}, 3)
        print(f"\nfarout score, 10,000 x 20 csv with page: ecod {seconds['ecod']:.2f} s (limit 3), ", end="")
        print(f"default {seconds['default']:.2f} s (limit 5)")

    X = rng.normal(size=(50_000, 20))

    def sklearn_forest() -> None:
        IsolationForest(random_state=0).fit(X).score_samples(X)

    seconds = best(
        {"scikit-learn": sklearn_forest, "IForest fit + score": lambda: IForest(random_state=0).fit_score(X)}
    )
    report("isolation forest, 50,000 x 20", seconds, "scikit-learn", {"IForest fit + score": 1.1})


def _run(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
