"""SmoothQuant+: one strength for the whole model, chosen by the error at its end, against a choice for each layer."""

from __future__ import annotations

import time
from typing import Any

from farout.claims._claim import Claim
from farout.claims._planted_lab import CHANNELS, DECODERS, Lab
from farout.claims._rows import counted, means, pick
from farout.claims._tables import SEEDS, Progress, verdict

OURS, OUTPUT, RTN, LAYERS, AWQ = "SmoothQuant+", "SmoothQuant+, by logits", "RTN", "AWQ without cuts", "AWQ"
METHODS: dict[str, Any] = {
    RTN: "rtn",
    OURS: "smoothquant_plus",
    OUTPUT: {"recipe": "smoothquant_plus", "error": "output"},
    LAYERS: {"recipe": "awq", "clip": False},
    AWQ: "awq",
}
NAMES = {"W4g32": "w4a16g32-clamped", "W4g64": "w4a16g64-clamped"}
CURVE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
BETTER = 0.7
THRESHOLD = (
    f"In decoders of bytes (LLaMA- and OPT-like) with {CHANNELS} channels of every norm planted k = 20 and 50 times as "
    "large, at W4g32 and W4g64, in the mean over three draws of channels and calibration text: the divergence from the "
    f"full model on held-out text is with SmoothQuant+ at most {BETTER:g} times that of RTN, and no more than that of "
    "a search for each layer by its own error (AWQ without cuts of ranges)."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"models": ("llama",), "factors": (20.0,), "schemes": ("W4g32",), "samples": 8, "windows": 16},
    "full": {"models": DECODERS, "factors": (20.0, 50.0), "schemes": tuple(NAMES), "samples": 8, "windows": 32},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one decoder, hardly trained, one k, 32 in a group."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    jobs = [(model, k, seed) for model in size["models"] for k in size["factors"] for seed in seeds]
    rows, curve = [], []
    for model, k, seed in counted(jobs, progress):
        lab = Lab(model, budget, seed, size["samples"], size["windows"], k)
        for scheme in size["schemes"]:
            where = {"model": model, "k": k, "scheme": scheme}
            for name, recipe in METHODS.items():
                if scheme == "W4g32" or name in (RTN, OURS, LAYERS):
                    rows.append(where | {"method": name, "seed": seed} | _measured(lab, recipe, scheme))
            if budget == "full" and scheme == "W4g32":
                for alpha in CURVE:
                    recipe = {"recipe": "smoothquant_plus", "alpha": alpha}
                    lost = _measured(lab, recipe, scheme)["divergence"]
                    curve.append(where | {"alpha": alpha, "seed": seed, "divergence": lost})
    mean = means(rows, "model", "k", "scheme", "method")
    holds, notes = True, []
    for model in size["models"]:
        for k in size["factors"]:
            for scheme in size["schemes"]:
                own = [row for row in mean if (row["model"], row["k"], row["scheme"]) == (model, k, scheme)]
                lost = {row["method"]: row["divergence"] for row in own}
                parts = {RTN: lost[OURS] <= BETTER * lost[RTN], LAYERS: lost[OURS] <= lost[LAYERS]}
                holds &= all(parts.values())
                failing = ", ".join(name for name, fine in parts.items() if not fine)
                told = ", ".join(f"{name} {value:.3g}" for name, value in lost.items())
                notes.append(
                    f"{model}, k = {k:g}, {scheme} {verdict(not failing)}{f' (against {failing})' if failing else ''}: "
                    f"{told}; strength {pick(own, 'alpha', method=OURS):.2f} in the mean."
                )
    first = {"model": size["models"][0], "k": size["factors"][0], "scheme": size["schemes"][0]}
    head = {name: pick(mean, "divergence", method=name, **first) for name in METHODS}
    tables = {"Divergence, mean over draws": mean}
    if curve:
        tables["By strength, mean over draws"] = means(curve, "model", "k", "scheme", "alpha")
    return Claim(
        paper="SmoothQuant+",
        published="Code Llama-34B in 4 bits on one GPU of 40 GB without loss of accuracy",
        measure=f"divergence at {first['scheme']}, k = {first['k']:g}, planted decoder ({first['model']})",
        ours=head[OURS],
        baseline=(RTN, head[RTN]),
        peer=(AWQ, head[AWQ]),
        threshold=THRESHOLD,
        holds=bool(holds),
        note=" ".join(notes),
        numbers=tables | {"By draw": rows},
        seeds=seeds,
        budget=budget,
    )


def _measured(lab: Lab, recipe: Any, scheme: str) -> dict[str, Any]:
    """Quantize and measure what is lost."""
    start = time.perf_counter()
    found = lab.quantized(recipe, NAMES[scheme])
    seconds = time.perf_counter() - start
    return {"divergence": lab.lost(found.model), "alpha": found.recipe.get("alpha"), "seconds": seconds}
