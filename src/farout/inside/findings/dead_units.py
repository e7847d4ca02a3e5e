"""Dead and saturated units: inputs of linear maps that are always off, or always the same.

A unit is dead where it was 0 throughout or, behind an activation, never above 0: GELU and SiLU have a shallow trough
there (-0.17 and -0.28 at the least), and an input none of whose values lies deeper is taken to come from one. A unit is
saturated where its values do not vary by a thousandth of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._accumulators import ChannelStats
from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import channel_sites, listed
from farout.inside.quantization_cost import Cost

TROUGH, STILL = -0.279, 1e-3
LEAST = 32  # tokens, from which on silence means something
SHARE = 0.01  # of the units of a map


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find maps of whose inputs a hundredth or more is dead or saturated, one finding for each of the two."""
    found = []
    for kind, units_of in (("dead units", dead), ("saturated units", saturated)):
        units = {}
        for site, stats in channel_sites(recording, "linear"):
            if stats.count.max() >= LEAST and len(stats.count) > 1:
                far = units_of(stats)
                if len(far) >= max(1.0, SHARE * len(stats.count)):
                    units[site] = far
        if not units:
            continue
        share = {site: len(far) / len(recording[site].count) for site, far in units.items()}
        site = max(share, key=lambda name: share[name])
        what = "never active" if kind == "dead units" else "the same at every token"
        says = (
            f"{len(units)} {'map has' if len(units) == 1 else 'maps have'} inputs that are {what} on this data: "
            f"{share[site]:.0%} at '{site}' ({listed(units[site].tolist())})."
        )
        remedy = (
            "They can be pruned, if other data leave them so too; a lower learning rate or another start avoids them."
        )
        evidence = {"share": share, "units": {name: far.tolist() for name, far in units.items()}}
        found.append(Finding(kind, site, share[site] / SHARE, says, evidence, remedy))
    return found


def dead(stats: ChannelStats) -> np.ndarray:
    """Return the channels that were never on (k,)."""
    activated = stats.low.min() >= TROUGH
    return np.flatnonzero((stats.count > 0) & ((stats.absmax == 0) | (activated & (stats.high <= 0))))


def saturated(stats: ChannelStats) -> np.ndarray:
    """Return the channels that stand still away from zero (k,)."""
    still = np.sqrt(stats.variance) <= STILL * np.abs(stats.mean)
    return np.flatnonzero(still & (stats.mean != 0) & (stats.count > 0))
