"""Weight outliers: rows, columns and single weights that are far larger than the rest of their matrix.

Single weights are measured as An et al., Systematic Outliers in Large Language Models, 2025 (arXiv 2502.06415) do: the
largest over the mean magnitude of a row or column. Their bound is for large matrices: a matrix of normal values stays
below 6. A row or column is an outlier as a whole where its mean magnitude is six times the median one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farout.inside._accumulators import ChannelStats
from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, channel_sites, listed
from farout.inside.quantization_cost import Cost

LINE, SINGLE = 6.0, 100.0
LEAST = 32  # rows and columns of a matrix; the kernels of depthwise convolutions are none
_AMONG = ("groups of 128", "rotation")


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find outlying rows and columns in one finding, and outlying single weights in another."""
    lines: list[tuple[float, str, str, int]] = []  # size, site, row or column, place
    single: list[tuple[float, str, int]] = []  # size, site, column
    for site, stats in channel_sites(recording, "weight"):
        rows, columns = len(stats.position_count), len(stats.count)
        if min(rows, columns) < LEAST:
            continue
        row, column = stats.position_magnitude / columns, stats.magnitude / rows
        for word, strength in (("row", row), ("column", column)):
            middle = float(np.median(strength))
            if middle > 0:
                ratio = strength / middle
                lines += [(float(ratio[i]), site, word, int(i)) for i in np.flatnonzero(ratio > LINE)]
        value = single_ratio(stats)
        if value > SINGLE:
            single.append((value, site, int(stats.absmax.argmax())))
    concerned = {site for _, site, *_ in lines} | {site for _, site, _ in single}
    hit = [cost for cost in costs if cost.weight in concerned]
    remedy, recipe, gain = best_remedy(hit, "w4a16", _AMONG, "groups of 128")
    found = []
    if lines:
        lines.sort(reverse=True)
        each = [f"{word} {place} of '{site}' ({ratio:.0f} times)" for ratio, site, word, place in lines]
        says = f"Far above the median of their matrix: {listed(each)}."
        evidence = {"lines": [[site, word, place, ratio] for ratio, site, word, place in lines]}
        found.append(Finding("weight line", lines[0][1], lines[0][0] / LINE, says, evidence, remedy, recipe, gain))
    if single:
        single.sort(reverse=True)
        each = [f"'{site}' ({value:.0f} times, input {place})" for value, site, place in single]
        says = f"Single weights far above the mean of their row or column: {listed(each)}."
        evidence = {"weights": [[site, place, value] for value, site, place in single]}
        found.append(
            Finding("single weight", single[0][1], single[0][0] / SINGLE, says, evidence, remedy, recipe, gain)
        )
    return found


def single_ratio(stats: ChannelStats) -> float:
    """Return the largest over the mean magnitude, the highest over rows and columns of a weight."""
    row = stats.position_magnitude / len(stats.count)
    column = stats.magnitude / len(stats.position_count)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.concatenate([stats.position_peak / row, stats.absmax / column])
    return float(np.nanmax(np.where(np.isfinite(ratios), ratios, np.nan), initial=0.0))
