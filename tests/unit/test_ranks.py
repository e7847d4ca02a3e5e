"""Ranks at the price of a sort, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from farout.kit.ranks import Ranker, column_major

NEGATIVE_NAN = np.copysign(np.nan, -1.0)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, 5e-324, -5e-324, 2e-308, 1.0, np.nextafter(1.0, 2.0), -1.0, 1e308, -1e308]
numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(allow_nan=False), st.integers(-3, 3).map(float))
cells = st.one_of(numbers, st.sampled_from([np.nan, NEGATIVE_NAN]))


def check_ranks(x: np.ndarray) -> None:
    values, left, right = Ranker(len(x))(x)
    there = ~np.isnan(x)
    assert np.array_equal(values, np.sort(x[there]))
    assert np.array_equal(left[there], rankdata(x[there], "max"))
    assert np.array_equal(right[there], rankdata(-x[there], "max"))
    assert np.isnan(left[~there]).all() and np.isnan(right[~there]).all()


@settings(deadline=None, max_examples=300)
@given(st.lists(cells, min_size=1, max_size=60))
def test_ranks_are_those_of_scipy(x):
    check_ranks(np.array(x))


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 3000), st.integers(0, 2**32 - 1), st.booleans())
def test_values_that_differ_only_in_bits_taken_by_row_numbers(n, seed, negative):
    # steps of one unit in the last place vanish from the keys, so that the order has to be repaired
    r = np.random.default_rng(seed)
    x = (1.0 + r.integers(0, n, n) * np.finfo(float).eps) * (-1 if negative else 1)
    check_ranks(x)
    x[r.random(n) < 0.2] = NEGATIVE_NAN if negative else np.nan
    check_ranks(x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_missing_values_stay_at_their_end_when_the_order_is_repaired(sign):
    # 64 rows take six bits; the close values need a repair, in which missing ones must have no part
    close = 1.0 + np.arange(60)[::-1] * np.finfo(float).eps
    x = np.concatenate((close, np.full(4, np.copysign(np.nan, sign))))
    check_ranks(x)
    order, values = Ranker(len(x)).order(x)
    assert np.isnan(values[-4:] if sign > 0 else values[:4]).all()
    assert np.array_equal(x[order], values, equal_nan=True)


def test_the_order_is_a_permutation_that_sorts():
    r = np.random.default_rng(0)
    ranker = Ranker(50_000)
    for x in (r.normal(size=50_000), r.integers(0, 9, 50_000).astype(float), np.sort(r.normal(size=50_000))[::-1]):
        order, values = ranker.order(np.ascontiguousarray(x))
        assert np.array_equal(np.sort(order), np.arange(50_000))
        assert np.array_equal(values, np.sort(x))


def test_one_row_and_buffers_of_the_next_call():
    values, left, right = Ranker(1)(np.array([4.0]))
    assert (values[0], left[0], right[0]) == (4.0, 1.0, 1.0)
    values, left, right = Ranker(1)(np.array([np.nan]))
    assert len(values) == 0 and np.isnan(left[0]) and np.isnan(right[0])
    ranker = Ranker(3)
    ranker(np.array([3.0, np.nan, 1.0]))
    _, left, right = ranker(np.array([3.0, 2.0, 1.0]))
    assert left.tolist() == [3, 2, 1] and right.tolist() == [1, 2, 3]


@pytest.mark.parametrize("memory", ["C", "F"])
def test_column_major_copies_columns(memory):
    X = np.asarray(np.random.default_rng(1).normal(size=(5001, 7)), order=memory)
    made = column_major(X, 2, 6)
    assert made.flags.c_contiguous and np.array_equal(made, X.T[2:6])
    made[:] = 0
    assert np.abs(X).min() > 0
