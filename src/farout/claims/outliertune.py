"""OutlierTune: scales of channels in the weights, at 6 bits, on planted channels and on MiniLM."""

from __future__ import annotations

from typing import Any

from farout.claims._claim import Claim
from farout.claims._shifted_lab import losses, mean, table
from farout.claims._tables import SEEDS, Progress, verdict

PEER = "Outlier Suppression+"
ARMS: dict[str, tuple[Any, str]] = {
    "plain, static": ("rtn", "w6a6-tensor"),
    "a scale a token": ("rtn", "w6a6"),
    "SmoothQuant 0.5": ("smoothquant", "w6a6-tensor"),
    "SmoothQuant 0.75": ({"recipe": "smoothquant", "alpha": 0.75}, "w6a6-tensor"),
    PEER: ("outlier_suppression_plus", "w6a6-tensor"),
    "without centring": ({"recipe": "outliertune", "symmetrize": False}, "w6a6"),
    "OutlierTune": ("outliertune", "w6a6"),
    "unclamped": ({"recipe": "outliertune", "clamp": False}, "w6a6"),
}
THRESHOLD = (
    "Weights and inputs in 6 bits, in the mean over three draws, on the decoder with planted channels (30 times as "
    "large, 60 off zero): SmoothQuant with 0.5 loses less than plain rounding in static ranges, OutlierTune no more "
    "than SmoothQuant with 0.5, and more without centring than with it."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one draw and no MiniLM, which the full one only reports."""
    small = budget == "small"
    seeds = SEEDS[:1] if small else SEEDS
    arms = {arm: ARMS[arm] for arm in ARMS if not small or arm not in (PEER, "SmoothQuant 0.75")}
    rows = losses(arms, budget, seeds, progress)
    lost = {arm: mean(rows, "planted", arm) for arm in arms}
    smoother = lost["SmoothQuant 0.5"] < lost["plain, static"]
    ordered = smoother and lost["OutlierTune"] <= lost["SmoothQuant 0.5"]
    centred = lost["without centring"] > lost["OutlierTune"]
    note = (
        f"On planted channels plain rounding loses {lost['plain, static']:.4g}, SmoothQuant "
        f"{lost['SmoothQuant 0.5']:.4g}, OutlierTune {lost['OutlierTune']:.4g}: {verdict(ordered)}; without centring "
        f"{lost['without centring']:.4g}: {verdict(centred)}. Without clamping, as in the official code, it would lose "
        f"{lost['unclamped']:.4g}."
    )
    if not small:
        names = ("plain, static", "SmoothQuant 0.5", "OutlierTune", "without centring")
        note += " On MiniLM: " + ", ".join(f"{arm} {mean(rows, 'MiniLM', arm):.4g}" for arm in names) + "."
    return Claim(
        paper="OutlierTune",
        published="OPT-IML at 6 bits on the level of half precision",
        measure="loss by rounding to 6 bits with planted channels, nats a token",
        ours=lost["OutlierTune"],
        baseline=("SmoothQuant", lost["SmoothQuant 0.5"]),
        peer=(PEER if PEER in lost else "a scale a token", lost[PEER if PEER in lost else "a scale a token"]),
        threshold=THRESHOLD,
        holds=ordered and centred,
        note=note,
        numbers={"Loss by arm and model": table(rows), "All losses": rows},
        seeds=seeds,
        budget=budget,
    )
