"""What plain rounding costs the whole model, which maps cost most, and what is left with the best remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, total
from farout.inside.quantization_cost import REMEDIES, SCHEMES, Cost

BOUND = 0.01  # nats a token, a hundredth of the perplexity; or of the output's energy
_READS = {
    "w8a8": "8-bit weights and inputs (one scale for a tensor)",
    "w4a16": "4-bit weights (one scale for an output)",
    "w4a4": "4-bit weights and inputs (a scale for a token)",
}


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Say for each scheme what plain rounding costs; where it is little, that plain rounding is enough."""
    found = []
    for scheme in SCHEMES if costs else ():
        whole = total(costs, scheme)
        worst = max(costs, key=lambda cost: cost.of(scheme))
        share = worst.of(scheme) / (whole or 1.0)
        ranked = sorted(costs, key=lambda cost: -cost.of(scheme))
        half, upto = 0, 0.0
        while half < len(ranked) and upto < 0.5 * whole:
            upto += ranked[half].of(scheme)
            half += 1
        size = whole / BOUND
        says = f"Plain rounding to {_READS[scheme]} is predicted to cost {_amount(whole, costs)}"
        gain: float | None = 1.0
        if size < 1:
            says, remedy, recipe = says + ".", "Plain rounding is enough.", "rtn"
        else:
            says += f"; {half} of {len(costs)} maps cause half of it, '{worst.layer}' alone {share:.0%}."
            remedy, recipe, gain = best_remedy(costs, scheme, tuple(REMEDIES), "rotation")
        evidence = {
            "scheme": scheme,
            "predicted loss": whole,
            "worst": [[cost.layer, cost.of(scheme)] for cost in ranked[:8]],
            "maps for half": half,
        }
        found.append(Finding("rounding cost", worst.layer, size, says, evidence, remedy, recipe, gain))
    return found


def _amount(whole: float, costs: Sequence[Cost]) -> str:
    """Say a predicted loss in words."""
    if not costs[0].nats and whole > 1:
        return "everything (the prediction is beyond the model's whole output, where it is no number any more)"
    if not costs[0].nats:
        return f"{100 * whole:.2g} % of the energy of the model's output"
    if whole > 3:
        return "everything (the prediction is beyond 3 nats a token, where it is no number any more)"
    return f"{whole:.2g} nats a token (perplexity times {math.exp(whole):.3g})"
