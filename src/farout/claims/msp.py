"""MSP: the largest probability tells what a classifier was not trained for."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the AUROC of MSP is at least 0.7 on every set.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="MSP",
        published="CIFAR-10 against SUN, Gaussian and all: AUROC 95, 97 and 96 %",
        threshold=THRESHOLD,
        ours="msp",
        baseline="grad_norm",
        peer="deep_knn",
        what="AUROC",
        holds=lambda mean: mean["msp"]["least"] >= 0.7,
    )
