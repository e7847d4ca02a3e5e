"""Mergeable summaries: exact where they claim it, within their bound elsewhere, fair where they draw."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, skew

from farout.kit.sketch import LevelCounts, RankTable, hashed, smallest

EPS = 0.05


def table(values, eps=0.0, missing=0):
    return RankTable.of(np.sort(np.asarray(values, float)), missing, eps)


def true_counts(values, x):
    values = np.sort(values)
    return np.searchsorted(values, x, "right"), len(values) - np.searchsorted(values, x, "left")


def largest_error(made, values, x):
    """Largest error of -log of either tail; only counts that are not 0 are compared."""
    errors = []
    for got, true in zip(made.counts(x), true_counts(values, x)):
        some = true > 0
        errors.append(np.abs(np.log(got[some]) - np.log(true[some])).max())
    return max(errors)


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), max_size=40), st.lists(st.floats(-6, 6), min_size=1, max_size=20))
def test_an_exact_table_counts_as_the_definition_does(values, x):
    left, right = table(values).counts(np.array(x))
    assert left.tolist() == [sum(v <= z for v in values) for z in x]
    assert right.tolist() == [sum(v >= z for v in values) for z in x]


def test_many_queries_take_the_sorted_path_and_count_the_same():
    r = np.random.default_rng(0)
    made, x = table(r.normal(size=999)), r.normal(size=10_000)
    x[::7] = np.nan
    many = made.counts(x)
    few = [np.concatenate(side) for side in zip(*(made.counts(part) for part in np.split(x, 10)))]
    for one, other in zip(many, few):
        assert np.array_equal(one, other, equal_nan=True)
        assert np.isnan(one[::7]).all() and np.isnan(one).sum() == len(x[::7])


def test_a_tail_that_nobody_is_in_has_probability_one_in_n_plus_one():
    left, right = table([1, 2, 2, 5]).tails(np.array([0.0, 2.0, 9.0, np.nan]))
    assert left[:3].tolist() == [1 / 5, 3 / 4, 1.0] and right[:3].tolist() == [1.0, 3 / 4, 1 / 5]
    assert np.isnan(left[3]) and np.isnan(right[3])


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "exponential"])
def test_one_compression_errs_by_eps_at_most(draw):
    values = getattr(np.random.default_rng(3), draw)(size=30_000)
    made = table(values, EPS)
    assert made.depth == 1 and len(made.values) < 600
    x = np.concatenate((values, (np.sort(values)[1:] + np.sort(values)[:-1]) / 2))
    assert largest_error(made, values, x) <= EPS


@pytest.mark.parametrize("shape", ["pairs", "chain"])
def test_merging_errs_by_depth_times_eps_at_most(shape):
    r = np.random.default_rng(4)
    pieces = [r.standard_t(3, size=r.integers(500, 4000)) + r.normal() for _ in range(16)]
    tables = [table(piece, EPS) for piece in pieces]
    if shape == "chain":
        made = functools.reduce(RankTable.merge, tables)
    else:
        while len(tables) > 1:
            tables = [a.merge(b) for a, b in zip(tables[::2], tables[1::2])]
        made = tables[0]
    values = np.concatenate(pieces)
    assert made.n == len(values)
    assert made.depth == (5 if shape == "pairs" else 16)
    assert largest_error(made, values, r.permutation(values)[:5000]) <= made.depth * EPS


def test_the_ends_are_exact_after_any_merging():
    # every value among the first 1 / eps from either end is kept: the tails are what matters
    pieces = [np.random.default_rng(i).normal(size=2000) for i in range(8)]
    made = functools.reduce(RankTable.merge, [table(piece, EPS) for piece in pieces])
    values = np.sort(np.concatenate(pieces))
    ends = np.concatenate((values[:5], values[-5:]))
    left, right = made.counts(ends)
    assert left[:5].tolist() == [1, 2, 3, 4, 5] and right[-5:].tolist() == [5, 4, 3, 2, 1]


def test_where_all_ranks_are_kept_merging_is_exact():
    r = np.random.default_rng(5)
    pieces = [r.normal(size=100) for _ in range(7)]
    made = functools.reduce(RankTable.merge, [table(piece, 1e-9) for piece in pieces])
    values = np.concatenate(pieces)
    assert made.depth == 0
    for got, true in zip(made.counts(values), true_counts(values, values)):
        assert np.array_equal(got, true)


def test_discrete_data_stays_exact_through_merges():
    r = np.random.default_rng(6)
    pieces = [r.integers(0, 12, 3000).astype(float) for _ in range(9)]
    made = functools.reduce(RankTable.merge, [table(piece, EPS) for piece in pieces])
    values, x = np.concatenate(pieces), np.arange(-1, 13) + 0.0
    for got, true in zip(made.counts(x), true_counts(values, x)):
        assert np.array_equal(got, true)


def test_exact_tables_merge_to_the_table_of_the_whole():
    r = np.random.default_rng(7)
    a, b = r.normal(size=100), r.normal(size=50)
    made = table(a, missing=2).merge(table(b, missing=3))
    assert np.array_equal(made.values, np.sort(np.concatenate((a, b)))) and (made.n, made.missing) == (150, 5)
    with pytest.raises(ValueError, match="do not merge"):
        table(a, 0.1).merge(table(b, 0.2))


@pytest.mark.parametrize("seed", range(20))
def test_moments_of_merged_pieces_are_those_of_the_whole(seed):
    r = np.random.default_rng(seed)
    values = r.gamma(2.0, size=600) * r.choice([-1, 1]) + r.normal(scale=5)
    values[:5] = np.inf  # counted as values, left out of the moments
    cuts = np.sort(r.integers(0, 600, 4))
    made = functools.reduce(RankTable.merge, [table(piece, EPS) for piece in np.split(r.permutation(values), cuts)])
    finite = values[5:]
    deviations = finite - finite.mean()
    expected = [595, finite.mean(), (deviations**2).sum(), (deviations**3).sum()]
    assert made.moments == pytest.approx(expected, rel=1e-9)
    assert made.skewness_sign() == np.sign(skew(finite)) != 0


def test_the_sign_of_skewness_of_huge_and_of_symmetric_values():
    assert table([-1, 0, 1]).skewness_sign() == 0
    assert table([3, 3, 3]).skewness_sign() == 0
    assert table([]).skewness_sign() == 0
    assert table([0, 0, 1e200]).skewness_sign() in (0, 1)  # the cubes overflow
    assert table([-1.7e308, 1e308, 1.7e308]).skewness_sign() in (-1, 0, 1)


def test_mass_adds_up_and_estimates_the_mean():
    r = np.random.default_rng(8)
    values = r.exponential(size=20_000)
    kept, weight = table(values, 0.01).mass()
    assert weight.sum() == pytest.approx(20_000) and (weight > 0).all()
    assert (kept * weight).sum() / weight.sum() == pytest.approx(values.mean(), rel=0.01)
    kept, weight = table([1, 1, 4]).mass()
    assert (kept * weight).sum() == 6


def test_quantiles_are_those_of_the_inverted_distribution():
    values = np.random.default_rng(9).integers(0, 40, 777).astype(float)
    shares = np.array([0.0, 0.01, 1 / 7, 0.5, 0.9, 1.0])
    expected = np.quantile(values, shares, method="inverted_cdf")
    assert np.array_equal(table(values).quantile(shares), expected)
    assert np.array_equal(table(values, 0.01).quantile(shares), expected)  # discrete: every value is kept
    assert np.isnan(table([]).quantile(0.5))


def test_level_counts_by_hand_and_merged():
    one = LevelCounts.of(np.array([0, 1, 1, -1]), ["blue", "red"])
    other = LevelCounts.of(np.array([1, 0, -1, -1]), ["green", "red"])
    made = one.merge(other)
    assert made.levels == ["blue", "green", "red"] and made.counts.tolist() == [1, 1, 3]
    assert (made.n, made.missing) == (5, 3)
    shares = made.probabilities(np.array([0, 1, -1]), ["red", "violet"])
    assert shares[:2].tolist() == [3 / 5, 1 / 6] and np.isnan(shares[2])


def test_drawn_rows_are_fair_over_positions_and_batches():
    n, size = 100_000, 5000
    keys = hashed(0, n)
    drawn = smallest(keys, size)
    assert len(np.unique(drawn)) == size
    for bins in (10, 64):
        assert chisquare(np.bincount(drawn * bins // n, minlength=bins)).pvalue > 1e-4
        expected = np.bincount(np.arange(n) % bins) * size / n
        assert chisquare(np.bincount(drawn % bins, minlength=bins), expected).pvalue > 1e-4
    pieces = np.concatenate([hashed(0, 777), hashed(777, n - 777)])
    assert np.array_equal(pieces, keys)
    assert not np.intersect1d(hashed(0, 1000, seed=1), hashed(0, 1000, seed=2)).size
    assert len(np.unique(keys)) == n


def test_the_smallest_are_the_smallest_in_order():
    keys = np.random.default_rng(10).permutation(1000)
    assert np.array_equal(keys[smallest(keys, 7)], np.arange(7))
    assert np.array_equal(keys[smallest(keys, 5000)], np.arange(1000))
    assert len(hashed(3, 5, seed=2**40)) == 5  # any seed
