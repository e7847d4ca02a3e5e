"""ECOD by its definition, cell by cell, in plain Python numbers."""

from __future__ import annotations

import math


def parts(column: list[float], training: list[float]) -> list[tuple[float, float]]:
    """Left and right minus log tail probability of each cell; a missing cell takes the mean of the training parts."""
    there = [value for value in training if not math.isnan(value)]
    n = len(there)

    def cell(z: float) -> tuple[float, float]:
        left, right = sum(value <= z for value in there), sum(value >= z for value in there)
        return -math.log(left / n if left else 1 / (n + 1)), -math.log(right / n if right else 1 / (n + 1))

    own = [cell(z) for z in there]
    mean = (sum(p[0] for p in own) / n, sum(p[1] for p in own) / n) if n else (0.0, 0.0)
    return [mean if math.isnan(z) else cell(z) for z in column]


def skewness_sign(column: list[float]) -> int:
    finite = [value for value in column if math.isfinite(value)]
    mean = math.fsum(finite) / max(len(finite), 1)
    third = math.fsum((value - mean) ** 3 for value in finite)
    return (third > 0) - (third < 0)


def ecod(rows: list[list[float]], training: list[list[float]], rule: str = "paper") -> list[float]:
    """Scores of rows against training rows, by Algorithm 1 (``"paper"``) or cell by cell (``"per_dimension"``)."""
    left_sum, right_sum, auto_sum, cell_sum = ([0.0] * len(rows) for _ in range(4))
    for j in range(len(training[0])):
        column = [row[j] for row in training]
        sign = skewness_sign(column)
        for i, (left, right) in enumerate(parts([row[j] for row in rows], column)):
            left_sum[i] += left
            right_sum[i] += right
            auto_sum[i] += left if sign < 0 else right
            cell_sum[i] += left + right if sign == 0 else max(left, right)
    if rule == "per_dimension":
        return cell_sum
    return [max(three) for three in zip(left_sum, right_sum, auto_sum)]
