"""What became of the outliers of a recorded model: who wrote them, how far they came, who took them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

__all__ = ["Life", "LifeCycle", "Write"]


@dataclass(frozen=True)
class Write:
    """The row of a weight that writes an outlier into the residual stream, or takes it out.

    Attributes
    ----------
    parameter : str
        A matrix; or the gains of a norm behind it, which are rows of one weight each.
    row : int
        The channel of the stream.
    ratio : float
        Largest over mean absolute weight of the row.
    size : float
        Mean absolute weight of the row, over the median of the rows.
    column : int or None
        The input whose weight is the largest of the row; None for a gain, and where the row is not among the matrix's
        32 farthest.
    largest : bool
        Whether the largest weight of all stands in this row.
    gain : bool
        Whether it is the gain of a norm.
    """

    parameter: str
    row: int
    ratio: float
    size: float
    column: int | None
    largest: bool
    gain: bool = False


@dataclass(frozen=True)
class Life:
    """An activation outlier in one channel, from the block that creates it to the block that removes it.

    Attributes
    ----------
    channel : int
    peak : float
        Its largest absolute value.
    created : int
        The block, from 0, that brings it over the bound; -1 where it enters the first block.
    removed : int or None
        The block that leaves less than half of the largest value so far; None where it reaches the end.
    kind : {"position", "tokens", "channel"}
        Whether it stands at a few fixed positions, at some tokens anywhere, or at every token.
    positions : tuple of int
        Where it stands, farthest first; at most 32.
    writers, cancellers : tuple of Write
        Of the half of a block that created it, and of the half that removed it. More than one where a norm stands
        behind the matrix or halves run side by side, none where the block has no matrix that writes.
    """

    channel: int
    peak: float
    created: int
    removed: int | None
    kind: str
    positions: tuple[int, ...]
    writers: tuple[Write, ...]
    cancellers: tuple[Write, ...]


@dataclass(frozen=True)
class LifeCycle:
    """The three kinds of outlier of a model, block by block, and how they hang together.

    Attributes
    ----------
    lives : tuple of Life
        Activation outliers, the largest first. A channel that rises, falls and rises again has two.
    layers : list of dict
        A row for each block, as :meth:`frame` shows it.
    shared_channels : float
        Of the weights that write or remove outliers, the share of those whose largest stands in the row of an outlying
        channel; NaN where there are none. Where gains of a norm stand behind a matrix, they count and it does not.
    shared_positions : float
        Of the outlying positions that enter blocks, the share at which the block's attention has an outlier; NaN where
        there are none, or no attention was recorded.
    """

    lives: tuple[Life, ...]
    layers: list[dict[str, Any]]
    shared_channels: float
    shared_positions: float

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the activation outliers, that of the largest first."""
        return tuple(dict.fromkeys(life.channel for life in self.lives))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the activation outliers, those of the largest first."""
        return tuple(dict.fromkeys(position for life in self.lives for position in life.positions))

    @property
    def created(self) -> int | None:
        """The block that creates the largest outlier; None where there is none."""
        return self.lives[0].created if self.lives else None

    @property
    def removed(self) -> int | None:
        """The block that removes the largest outlier; None where there is none, or it stays."""
        return self.lives[0].removed if self.lives else None

    @property
    def writers(self) -> tuple[Write, ...]:
        """The rows that create the largest outlier."""
        return self.lives[0].writers if self.lives else ()

    @property
    def systematic(self) -> int:
        """Channels that are outliers of any block by the paper's rule."""
        return max((row["systematic"] for row in self.layers), default=0)

    def frame(self) -> pl.DataFrame:
        """Return one row for each block.

        ``peak``, ``channel`` and ``position`` are of the stream that leaves it, ``median`` and ``mean`` of its absolute
        values. ``systematic`` counts channels that pass 1000 times the mean anywhere, ``massive`` those that pass 100
        and 1000 times the median. ``ratio`` is the largest over the mean absolute weight of a row or column of
        ``parameter``; ``row`` and ``column`` say where its largest weight stands. ``sinks`` counts key positions with a
        tenth of all attention, ``sink`` is the one with the most, which is ``attention``.
        """
        return pl.DataFrame(self.layers, infer_schema_length=None)


def row_of(parameter: str, stats: Any, row: int) -> Write:
    """Describe a row of a recorded matrix, or a gain."""
    if len(stats.position_count) == 1:
        sizes, most, columns = stats.absmax, stats.absmax, {}
    else:
        sizes, most = stats.position_magnitude / len(stats.count), stats.position_peak
        columns = dict(zip(stats.top_position.tolist(), stats.top_channel.tolist()))
    middle = float(np.median(sizes))
    return Write(
        parameter,
        row,
        ratio=float(most[row] / sizes[row]) if sizes[row] > 0 else float("nan"),
        size=float(sizes[row]) / middle if middle > 0 else float("inf"),
        column=columns.get(row),
        largest=bool(most[row] == most.max()),
        gain=len(stats.position_count) == 1,
    )


def top_row(stats: Any) -> int:
    """Return the row of a recorded matrix, or the gain, that is the largest weight of all."""
    _, row, column = stats.peaks(1)[0]
    return column if len(stats.position_count) == 1 else row
