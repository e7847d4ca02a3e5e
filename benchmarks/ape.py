"""APE: events a second in learning and scoring, beside the memory traffic that neither can do without.

python benchmarks/ape.py [events]

The floor of scoring is to gather the vectors of all entities and to multiply them pairwise; of a training step, to do
both forward and once more backward, in torch, without draws, loss or optimizer. The peer is the formula in plain loops
over events and pairs, on a part of them.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from _timing import best, report
from farout.events import APE

TYPES, ENTITIES, DIMENSIONS, BATCH = 8, 1000, 10, 512
LIMITS = {"score": 4.0, "learn, one epoch": 8.0}


def main(events: int = 50_000, few: int = 500) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X = (rng.zipf(1.3, size=(events, TYPES)) % ENTITIES).astype(str)
    frame = _frame(X)
    detector = APE(epochs=1, random_state=0).fit(frame)
    codes = detector._codes(detector._features(frame, reset=False))
    rows = detector._rows(codes)
    vectors, weights = detector.vectors_, detector.weights_
    first, second = np.triu_indices(TYPES, 1)

    def floor() -> np.ndarray:
        v_NMD = vectors[rows]
        return np.matmul(weights, v_NMD)

    def loops() -> list[float]:
        return [
            -sum(weights[i, j] * float(np.dot(vectors[row[i]], vectors[row[j]])) for i, j in zip(first, second))
            for row in rows[:few]
        ]

    seconds = best({"gather and products": floor, "score": lambda: detector._score(codes), "loops": loops}, rounds=5)
    seconds["loops"] *= events / few
    report(f"scoring {events:,} events of {TYPES} types", seconds, "gather and products", LIMITS)
    print(f"  {events / seconds['score']:,.0f} events a second; loops {events / seconds['loops']:,.0f}")
    same = np.allclose(loops(), detector._score(codes)[:few], rtol=1e-9)
    print(f"  scores are {'' if same else 'NOT '}those of the loops")

    table = torch.from_numpy(vectors).float().requires_grad_()
    matrix = torch.from_numpy(weights).float()
    batches = torch.from_numpy(rows).split(BATCH)

    def steps() -> None:
        for batch in batches:
            v_BMD = table[batch]
            (v_BMD * (matrix @ v_BMD)).sum().backward()

    learner = APE(epochs=1, batch_size=BATCH, random_state=0, device="cpu")
    learner.vocabularies_, learner.profile_, learner.pairs_ = (
        detector.vocabularies_,
        detector.profile_,
        detector.pairs_,
    )
    rivals = {"gather and products, both ways": steps, "learn, one epoch": lambda: learner._learn(codes)}
    seconds = best(rivals, rounds=3)
    report(f"learning {events:,} events", seconds, "gather and products, both ways", LIMITS)
    print(f"  {events / seconds['learn, one epoch']:,.0f} events a second, {learner.n_noise} noise events with each")


def _frame(X: np.ndarray) -> object:
    import polars as pl

    return pl.DataFrame(X, schema=[f"type{t}" for t in range(X.shape[1])], orient="row")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
