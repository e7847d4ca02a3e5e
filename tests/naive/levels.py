"""Pairs of samples, one by one."""

from __future__ import annotations

import math
from itertools import combinations


def pairs(level, score):
    """Count concordant, discordant, tied in score, tied in level, and tied in both."""
    counts = [0] * 5
    for (a, s), (b, t) in combinations(zip(level, score), 2):
        if a == b:
            counts[4 if s == t else 3] += 1
        else:
            counts[2 if s == t else 0 if (a < b) == (s < t) else 1] += 1
    return tuple(counts)


def c_index(level, score):
    """Share of pairs of different level that the score orders rightly; equal scores are half right."""
    right, wrong, tied, _, _ = pairs(level, score)
    return (right + tied / 2) / (right + wrong + tied)


def tau_b(level, score):
    """Kendall's tau-b, in the words of its definition."""
    right, wrong, only_score, only_level, _ = pairs(level, score)
    return (right - wrong) / math.sqrt((right + wrong + only_score) * (right + wrong + only_level))
