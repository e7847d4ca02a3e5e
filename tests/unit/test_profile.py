"""A table in small, and what it says in words."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farout.kit.columns import Codes, Features
from farout.kit.profile import Ladder, Profile, RowSample, _percent, number
from farout.kit.sketch import hashed, smallest


def one(column, name="x", dates=()):
    return Profile.of(Features([name], [column], len(column), dates))


def test_words_for_numbers():
    profile = one(np.array([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, np.nan]))
    assert profile.words(0, 9.0) == "x = 9: above every row seen"
    assert profile.words(0, -1.5) == "x = -1.5: below every row seen"
    assert profile.words(0, 8.0) == "x = 8: above all other rows"
    assert profile.words(0, 1.0) == "x = 1: below all other rows"
    assert profile.words(0, 7.0) == "x = 7: above 78 % of rows"
    assert profile.words(0, 2.0) == "x = 2: below 67 % of rows"  # its own tie is not below it
    assert profile.words(0, np.nan) == profile.words(0, None) == "x is missing, as in 10 % of rows"


def test_words_for_categories_and_dates():
    profile = one(Codes(np.array([0] * 995 + [1] * 4 + [-1]), ["a", "b"]), "c")
    assert profile.words(0, "b") == "c = b: in 0.4 % of rows (4)"
    assert profile.words(0, "z") == "c = z: never seen"
    assert profile.words(0, None) == "c is missing, as in 0.1 % of rows"
    days = np.arange(19_000.0, 19_100.0)
    profile = one(days, "when", ("when",))
    shown = date(1970, 1, 1).fromordinal(date(1970, 1, 1).toordinal() + 19_099)
    assert profile.words(0, 19_099.0) == f"when = {shown}: after all other rows"
    assert profile.words(0, 18_000.25).endswith("06:00:00: before every row seen")


@settings(deadline=None)
@given(st.integers(1, 10**13), st.data())
def test_percentages_round_to_nothing_and_to_all_only_when_they_are(n, data):
    k = data.draw(st.one_of(st.integers(0, n), st.sampled_from([0, min(1, n), n - 1, n])))
    shown = float(_percent(k / n).removesuffix(" %"))
    assert (shown == 0) == (k == 0)
    assert (shown == 100) == (k == n)
    assert shown == pytest.approx(100 * k / n, rel=1.01)  # one digit


def test_percentages_by_hand():
    assert [_percent(s) for s in (0, 0.5, 0.004, 0.9998, 1e-6, 1)] == [
        "0 %",
        "50 %",
        "0.4 %",
        "99.98 %",
        "0.0001 %",
        "100 %",
    ]


def test_numbers_for_reading():
    shown = [number(x) for x in (93_200.0, 0.1, 1e300, float("inf"), 123_456.789, 2e15, -0.00001234)]
    assert shown == ["93,200", "0.1", "1e+300", "inf", "1.2346e+05", "2e+15", "-1.234e-05"]


def test_pieces_merge_to_the_profile_of_the_whole():
    r = np.random.default_rng(0)
    x, codes = r.integers(0, 9, 300).astype(float), r.integers(-1, 3, 300)
    x[::11] = np.nan
    whole = Profile.of(Features(["x", "c"], [x, Codes(codes, ["a", "b", "c"])], 300))
    cuts = [slice(0, 50), slice(50, 60), slice(60, 300)]
    pieces = [Profile.of(Features(["x", "c"], [x[s], Codes(codes[s], ["a", "b", "c"])], len(x[s]))) for s in cuts]
    made = pieces[0].merge(pieces[1]).merge(pieces[2])
    assert made.n == 300
    assert np.array_equal(made.columns[0].values, whole.columns[0].values)
    assert made.columns[0].missing == whole.columns[0].missing == len(x[::11])
    assert made.columns[1].counts.tolist() == whole.columns[1].counts.tolist()


def test_a_ladder_of_n_pieces_costs_log_n_compressions():
    r = np.random.default_rng(1)
    pieces: list[Profile] = []
    for _ in range(64):
        Ladder(pieces).push(Profile.of(Features(["x"], [r.normal(size=500)], 500), 0.05))
        assert len(pieces) <= 7
    whole = Ladder(pieces).whole()
    assert whole.n == 64 * 500 and len(pieces) == 1 and pieces[0] is whole
    assert whole.columns[0].depth <= 1 + np.log2(64)


def rows(n, start=0):
    """Rows that know their own number, as a number and as a level."""
    x = np.arange(start, start + n, dtype=float)
    return Features(["x", "c"], [x, Codes(np.arange(n), [f"{v:.0f}" for v in x])], n)


def test_a_sample_is_the_same_for_any_batches_and_keeps_rows_together():
    whole = RowSample.of(rows(1000), 50)
    assert whole.columns[0].tolist() == smallest(hashed(0, 1000), 50).tolist()
    made = RowSample.of(rows(300), 50)
    made = made.merge(RowSample.of(rows(1, 300), 50, start=300)).merge(RowSample.of(rows(699, 301), 50, start=301))
    assert made.seen == 1000
    assert np.array_equal(made.columns[0], whole.columns[0]) and np.array_equal(made.columns[1], whole.columns[1])
    x, c = made.features().columns
    assert [c.levels[code] for code in c.codes] == [f"{v:.0f}" for v in x]


def test_a_sample_draws_batches_by_their_size():
    # 200 samples of 20 rows from batches of 900 and 100 rows: a tenth comes from the second, within 4 standard errors
    share = [
        (
            RowSample.of(rows(900), 20, start=s).merge(RowSample.of(rows(100, 900), 20, start=s + 900)).columns[0]
            >= 900
        ).mean()
        for s in range(0, 200_000, 1000)
    ]
    assert abs(np.mean(share) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 20 / 200)
