"""What a score of a model's inputs adds to the model's own pass, and the k-th neighbour against brute force.

python benchmarks/watch.py            a ResNet-20 on 256 images of 32 x 32; at most 5 % more for logits, 15 for features
python benchmarks/watch.py cuda       a ResNet-18 on a GPU

Times are taken in turns in one run, and ratios of medians are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from farout.kit.nets import ResNet18, ResNetCIFAR
from farout.ood import Viewer, extract
from farout.ood.deep_knn import kth_distance
from farout.ood.watch import score_named

TURNS = 5
LOGITS = ("msp", "max_logit", "energy", "temperature_scaling")
FEATURES = ("react", "ash", "scale", "grad_norm", "deep_knn", "vim", "relative_mahalanobis", "mahalanobis")
LIMITS = {"logits": 1.05, "features": 1.15, "neighbours": 1.2}


def in_turns(tasks: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Return the median seconds of each task, all run once in each turn."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first warms up
                taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in taken.items()}


def main() -> None:
    """Print both tables."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.manual_seed(0)
    net = (ResNetCIFAR(10) if device == "cpu" else ResNet18(10)).eval().to(device)
    x_BCHW, train_BCHW = torch.randn(256, 3, 32, 32, device=device), torch.randn(2_000, 3, 32, 32)
    labels = torch.arange(2_000) % 10
    needs = ("logits", "features", "stages", "head")
    views = extract(net, train_BCHW, needs=needs)
    tasks: dict[str, Callable[[], Any]] = {"plain": lambda: net(x_BCHW)}
    for name in (*LOGITS, *FEATURES):
        score = score_named(name).fit(views, labels).to(device)
        viewer = Viewer(net, x_BCHW[:2], needs=tuple(score.needs))
        tasks[name] = lambda score=score, viewer=viewer: score.score(viewer(x_BCHW))
    with torch.inference_mode():
        found = in_turns(tasks)
    print(f"{type(net).__name__}, 256 images, {device}: pass and score / pass alone")
    for kind, names in (("logits", LOGITS), ("features", FEATURES)):
        for name in names:
            print(f"  {name:<22}{found[name] / found['plain']:.3f}  (limit {LIMITS[kind]:.2f})")

    from sklearn.neighbors import NearestNeighbors

    bank, queries = torch.randn(50_000, 512), torch.randn(1_000, 512)
    peer = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(bank.numpy())
    there = (bank.to(device), queries.to(device))
    others: dict[str, Callable[[], Any]] = {
        "farout": lambda: kth_distance(there[1], there[0], 50).cpu(),
        "scikit-learn": lambda: peer.kneighbors(queries.numpy()),
    }
    try:
        import faiss
    except ImportError:
        print("faiss is not installed: pip install faiss-cpu, to have it in the table")
    else:
        index = faiss.IndexFlatL2(512)
        index.add(bank.numpy())
        others["faiss"] = lambda: index.search(queries.numpy(), 50)
    taken = in_turns(others, 3)
    print("k-th neighbour, 1,000 of 50,000 x 512: farout / peer")
    for name in others:
        if name != "farout":
            print(f"  {name:<22}{taken['farout'] / taken[name]:.3f}  (limit {LIMITS['neighbours']:.2f})")


if __name__ == "__main__":
    main()
