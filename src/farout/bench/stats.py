"""Which methods differ, judged over many data sets (Demsar 2006).

Every function takes a ``table`` of shape (n_sets, n_methods): one number per data set and method, larger is better,
NaN where the method was not run. Methods are compared on the same sets only: a set with a gap is left out (by
`wilcoxon_holm`, from the pairs that the gap concerns).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.errors import BadInput


class Pair(NamedTuple):
    """Two methods compared by Wilcoxon's signed-rank test.

    Attributes
    ----------
    first, second : str
        Names of the methods.
    n_sets : int
        Sets on which both were run.
    p : float
        Two-sided p-value of this pair alone.
    p_holm : float
        The same, adjusted for the number of pairs.
    """

    first: str
    second: str
    n_sets: int
    p: float
    p_holm: float


def complete_sets(table: ArrayLike) -> NDArray[np.float64]:
    """Rows of the table without a gap: the sets on which every method was run.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        NaN = not run.

    Returns
    -------
    array of shape (n_complete, n_methods)

    Raises
    ------
    BadInput
        The table is not two-dimensional, or every row has a gap.

    Examples
    --------
    >>> complete_sets([[0.9, 0.8], [0.7, float("nan")]])
    array([[0.9, 0.8]])
    """
    values = _checked(table)
    whole = values[~np.isnan(values).any(axis=1)]
    if not len(whole):
        worst = int(np.isnan(values).sum(axis=0).argmax())
        raise BadInput(
            f"on none of the {len(values)} sets were all {values.shape[1]} methods run; leave out the method with the "
            f"most gaps, column {worst}"
        )
    return whole


def mean_ranks(table: ArrayLike) -> NDArray[np.float64]:
    """Mean rank of each method over the complete sets; rank 1 is the best, equal values share their mean rank.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        Larger is better, NaN = not run.

    Returns
    -------
    array of shape (n_methods,)
        The ranks of k methods add up to k (k + 1) / 2.

    Raises
    ------
    BadInput
        As in `complete_sets`.

    Examples
    --------
    >>> mean_ranks([[0.9, 0.8, 0.7], [0.6, 0.6, 0.9]])
    array([1.75, 2.25, 2.  ])
    """
    from scipy.stats import rankdata

    return rankdata(-complete_sets(table), axis=1).mean(axis=0)


def friedman(table: ArrayLike) -> tuple[float, float]:
    """Friedman's test that all methods rank alike, corrected for ties, on the complete sets.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        At least three methods; NaN = not run.

    Returns
    -------
    statistic, p : float
        Chi-squared with k - 1 degrees of freedom, and its p-value (trust it from about ten sets on).

    Raises
    ------
    BadInput
        As in `complete_sets`, or fewer than three methods.

    Examples
    --------
    >>> statistic, p = friedman([[3, 2, 1], [6, 5, 4], [9, 8, 7], [3, 2, 1]])
    >>> round(statistic, 6), round(p, 4)
    (8.0, 0.0183)
    """
    from scipy.stats import friedmanchisquare

    values = complete_sets(table)
    if values.shape[1] < 3:
        raise BadInput(f"Friedman's test compares three methods or more, here are {values.shape[1]}; use wilcoxon_holm")
    if np.all(values == values[:, :1]):
        return 0.0, 1.0  # all tied everywhere: the statistic is 0/0, and nothing speaks for a difference
    statistic, p = friedmanchisquare(*values.T)
    return float(statistic), float(p)


def nemenyi_cd(k: int, n: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference between two mean ranks: q sqrt(k (k + 1) / (6 n)).

    q is the upper ``alpha`` quantile of the studentized range of k values with infinite degrees of freedom, over
    sqrt(2).

    Parameters
    ----------
    k : int
        Number of methods, at least 2.
    n : int
        Number of complete data sets, at least 1.
    alpha : float, default 0.05
        Chance of one false difference among all pairs.

    Returns
    -------
    float
        Two methods whose mean ranks are this far apart, or farther, differ.

    Raises
    ------
    BadInput
        Fewer than two methods, no data set, or ``alpha`` outside (0, 1).

    Examples
    --------
    >>> round(nemenyi_cd(k=4, n=14), 2)
    1.25
    """
    from scipy.stats import studentized_range

    if k < 2 or n < 1 or not 0 < alpha < 1:
        raise BadInput(
            f"a critical difference needs k >= 2 methods, n >= 1 sets and 0 < alpha < 1; given are k={k}, n={n}, "
            f"alpha={alpha}"
        )
    q = studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(k * (k + 1) / (6 * n)))


