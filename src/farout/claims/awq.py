"""AWQ: weights that read large inputs are multiplied before they are rounded, with channels that are planted large."""

from __future__ import annotations

from typing import Any

from farout.claims._claim import Claim
from farout.claims._planted_lab import CHANNELS, DECODERS, divergences
from farout.claims._rows import pick
from farout.claims._tables import SEEDS, Progress, verdict

OURS, RTN, PLAIN, GPTQ = "AWQ", "RTN", "AWQ without cuts", "GPTQ"
METHODS: dict[str, Any] = {RTN: "rtn", OURS: "awq", PLAIN: {"recipe": "awq", "clip": False}, GPTQ: "gptq"}
NAMES = {"W4g32": "w4a16g32-clamped", "W3g32": "w3a16g32-clamped"}
FACTOR = 20.0
BETTER = {"planted": 0.5, "as it is": 0.9}
THRESHOLD = (
    f"At W4g32 and W3g32, in the mean over three draws: the divergence from the full model on held-out text is with "
    f"AWQ at most {BETTER['planted']:g} times that of RTN in decoders of bytes (LLaMA- and OPT-like) with {CHANNELS} "
    f"channels of every norm planted {FACTOR:g} times as large, and at most {BETTER['as it is']:g} times in MiniLM as "
    "it is."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"models": ("llama",), "schemes": ("W3g32",), "samples": 8, "windows": 16},
    "full": {"models": (*DECODERS, "MiniLM"), "schemes": tuple(NAMES), "samples": 16, "windows": 64},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one decoder, hardly trained, 3 bits and one draw."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    rows, mean = divergences(METHODS, NAMES, size, budget, seeds, progress, FACTOR)
    holds, notes = True, []
    for model in size["models"]:
        for scheme in size["schemes"]:
            lost = {name: pick(mean, "divergence", model=model, scheme=scheme, method=name) for name in METHODS}
            fine = lost[OURS] <= BETTER["planted" if model in DECODERS else "as it is"] * lost[RTN]
            holds &= fine
            told = ", ".join(f"{name} {value:.3g}" for name, value in lost.items())
            notes.append(f"{model} {scheme} {verdict(fine)} ({lost[OURS] / lost[RTN]:.2f} of RTN): {told}.")
    first = {"model": size["models"][0], "scheme": size["schemes"][0]}
    head = {name: pick(mean, "divergence", method=name, **first) for name in METHODS}
    return Claim(
        paper="AWQ",
        published="WikiText-2 perplexity of Llama-2-7B at 3 bits in groups of 128: 6.24, by rounding 6.66, before 5.47",
        measure=f"divergence at {first['scheme']}, nats a byte, planted decoder ({first['model']})",
        ours=head[OURS],
        baseline=(RTN, head[RTN]),
        peer=(GPTQ, head[GPTQ]),
        threshold=THRESHOLD,
        holds=bool(holds),
        note=" ".join(notes),
        numbers={"Divergence, mean over draws": mean, "By draw": rows},
        seeds=seeds,
        budget=budget,
    )
