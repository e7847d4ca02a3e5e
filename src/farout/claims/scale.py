"""SCALE: energy behind scaled features."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the AUROC of SCALE is above those of ASH and of the energy.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="SCALE",
        published="ImageNet-1k: AUROC 81.36 near and 96.53 far, where ASH has 78.17 and 95.74",
        threshold=THRESHOLD,
        ours="scale",
        baseline="ash",
        peer="energy",
        what="AUROC",
        holds=lambda mean: mean["scale"]["AUROC"] > max(mean["ash"]["AUROC"], mean["energy"]["AUROC"]),
    )
