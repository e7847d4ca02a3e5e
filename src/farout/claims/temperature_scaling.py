"""Temperature scaling: calibrated probabilities as a score."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the AUROC of calibrated probabilities is not below that of MSP.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="Temperature scaling",
        published="CIFAR-10 (OpenOOD): AUROC near 88.09 and far 90.97, MSP 88.03 and 90.73",
        threshold=THRESHOLD,
        ours="temperature_scaling",
        baseline="msp",
        peer="energy",
        what="AUROC",
        holds=lambda mean: mean["temperature_scaling"]["AUROC"] >= mean["msp"]["AUROC"],
    )
