"""Rounding to nearest: what the baseline costs, and by how much less with each further bit."""

from __future__ import annotations

from itertools import pairwise

from farout.claims._claim import Claim
from farout.claims._planted_lab import DECODERS, Lab
from farout.claims._rows import counted, means, pick
from farout.claims._tables import SEEDS, Progress, verdict

BITS = (8, 6, 5, 4, 3)
LEAST, MOST = 2.5, 8.0  # by how much a bit less multiplies the divergence; 4 is the rule
THRESHOLD = (
    "Weights alone, a step a row: the mean squared error of a step is a twelfth of its square, so a bit less should "
    "cost four times the divergence while it is small. In decoders of bytes (LLaMA- and OPT-like, three trainings "
    "each), from 8 to 6 bits and for each bit from 6 to 4, the divergence from the full model on held-out text grows "
    f"by {LEAST:g} to {MOST:g} times a bit; and with steps for 32 weights it is lower than with steps a row at 3 bits."
)
SIZES = {"small": (("llama",), 16), "full": (DECODERS, 64)}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one decoder, hardly trained."""
    models, windows = SIZES[budget]
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    rows = []
    for model, seed in counted([(model, seed) for model in models for seed in seeds], progress):
        lab = Lab(model, budget, 0, 2, windows, training=seed)
        for scheme in (*(f"w{bits}a16" for bits in BITS), "w3a16g32"):
            lossy = lab.lost(lab.quantized("rtn", scheme).model)
            rows.append({"model": model, "scheme": scheme, "seed": seed, "divergence": lossy})
    mean = means(rows, "model", "scheme")
    holds, notes = True, []
    for model in models:
        lost = {row["scheme"]: row["divergence"] for row in mean if row["model"] == model}
        growth = {
            f"{more} to {less}": (lost[f"w{less}a16"] / lost[f"w{more}a16"]) ** (1 / (more - less))
            for more, less in pairwise(BITS)
        }
        grows = all(LEAST <= growth[pair] <= MOST for pair in ("8 to 6", "6 to 5", "5 to 4"))
        fine = grows and lost["w3a16g32"] < lost["w3a16"]
        holds &= fine
        told = ", ".join(f"{pair} bits {value:.2f}" for pair, value in growth.items())
        grouped = f"at 3 bits {lost['w3a16']:.3g}, in groups {lost['w3a16g32']:.3g}"
        notes.append(f"{model} {verdict(fine)}: growth a bit {told}; {grouped}.")
    first = {scheme: pick(mean, "divergence", model=models[0], scheme=scheme) for scheme in ("w4a16", "w3a16", "w8a16")}
    return Claim(
        paper="RTN",
        published="no paper: the baseline of all others",
        measure=f"divergence with weights of 4 bits, nats a byte, small decoder ({models[0]})",
        ours=first["w4a16"],
        baseline=("3 bits", first["w3a16"]),
        peer=("8 bits", first["w8a16"]),
        threshold=THRESHOLD,
        holds=bool(holds),
        note=" ".join(notes),
        numbers={"Divergence, mean over trainings": mean, "By training": rows},
        seeds=seeds,
        budget=budget,
    )
