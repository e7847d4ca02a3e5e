"""Any kind of data frame in, a polars frame with plain columns out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from farout.errors import BadInput


def to_polars(data: Any) -> pl.DataFrame:
    """Turn any kind of table into a polars frame.

    Categorical columns become strings, as do columns of mixed types; nested columns stay as they are. The index of a
    pandas frame is dropped.

    Parameters
    ----------
    data : frame, array or list
        A polars, pandas or pyarrow table, anything else that narwhals understands (lazy frames are collected), an
        array of shape (n, d), whose columns are called ``x0``, ``x1``, ..., a list of rows, or a list of dictionaries.

    Returns
    -------
    polars.DataFrame

    Raises
    ------
    BadInput
        Two columns have the same name, an array is not two-dimensional, or ``data`` is no table at all.

    Examples
    --------
    >>> to_polars(np.array([[1.0, 2.0], [3.0, 4.0]])).columns
    ['x0', 'x1']
    >>> to_polars([{"a": 1}, {"a": "one"}])["a"].to_list()
    ['1', 'one']
    """
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if isinstance(data, pl.DataFrame):
        return plain(data)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if len(data) and all(isinstance(row, dict) for row in data):
            return from_records(data)
        data = _array(data)
    if isinstance(data, np.ndarray):
        return from_array(data)
    return plain(_from_foreign(data))


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn categorical columns into strings, and columns of nothing but missing values too."""
    return frame.with_columns(
        pl.col(name).cast(pl.String)
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.Categorical | pl.Enum | pl.Null)
    )


def distinct(names: Iterable[Any], where: str) -> list[str]:
    """Return the column names as strings, or say which of them occur twice."""
    words = [str(name) for name in names]
    twice = [f"'{name}'" for name, count in Counter(words).items() if count > 1]
    if twice:
        raise BadInput(f"{where} has more than one column called {', '.join(twice)}; give every column its own name")
    return words


def from_array(array: np.ndarray, where: str = "the array") -> pl.DataFrame:
    """Name the columns of an (n, d) array ``x0`` to ``x{d-1}``; objects are read as values, mixed ones as strings."""
    if array.ndim != 2:
        raise BadInput(f"{where} has shape {array.shape}; a table needs 2 dimensions: (rows, columns)")
    if array.dtype.kind not in "biufUSMmO" or array.dtype.names:
        raise BadInput(f"{where} holds '{array.dtype}'; a table needs numbers, dates or strings")
    if array.dtype.kind == "O":
        columns = {f"x{j}": _values(array[:, j].tolist(), f"x{j}") for j in range(array.shape[1])}
        return plain(pl.DataFrame(columns))
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return pl.DataFrame(native, schema=[f"x{j}" for j in range(array.shape[1])], orient="row")


def from_records(records: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Collect dictionaries into columns; a key that a record lacks is a missing value."""
    names = list(dict.fromkeys(key for record in records for key in record))
    return plain(pl.DataFrame([_values([record.get(name) for record in records], name) for name in names]))


def _values(values: list[Any], name: Any) -> pl.Series:
    """Build a column of one type; where the values have none in common, of strings."""
    values = [value.item() if isinstance(value, np.number | np.bool_) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 or kinds == {int, float} or kinds.isdisjoint({int, float, bool, str}):
        try:
            series = pl.Series(str(name), values, strict=kinds != {int, float})
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            series = pl.Series(dtype=pl.Object)
        if series.dtype != pl.Object:
            return series
    missing = [value is None or (isinstance(value, float) and value != value) for value in values]
    words = [None if gone else str(value) for value, gone in zip(values, missing)]
    return pl.Series(str(name), words, dtype=pl.String)


def _array(rows: Sequence[Any]) -> np.ndarray:
    """Stack a list of rows, keeping each cell's own type where rows mix them."""
    try:
        array = np.asarray(rows)
        return array if array.dtype.kind in "biuf" else np.asarray(rows, dtype=object)
    except ValueError as error:
        raise BadInput(f"the list of {len(rows)} rows is no table, since its rows differ in length") from error


def _from_foreign(data: Any) -> pl.DataFrame:
    """Convert a frame of another library, pandas by hand since its object columns may mix types."""
    library = type(data).__module__.split(".")[0]
    if library.startswith("dask"):  # narwhals hands dask over to a package of its own
        data, library = data.compute(), "pandas"
    if library == "pandas" and hasattr(data, "columns"):
        names = distinct(data.columns, "the pandas frame")
        return pl.DataFrame([_pandas_column(data.iloc[:, j], name) for j, name in enumerate(names)])
    if library == "pyarrow" and hasattr(data, "column_names"):
        distinct(data.column_names, "the pyarrow table")
    import narwhals as nw

    try:
        frame: Any = nw.from_native(data)
    except TypeError as error:
        kind = type(data).__name__
        raise BadInput(
            f"cannot make a table of a '{kind}'; give a data frame, an array of shape (n, d) or a list of dictionaries"
        ) from error
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    return frame.to_polars()


def _pandas_column(series: Any, name: str) -> pl.Series:
    """Convert one pandas column; pandas' missing values become nulls."""
    if series.dtype == object:
        missing = series.isna()
        return _values([None if gone else value for value, gone in zip(series, missing)], name)
    if str(series.dtype) == "category":
        words = [None if gone else str(value) for value, gone in zip(series, series.isna())]
        return pl.Series(name, words, dtype=pl.String)
    return pl.Series(name, pl.from_pandas(series))
