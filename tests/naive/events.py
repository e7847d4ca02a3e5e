"""Pair surprise and marginal rarity of events, one event at a time, from dictionaries of counts."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import log


def marginal_rarity(train, event):
    """Sum of -log share of each value among those that are there; the mean part for a missing one."""
    total = 0.0
    for t, value in enumerate(event):
        counts = Counter(row[t] for row in train if row[t] is not None)
        n = sum(counts.values())
        if value is None:
            total += sum(c * -log(c / n) for c in counts.values()) / n if n else 0.0
        else:
            total -= log(counts[value] / n) if counts[value] else log(1 / (n + 1))
    return total


def pair_surprises(train, event):
    """Surprise of each pair of values that were both seen, by pair of types."""
    n, found = len(train), {}
    for i, j in combinations(range(len(event)), 2):
        n_i = sum(row[i] == event[i] for row in train)
        n_j = sum(row[j] == event[j] for row in train)
        both = sum(row[i] == event[i] and row[j] == event[j] for row in train)
        if n_i and n_j and event[i] is not None and event[j] is not None:
            found[i, j] = log(n_i * n_j / n) - log(both + 0.5), both
    return found


def novelties(train, event):
    """Good's estimate of how odd a new value is, for the values that were never seen."""
    found = {}
    for t, value in enumerate(event):
        counts = Counter(row[t] for row in train if row[t] is not None)
        if value is not None and not counts[value]:
            found[t] = -log((sum(c == 1 for c in counts.values()) + 1) / (len(train) + 1))
    return found


def pair_surprise(train, event, rule):
    """Score of one event by one of the rules."""
    pairs, new = pair_surprises(train, event), novelties(train, event)
    if rule == "max":
        return max([value for value, _ in pairs.values()] + list(new.values()), default=0.0)
    if rule == "sum":
        return sum(value for value, _ in pairs.values()) + sum(new.values())
    return sum(log(len(train)) - log(both + 0.5) for _, both in pairs.values()) + sum(new.values())
