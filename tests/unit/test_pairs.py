"""Wins and Elo against loops, closed forms and what they must keep."""

from __future__ import annotations

import numpy as np
import pytest

from farout.bench.pairs import elo, win_rates, wins
from farout.errors import BadInput
from naive import pairs as naive


def drawn(n=60, k=5, seed=0, holes=False):
    rng = np.random.default_rng(seed)
    values = np.round(rng.uniform(size=(n, k)) + 0.1 * np.arange(k), 1)  # rounded, so that there are ties
    if holes:
        values[rng.uniform(size=values.shape) < 0.2] = np.nan
    return values


@pytest.mark.parametrize("holes", [False, True])
def test_wins_and_elo_are_those_of_the_loops(holes):
    table = drawn(holes=holes)
    won, met = wins(table)
    their_won, their_met = naive.wins(table.tolist())
    np.testing.assert_array_equal(won, their_won)
    np.testing.assert_array_equal(met, their_met)
    np.testing.assert_allclose(elo(table), naive.elo(table.tolist()), atol=1e-6)


def test_two_methods_have_the_closed_form():
    table = np.array([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10)  # with the drawn set, 30.5 wins to 10.5
    first, second = elo(table)
    assert first - second == pytest.approx(400 * np.log10(30.5 / 10.5))
    assert first + second == pytest.approx(2000)


def test_elo_knows_neither_the_order_of_sets_nor_that_of_methods():
    table = drawn()
    rng = np.random.default_rng(1)
    order = rng.permutation(table.shape[1])
    np.testing.assert_allclose(elo(table[rng.permutation(len(table))])[order], elo(table[:, order]), atol=1e-8)
    assert elo(table).mean() == pytest.approx(1000)


def test_who_never_loses_has_a_rating():
    table = np.arange(3.0)[None, ::-1].repeat(500, axis=0)
    ratings = elo(table)
    assert np.isfinite(ratings).all() and ratings[0] > ratings[1] > ratings[2]
    np.testing.assert_allclose(ratings, naive.elo(table.tolist()), atol=1e-3)


def test_win_rates_are_wins_over_meetings():
    table = np.array([[0.9, 0.8, np.nan], [0.5, 0.5, np.nan], [0.1, 0.3, np.nan], [0.2, np.nan, 0.4]])
    rates = win_rates(table, against=1)
    assert rates[0] == pytest.approx(1.5 / 3)
    assert np.isnan(rates[1:]).all()


def test_a_table_has_two_dimensions():
    with pytest.raises(BadInput, match="shape is"):
        wins([1.0, 2.0])
