"""Outlier channels: input columns of linear maps that are large at many tokens, as LLM.int8() counts them.

Dettmers, Lewis, Belkada, Zettlemoyer, LLM.int8(), 2022 (arXiv 2208.07339): a feature is an outlier where its magnitude
is at least 6, at 6 % of the tokens or more, and in a quarter of the layers or more. Large values alone are no outliers,
so a column must also stand out of its own input, by five times the root mean square of the median column. Columns of
the feed-forward middle mean something else in each layer, so they count layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._accumulators import ChannelStats
from farout.inside._finding import Finding
from farout.inside._layers import layers_of
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, channel_sites, in_layers, listed
from farout.inside.quantization_cost import Cost

TOKENS, LAYERS, STANDS_OUT = 0.06, 0.25, 5.0
_AMONG = ("smoothquant", "rotation", "outlier columns in 16 bits")


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find outlier columns: those that the layers share in one finding, and those of single maps in another."""
    layers = layers_of(recording)
    width = len(recording[layers[0].leaves].count) if layers and layers[0].leaves in recording else 0
    shared: dict[int, dict[int, str]] = {}  # channel -> layer -> site
    own: dict[str, list[int]] = {}
    facts: dict[str, ChannelStats] = {}
    for site, stats in channel_sites(recording, "linear"):
        far = outliers(stats)
        if not len(far):
            continue
        facts[site] = stats
        layer = next((layer.index for layer in layers if layer.holds(site)), None)
        if layer is not None and len(stats.count) == width:
            for j in far.tolist():
                shared.setdefault(j, {}).setdefault(layer, site)
        elif layer is not None or not layers:
            own[site] = far.tolist()
    wide = {j: at for j, at in shared.items() if len(at) >= LAYERS * len(layers)}
    found = []
    if wide:
        channels = sorted(wide, key=lambda j: -len(wide[j]))
        each = [f"{j} ({in_layers(wide[j])})" for j in channels]
        site = max(
            (site for j in channels for site in wide[j].values()), key=lambda site: float(facts[site].absmax.max())
        )
        says = (
            f"Input {'column' if len(channels) == 1 else 'columns'} {listed(each)} of linear maps "
            f"{'exceeds' if len(channels) == 1 else 'exceed'} 6 at many tokens, in a quarter of the layers or more."
        )
        size = max(len(at) for at in wide.values()) / (LAYERS * len(layers))
        found.append(
            _finding(site, size, says, {"channels": channels, "layers": [sorted(wide[j]) for j in channels]}, costs)
        )
    if own:
        strength = {site: float(_stands_out(facts[site])[far].max()) for site, far in own.items()}
        site = max(strength, key=lambda name: strength[name])
        column = max(own[site], key=lambda j: float(_stands_out(facts[site])[j]))
        says = (
            f"{len(own)} {'map has' if len(own) == 1 else 'maps have'} input columns of their own that exceed 6 at "
            f"many tokens; the strongest is column {column} of '{site}', {strength[site]:.0f} times the median column."
        )
        evidence = {"sites": list(own), "channels": list(own.values())}
        found.append(_finding(site, strength[site] / STANDS_OUT, says, evidence, costs))
    return found


def outliers(stats: ChannelStats) -> np.ndarray:
    """Return the columns of an input that are outliers (k,)."""
    often = stats.large >= TOKENS * np.maximum(stats.count, 1)
    return np.flatnonzero(often & (_stands_out(stats) >= STANDS_OUT))


def _stands_out(stats: ChannelStats) -> np.ndarray:
    """Return each column's root mean square over that of the median column (C,)."""
    rms = stats.rms
    middle = float(np.median(rms))
    return rms / middle if middle > 0 else np.zeros_like(rms)


def _finding(site: str, size: float, says: str, evidence: dict[str, object], costs: Sequence[Cost]) -> Finding:
    remedy, recipe, gain = best_remedy(costs, "w8a8", _AMONG, "smoothquant")
    return Finding("outlier channel", site, size, says, evidence, remedy, recipe, gain)
