"""Attention sinks: key positions that most queries look at, though nothing is there to be read.

Xiao, Tian, Chen, Han, Lewis, Efficient Streaming Language Models with Attention Sinks, 2023 (arXiv 2309.17453). A head
is a sink head where one key position gets more than 0.3 of its attention in the mean over queries, and three times what
that position would get from causal attention that spreads evenly, which matters in short sequences only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._attention_stats import AttentionStats
from farout.inside._finding import Finding
from farout.inside._layers import layers_of
from farout.inside._recording import Recording
from farout.inside.findings._common import in_layers, plural
from farout.inside.quantization_cost import Cost

SHARE, EVEN = 0.3, 3.0
_TRAINED_WITHOUT = "quantizable_transformers"


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find the heads that look at a sink, all of them in one finding."""
    layers = layers_of(recording)
    heads: list[tuple[float, str, int, int]] = []  # share, site, head, position
    total = 0
    for site in recording.names("probs"):
        stats = recording[site]
        if site in recording.aliases or not isinstance(stats, AttentionStats):
            continue
        total += len(stats.mass)
        share_HK = stats.share
        far_HK = share_HK > np.maximum(SHARE, EVEN * _evenly(share_HK.shape[1]))
        heads += [(float(share_HK[h, p]), site, int(h), int(p)) for h, p in np.argwhere(far_HK)]
    if not heads:
        return []
    share, site, head, _ = max(heads)
    sinks = sorted({(s, h) for _, s, h, _ in heads})
    positions = sorted({p for *_, p in heads})
    index = {s: next((layer.index for layer in layers if layer.holds(s)), None) for s, _ in sinks}
    where = sorted(i for i in {index[s] for s, _ in sinks} if i is not None)
    at = "the first token" if positions == [0] else plural("position", positions)
    module = site.removesuffix(".probs")
    says = (
        f"{len(sinks)} of {total} heads give more than {SHARE:.0%} of their attention to {at}"
        f"{f', in {in_layers(where)}' if where else ''}; head {head} of '{module}' gives {share:.0%}."
    )
    remedy = (
        "Keep the sink tokens in every cache and calibration sample, in full precision. Training with a gate or an "
        "extra key in attention is reported to make do without them."
    )
    evidence = {
        "heads": [[s, h] for s, h in sinks],
        "positions": positions,
        "layers": where,
        "share of heads": len(sinks) / total,
        "largest share": share,
    }
    return [Finding("attention sink", site, share / SHARE, says, evidence, remedy, _TRAINED_WITHOUT)]


def _evenly(keys: int) -> np.ndarray:
    """Return what each key position gets from causal queries that look at all keys before them alike (K,)."""
    return np.cumsum(1 / np.arange(keys, 0, -1))[::-1] / keys
