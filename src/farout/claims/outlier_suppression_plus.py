"""Outlier Suppression+: how much of what planted channels cost at 6 bits it wins back, beside SmoothQuant."""

from __future__ import annotations

from typing import Any

from farout.claims._claim import Claim
from farout.claims._shifted_lab import losses, mean, table
from farout.claims._tables import SEEDS, Progress, verdict

OURS = "outlier_suppression_plus"
ARMS: dict[str, tuple[Any, str]] = {
    "plain": ("rtn", "w6a6-tensor"),
    "SmoothQuant 0.5": ("smoothquant", "w6a6-tensor"),
    "SmoothQuant 0.75": ({"recipe": "smoothquant", "alpha": 0.75}, "w6a6-tensor"),
    "scale only": ({"recipe": OURS, "shift": "never"}, "w6a6-tensor"),
    "Outlier Suppression+": (OURS, "w6a6-tensor"),
    "always shifted": ({"recipe": OURS, "shift": "always"}, "w6a6-tensor"),
    "a scale a token": ("rtn", "w6a6"),
}
WON, NEAR = 0.9, 1.1
THRESHOLD = (
    "Weights and inputs in 6 bits, inputs in static ranges, in the mean over three draws: on the decoder with planted "
    "channels (30 times as large, 60 off zero) it wins back at least nine tenths of what they cost with plain "
    "rounding, more than SmoothQuant with 0.5 or 0.75; on MiniLM it loses at most 1.1 times what SmoothQuant with 0.5 "
    "does."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one draw, few arms and thresholds, and no MiniLM."""
    small = budget == "small"
    seeds = SEEDS[:1] if small else SEEDS
    arms = dict(ARMS)
    if small:
        arms = {arm: ARMS[arm] for arm in ("plain", "SmoothQuant 0.5", "SmoothQuant 0.75", "a scale a token")}
        arms["Outlier Suppression+"] = ({"recipe": OURS, "candidates": 10}, "w6a6-tensor")
    rows = losses(arms, budget, seeds, progress)
    plain, floor = mean(rows, "planted", "plain"), mean(rows, "unplanted", "plain")
    won = {arm: (plain - mean(rows, "planted", arm)) / (plain - floor) for arm in arms}
    ours, smooth = won["Outlier Suppression+"], max(won["SmoothQuant 0.5"], won["SmoothQuant 0.75"])
    back = ours >= WON and ours > smooth
    note = f"It wins back {ours:.1%} of what planted channels cost, SmoothQuant {smooth:.1%}: {verdict(back)}."
    near = True
    if not small:
        lost, other = (mean(rows, "MiniLM", arm) for arm in ("Outlier Suppression+", "SmoothQuant 0.5"))
        near = lost <= NEAR * other
        note += f" On MiniLM it loses {lost:.4g} and SmoothQuant {other:.4g}: {verdict(near)}."
    return Claim(
        paper="Outlier Suppression+",
        published="Near full precision for 8- and 6-bit models",
        measure="share of the loss by planted channels that is won back at 6 bits",
        ours=ours,
        baseline=("SmoothQuant", smooth),
        peer=("a scale a token", won["a scale a token"]),
        threshold=THRESHOLD,
        holds=back and near,
        note=note,
        numbers={"Loss by arm and model": table(rows), "All losses": rows},
        seeds=seeds,
        budget=budget,
    )
