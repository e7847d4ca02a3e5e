"""Relative Mahalanobis: near inputs, by the distance less what all features share."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + (
    "the AUROC on the near set is at least 5 points above that of the Mahalanobis distance of the same features."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="Relative Mahalanobis",
        published="CIFAR-100 against CIFAR-10: AUROC 81.04 %, the Mahalanobis distance 74.81 %",
        threshold=THRESHOLD,
        ours="relative_mahalanobis",
        baseline="mahalanobis:where=features",
        peer="energy",
        what="AUROC",
        holds=lambda mean: mean["relative_mahalanobis"]["near"] >= mean["mahalanobis:where=features"]["near"] + 0.05,
    )
