"""Where outliers lie in the tensors that are multiplied: in rows (tokens), in columns (channels), or nowhere.

The detector is AdaHOP's (2026, arXiv 2604.02525): the spread of the rows' variances and that of the columns', each over
what normal values give; where one is twice the other, the tensor has that pattern. It must also be twice what normal
values give, which AdaHOP does not ask: rows that come from a norm all have the same variance, and then the ratio alone
would find columns in anything. The pattern decides what helps: a rotation along the channels smooths columns and does
nothing for rows, whose cure is a scale of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from farout.inside._accumulators import ChannelStats
from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inside.findings._common import best_remedy, channel_sites
from farout.inside.quantization_cost import Cost

BOUND = 2.0
LOUD = 10.0  # score from which on a pattern is worth a finding; channels differ somewhat in any model
LEAST = 32  # rows and columns, below which one spike decides
_AMONG = {"column": ("rotation", "smoothquant"), "row": ("per-token scales",)}
_WORDS = {"column": "channels (columns)", "row": "tokens (rows)"}


def find(recording: Recording, costs: Sequence[Cost] = ()) -> list[Finding]:
    """Find the pattern that most inputs of linear maps with any pattern have, and say how many have which."""
    patterns = {
        site: pattern_of(stats)
        for site, stats in channel_sites(recording, "linear")
        if stats.tokens >= LEAST <= len(stats.count)
    }
    weights = [
        pattern_of(stats)[0]
        for _, stats in channel_sites(recording, "weight")
        if stats.tokens >= LEAST <= len(stats.count)
    ]
    found = []
    for word in ("column", "row"):
        sites = {site: score for site, (pattern, score) in patterns.items() if pattern == word}
        site = max(sites, key=lambda name: sites[name], default="")
        if not sites or sites[site] < LOUD:
            continue
        says = (
            f"The inputs of {len(sites)} of {len(patterns)} linear maps have their outliers in {_WORDS[word]}, most "
            f"clearly '{site}'."
        )
        hit = [cost for cost in costs if f"{cost.layer}.in" in sites]
        remedy, recipe, gain = best_remedy(hit, "w8a8", _AMONG[word], _AMONG[word][0])
        counts = {kind: weights.count(kind) for kind in ("row", "column", "none")}
        evidence = {"sites": list(sites), "score": sites[site], "weights": counts}
        found.append(Finding(f"{word} pattern", site, sites[site] / LOUD, says, evidence, remedy, recipe, gain))
    return found


def pattern_of(stats: ChannelStats) -> tuple[str, float]:
    """Return ``"row"``, ``"column"`` or ``"none"``, and the larger score, in times of what normal values give."""
    row, column = stats.pattern
    if row > BOUND * max(column, 1.0):
        return "row", row
    if column > BOUND * max(row, 1.0):
        return "column", column
    return "none", max(row, column)