def wilcoxon_holm(table: ArrayLike, names: Sequence[str]) -> list[Pair]:
    """Wilcoxon's signed-rank test for every pair of methods, adjusted by Holm for the number of pairs.

    Sets on which a pair is equal count half for either side (as Demsar advises), so that ties speak against a
    difference instead of vanishing.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        NaN = not run.
    names : sequence of str
        The methods, in the order of the columns.

    Returns
    -------
    list of Pair
        In the order of `itertools.combinations`.

    Raises
    ------
    BadInput
        As many names as columns are needed, all different, and a common set for every pair.

    Examples
    --------
    >>> table = [[0.90, 0.80], [0.70, 0.50], [0.80, 0.50], [0.60, 0.20], [0.90, 0.40]]
    >>> wilcoxon_holm(table, ["ECOD", "LOF"])
    [Pair(first='ECOD', second='LOF', n_sets=5, p=0.0625, p_holm=0.0625)]
    """
    values = _checked(table)
    if len(set(names)) != values.shape[1] or len(names) != values.shape[1]:
        raise BadInput(
            f"the table has {values.shape[1]} columns; given are {len(names)} names, {len(set(names))} different"
        )
    couples = list(combinations(range(len(names)), 2))
    gaps = [values[:, i] - values[:, j] for i, j in couples]
    gaps = [gap[~np.isnan(gap)] for gap in gaps]
    for (i, j), gap in zip(couples, gaps):
        if not gap.size:
            raise BadInput(f"'{names[i]}' and '{names[j]}' were not run on any common set; run them or leave one out")
    p = [_signed_rank_p(gap) for gap in gaps]
    return [
        Pair(names[i], names[j], gap.size, alone, float(adjusted))
        for (i, j), gap, alone, adjusted in zip(couples, gaps, p, holm(p))
    ]


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted by Holm's step-down: the i-th smallest of m times (m - i + 1), kept rising, at most 1.

    Parameters
    ----------
    p : array of shape (m,)
        P-values of m tests.

    Returns
    -------
    array of shape (m,)
        Rejecting those at or below alpha makes one false rejection or more with chance alpha at most.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, 0.005])
    array([0.03, 0.06, 0.06, 0.02])
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)), 1)
    return adjusted


