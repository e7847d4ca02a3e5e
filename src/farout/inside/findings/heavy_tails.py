"""Heavy tails: tokens whose values have a kurtosis far above that of a normal distribution.

Kurtosis over the channels of a token, averaged over tokens, is the usual one-number measure of outliers in a model
(Bondarenko et al. 2023, arXiv 2306.12929); beside it stands the largest over the mean magnitude. A normal distribution
has a kurtosis of 3, and one channel that carries all has as many as there are channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, channel_sites
from farout.inside.quantization_cost import Cost

BOUND = 50.0
_AMONG = ("rotation", "per-token scales", "outlier columns in 16 bits")


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find heavy tails, in the residual stream and in the inputs of linear maps, one finding each."""
    found = []
    for kind, words in (("residual", "sites of the residual stream"), ("linear", "inputs of linear maps")):
        sites = [(name, stats) for name, stats in channel_sites(recording, kind) if stats.tokens]
        values = {name: stats.token_kurtosis for name, stats in sites if np.isfinite(stats.token_kurtosis)}
        far = {name: value for name, value in values.items() if value > BOUND}
        if not far:
            continue
        site = max(far, key=lambda name: far[name])
        ratio = recording[site].token_ratio
        says = (
            f"{len(far)} of {len(values)} {words} have heavy tails: kurtosis {far[site]:.0f} at '{site}' (normal: 3), "
            f"where a token's largest value is {ratio:.0f} times its mean."
        )
        hit = [cost for cost in costs if f"{cost.layer}.in" in far] if kind == "linear" else list(costs)
        remedy, recipe, gain = best_remedy(hit, "w4a4", _AMONG, "rotation")
        evidence = {"kurtosis": far, "median kurtosis": float(np.median(list(values.values()))), "ratio": ratio}
        found.append(Finding("heavy tail", site, far[site] / BOUND, says, evidence, remedy, recipe, gain))
    return found
