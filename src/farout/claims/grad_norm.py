"""GradNorm: the size of a gradient of the head."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the FPR95 of GradNorm is below that of the energy.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="GradNorm",
        published="average FPR95 54.7 % on ImageNet, where energy has 71.0 %",
        threshold=THRESHOLD,
        ours="grad_norm",
        baseline="energy",
        peer="deep_knn",
        what="FPR95",
        holds=lambda mean: mean["grad_norm"]["FPR95"] < mean["energy"]["FPR95"],
    )
