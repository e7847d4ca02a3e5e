"""Values that are no numbers, and values that half precision cannot hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import channel_sites
from farout.inside.quantization_cost import Cost

HALF = 65_504.0  # the largest number of float16
_KINDS = ("weight", "residual", "norm", "linear", "output", "attention", "gradient", "moment")


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find NaN and infinities, with the first place where they were met, and values beyond float16."""
    order = list(recording.stats)
    bad, beyond = {}, {}
    for site, stats in channel_sites(recording, *_KINDS):
        lost = int(stats.nan.sum() + stats.infinite.sum())
        if lost:
            bad[site] = lost
        if stats.absmax.max() > HALF:
            beyond[site] = float(stats.absmax.max())
    found = []
    if bad:
        first = {name: order.index(recording.aliases.get(name, name)) for name in bad}
        site = min(bad, key=lambda name: (recording.kinds[name] != "weight", first[name]))
        stats = recording[site]
        channel = int(np.argmax(stats.nan + stats.infinite))
        positions = np.flatnonzero(stats.position_bad).tolist()
        row = "row" if recording.kinds[site] == "weight" else "position"
        says = (
            f"{bad[site]:,} values at '{site}' are NaN or infinite, the most in channel {channel}, from {row} "
            f"{positions[0]} on; {len(bad)} sites have such values."
        )
        remedy = (
            "Look there first: a division, an overflow of half precision, or a damaged weight. Whatever comes after it "
            "does not count."
        )
        evidence = {"sites": bad, "channel": channel, "positions": positions[:32]}
        found.append(Finding("not a number", site, float("inf"), says, evidence, remedy))
    if beyond:
        site = max(beyond, key=lambda name: beyond[name])
        says = f"{len(beyond)} sites leave the range of float16 (65,504): {beyond[site]:,.0f} at '{site}'."
        remedy = "Run this model in bfloat16 or float32; in float16 these values become infinite."
        found.append(Finding("beyond float16", site, beyond[site] / HALF, says, {"sites": beyond}, remedy))
    return found
