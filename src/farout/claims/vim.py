"""ViM: a logit of what lies outside the principal space."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the AUROC of ViM is above that of the energy.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="ViM",
        published="average AUROC 90.91 % on ImageNet, where energy has 81.65 %",
        threshold=THRESHOLD,
        ours="vim",
        baseline="energy",
        peer="deep_knn",
        what="AUROC",
        holds=lambda mean: mean["vim"]["AUROC"] > mean["energy"]["AUROC"],
    )
