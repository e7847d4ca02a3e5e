"""How well a score orders samples whose anomalies have levels of severity.

Level 0 is normal, a higher level is worse. A score can part normal from anomalous perfectly and still say nothing about
how bad an anomaly is. So every number stands here twice: over all samples, where the many pairs with a normal sample
rule, and over the anomalous ones alone.

Source: Cao et al., Are Anomaly Scores Telling the Whole Story? A Benchmark for Multilevel Anomaly Detection, 2024
(arXiv 2411.14515). The numbers over anomalous samples and the maximum of tau-b are not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.bench.metrics import auroc
from farout.errors import BadInput


@dataclass(frozen=True)
class Order:
    """How far a score agrees with the order of the levels, counted over pairs of samples.

    With P and Q the pairs that the score orders rightly and wrongly, and T those of different level and equal score.

    Attributes
    ----------
    tau_b : float
        Kendall's ``(P - Q) / sqrt((P + Q + T) (pairs with different score))``. NaN where no two scores differ, or no
        two levels.
    tau_b_max : float
        ``sqrt(P + Q + T) / sqrt(all pairs)``, what tau-b can reach with a score that has no ties: levels have.
    c_index : float
        ``(P + T / 2) / (P + Q + T)``, the share of pairs of different level that are in order: 0.5 for a constant
        score. NaN where no two levels differ.
    pairs : int
        ``P + Q + T``.
    """

    tau_b: float
    tau_b_max: float
    c_index: float
    pairs: int


@dataclass(frozen=True)
class LevelReport:
    """What :func:`multilevel_report` returns.

    Attributes
    ----------
    counts : dict of float to int
        Samples of each level that occurs, 0 included, in rising order.
    auroc : dict of float to float
        For each level above 0: level 0 against it. NaN without a normal sample.
    auroc_all : float
        Level 0 against all others.
    everything, anomalous : Order
        Over all samples, as the paper has it, and over those above level 0.
    """

    counts: dict[float, int]
    auroc: dict[float, float]
    auroc_all: float
    everything: Order
    anomalous: Order


class Pairs(NamedTuple):
    """Numbers of pairs of samples, see :func:`count_pairs`."""

    concordant: int
    discordant: int
    tied_score: int
    tied_level: int
    tied_both: int


def multilevel_report(severity: ArrayLike, score: ArrayLike, *, round_up: bool = True) -> LevelReport:
    """Measure how a score parts each level from the normal samples, and how it orders the levels.

    Time grows as ``n log n``.

    Parameters
    ----------
    severity : array (n,)
        0 = normal, larger = worse.
    score : array (n,)
        Larger = farther out.
    round_up : bool
        Whether half levels count as the next whole one, as in the official code. That merges level 0.5 into 1.

    Returns
    -------
    LevelReport
        AUROCs, tau-b and C-index as fractions; monotone transforms of the score change none of them.

    Raises
    ------
    BadInput
        All samples have one level, a severity is negative or missing, a score is missing, or lengths differ.

    Examples
    --------
    >>> report = multilevel_report([0, 0, 1, 1, 2, 2], [1, 2, 5, 6, 3, 4])
    >>> report.auroc_all, report.everything.c_index, report.anomalous.c_index
    (1.0, 0.6666666666666666, 0.0)
    """
    level, value = _checked(severity, score)
    if round_up:
        level = np.ceil(level)
    levels, numbers = np.unique(level, return_counts=True)
    if len(levels) == 1:
        raise BadInput(f"all {len(level)} samples have level {levels[0]:g}; an order needs two levels or more")
    normal, high = level == 0, level > 0
    against = {float(one): _auroc(normal, level == one, value) for one in levels[levels > 0]}
    return LevelReport(
        counts=dict(zip(levels.tolist(), numbers.tolist())),
        auroc=against,
        auroc_all=_auroc(normal, high, value),
        everything=_order(level, value),
        anomalous=_order(level[high], value[high]),
    )


def rises_to(severity: ArrayLike, score: ArrayLike, least: float = 0.6) -> float:
    """Return the highest level that a score tells from the one below: from there on it is saturated.

    Parameters
    ----------
    severity, score : array (n,)
        As of :func:`multilevel_report`.
    least : float
        AUROC of a level against the next lower one.

    Returns
    -------
    float
        0 where no level is told from the one below.

    Raises
    ------
    BadInput
        As of :func:`multilevel_report`.

    Examples
    --------
    >>> rises_to([0, 0, 1, 1, 2, 2], [1, 2, 5, 6, 5, 6])
    1.0
    """
    level, value = _checked(severity, score)
    levels = np.unique(level)
    told = [b for a, b in pairwise(levels.tolist()) if _auroc(level == a, level == b, value) >= least]
    return max(told, default=0.0)


def count_pairs(level: ArrayLike, score: ArrayLike) -> Pairs:
    """Count all pairs of samples by how a score orders them; they add up to ``n (n - 1) / 2``.

    Parameters
    ----------
    level, score : array (n,)
        Numbers without NaN.

    Returns
    -------
    Pairs
        ``concordant`` and ``discordant``; ``tied_score`` pairs differ in level alone, ``tied_level`` pairs in score
        alone, ``tied_both`` in neither.

    Examples
    --------
    >>> count_pairs([0, 1, 1, 2], [5, 5, 7, 6])
    Pairs(concordant=3, discordant=1, tied_score=1, tied_level=1, tied_both=0)
    """
    x = np.unique(level, return_inverse=True)[1].astype(np.int64)
    y = np.unique(score, return_inverse=True)[1].astype(np.int64)
    n = len(x)
    both = _tied(x * n + y)
    tied_level, tied_score = _tied(x) - both, _tied(y) - both
    discordant = _inversions(y[np.lexsort((y, x))])
    concordant = n * (n - 1) // 2 - discordant - tied_level - tied_score - both
    return Pairs(concordant, discordant, tied_score, tied_level, both)


def _order(level: NDArray[np.float64], score: NDArray[np.float64]) -> Order:
    """Turn numbers of pairs into tau-b and C-index."""
    right, wrong, tied_score, tied_level, tied_both = count_pairs(level, score)
    differ = right + wrong + tied_score
    if not differ:
        return Order(np.nan, np.nan, np.nan, 0)
    spread = right + wrong + tied_level  # pairs with different score
    return Order(
        tau_b=float((right - wrong) / (np.sqrt(differ) * np.sqrt(spread))) if spread else np.nan,
        tau_b_max=float(np.sqrt(differ / (differ + tied_level + tied_both))),
        c_index=(2 * right + tied_score) / (2 * differ),
        pairs=differ,
    )


def _tied(values: NDArray[np.int64]) -> int:
    """Pairs of equal values."""
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: NDArray[np.int64]) -> int:
    """Pairs that stand in falling order, counted while runs of doubling width are merged."""
    n = len(values)
    place, found, width = np.arange(n), 0, 1
    while width < n:
        run = place // (2 * width)
        order = np.argsort(run * (n + 1) + values, kind="stable")  # values are ranks below n
        left = order // width % 2 == 0
        # a value of a right half passes the values of its left half that are not yet merged: those are greater
        passed = width - (np.cumsum(left) - run * width)
        found += int(passed[~left].sum())
        values = values[order]
        width *= 2
    return found


def _auroc(normal: NDArray[np.bool_], outlier: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """AUROC of some samples against the normal ones; NaN where there are none."""
    used = normal | outlier
    return auroc(outlier[used].astype(int), score[used]) if normal.any() and outlier.any() else np.nan


def _checked(severity: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as floats, as many of the one as of the other, none missing."""
    level, value = np.asarray(severity, np.float64), np.asarray(score, np.float64)
    if level.ndim != 1 or level.shape != value.shape or not len(level):
        raise BadInput(
            f"'severity' and 'score' must be one-dimensional, equally long and not empty; their shapes are "
            f"{level.shape} and {value.shape}"
        )
    wrong = np.flatnonzero(~(np.isfinite(level) & (level >= 0)))
    if len(wrong):
        raise BadInput(
            f"a severity is a number from 0 (normal) upwards; {len(wrong)} of {len(level)} are not, the first in row "
            f"{wrong[0]}: '{level[wrong[0]]}'"
        )
    missing = np.flatnonzero(np.isnan(value))
    if len(missing):
        raise BadInput(
            f"{len(missing)} of {len(value)} scores are NaN, the first in row {missing[0]}; leave those samples out, "
            "and say how many they are"
        )
    return level, value
