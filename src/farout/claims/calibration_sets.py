"""Calibration sets: whether the text matters, on a model with planted outliers, without them, and on MiniLM."""

from __future__ import annotations

from typing import Any

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

STATIC, CONTROL = "plain, static", "plain, a scale a token"
FACTOR, OFFSET = 50.0, 60.0
WIDER, NOISE, MOST = 3.0, 10.0, 0.01
THRESHOLD = (
    "Over three draws of each set: with a scale a token nothing differs at all. With static ranges and plain rounding "
    "the model with planted outliers loses between its best and its worst set at least 3 times what it loses there "
    "without them, and its worst set is nonsense (ascii or random tokens). In the model without outliers no arm loses "
    "more than 0.01 nats a token between sets, or F is below 10."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the study; the small budget has two sets, two arms and hardly trained models."""
    from farout.bench.calibration_sets import ARMS, SETS, calibration_sets, spread
    from farout.claims._planted import plant
    from farout.claims._small_models import small_language_model
    from farout.data.pretrained import pretrained
    from farout.io.models import open_model

    small = budget == "small"
    opened = small_language_model("opt", budget)
    models = {"with outliers": plant(opened, 4, FACTOR, OFFSET, seed=0)[0], "without": opened}
    arms = {name: arm for name, arm in ARMS.items() if not small or name in (STATIC, CONTROL)}
    sets = ("tinyshakespeare", "ascii") if small else SETS
    seeds = SEEDS[:2] if small else SEEDS
    sizes: dict[str, Any] = {
        "samples": 8 if small else 32,
        "windows": 8 if small else 32,
        "length": 64 if small else 128,
    }
    table = calibration_sets(models, sets, arms, seeds=seeds, progress=progress, **sizes)
    if not small:
        encoder = {"MiniLM": open_model(pretrained("minilm-l6"))}
        more = calibration_sets(encoder, sets, arms, test="wikitext2", seeds=seeds, progress=progress, **sizes)
        table = table.vstack(more)
    found = spread(table)
    of = {(row["model"], row["arm"]): row for row in found.to_dicts()}
    still = all(of[model, CONTROL]["range"] == 0 for model in models)
    planted, plain = of["with outliers", STATIC], of["without", STATIC]
    wider = planted["range"] >= WIDER * plain["range"]
    nonsense = planted["worst"] in ("ascii", "random-tokens")
    moved = [arm for arm in arms if of["without", arm]["range"] > MOST and of["without", arm]["F"] >= NOISE]
    note = (
        f"The control {'does not differ' if still else 'differs'}. Static ranges lose {planted['range']:.4g} nats a "
        f"token between sets with planted outliers (worst {planted['worst']}) and {plain['range']:.4g} without: at "
        f"least {WIDER:g} times {verdict(wider)}, nonsense worst {verdict(nonsense)}. Without outliers sets matter for "
        f"{', '.join(moved) or 'no arm'}."
    )
    return Claim(
        paper="Calibration sets",
        published="OPT-6.7B depends strongly on calibration text, later models hardly",
        measure="range over calibration sets of what static 8-bit rounding costs, nats a token, with planted outliers",
        ours=planted["range"],
        baseline=("without outliers", max(plain["range"], 1e-12)),
        peer=("a scale a token", of["with outliers", CONTROL]["range"]),
        threshold=THRESHOLD,
        holds=still and wider and nonsense and not moved,
        note=note,
        numbers={"Spread over sets and draws": found.to_dicts(), "All losses": table.to_dicts()},
        seeds=seeds,
        budget=budget,
    )
