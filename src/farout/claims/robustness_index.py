"""Robustness Index: neighbours share the laboratory, errors come from it, and the index tells what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._stained import LABORATORIES, embedded, stained
from farout.claims._tables import SEEDS, Progress, verdict
from farout.inside.robustness_index import RobustnessIndex, performance_drop

EACH = {"small": 10, "full": 40}  # images of a class and laboratory
STRENGTHS = {"small": (0.0, 1.0), "full": (0.0, 0.5, 1.0)}
AGREES, ALIKE = 0.5, 0.1
THRESHOLD = (
    "Over ten embeddings of images in five real stainings, in the mean over the seeds: with the stainings at full "
    "strength, the neighbours that belong to the wrongly predicted class have the row's own staining more often than "
    "that class does, for every embedding; where the stainings are taken away, their share is in the mean over the "
    f"embeddings within {ALIKE:.0%} of it; the index at full strength is below that without stainings for every "
    "embedding; and Spearman's correlation between the index and the average performance drop of a linear classifier "
    f"is at least {AGREES}."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all four parts must hold. The small budget draws once, and 10 images of a class and laboratory."""
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    runs = [(seed, strength) for seed in seeds for strength in STRENGTHS[budget]]
    rows: list[dict[str, Any]] = []
    for place, (seed, strength) in enumerate(runs):
        rows += _measured(EACH[budget], strength, seed)
        progress(f"staining at {strength:.0%}, seed {seed}", (place + 1) / len(runs))
    names = list(dict.fromkeys(row["embedding"] for row in rows))
    full, none = _means(rows, names, 1.0), _means(rows, names, 0.0)
    lift = full["same staining among errors"] / full["base rate"]
    errors = bool((lift > 1).all())
    control = float((none["same staining among errors"] / none["base rate"]).mean())
    calm = abs(control - 1) <= ALIKE
    falls = bool((full["index"] < none["index"]).all())
    agreement = {
        "index": _spearman(full["index"], full["drop"]),
        "share": _spearman(full["share"], full["drop"]),
        "staining not predicted": _spearman(-full["staining accuracy"], full["drop"]),
    }
    follows = agreement["index"] >= AGREES
    better = int((full["staining accuracy"] > full["class accuracy"]).sum())
    rising = [
        f"{names[i]}, {none['index'][i]:.2f} to {full['index'][i]:.2f}, from which the staining is predicted with an "
        f"accuracy of {full['staining accuracy'][i]:.2f} where chance has {1 / LABORATORIES:.2f}"
        for i in np.flatnonzero(full["index"] >= none["index"])
    ]
    least = names[int(np.argmin(lift))]
    note = (
        f"Errors {verdict(errors)}: {lift.min():.3f} ({least}) to {lift.max():.3f} times the base rate. Control "
        f"{verdict(calm)}: {control:.2f} times it without stainings. Index falls with the staining: {verdict(falls)}"
        f"{' (not for ' + '; '.join(rising) + ')' if rising else ''}; its mean goes from {none['index'].mean():.2f} to "
        f"{full['index'].mean():.2f}, and {int((full['index'] > 1).sum())} of {len(names)} embeddings stay above 1. "
        f"Order of the drops {verdict(follows)}: Spearman {agreement['index']:.2f} for the index, "
        f"{agreement['share']:.2f} for the share of the successor. The staining is predicted better than the class "
        f"from {better} of {len(names)} embeddings; how many depends on the stainings, so nothing is asked of it."
    )
    return Claim(
        paper="Robustness Index",
        published="nine of ten pathology models below 1, the best slightly above; errors come from the same centre",
        measure="Spearman's correlation with the performance drop, over ten embeddings",
        ours=agreement["index"],
        baseline=("accuracy on the staining, negated", agreement["staining not predicted"]),
        peer=("share of PathoROB", agreement["share"]),
        threshold=THRESHOLD,
        holds=errors and calm and falls and follows,
        note=note,
        numbers={
            "Embeddings at full strength": _table(names, full),
            "Embeddings without stainings": _table(names, none),
            "By seed": rows,
        },
        seeds=seeds,
        budget=budget,
    )


def _measured(each: int, strength: float, seed: int) -> list[dict[str, Any]]:
    """Embed one draw of images in all ways and measure each."""
    images, kind, laboratory = stained(each, strength, seed)
    rows = []
    for name, X in embedded(images, seed).items():
        found = RobustnessIndex(random_state=seed).measure(X, kind, laboratory)
        drop, accuracies = performance_drop(X, kind, laboratory, random_state=seed)
        told = found.errors
        facts = {"embedding": name, "strength": strength, "seed": seed, "k": found.k}
        rows.append(
            facts
            | {
                "index": found.index,
                "share": found.share,
                "class accuracy": told["accuracy"],
                "staining accuracy": told["confounder_accuracy"],
                "same staining among errors": told["confounded"],
                "base rate": told["base_rate"],
                "drop": drop,
                "linear accuracy": float(accuracies[0]),
            }
        )
    return rows


def _means(rows: list[dict[str, Any]], names: list[str], strength: float) -> dict[str, np.ndarray]:
    """Average what was measured at one strength over the seeds: (embeddings,) each."""
    what = list(rows[0])[3:]
    of = {name: [row for row in rows if row["embedding"] == name and row["strength"] == strength] for name in names}
    return {one: np.array([np.mean([row[one] for row in of[name]]) for name in names]) for one in what}


def _table(names: list[str], means: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Lay means out as rows, the largest index first."""
    order = np.argsort(-means["index"], kind="stable")
    return [{"embedding": names[i]} | {what: float(values[i]) for what, values in means.items()} for i in order]


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)
