"""ASH: energy behind shaped features."""

from __future__ import annotations

from farout.claims._claim import Claim
from farout.claims._post_hoc import SETTING, claim_of
from farout.claims._tables import Progress

THRESHOLD = SETTING + ("the FPR95 of ASH is below those of the energy and of ReAct.")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; the small budget has one short training and few images."""
    return claim_of(
        budget,
        progress,
        paper="ASH",
        published="FPR95 22.7 % on ImageNet, where ReAct has 31.4 %",
        threshold=THRESHOLD,
        ours="ash",
        baseline="energy",
        peer="react",
        what="FPR95",
        holds=lambda mean: mean["ash"]["FPR95"] < min(mean["energy"]["FPR95"], mean["react"]["FPR95"]),
    )
