"""SmoothQuant: with a share of the range of inputs in the weights, inputs stand one step for all tokens."""

from __future__ import annotations

from typing import Any

from farout.claims._claim import Claim
from farout.claims._planted_lab import CHANNELS, DECODERS, Lab
from farout.claims._rows import counted, means, pick
from farout.claims._tables import SEEDS, Progress, verdict

NONE, TOKEN, OURS = "no smoothing", "no smoothing, a step for each token", 0.5
ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
FACTOR, GAIN, END = 50.0, 3.0, 0.8
THRESHOLD = (
    "With 8-bit weights and inputs, one static step for each tensor that a norm gives and a step for each token of "
    f"other inputs, in the mean over three draws of calibration text: in MiniLM as it is, embeddings turn at least "
    f"{GAIN:g} times less with alpha = {OURS:g} than without smoothing; in MiniLM, and in decoders of bytes (LLaMA- "
    f"and OPT-like) with {CHANNELS} channels of every norm planted {FACTOR:g} times as large, the divergence from the "
    f"full model over alpha from 0 to 1 has its least between the ends, at most {END:g} times that at either end "
    "and below that without smoothing."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"models": ("llama",), "alphas": (0.0, 0.5, 1.0), "samples": 8, "windows": 16},
    "full": {"models": (*DECODERS, "MiniLM"), "alphas": ALPHAS, "samples": 16, "windows": 32},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one decoder, hardly trained, three alphas and one draw."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    rows = []
    for model, seed in counted([(model, seed) for model in size["models"] for seed in seeds], progress):
        lab = Lab(model, budget, seed, size["samples"], size["windows"], FACTOR)
        for alpha in (*size["alphas"], NONE, TOKEN):
            rows.append({"model": model, "alpha": alpha, "seed": seed} | _measured(lab, alpha))
    mean = means(rows, "model", "alpha")
    holds, notes = True, []
    for model in size["models"]:
        lost = {row["alpha"]: row["divergence"] for row in mean if row["model"] == model}
        best = min(size["alphas"], key=lambda alpha: lost[alpha])
        fine = 0 < best < 1 and lost[best] <= END * min(lost[0.0], lost[1.0]) and lost[best] < lost[NONE]
        gain = lost[NONE] / lost[OURS]
        fine &= model != "MiniLM" or gain >= GAIN
        holds &= fine
        every = {alpha: pick(mean, "all inputs static", model=model, alpha=alpha) for alpha in (OURS, NONE)}
        notes.append(
            f"{model} {verdict(fine)}: least at alpha = {best:g} ({lost[best]:.3g}; {lost[0.0]:.3g} at 0, "
            f"{lost[1.0]:.3g} at 1), without smoothing {lost[NONE]:.3g}, {gain:.3g} times that at {OURS:g}; a step for "
            f"each token and no smoothing {lost[TOKEN]:.3g}. With all inputs static {every[OURS]:.3g} at {OURS:g}, "
            f"{every[NONE]:.3g} without smoothing."
        )
    head = size["models"][-1]
    told = {alpha: pick(mean, "divergence", model=head, alpha=alpha) for alpha in (OURS, NONE, TOKEN)}
    return Claim(
        paper="SmoothQuant",
        published="WikiText-2 perplexity of Llama-2-7B with 8-bit weights and activations 5.515, in FP16 5.474",
        measure=f"divergence from the full model ({head}), static steps of what norms give",
        ours=told[OURS],
        baseline=(NONE, told[NONE]),
        peer=(TOKEN, told[TOKEN]),
        threshold=THRESHOLD,
        holds=bool(holds),
        note=" ".join(notes),
        numbers={"Divergence, mean over draws": mean, "By draw": rows},
        seeds=seeds,
        budget=budget,
    )


def _measured(lab: Lab, alpha: Any) -> dict[str, float | None]:
    """Quantize with static steps, give all but what norms give a step for each token, and measure; some before, too."""
    from farout.quantize._linear import Rounding
    from farout.quantize.grid import Grid
    from farout.quantize.scheme import Scheme

    weights, tokens = Grid(8, rule="narrow"), Grid(8, "token", rule="narrow")
    if alpha == TOKEN:
        return {"divergence": lab.lost(lab.quantized("rtn", Scheme(weights, tokens)).model), "all inputs static": None}
    recipe = "rtn" if alpha == NONE else {"recipe": "smoothquant", "alpha": alpha}
    found = lab.quantized(recipe, Scheme(weights, Grid(8, "tensor", rule="narrow", dynamic=False)))
    static = lab.lost(found.model) if alpha in (OURS, NONE) else None
    for name, module in found.maps.items():
        if name.endswith(("o_proj", "down_proj", "out_proj", "fc2", "output.dense")):
            module.rounding = Rounding(tokens)
    return {"divergence": lab.lost(found.model), "all inputs static": static}
