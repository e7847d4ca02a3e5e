"""ReAct: energy behind cut features."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the FPR95 of ReAct is below that of the energy.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="ReAct",
        published="FPR95 31.4 % on ImageNet, where energy has 58.4 %",
        threshold=THRESHOLD,
        ours="react",
        baseline="energy",
        peer="deep_knn",
        what="FPR95",
        holds=lambda mean: mean["react"]["FPR95"] < mean["energy"]["FPR95"],
    )
