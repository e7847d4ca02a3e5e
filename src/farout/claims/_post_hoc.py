"""What the claims of post-hoc scores share: one table of all on CIFAR-10, and a claim that compares its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

# usual images, images to fit to, and images of each other set
SIZES = {"small": (400, 1_000, 150), "full": (4_000, 8_000, 2_000)}
UNSEEN = 200  # of a thousand usual images, for scores that want images that were not trained on
MEANS = {"AUROC": "auroc", "FPR95": "fpr95_in"}
SETTING = (
    "On CIFAR-10 as it is stored here, a ResNet-20 against seven sets that are stored alike (animals of other kinds, "
    "scenes, objects, food, invertebrates, textures, digits), in the mean over the sets and over three trainings: "
)


def claim_of(
    budget: str,
    progress: Progress,
    *,
    paper: str,
    published: str,
    threshold: str,
    ours: str,
    baseline: str,
    peer: str,
    what: str,
    holds: Callable[[Mapping[str, Mapping[str, float]]], bool],
) -> Claim:
    """Compare scores in the table that all claims of this kind share.

    Parameters
    ----------
    budget, progress
    paper, published, threshold : str
        For the claim.
    ours, baseline, peer : str
        Rows of the table.
    what : {"AUROC", "FPR95"}
        The number that stands at the head; FPR95 has usual inputs as positives.
    holds : callable
        Given the means by method, each with ``AUROC``, ``FPR95``, ``near`` and ``far`` (AUROC) and ``least`` (AUROC on
        the worst set).
    """
    rows, seeds = table(budget, progress)
    mean = _means(rows)
    fine = bool(holds(mean))
    told = ", ".join(
        f"{name} {100 * mean[name]['AUROC']:.1f} ({100 * mean[name]['FPR95']:.1f})" for name in (ours, baseline, peer)
    )
    head = {name: mean[name][what] for name in (ours, baseline, peer)}
    return Claim(
        paper=paper,
        published=published,
        measure=f"{what} on CIFAR-10, mean over seven sets" + (" (usual images positive)" if what == "FPR95" else ""),
        ours=head[ours],
        baseline=(baseline, head[baseline]),
        peer=(peer, head[peer]),
        threshold=threshold,
        holds=fine,
        note=f"It {verdict(fine)}: AUROC (FPR95) in percent {told}.",
        numbers={
            "Means": [{"method": name} | dict(numbers) for name, numbers in mean.items()],
            "By set": [row for row in rows if row["method"] in (ours, baseline, peer)],
        },
        seeds=seeds,
        budget=budget,
    )


@lru_cache(maxsize=2)
def _table(budget: str) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """Measure all scores, once in a process."""
    from farout.bench.openood import METHODS, openood
    from farout.claims._cifar import classifier, ood_suites
    from farout.data.images import DEVIATION, image_set, to_tensor
    from farout.ood.mahalanobis import Mahalanobis

    seeds = SEEDS[:1] if budget == "small" else SEEDS
    usual, train, others = SIZES[budget]
    known, new = image_set("cifar10-train", train), image_set("cifar10-test", usual + UNSEEN)
    apart = np.arange(len(new.labels)) % (len(new.labels) // UNSEEN) == 0
    suites = {s: {n: to_tensor(x) for n, x in of.items()} for s, of in ood_suites(rows=others).items()}
    rows = []
    for seed in seeds:
        net = classifier(seed, budget)
        found = openood(
            net,
            (to_tensor(known.images), known.labels),
            to_tensor(new.images[~apart]),
            suites,
            [*METHODS, Mahalanobis("features")],
            unseen=(to_tensor(new.images[apart]), new.labels[apart]),
            deviation=DEVIATION,
        )
        rows += [{"seed": seed} | row for row in found.to_dicts()]
    return rows, seeds


def table(budget: str, progress: Progress) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """Return the rows of all scores and sets, and the seeds of the trainings."""
    progress("all scores of CIFAR-10's inputs", 0.0)
    return _table(budget)


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        by_set: dict[str, list[float]] = {}
        for row in own:
            by_set.setdefault(row["set"], []).append(row["auroc"])
        found[name] = {title: float(np.mean([row[key] for row in own])) for title, key in MEANS.items()}
        for setting in ("near", "far"):
            found[name][setting] = float(np.mean([row["auroc"] for row in own if row["setting"] == setting]))
        found[name]["least"] = min(float(np.mean(values)) for values in by_set.values())
    return found
