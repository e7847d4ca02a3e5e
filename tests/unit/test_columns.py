"""What a careful person would read a column as, and what happens when it changes."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from farout.errors import BadInput
from farout.kit.columns import ArrayFeatures, Codes, Columns, Reading, feature_frame

N = 60
r = np.random.default_rng(0)
DAYS = [date(2024, 1, 1) + timedelta(days=int(k)) for k in r.permutation(N)]
HOURS = [datetime(2024, 1, 1, 7, 30) + timedelta(hours=int(k)) for k in r.permutation(N)]

GUESSES = {
    "float": (r.normal(size=N), "numeric", "Float64"),
    "count": (r.integers(0, 9, N), "numeric", "Int64"),
    "flag": (r.random(N) < 0.5, "category", "Boolean"),
    "text numbers": ([f"{x:.2f}" for x in r.normal(size=N)], "numeric", "text"),
    "stray words": (["n.a.", "?!", *(f"{x:.2f}" for x in r.normal(size=N - 2))], "numeric", "2 cells are no numbers"),
    "level": (r.choice(["a", "b", "c"], N), "category", "3 levels"),
    "day": (DAYS, "date", "date"),
    "moment": (HOURS, "date", "datetime"),
    "text days": ([str(day) for day in DAYS], "date", "text"),
    "stamp": (sorted(HOURS), "date", "rows are in its order"),
    "row number": (np.arange(N), "left out", "id-like: counts up"),
    "backwards": (np.arange(0, -3 * N, -3), "left out", "id-like: counts up"),
    "customer_id": (r.permutation(10 * N)[:N], "left out", "id-like: by its name"),
    "amount": (r.permutation(10 * N)[:N], "numeric", "Int64"),
    "code": ([f"k{i}" for i in range(N)], "left out", "id-like: nearly every value"),
    "prose": (
        [f"a sentence with many words, the {i // 2 if i < 10 else i}th" for i in range(N)],
        "left out",
        "free text",
    ),
    "one value": (["x"] * N, "left out", "constant: x"),
    "one number": ([2.5] * (N - 1) + [None], "left out", "constant: 2.5"),
    "nothing": ([None] * N, "left out", "no values"),
    "nan": ([float("nan")] * N, "left out", "no values"),
    "list": ([[1, 2]] * N, "left out", "holds List"),
}


@pytest.mark.parametrize("name", GUESSES)
def test_each_kind_is_guessed_with_its_reason(name):
    values, kind, why = GUESSES[name]
    [column] = Columns.guess(pl.DataFrame({name: values})).columns
    assert column.kind == kind
    assert why in column.why


def test_a_column_that_is_constant_in_the_first_rows_only_is_kept():
    frame = pl.DataFrame({"k": [1.0] * N, "gone": pl.Series([None] * N, dtype=pl.Float64), "id": range(N)})
    assert Columns.guess(frame).names == []
    assert Columns.guess(frame, whole=False).names == ["k", "gone"]


def test_features_of_numbers_text_and_missing_cells():
    frame = pl.DataFrame({"x": ["1.5", "n.a.", None] * 3 + ["2"] * 36, "c": ["b", None, "a"] * 15})
    columns = Columns.guess(frame)
    x, c = columns.features(frame).columns
    assert x[:2].tolist()[0] == 1.5 and np.isnan(x[1:3]).all() and x.dtype == float and x.flags.c_contiguous
    assert isinstance(c, Codes) and c.levels == ["a", "b"] and c.codes[:3].tolist() == [1, -1, 0]


def test_a_date_becomes_days_weekday_and_hour():
    frame = pl.DataFrame({"when": HOURS})
    features = Columns.guess(frame).features(frame)
    assert features.names == ["when", "when (weekday)", "when (hour)"] and features.dates == ("when",)
    days, weekday, hour = features.columns
    epoch = datetime(1970, 1, 1)
    for i, moment in enumerate(HOURS):
        assert days[i] == pytest.approx((moment - epoch) / timedelta(days=1), abs=1e-9)
        assert weekday.levels[weekday.codes[i]] == f"{moment:%A}"
        assert hour.levels[hour.codes[i]] == f"{moment:%H} h"


def test_of_rows_in_the_order_of_their_stamps_elapsed_time_is_not_read():
    frame = pl.DataFrame({"when": sorted(HOURS)})
    assert Columns.guess(frame).features(frame).names == ["when (weekday)", "when (hour)"]


def test_durations_are_days_and_an_all_missing_category_has_no_level():
    frame = pl.DataFrame({"d": [timedelta(hours=36), None], "c": pl.Series([None, None], dtype=pl.String)})
    d, c = Columns.of(frame).features(frame).columns
    assert d[0] == 1.5 and np.isnan(d[1])
    assert c.levels == [] and c.codes.tolist() == [-1, -1]


def test_kinds_can_be_said():
    frame = pl.DataFrame({"zip": r.integers(1000, 1005, N), "id": np.arange(N), "x": r.normal(size=N)})
    columns = Columns.guess(frame).retyped({"zip": "category", "id": "numeric", "x": "left out"}, frame)
    assert [(c.name, c.kind) for c in columns.columns] == [("zip", "category"), ("id", "numeric"), ("x", "left out")]
    assert columns.names == ["zip", "id"] and columns.left_out[0].why == "said by you"
    zip_, id_ = columns.features(frame).columns
    assert [zip_.levels[code] for code in zip_.codes] == [str(z) for z in frame["zip"]]
    assert id_.tolist() == list(range(N))


def test_wrong_words_for_kinds_offer_the_right_ones():
    frame = pl.DataFrame({"price": r.normal(size=N), "word": ["blue", "red"] * (N // 2)})
    columns = Columns.guess(frame)
    with pytest.raises(BadInput, match="no column 'prise'; nearest: 'price'"):
        columns.retyped({"prise": "numeric"}, frame)
    with pytest.raises(BadInput, match="'numeric', 'category', 'date', 'left out', not 'number'"):
        columns.retyped({"price": "number"}, frame)


def test_text_cannot_be_said_to_be_numbers_and_said_dates_keep_their_hours():
    frame = pl.DataFrame({"word": ["blue", "red"], "when": ["2024-01-02 07:00:00", "2024-01-01 09:30:00"]})
    columns = Columns.guess(frame)
    with pytest.raises(BadInput, match="'word' cannot be read as numeric: it holds no number, but 'blue'"):
        columns.retyped({"word": "numeric"}, frame)
    with pytest.raises(BadInput, match="'word' held dates when it was fitted and holds 'blue' in row 0"):
        columns.retyped({"word": "date"}, frame)
    hours = columns.retyped({"when": "date"}, frame).features(frame).columns[-1]
    assert [hours.levels[code] for code in hours.codes] == ["07 h", "09 h"]


def test_columns_that_are_missing_are_named_and_new_ones_ignored():
    frame = pl.DataFrame({"price": r.normal(size=N), "weight": r.normal(size=N)})
    columns = Columns.guess(frame)
    with pytest.raises(
        BadInput, match=r"1 of the 2 columns .* missing: 'price'; the table has 2 \(nearest: 'prices'\)"
    ):
        columns.features(frame.rename({"price": "prices"}))
    more = columns.features(frame.with_columns(pl.lit("new").alias("more")).select("more", "weight", "price"))
    assert more.names == ["price", "weight"] and np.array_equal(more.columns[0], frame["price"].to_numpy())


def test_cells_that_changed_their_type_are_refused_with_the_first_of_them():
    numbers = Columns.of(pl.DataFrame({"x": [1.0, 2.0]}))
    with pytest.raises(BadInput, match=r"'x' held numbers .* text now: 'many' in row 1 \(and 1 more\)"):
        numbers.features(pl.DataFrame({"x": ["3", "many", "few"]}))
    assert numbers.features(pl.DataFrame({"x": ["3", "4.5"]})).columns[0].tolist() == [3.0, 4.5]
    with pytest.raises(BadInput, match="'x' held numbers when it was fitted and holds Date now"):
        numbers.features(pl.DataFrame({"x": [date(2024, 1, 1)]}))
    dates = Columns.of(pl.DataFrame({"t": [date(2024, 1, 1), date(2024, 1, 2)]}))
    with pytest.raises(BadInput, match="'t' held dates when it was fitted and holds Int64 now"):
        dates.features(pl.DataFrame({"t": [1, 2]}))
    with pytest.raises(BadInput, match="'t' held dates when it was fitted and holds 'soon' in row 1"):
        dates.features(pl.DataFrame({"t": ["2024-01-01", "soon"]}))


def test_a_nested_column_is_refused_where_nothing_is_guessed():
    with pytest.raises(BadInput, match="'x' holds List"):
        Columns.of(pl.DataFrame({"x": [[1], [2]]}))


def test_rows_of_readings_and_features_by_number_and_by_mask():
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "c": ["a", None, "b"]})
    reading = Reading(frame, Columns.of(frame))
    mask = np.array([True, False, True])
    for rows in (mask, np.flatnonzero(mask)):
        assert reading[rows].frame["x"].to_list() == [1.0, 3.0] and len(reading[rows]) == 2
    taken = reading.features().take(np.array([2, 1]))
    assert taken.columns[0].tolist() == [3.0, 2.0] and taken.columns[1].codes.tolist() == [1, -1]
    assert feature_frame(taken)["c"].tolist() == ["b", None]


def test_array_features_are_the_columns_of_the_array():
    X = r.normal(size=(20, 5))
    features = ArrayFeatures(X)
    assert features.names == ["x0", "x1", "x2", "x3", "x4"] and len(features.columns) == 5
    assert np.array_equal(features.group(1, 4), X.T[1:4])
    assert np.array_equal(features.take(np.array([3, 1])).group(0, 5), X[[3, 1]].T)
    assert all(np.array_equal(column, X[:, j]) for j, (_, column) in enumerate(features))
