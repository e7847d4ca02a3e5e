"""How long ``farout inspect`` makes one wait, by phase, beside the plain forward pass over the same sample.

python benchmarks/inspecting.py [model]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from farout.inspecting import inspect
from farout.inspecting._samples import sample_for
from farout.inspecting._steps import open_named

LIMIT = 180.0  # seconds on two cores, for a model of 135 million parameters


def main(model: str = "smollm2-135m") -> None:
    found = inspect(model)
    seconds = dict(found.settings["seconds"])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found.save(Path(folder) / "page.html")
        found.save(Path(folder) / "twin.json")
        seconds["page and twin"] = time.perf_counter() - started
    total = seconds.pop("in all") + seconds["page and twin"]

    opened = open_named(model, {"tokenizer": None, "device": "cpu"}, None)
    sample = sample_for(opened, None, found.settings["samples"])
    batches = sample.batches(opened, found.settings["length"], found.settings["batch_size"])
    started = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            opened.model(**batch) if opened.keywords else opened.model(batch)
    plain = time.perf_counter() - started

    threads = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    print(f"farout inspect {model}, {found.settings['read']}, {threads}")
    for phase, time_ in seconds.items():
        print(f"  {phase:16} {time_:8.1f} s {time_ / plain:8.2f} x the plain pass")
    print(f"  {'in all':16} {total:8.1f} s   limit {LIMIT:g}   {'ok' if total <= LIMIT else 'TOO SLOW'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
