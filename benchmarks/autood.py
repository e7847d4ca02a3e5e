"""AutoOD's children: their training beside bare steps of the same network, and what the search itself takes.

python benchmarks/autood.py [columns]
"""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import torch

from _timing import best, report
from farout.table._autood_children import BATCH, LEARNING_RATE, STEPS, raise_child, shared_weights
from farout.table._autood_controller import BATCH as CHILDREN
from farout.table._autood_controller import Search
from farout.table._autood_space import Configuration, Space
from farout.table._autood_trial import labelled_trial

LIMIT = 2.0  # times the bare steps, with the copying of weights and the scoring of 1,000 rows


def main(columns: int = 20) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2_000, columns))
    trial = labelled_trial(X, X[:400] + 3, rng)
    child = Configuration("reconstruction", "l2", ((64, "none", "relu"), (16, "none", "relu")))
    weights = shared_weights("reconstruction", Space(), columns, 0)
    batch = torch.from_numpy(X[:BATCH])

    def bare() -> None:
        layers = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise([columns, 64, 16, 64, columns])]
        net = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))[:-1]
        optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            ((net(batch) - batch) ** 2).sum(dim=1).mean().backward()
            optimizer.step()

    def searched(strategy: str) -> None:
        search = Search(Space(), strategy, 0)
        for _ in range(3):
            strings = search.propose()
            search.tell(strings, [0.5 + 0.01 * len(tokens) for tokens in strings])

    seconds = best({"bare steps": bare, "a child": lambda: raise_child(child, weights, trial, 0)}, rounds=15)
    report(f"one child of {STEPS} steps, {columns} columns", seconds, "bare steps", {"a child": LIMIT})
    own = best({word: lambda word=word: searched(word) for word in ("curiosity", "reinforce", "random")}, rounds=3)
    print("\nthe search itself, in children's trainings a child")
    for word, time in own.items():
        print(f"  {word:36} {time / 3 / CHILDREN / seconds['a child']:8.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
