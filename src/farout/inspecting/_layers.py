"""The tables of a recorded model by layer: its residual stream, and where its attention goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from farout.inside._accumulators import ChannelStats
from farout.inside._layers import layers_of
from farout.inside._recording import Recording

SINK = 0.3  # of a head's attention on one key position, from which it is a sink, as papers on massive activations count

_LAYERS: dict[str, Any] = {
    "layer": pl.Int64,
    "site": pl.String,
    "width": pl.Int64,
    "peak": pl.Float64,
    "channel": pl.Int64,
    "position": pl.Int64,
    "pieces": pl.List(pl.String),
    **dict.fromkeys(("q999", "median", "rms", "kurtosis", "first", "rest"), pl.Float64),
}
_SINKS: dict[str, Any] = {
    "layer": pl.Int64,
    "site": pl.String,
    **dict.fromkeys(("heads", "keys"), pl.Int64),
    "first": pl.Float64,
    "first_heads": pl.List(pl.Float64),
    "position": pl.Int64,
    "pieces": pl.List(pl.String),
    "share": pl.Float64,
    "sink_heads": pl.Int64,
}


def stream_of(recording: Recording) -> list[str]:
    """Return the sites of the residual stream in order; inputs of linear maps where there is no row of blocks."""
    layers = layers_of(recording)
    if layers:
        sites = [layers[0].enters, *(layer.leaves for layer in layers)]
        return [site for site in sites if site in recording]
    return [site for site in recording.names("linear") if site not in recording.aliases]


def layer_table(recording: Recording, stream: list[str], pieces: Callable[[int], list[str]]) -> pl.DataFrame:
    """Describe the sites of the stream; layer -1 is what enters the first block."""
    layers = layers_of(recording)
    start = -1 if layers and layers[0].enters in recording else 0
    rows = []
    for layer, site in enumerate(stream, start=start):
        stats: ChannelStats = recording[site]
        nowhere: list[Any] = [(float("nan"), None, None)]
        peak, position, channel = (stats.peaks(1) or nowhere)[0]
        by_position = stats.position_peak
        rows.append(
            (
                layer,
                site,
                len(stats.count),
                peak,
                channel,
                position,
                [] if position is None else pieces(position),
                stats.quantile(0.999),
                stats.quantile(0.5),
                float(np.sqrt((stats.rms**2 * stats.count).sum() / max(stats.count.sum(), 1))),
                stats.kurtosis,
                float(by_position[0]) if len(by_position) else None,
                float(by_position[1:].max()) if len(by_position) > 1 else None,
            )
        )
    return pl.DataFrame(rows, schema=_LAYERS, orient="row")


def sink_table(recording: Recording, pieces: Callable[[int], list[str]]) -> pl.DataFrame:
    """Describe the attention of each layer: ``first`` and ``share`` are means over heads and queries.

    ``position`` is the key position that gets most, ``sink_heads`` counts the heads that give it more than 0.3.
    """
    layers, rows = layers_of(recording), []
    for place, site in enumerate(recording.names("probs")):
        share_HK = recording[site].share
        if not share_HK.size:
            continue
        position = int(share_HK.mean(0).argmax())
        within = [layer.index for layer in layers if layer.holds(site)]
        rows.append(
            (
                within[0] if within else place,
                site,
                *share_HK.shape,
                float(share_HK[:, 0].mean()),
                share_HK[:, 0].tolist(),
                position,
                pieces(position),
                float(share_HK[:, position].mean()),
                int((share_HK[:, position] > SINK).sum()),
            )
        )
    return pl.DataFrame(rows, schema=_SINKS, orient="row")
