"""What the claims on shifting share: a decoder with planted channels that are large and far off zero, and MiniLM."""

from __future__ import annotations

import copy
from typing import Any

from farout.claims._planted_lab import Lab
from farout.claims._tables import Progress

FACTOR, OFFSET = 30.0, 60.0


def losses(
    arms: dict[str, tuple[Any, str]], budget: str, seeds: tuple[int, ...], progress: Progress
) -> list[dict[str, Any]]:
    """Return a row for each model, arm and seed: the divergence from the full model on held-out text.

    Models are ``"unplanted"`` and ``"planted"`` (an OPT-like decoder) and, in the full budget, ``"MiniLM"``.
    """
    from farout.claims._planted import plant

    small = budget == "small"
    sizes = {"samples": 8, "windows": 8} if small else {"samples": 32, "windows": 64}
    names = ("unplanted", "planted") if small else ("unplanted", "planted", "MiniLM")
    rows = []
    for i, (name, seed) in enumerate((name, seed) for seed in seeds for name in names):
        progress(f"{name}, draw {seed}", i / (len(names) * len(seeds)))
        lab = Lab("MiniLM" if name == "MiniLM" else "opt", budget, seed, **sizes)
        if name == "planted":
            lab.opened = plant(lab.opened, 4, FACTOR, OFFSET, seed=seed)[0]
        for arm, (recipe, scheme) in arms.items():
            model = lab.quantized(copy.deepcopy(recipe), scheme).model
            rows.append({"model": name, "arm": arm, "seed": seed, "loss": lab.lost(model)})
    return rows


def mean(rows: list[dict[str, Any]], model: str, arm: str) -> float:
    """Return the mean loss over seeds."""
    found = [row["loss"] for row in rows if row["model"] == model and row["arm"] == arm]
    return sum(found) / len(found)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lay means out: a row for each arm, a column for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    return [{"arm": arm} | {model: mean(rows, model, arm) for model in models} for arm in arms]
