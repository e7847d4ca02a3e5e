"""Energy: the free energy of the logits against the largest probability."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the FPR95 of the energy is at least 5 points below that of MSP.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="Energy",
        published="FPR95 18 points below that of MSP on CIFAR-10",
        threshold=THRESHOLD,
        ours="energy",
        baseline="msp",
        peer="deep_knn",
        what="FPR95",
        holds=lambda mean: mean["energy"]["FPR95"] <= mean["msp"]["FPR95"] - 0.05,
    )
