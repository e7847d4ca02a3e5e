"""ODIN: a high temperature and a step of the input, both fixed beforehand."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the FPR95 of ODIN with the temperature and step of its paper is below that of MSP.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="ODIN",
        published="FPR95 4.3 % on Tiny ImageNet against CIFAR-10, where MSP has 34.7 %",
        threshold=THRESHOLD,
        ours="odin",
        baseline="msp",
        peer="energy",
        what="FPR95",
        holds=lambda mean: mean["odin"]["FPR95"] < mean["msp"]["FPR95"],
    )
