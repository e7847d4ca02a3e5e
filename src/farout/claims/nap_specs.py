"""NAP: how far proofs reach where the pattern of the class is followed, and whether its inputs follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._nap_lab import BASELINE, DELTA, OURS, PEER, Lab, on_mnist
from farout.claims._tables import SEEDS, Progress, verdict

TIMES = 3.0
THRESHOLD = (
    f"Of test inputs of the digits that follow the pattern of their class at delta {DELTA:g} (networks of 4 layers of "
    "64, three seeds), for at least half the largest proved radius is where the pattern is followed at least "
    f"{TIMES:g} times that of the plain ball, by the same prover; and recall, the share of a class's test inputs that "
    "follow its pattern, does not grow as delta falls. Leakage is reported."
)
EPS = (0.05, 0.1, 0.2)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"epochs": 30, "inputs": 2, "branches": 4, "few": 2, "precision": 1.3, "eps": (0.05,), "jobs": 1},
    "full": {
        "epochs": 60,
        "inputs": 10,
        "branches": 100,
        "few": 20,
        "precision": 1.1,
        "eps": (0.05, 0.1, 0.2),
        "jobs": -1,
    },
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both parts must hold. The small budget: three inputs of one network, and few branches."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    facts: list[dict[str, Any]] = []
    radii, answers = list(facts), list(facts)
    mnist, scores = list(facts), list(facts)
    for place, seed in enumerate(seeds):

        def told(what: str, share: float, place: int = place, seed: int = seed) -> None:
            progress(f"{what}, seed {seed}", (place + share) / len(seeds))

        told("training on digits", 0.0)
        lab = Lab(seed, size["epochs"])
        facts += lab.facts()
        inputs = lab.inputs(size["inputs"])
        how = {"branches": size["branches"], "precision": size["precision"]}
        tasks = [task | how for task in lab.specified(inputs)]
        radii += _in_parallel(_radius, tasks, size["jobs"], lambda share: told("radii", 0.5 * share))
        by_delta = lab.specified_by_delta(inputs)
        tasks = [task | {"eps": eps, "branches": size["few"]} for task in by_delta for eps in size["eps"]]
        answers += _in_parallel(_answer, tasks, size["jobs"], lambda share: told("balls", 0.5 + 0.2 * share))
        if budget == "full":
            told("MNIST", 0.7)
            more, searched, judged = on_mnist(seed)
            facts, mnist, scores = facts + more, mnist + searched, scores + judged
    mean_facts = _means(facts, ("data", "delta"))
    recalls = [row["recall"] for row in mean_facts if row["data"] == "digits"]
    monotone = all(one >= other for one, other in pairwise(recalls))
    reached = [row["proved"] / before["proved"] if before["proved"] else 0.0 for before, row in _pairs(radii)]
    far = float(np.mean([ratio >= TIMES for ratio in reached]))
    barred = np.mean([row["falsified"] < TIMES * before["proved"] for before, row in _pairs(radii)])
    median = {
        spec: float(np.median([row["proved"] for row in radii if row["spec"] == spec]))
        for spec in (OURS, BASELINE, PEER)
    }
    followed = float(np.mean([row["followed"] for row in radii if row["spec"] == PEER]))
    at_delta = next(row for row in mean_facts if row["data"] == "digits" and row["delta"] == DELTA)
    fine = far >= 0.5
    note = (
        f"Radii, {verdict(fine)}: {far:.0%} of {len(reached)} inputs are proved at least {TIMES:g} times as far with "
        f"the pattern; the median ratio is {np.median(reached):.2f}. For {barred:.0%} no prover could: a counter"
        f"example that follows it is nearer than {TIMES:g} times the plain radius. Recall, {verdict(monotone)}: "
        f"by delta {', '.join(f'{recall:.3f}' for recall in recalls)}. At delta {DELTA:g} leakage is "
        f"{at_delta['leakage']:.4f} and recall {at_delta['recall']:.3f}. As many drawn states of the input itself "
        f"reach {median[PEER]:.3f}, and "
        f"{followed:.4f} of its class's test inputs follow them."
    )
    tables = {
        "Patterns, mean over seeds": mean_facts,
        "Largest proved radius and nearest counterexample, by input": radii,
        "Balls, shares of inputs that follow": _means(answers, ("spec", "eps")),
        "MNIST, 4 layers of 256: share of inputs with a counterexample": _means(mnist, ("spec", "eps")),
        "MNIST: AUROC of scores against far sets": _means(scores, ("score",)),
    }
    return Claim(
        paper="NAP",
        published="84 % of MNIST's test inputs are in what patterns let one prove; the proved radius on CIFAR-10 grows "
        "tenfold",
        measure=f"median largest proved radius at delta {DELTA:g}, digits",
        ours=median[OURS],
        baseline=(BASELINE, median[BASELINE]),
        peer=(PEER, median[PEER]),
        threshold=THRESHOLD,
        holds=bool(fine and monotone),
        note=note,
        numbers={title: rows for title, rows in tables.items() if rows},
        seeds=seeds,
        budget=budget,
    )


def _radius(row: dict[str, Any], net: Any, x: Any, label: int, pattern: Any, **how: Any) -> dict[str, Any]:
    from farout.ood.nap_specs import largest_radius

    found = largest_radius(net, x, label, pattern, **how)
    return row | {"proved": found.proved, "falsified": found.falsified}


def _answer(
    row: dict[str, Any], net: Any, x: Any, label: int, pattern: Any, eps: float, branches: int
) -> dict[str, Any]:
    from farout.ood.nap_specs import robust

    status = robust(net, x, label, eps, pattern, branches=branches).status
    shares = {name: float(status == name) for name in ("proved", "falsified", "unknown")}
    return row | {"eps": eps} | shares


def _in_parallel(
    act: Callable[..., dict[str, Any]],
    tasks: Sequence[dict[str, Any]],
    jobs: int,
    progress: Callable[[float], None],
) -> list[dict[str, Any]]:
    """Do tasks on all cores where the budget says so; limits are branches, so that results do not depend on it."""
    from joblib import Parallel, delayed

    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(act)(**task) for task in tasks)
    rows = []
    for i, row in enumerate(work):
        progress(i / len(tasks))
        rows.append(row)
    return rows


def _pairs(radii: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the rows of the plain ball and of the pattern, by input."""
    return list(zip(*([row for row in radii if row["spec"] == spec] for spec in (BASELINE, OURS))))


def _means(rows: Sequence[dict[str, Any]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return means over all rows that agree in ``by``, with their number, in order of appearance."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        {name: some[0][name] for name in by}
        | {"rows": len(some)}
        | {name: float(np.mean([row[name] for row in some])) for name in some[0] if name not in (*by, "seed")}
        for some in groups.values()
    ]
