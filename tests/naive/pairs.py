"""Win counts and Elo by loops over sets and pairs."""

from __future__ import annotations

import math


def wins(table):
    """Sets on which i beats j, a tie half, and sets on which both ran."""
    k = len(table[0])
    won, met = [[0.0] * k for _ in range(k)], [[0] * k for _ in range(k)]
    for row in table:
        for i in range(k):
            for j in range(k):
                if i == j or math.isnan(row[i]) or math.isnan(row[j]):
                    continue
                met[i][j] += 1
                won[i][j] += 1.0 if row[i] > row[j] else 0.5 if row[i] == row[j] else 0.0
    return won, met


def elo(table, rounds=20_000):
    """Bradley and Terry's strengths by Zermelo's iteration, with one drawn set for each pair, in Elo's units."""
    won, met = wins(table)
    k = len(won)
    strength = [1.0] * k
    for _ in range(rounds):
        new = []
        for i in range(k):
            total = sum(won[i][j] + 0.5 for j in range(k) if j != i)
            weight = sum((met[i][j] + 1) / (strength[i] + strength[j]) for j in range(k) if j != i)
            new.append(total / weight)
        middle = math.exp(sum(map(math.log, new)) / k)
        strength = [value / middle for value in new]
    return [1000 + 400 * math.log10(value) for value in strength]
