"""Tables beyond memory: peak memory of ``farout score`` on 10M x 20 parquet, and time at 5M against 10M rows.

python benchmarks/stream.py [rows]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def main(rows: int = 10_000_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for n in (rows // 2, rows):
            path = Path(folder) / f"{n}.parquet"
            _write(path, n)
            start = time.perf_counter()
            _score(path, "stream")
            seconds[n] = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            print(f"{n:,} x 20 parquet, streamed: {seconds[n]:.1f} s, peak {peak:.2f} GB (limit 1.5)")
        print(f"twice the rows: {seconds[rows] / seconds[rows // 2]:.2f} x the time (linear is 2)")


def _write(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"x{j}" for j in range(20)]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in names])) as writer:
        for start in range(0, n, 250_000):
            block = rng.standard_t(4, size=(20, min(250_000, n - start)))
            writer.write_table(pa.table(dict(zip(names, block))))


def _score(path: Path, engine: str) -> None:
    out = path.with_suffix(".scores.parquet")
    command = ["score", str(path), "--engine", engine, "-o", str(out), "--quiet", "--top", "0"]
    subprocess.run([sys.executable, "-m", "farout", *command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
