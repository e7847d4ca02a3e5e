from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import scipy.stats as referee
from hypothesis import given
from hypothesis import strategies as st

from farout.bench.stats import (
    Pair,
    bootstrap_means,
    complete_sets,
    friedman,
    groups,
    holm,
    mean_ranks,
    nemenyi_cd,
    wilcoxon_holm,
)
from farout.errors import BadInput

NAN = float("nan")
tables = st.tuples(st.integers(2, 9), st.integers(3, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 4), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(tables)
def test_mean_ranks_count_the_better_and_half_the_equal(table):
    table = np.array(table, dtype=float)
    k = table.shape[1]
    slow = [np.mean([1 + sum(row > row[j]) + (sum(row == row[j]) - 1) / 2 for row in table]) for j in range(k)]
    assert mean_ranks(table) == pytest.approx(slow)
    assert mean_ranks(table).sum() == pytest.approx(k * (k + 1) / 2)


def test_sets_with_a_gap_are_left_out():
    table = [[0.9, 0.8, 0.7], [0.1, NAN, 0.9], [0.6, 0.5, 0.7]]
    assert complete_sets(table).tolist() == [[0.9, 0.8, 0.7], [0.6, 0.5, 0.7]]
    assert mean_ranks(table).tolist() == [1.5, 2.5, 2.0]
    assert friedman(table) == friedman([table[0], table[2]])
    assert bootstrap_means(table)[1].tolist() == [0.9, 0.8, 0.7]


def test_friedman_closed_form():
    table = np.random.default_rng(0).normal(size=(14, 4))
    n, k = table.shape
    ranks = mean_ranks(table)
    closed = 12 * n / (k * (k + 1)) * (np.sum(ranks**2) - k * (k + 1) ** 2 / 4)
    statistic, p = friedman(table)
    assert statistic == pytest.approx(closed)
    assert p == pytest.approx(referee.chi2.sf(closed, k - 1))


@given(tables)
def test_friedman_with_ties_agrees_with_scipy(table):
    table = np.array(table, dtype=float)
    if (table == table[:, :1]).all():
        assert friedman(table) == (0, 1)
    else:
        assert friedman(table) == pytest.approx(tuple(referee.friedmanchisquare(*table.T)))


def test_nemenyi_agrees_with_demsars_table():
    # Demsar 2006, table 5a: critical values for 2 to 10 methods.
    at_05 = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    at_10 = [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]
    for k, (q_05, q_10) in enumerate(zip(at_05, at_10), start=2):
        per_q = np.sqrt(k * (k + 1) / (6 * 30))
        assert nemenyi_cd(k, 30) / per_q == pytest.approx(q_05, abs=1e-3)
        assert nemenyi_cd(k, 30, alpha=0.10) / per_q == pytest.approx(q_10, abs=1e-3)
    # The same paper's example of 4 methods on 14 sets.
    assert round(nemenyi_cd(4, 14), 2) == 1.25
    assert round(nemenyi_cd(4, 14, alpha=0.10), 2) == 1.12


def test_wilcoxon_is_exact_on_few_sets_without_ties():
    gap = np.array([0.31, -0.02, 0.13, 0.24, -0.07, 0.45, 0.56, 0.11])
    ranks = referee.rankdata(np.abs(gap))
    seen = min(ranks[gap > 0].sum(), ranks[gap < 0].sum())
    sums = np.array([ranks @ signs for signs in product([0, 1], repeat=gap.size)])
    (pair,) = wilcoxon_holm(np.column_stack([gap, np.zeros(8)]), ["A", "B"])
    assert pair.p == pytest.approx(2 * np.mean(sums <= seen))


def test_wilcoxon_splits_equal_sets_as_demsar_does():
    # Differences of Demsar 2006, table 2, two of them 0: R- = 12, z = (12 - 52.5) / sqrt(14 * 15 * 29 / 24) = -2.54.
    gap = np.array([5, -8, 17, 33, 6, -5, 7, 0, 63, 0, 22, 47, 9, 21]) / 1000
    (pair,) = wilcoxon_holm(np.column_stack([gap, np.zeros(14)]), ["C4.5+m", "C4.5"])
    assert pair.p == pytest.approx(2 * referee.norm.cdf((12 - 52.5) / np.sqrt(14 * 15 * 29 / 24)), abs=2e-4)


def test_pairs_use_their_common_sets_and_holm():
    rng = np.random.default_rng(3)
    table = rng.normal(loc=[0.0, 0.2, 0.6, 2.0], size=(20, 4))
    table[[2, 5], [0, 3]] = NAN
    names = ["A", "B", "C", "D"]
    pairs = wilcoxon_holm(table, names)
    assert [pair[:2] for pair in pairs] == list(combinations(names, 2))
    for pair in pairs:
        both = table[:, [names.index(pair.first), names.index(pair.second)]]
        both = both[~np.isnan(both).any(axis=1)]
        assert pair.n_sets == len(both) == 20 - len({"A", "D"} & {*pair[:2]})
        assert pair.p == pytest.approx(referee.wilcoxon(*both.T).pvalue)
    assert [pair.p_holm for pair in pairs] == pytest.approx(holm([pair.p for pair in pairs]))


def test_equal_methods_do_not_differ():
    assert wilcoxon_holm(np.ones((6, 2)), ["A", "B"]) == [Pair("A", "B", 6, 1.0, 1.0)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_rejects(p, alpha):
    rejected = set()
    for step, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected.add(int(i))
    assert set(np.flatnonzero(holm(p) <= alpha).tolist()) == rejected
    assert max(holm(p)) <= 1


def test_bootstrap_means_follow_the_central_limit_and_draw_the_same_sets_for_all():
    first = np.random.default_rng(4).normal(size=200)
    low, high = bootstrap_means(np.column_stack([first, first + 3, np.ones(200)]), n=4000)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * first.std() / np.sqrt(200), rel=0.06)
    assert low[0] < first.mean() < high[0]
    assert (low[1] - low[0], high[1] - high[0]) == pytest.approx((3, 3))
    assert (low[2], high[2]) == pytest.approx((1, 1))


def test_bootstrap_means_take_the_middle_share():
    # Of two sets 0 and 1, both draws are alike with chance 1/2: the middle 40% of the means is 1/2.
    low, high = bootstrap_means([[0.0], [1.0]], level=0.4)
    assert (low, high) == (0.5, 0.5)


def slow_groups(names, ranks, alike):
    """Every subset whose members are all alike and that no other such subset holds."""
    order = [name for _, name in sorted(zip(ranks, names))]
    cliques = [
        set(some)
        for size in range(2, len(names) + 1)
        for some in combinations(order, size)
        if all(frozenset(couple) in alike for couple in combinations(some, 2))
    ]
    return {tuple(filter(clique.__contains__, order)) for clique in cliques if not any(clique < big for big in cliques)}


@given(st.permutations(range(1, 8)), st.lists(st.booleans(), min_size=21, max_size=21))
def test_groups_by_pairs_are_the_maximal_cliques(ranks, differ):
    names = list("ABCDEFG")
    couples = list(combinations(names, 2))
    pairs = [Pair(a, b, 9, 0.01, 0.04 if apart else 0.06) for (a, b), apart in zip(couples, differ)]
    alike = {frozenset(couple) for couple, apart in zip(couples, differ) if not apart}
    got = groups(names, ranks, pairs=pairs)
    assert len(got) == len(set(got))
    assert set(got) == slow_groups(names, ranks, alike)


@given(st.lists(st.integers(4, 28), min_size=6, max_size=6, unique=True), st.integers(1, 30))
def test_groups_by_cd_are_runs_of_near_ranks(quarters, cd):
    names = list("ABCDEF")
    ranks = np.array(quarters) / 4
    alike = {frozenset({names[i], names[j]}) for i, j in combinations(range(6), 2) if abs(ranks[i] - ranks[j]) < cd / 4}
    got = groups(names, ranks, cd=cd / 4)
    assert set(got) == slow_groups(names, ranks, alike)
    order = [names[i] for i in np.argsort(ranks)]
    assert all("".join(group) in "".join(order) for group in got)


def test_a_group_may_skip_a_method_in_between():
    pairs = [Pair("A", "B", 9, 0.01, 0.01), Pair("A", "C", 9, 0.5, 0.5), Pair("B", "C", 9, 0.01, 0.05)]
    assert groups(["A", "B", "C"], [1, 2, 3], pairs=pairs) == [("A", "C")]
    assert groups(["A", "B", "C"], [1, 2, 3], pairs=pairs, alpha=0.04) == [("A", "C"), ("B", "C")]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean_ranks([1, 2]), r"\(2,\)"),
        (lambda: mean_ranks(np.ones((0, 3))), r"\(0, 3\)"),
        (lambda: mean_ranks([[1, NAN], [2, NAN], [NAN, 1]]), "none of the 3 sets .* 2 methods .* column 1"),
        (lambda: friedman([[1, 2]]), "here are 2"),
        (lambda: nemenyi_cd(1, 5), "k=1"),
        (lambda: nemenyi_cd(3, 0), "n=0"),
        (lambda: nemenyi_cd(3, 5, alpha=1), "alpha=1"),
        (lambda: wilcoxon_holm([[1, 2]], ["A"]), "2 columns; given are 1 names"),
        (lambda: wilcoxon_holm([[1, 2]], ["A", "A"]), "1 different"),
        (lambda: wilcoxon_holm([[1, NAN], [NAN, 1]], ["A", "B"]), "'A' and 'B'"),
        (lambda: bootstrap_means([[1.0]], n=0), "n=0"),
        (lambda: bootstrap_means([[1.0]], level=0), "level=0"),
        (lambda: groups(["A", "B"], [1, 2]), "either 'cd'"),
        (lambda: groups(["A", "B"], [1, 2], cd=1, pairs=[]), "either 'cd'"),
        (lambda: groups(["A", "B"], [1, 2], pairs=[]), "each two of the 2"),
        (lambda: groups(["A", "A"], [1, 2], cd=1), "1 different"),
        (lambda: groups(["A", "B"], [1], cd=1), r"\(1,\)"),
    ],
)
def test_unusable_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call()
