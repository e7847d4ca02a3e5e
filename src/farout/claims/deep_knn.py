"""Deep kNN: the distance to the k-th neighbour against the distance to the nearest class mean."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + (
    "the FPR95 of the k-th neighbour is at least 5 points below that of the Mahalanobis distance of the same features."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="Deep kNN",
        published="FPR95 24.77 points below that of Mahalanobis on ImageNet",
        threshold=THRESHOLD,
        ours="deep_knn",
        baseline="mahalanobis:where=features",
        peer="energy",
        what="FPR95",
        holds=lambda mean: mean["deep_knn"]["FPR95"] <= mean["mahalanobis:where=features"]["FPR95"] - 0.05,
    )
