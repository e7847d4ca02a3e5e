"""Massive activations: a few values of the residual stream that are thousands of times the others.

Sun, Chen, Kolter, Liu, Massive Activations in Large Language Models, 2024 (arXiv 2402.17762): a value is massive when
it is above 100 and above 1,000 times the median magnitude of its layer. They stand at few tokens (the first,
delimiters) in few channels, and stay the same over many layers. A channel that is large at many tokens is no massive
activation but a residual sink.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._accumulators import ChannelStats
from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, in_layers, listed, plural, residual, runs
from farout.inside.quantization_cost import Cost

BOUND, RATIO = 100.0, 1000.0  # of a massive value: above both
FEW = 0.1  # share of the tokens, from which on a channel is large at many
_AMONG = ("per-token scales", "first token in 16 bits", "rotation", "outlier columns in 16 bits")


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find massive activations, those of the same layers together.

    One that stands at a single position in a single layer is called a ``"spike"``: it does not live in the stream.
    """
    layers = residual(recording)
    massive = [dict(_massive(stats)) for _, stats in layers]
    found = []
    for start, end in runs(i for i, values in enumerate(massive) if values):
        inside = range(start, end + 1)
        peak = {j: max(massive[i].get(j, 0.0) for i in inside) for i in inside for j in massive[i]}
        channels = sorted(peak, key=lambda j: -peak[j])
        strongest = max(inside, key=lambda i: max(massive[i].values()))
        stats = layers[strongest][1]
        positions = np.flatnonzero(stats.position_peak > least(stats)).tolist()
        names = [layers[i][0].index for i in inside]
        value, median = peak[channels[0]], stats.quantile(0.5)
        spike = len(names) == 1 and len(positions) == 1
        where = "the first token" if positions == [0] else plural("position", positions)
        says = (
            f"{plural('Channel', channels)} of the residual stream {'reaches' if len(channels) == 1 else 'reach'} "
            f"{listed([f'{peak[j]:,.0f}' for j in channels])} at {where} in {in_layers(names)}, where the median is "
            f"{median:.3g}"
        )
        if not spike:
            says += f"; layer {names[0]} writes {'it' if len(channels) == 1 else 'them'}"
            says += f", and from layer {names[-1] + 1} on none is left above the bound" if end + 1 < len(layers) else ""
        remedy, recipe, gain = best_remedy(costs, "w8a8", _AMONG, "per-token scales")
        evidence = {
            "channels": channels,
            "peaks": [peak[j] for j in channels],
            "positions": positions,
            "layers": names,
            "median": median,
            "share of tokens": float(stats.spread[channels[0]]),
        }
        kind = "spike" if spike else "massive activation"
        size = value / least(stats)
        found.append(Finding(kind, layers[start][0].leaves, size, says + ".", evidence, remedy, recipe, gain))
    return found


def least(stats: ChannelStats) -> float:
    """Return the smallest magnitude that is massive at a site."""
    return max(BOUND, RATIO * stats.quantile(0.5))


def _massive(stats: ChannelStats) -> list[tuple[int, float]]:
    """Return the channels that are massive at a site and large at few tokens, with their peaks."""
    far = np.flatnonzero((stats.absmax > least(stats)) & (stats.spread < FEW))
    return [(int(j), float(stats.absmax[j])) for j in far]
