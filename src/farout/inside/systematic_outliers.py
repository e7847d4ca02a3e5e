"""Systematic outliers: Systematic Outliers in Large Language Models.

Yongqi An, Xu Zhao, Tao Yu, Ming Tang, Jinqiao Wang, ICLR 2025 (arXiv 2502.06415).

Outliers in activations, weights and attention are one thing. A weight of an early block writes a huge value into one
channel of the residual stream at one token; normalised, that token's key draws attention while its value adds nothing;
so heads can scale what they give, by the context; and a late block takes the value out again.

The paper claims that the channels of weight and activation outliers agree in all cases and the tokens of activation and
attention outliers in 95 %, and that variants of attention with a scale of their own train without any of the three:
W8 by absmax then costs a GPT-2 a perplexity of 29.2 where the default has 93.4.

Differences from the paper and from its code, of which notes were read:

- An activation outlier passes 1000 times the median absolute value and 100 (as massive activations are usually
  defined); the paper's rule, 1000 times the mean, is counted beside it and can be chosen. A mean holds the outlier too.
- Which weight writes an outlier is read from the block that creates it: the row of its channel. The paper looks for
  large rows anywhere. Whether the matrix's largest weight stands in that row is what the overlap counts. Where a norm
  stands behind the matrix, as in Gemma 3, its gain is taken for the writer.
- An outlier is gone when less than half of it is left.
- Positions are places in the sequence. Which word stands there a recording does not keep.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.inside._accumulators import ChannelStats
from farout.inside._layers import Layer, layers_of
from farout.inside._life_cycle import Life, LifeCycle, Write, top_row
from farout.inside._lives import life_of, spans
from farout.inside._recording import Recording

__all__ = ["Life", "LifeCycle", "SystematicOutliers", "Write"]

RULES = ("median", "mean")
LEAST = 100.0  # what a massive activation passes whatever the median is


@paper(
    "Systematic outliers",
    title="Systematic Outliers in Large Language Models",
    authors="An, Zhao, Yu, Tang, Wang",
    arxiv="2502.06415",
    year=2025,
    claim="Channels of weight and activation outliers agree in all cases, tokens of activation and attention outliers "
    "in 95 %; attention with a scale of its own trains without them, and W8 costs a perplexity of 29.2, not 93.4.",
    differs="Outliers pass 1000 times the median and 100 by default; the paper's 1000 times the mean is counted beside "
    "it. The writing weight is the row of the channel, or the gain behind it, in the block that creates the outlier.",
    kind="measure",
    extra="torch",
)
class SystematicOutliers:
    """Outliers of activations, weights and attention in each block of a recorded model, and their life cycle.

    Blocks are numbered from 0, and what a block leaves counts as its own: an outlier that "block 11" creates is absent
    from the input of ``layers.11`` and present in its output.

    Parameters
    ----------
    rule : {"median", "mean"}
        What an absolute value must pass ``factor`` times to be an activation outlier. By the median it must pass 100
        too.
    factor : float
    sink : float
        Share of all attention from which on a key position is an attention outlier.

    Examples
    --------
    A network whose first block writes 500 into channel 2 wherever channel 0 is 1, and whose second takes it out:

    >>> import torch
    >>> from farout.inside import record
    >>> class Block(torch.nn.Module):
    ...     def __init__(self, size):
    ...         super().__init__()
    ...         self.up, self.down = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
    ...         with torch.no_grad():
    ...             self.up.weight.zero_()[0, 0] = 1.0
    ...             self.down.weight.zero_()[2, 0] = size
    ...     def forward(self, x):
    ...         return x + self.down(self.up(x).relu())
    >>> tokens = 0.1 * torch.ones(1, 40, 8)
    >>> tokens[0, :, 0] = 0.0
    >>> tokens[0, 5, 0] = 1.0
    >>> model = torch.nn.Sequential(*(Block(size) for size in (500.0, -500.0)))
    >>> found = SystematicOutliers().measure(record(model, [tokens]))
    >>> found.created, found.removed, found.channels, found.positions
    (0, 1, (2,), (5,))
    >>> found.lives[0].kind, found.lives[0].cancellers[0].parameter
    ('position', '1.down.weight')
    """

    def __init__(self, rule: str = "median", factor: float = 1000.0, sink: float = 0.1) -> None:
        self.rule = rule
        self.factor = factor
        self.sink = sink

    def measure(self, recording: Recording) -> LifeCycle:
        """Read the three kinds of outlier from a recording.

        Parameters
        ----------
        recording : Recording
            From :func:`farout.inside.record`, with the residual stream; without norms, linear maps and weights there
            are no writers, and without probabilities no attention.

        Returns
        -------
        LifeCycle

        Raises
        ------
        BadInput
            The model has no row of like blocks, or their streams differ in width.
        UnknownName
            ``rule`` is another.
        """
        if self.rule not in RULES:
            raise UnknownName("rule", self.rule, RULES)
        layers = layers_of(recording)
        if not layers:
            raise BadInput(
                "the recording holds no residual stream: record the kind 'residual' of a model with rows of like blocks"
            )
        streams = [recording[layers[0].enters], *(recording[layer.leaves] for layer in layers)]
        widths = {len(stats.count) for stats in streams}
        if len(widths) > 1:
            raise BadInput(f"the streams between blocks have {sorted(widths)} channels, and a life needs one width")
        bounds = np.array([self._bound(stats) for stats in streams])
        peaks_SC = np.array([stats.absmax for stats in streams])
        lives = [
            life_of(recording, layers, streams, peaks_SC, channel, first, last)
            for channel in np.flatnonzero((peaks_SC > bounds[:, None]).any(axis=0)).tolist()
            for first, last in spans(peaks_SC[:, channel], bounds)
        ]
        lives.sort(key=lambda life: -life.peak)
        rows = [self._row(recording, layer, stats) for layer, stats in zip(layers, streams[1:])]
        halves = [half for life in lives for half in (life.writers, life.cancellers)]
        gains = [[write for write in half if write.gain] or half for half in halves]
        channels = {life.channel for life in lives}
        tops = [top_row(recording[name]) in channels for name in {write.parameter for half in gains for write in half}]
        entering = [
            (position, sinks)
            for layer, stats, bound in zip(layers, streams, bounds)
            if (sinks := self._sinks(recording, layer, len(stats.position_peak))) is not None
            for position in np.flatnonzero(stats.position_peak > bound)
        ]
        hits = [bool(sinks[position] >= self.sink) for position, sinks in entering]
        return LifeCycle(
            lives=tuple(lives),
            layers=rows,
            shared_channels=float(np.mean(tops)) if tops else float("nan"),
            shared_positions=float(np.mean(hits)) if hits else float("nan"),
        )

    def _bound(self, stats: ChannelStats) -> float:
        """Return what an activation outlier of a site passes."""
        if self.rule == "mean":
            return self.factor * _mean(stats)
        return max(LEAST, self.factor * stats.quantile(0.5))

    def _sinks(self, recording: Recording, layer: Layer, positions: int) -> np.ndarray | None:
        """Return the share of a block's attention that each position gets (positions,); None without attention.

        Keys behind the last position belong to no token: they are learned.
        """
        site = next((site for site in recording.names("probs") if layer.holds(site)), None)
        if site is None:
            return None
        mean = recording[site].share.mean(axis=0)[:positions]
        return np.pad(mean, (0, positions - len(mean)))

    def _row(self, recording: Recording, layer: Layer, stats: ChannelStats) -> dict[str, Any]:
        """Return a block's row of the table."""
        nowhere: list[Any] = [(float("nan"), None, None)]
        peak, position, channel = (stats.peaks(1) or nowhere)[0]
        median, mean = stats.quantile(0.5), _mean(stats)
        ratios = [(weight_ratio(recording[name]), name) for name in _matrices(recording, layer)]
        ratio, parameter = max(ratios, default=(None, None))
        row, column = (None, None) if parameter is None else recording[parameter].peaks(1)[0][1:]
        sinks = self._sinks(recording, layer, len(stats.position_peak))
        return {
            "block": layer.index,
            "peak": peak,
            "channel": channel,
            "position": position,
            "median": median,
            "mean": mean,
            "systematic": int((stats.absmax > 1000 * mean).sum()),
            "massive": int((stats.absmax > max(LEAST, 1000 * median)).sum()),
            "ratio": ratio,
            "parameter": parameter,
            "row": row,
            "column": column,
            "sinks": None if sinks is None else int((sinks >= self.sink).sum()),
            "sink": None if sinks is None else int(sinks.argmax()),
            "attention": None if sinks is None else float(sinks.max()),
        }


def weight_ratio(stats: ChannelStats) -> float:
    """Return the largest ratio of max |W| to mean |W| in any row or column of a recorded matrix."""
    rows = stats.position_peak, stats.position_magnitude / len(stats.count)
    columns = stats.absmax, stats.magnitude / np.maximum(stats.count, 1)
    ratios = [np.divide(most, mean, out=np.zeros_like(most), where=mean > 0).max() for most, mean in (rows, columns)]
    return float(max(ratios))


def _mean(stats: ChannelStats) -> float:
    """Return the mean absolute value of a site."""
    return float(stats.magnitude.sum() / max(stats.count.sum(), 1))


def _matrices(recording: Recording, layer: Layer) -> list[str]:
    """Return the names of a block's matrices."""
    named = [name for name in recording.names("weight") if layer.holds(name)]
    return [name for name in named if len(recording[name].position_count) > 1]