def bootstrap_means(
    table: ArrayLike, n: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile intervals of the methods' means over the complete sets, the sets drawn again with replacement.

    The same draws serve all methods. The interval says how far the mean hangs on which sets the suite holds; it does
    not compare two methods, whose means move together (`wilcoxon_holm` does).

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        NaN = not run.
    n : int, default 2000
        How many times the sets are drawn.
    seed : int, default 0
        Seed of the draws.
    level : float, default 0.95
        The share of drawn means inside the interval.

    Returns
    -------
    low, high : array of shape (n_methods,)

    Raises
    ------
    BadInput
        As in `complete_sets`, or ``n`` below 1, or ``level`` outside (0, 1].

    Examples
    --------
    >>> low, high = bootstrap_means([[0.0, 0.5], [1.0, 0.5]])
    >>> low, high
    (array([0. , 0.5]), array([1. , 0.5]))
    """
    if n < 1 or not 0 < level <= 1:
        raise BadInput(f"a bootstrap needs n >= 1 draws and 0 < level <= 1; given are n={n}, level={level}")
    values = complete_sets(table)
    n_sets = len(values)
    times_drawn = np.random.default_rng(seed).multinomial(n_sets, np.full(n_sets, 1 / n_sets), size=n)
    means = times_drawn @ values / n_sets
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def groups(
    names: Sequence[str],
    ranks: ArrayLike,
    cd: float | None = None,
    pairs: Sequence[Pair] | None = None,
    alpha: float = 0.05,
) -> list[tuple[str, ...]]:
    """Largest groups of methods of which no two differ: the bars of a critical-difference diagram.

    Two methods differ if their mean ranks are ``cd`` or more apart or, given ``pairs`` instead, if their ``p_holm``
    is at most ``alpha``. By pairs, a group may skip a method whose rank lies between those of its members.

    Parameters
    ----------
    names : sequence of str
        The methods.
    ranks : array of shape (n_methods,)
        Their mean ranks, from `mean_ranks`.
    cd : float, optional
        Critical difference, from `nemenyi_cd`.
    pairs : sequence of Pair, optional
        From `wilcoxon_holm`.
    alpha : float, default 0.05
        Level for ``pairs``.

    Returns
    -------
    list of tuple of str
        Groups of two or more, each in the order of the ranks, best first. Groups may overlap; a method that differs
        from all others is in none.

    Raises
    ------
    BadInput
        Names and ranks that do not fit, a pair missing, or not exactly one of ``cd`` and ``pairs``.

    Examples
    --------
    >>> groups(["ECOD", "LOF", "KNN", "HBOS"], [1.2, 2.0, 2.9, 3.9], cd=1.0)
    [('ECOD', 'LOF'), ('LOF', 'KNN')]
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.shape != (len(names),) or len(set(names)) != len(names):
        raise BadInput(
            f"there must be a rank for each name and no name twice; given are {len(names)} names, {len(set(names))} "
            f"different, and ranks of shape {ranks.shape}"
        )
    order = [names[i] for i in np.argsort(ranks, kind="stable")]
    couples = list(combinations(order, 2))
    if cd is not None and pairs is None:
        rank = dict(zip(names, ranks))
        alike = [(a, b) for a, b in couples if rank[b] - rank[a] < cd]
    elif pairs is not None and cd is None:
        if {frozenset(pair[:2]) for pair in pairs} != set(map(frozenset, couples)):
            raise BadInput(f"'pairs' must compare each two of the {len(names)} names; take them from wilcoxon_holm")
        alike = [(pair.first, pair.second) for pair in pairs if pair.p_holm > alpha]
    else:
        raise BadInput("give either 'cd' (from nemenyi_cd) or 'pairs' (from wilcoxon_holm), one of the two")
    neighbours: dict[str, set[str]] = {name: set() for name in order}
    for a, b in alike:
        neighbours[a].add(b)
        neighbours[b].add(a)
    cliques = _maximal_cliques(set(), set(order), set(), neighbours)
    places = sorted(sorted(map(order.index, clique)) for clique in cliques if len(clique) > 1)
    return [tuple(order[i] for i in members) for members in places]


def _maximal_cliques(
    clique: set[str], candidates: set[str], done: set[str], neighbours: dict[str, set[str]]
) -> Iterator[set[str]]:
    """Cliques that extend ``clique`` and cannot grow (Bron and Kerbosch 1973, with Tomita's pivot)."""
    if not candidates and not done:
        yield clique
        return
    pivot = max(candidates | done, key=lambda name: len(candidates & neighbours[name]))
    for name in candidates - neighbours[pivot]:
        near = neighbours[name]
        yield from _maximal_cliques(clique | {name}, candidates & near, done & near, neighbours)
        candidates = candidates - {name}
        done = done | {name}


def _signed_rank_p(gap: NDArray[np.float64]) -> float:
    """Two-sided p-value of the signed-rank test on the differences, 1 where all are zero."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(gap, zero_method="zsplit").pvalue) if gap.any() else 1.0


def _checked(table: ArrayLike) -> NDArray[np.float64]:
    """Table as floats of two dimensions, none of them zero."""
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise BadInput(
            f"'table' must hold a number for each set (rows) and method (columns); its shape is {values.shape}"
        )
    return values
