"""Residual sinks: channels of the residual stream that are far larger than the others at most tokens.

Qiu et al., A Unified View of Attention and Residual Sinks, 2026 (arXiv 2601.22966): such a channel takes most of a
token's norm, so that the normalisation behind it shrinks all others; it scales and says nothing itself. Its own gain in
the norm is therefore near zero, which keeps it out of the inputs of linear maps as long as the gain is not folded into
them. What it does is measured by :mod:`farout.inside.outlier_driven_rescaling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._accumulators import ChannelStats
from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, in_layers, listed, residual, runs
from farout.inside.quantization_cost import Cost

BOUND = 20.0  # times the mean magnitude of the median channel
FEW = 0.05  # share of tokens below which a channel's mean is told without them
_AMONG = ("smoothquant", "rotation", "outlier columns in 16 bits")


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find the channels that are sinks, all of them in one finding."""
    layers = residual(recording)
    ratios = [ordinary_ratio(stats) for _, stats in layers]
    where: dict[int, list[int]] = {}
    for i, ratio in enumerate(ratios):
        for j in np.flatnonzero(ratio > BOUND).tolist():
            where.setdefault(j, []).append(i)
    if not where:
        return []
    best = {j: max(float(ratios[i][j]) for i in at) for j, at in where.items()}
    channels = sorted(where, key=lambda j: (-len(where[j]), -best[j]))
    top = max(best, key=lambda j: best[j])
    strongest = max(where[top], key=lambda i: ratios[i][top])
    spans = {j: [layers[i][0].index for i in where[j]] for j in channels}
    each = [f"{j} ({best[j]:.0f} times, {in_layers(spans[j])})" for j in channels]
    says = (
        f"At ordinary tokens, {'channel' if len(channels) == 1 else 'channels'} {listed(each)} of the residual stream "
        f"{'is' if len(channels) == 1 else 'are'} far above the median channel."
    )
    evidence = {
        "channels": channels,
        "ratios": [best[j] for j in channels],
        "layers": [runs(spans[j]) for j in channels],
        "share of tokens": [max(float(layers[i][1].spread[j]) for i in where[j]) for j in channels],
    }
    remedy, recipe, gain = best_remedy(costs, "w8a8", _AMONG, "rotation")
    return [
        Finding("residual sink", layers[strongest][0].leaves, best[top] / BOUND, says, evidence, remedy, recipe, gain)
    ]


def ordinary_ratio(stats: ChannelStats) -> np.ndarray:
    """Return each channel's mean magnitude over the median channel's (C,), without the few tokens where it is huge.

    A channel's fourth powers tell how few tokens carry it: where k of n do, its peak adds ``peak * k / n`` to the mean.
    """
    mean = stats.magnitude / np.maximum(stats.count, 1)
    spiked = np.where(stats.spread < FEW, stats.absmax * stats.spread, 0.0)
    middle = float(np.median(mean))
    return np.maximum(mean - spiked, 0.0) / middle if middle > 0 else np.zeros_like(mean)
