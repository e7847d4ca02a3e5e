"""The lives of outliers in a residual stream: when they begin and end, where they stand, and who writes them."""

from __future__ import annotations

import numpy as np

from farout.inside._accumulators import ChannelStats
from farout.inside._layers import Layer
from farout.inside._life_cycle import Life, Write, row_of
from farout.inside._recording import Recording

LEFT = 0.5  # of an outlier; with less it is gone
FEW = 0.05  # of the positions: an outlier that stands at no more is tied to them
EVERY = 0.1  # of the tokens: a channel that as many tokens as this share carry alike is an outlier at every token


def spans(peaks_S: np.ndarray, bounds: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and the last stream of each life in a channel.

    A life begins where the bound is passed and ends before less than half of its largest value is left; what is left
    then begins no new life while it stays above the bound.
    """
    spans, begun, most = [], None, 0.0
    passing = peaks_S > bounds
    for at, peak in enumerate(peaks_S):
        if begun is not None and peak >= LEFT * most:
            most = max(most, peak)
        elif begun is not None:
            spans.append((begun, at - 1))
            begun = None
        elif passing[at] and not (at and passing[at - 1]):
            begun, most = at, peak
    return spans if begun is None else [*spans, (begun, len(peaks_S) - 1)]


def life_of(
    recording: Recording,
    layers: list[Layer],
    streams: list[ChannelStats],
    peaks_SC: np.ndarray,
    channel: int,
    first: int,
    last: int,
) -> Life:
    """Tell the life of an outlier that is in the streams from ``first`` to ``last``."""
    at = first + int(peaks_SC[first : last + 1, channel].argmax())
    stats, peak = streams[at], float(peaks_SC[at, channel])
    enough = np.flatnonzero(stats.position_peak >= LEFT * peak)
    places = list(zip(stats.top_position.tolist(), stats.top_channel.tolist()))
    own = [position for position, top in places if top == channel and stats.position_peak[position] >= LEFT * peak]
    if not own:  # never the largest of its position: it stands where one at least as large does
        own = [position for position, _ in places if stats.position_peak[position] >= peak]
    carried = (stats.magnitude[channel] / stats.count[channel] / stats.rms[channel]) ** 2  # 1/n for one token of n
    if carried >= EVERY:
        kind = "channel"
    else:
        kind = "position" if len(enough) <= max(1, FEW * len(stats.position_peak)) else "tokens"
    created, removed = first - 1, (last if last < len(layers) else None)
    half = LEFT * peak
    return Life(
        channel=channel,
        peak=peak,
        created=created,
        removed=removed,
        kind=kind,
        positions=tuple(own),
        writers=_writers(recording, layers[created], channel, half, rises=True) if created >= 0 else (),
        cancellers=() if removed is None else _writers(recording, layers[removed], channel, half, rises=False),
    )


def _writers(recording: Recording, layer: Layer, channel: int, half: float, rises: bool) -> tuple[Write, ...]:
    """Return the row of a channel in the weights of that half of a block after which an outlier is there, or gone.

    Halves end where a norm reads the stream: a norm whose output linear maps multiply. Matrices that write are those as
    high as the stream is wide which multiply neither the stream nor what a norm gives; any other norm stands behind
    one, and writes too.
    """
    order = [name for name in recording.kinds if layer.holds(name) and name.endswith(".in")]
    main = {name: recording.aliases.get(name, name) for name in order}
    read = {main[name] for name in order if recording.kinds[name] == "linear"}
    width = len(recording[layer.leaves].count)
    found: list[Write] = []
    for name in order:
        module = name.removesuffix(".in")
        if recording.kinds[name] == "norm" and f"{module}.out" in read:
            if main[name] == name:  # a half ends; the norm that reads what enters the block ends none
                if found and (recording[name].absmax[channel] >= half) == rises:
                    break
                found = []
            continue
        writes = bool(found) if recording.kinds[name] == "norm" else recording.kinds[main[name]] == "linear"
        parameter = f"{module}.weight"
        if writes and parameter in recording:
            stats = recording[parameter]
            if width == (len(stats.position_count) if len(stats.position_count) > 1 else len(stats.count)):
                found.append(row_of(parameter, stats, channel))
    return tuple(found)
