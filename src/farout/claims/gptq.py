"""GPTQ: making good for each rounding by the weights that are still to be rounded, at 4 and 3 bits."""

from __future__ import annotations

from typing import Any

from farout.claims._claim import Claim
from farout.claims._planted_lab import DECODERS, divergences
from farout.claims._rows import pick
from farout.claims._tables import SEEDS, Progress, verdict

OURS, RTN, AWQ = "GPTQ", "RTN", "AWQ"
METHODS: dict[str, Any] = {
    RTN: "rtn",
    OURS: "gptq",
    "GPTQ, inputs in their own order": {"recipe": "gptq", "order": False},
    AWQ: "awq",
}
NAMES = {"W4": "w4a16", "W3": "w3a16", "W3g32": "w3a16g32"}
BETTER = 0.7
THRESHOLD = (
    "In decoders of bytes (LLaMA- and OPT-like) and in MiniLM, weights of 4 and 3 bits with a step a row and of 3 bits "
    "with a step for 32, in the mean over three draws of calibration text: the divergence from the full model on "
    f"held-out text is with GPTQ at most {BETTER:g} times that of RTN, and it is lower than RTN's in every draw."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"models": ("llama",), "schemes": ("W3",), "samples": 8, "windows": 16},
    "full": {"models": (*DECODERS, "MiniLM"), "schemes": tuple(NAMES), "samples": 32, "windows": 64},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one decoder, hardly trained, 3 bits and one draw."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    rows, mean = divergences(METHODS, NAMES, size, budget, seeds, progress)
    holds, notes = True, []
    for model in size["models"]:
        for scheme in size["schemes"]:
            where = {"model": model, "scheme": scheme}
            lost = {name: pick(mean, "divergence", method=name, **where) for name in METHODS}
            drawn = [[pick(rows, "divergence", method=m, seed=s, **where) for m in (OURS, RTN)] for s in seeds]
            fine = lost[OURS] <= BETTER * lost[RTN] and all(ours < plain for ours, plain in drawn)
            holds &= fine
            told = ", ".join(f"{name} {value:.3g}" for name, value in lost.items())
            notes.append(f"{model} {scheme} {verdict(fine)} ({lost[OURS] / lost[RTN]:.2f} of RTN): {told}.")
    first = {"model": size["models"][0], "scheme": size["schemes"][0]}
    head = {name: pick(mean, "divergence", method=name, **first) for name in METHODS}
    return Claim(
        paper="GPTQ",
        published="OPT-175B at 4 bits: WikiText-2 perplexity 8.37, by rounding 10.54, before 8.34",
        measure=f"divergence at {first['scheme']}, nats a byte, small decoder ({first['model']})",
        ours=head[OURS],
        baseline=(RTN, head[RTN]),
        peer=(AWQ, head[AWQ]),
        threshold=THRESHOLD,
        holds=bool(holds),
        note=" ".join(notes),
        numbers={"Divergence, mean over draws": mean, "By draw": rows},
        seeds=seeds,
        budget=budget,
    )
