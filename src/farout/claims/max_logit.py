"""MaxLogit: the largest logit says more than the largest probability."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the AUROC of the largest logit is above that of MSP.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="MaxLogit",
        published="about ten points of AUROC above MSP where classes are many",
        threshold=THRESHOLD,
        ours="max_logit",
        baseline="msp",
        peer="energy",
        what="AUROC",
        holds=lambda mean: mean["max_logit"]["AUROC"] > mean["msp"]["AUROC"],
    )
