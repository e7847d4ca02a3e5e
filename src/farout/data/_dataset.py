"""A data set with its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Dataset:
    """A data set and what is known about it.

    Parameters
    ----------
    name : str
    X : array or polars.DataFrame (n, d)
        The features; a frame where columns have names or kinds of their own.
    y : int8 array (n,)
        1 = anomaly, 0 = normal. For sets that have classes instead of anomalies ('wine', 'digits') the class number.
    columns : tuple of str
        Names of the features.
    source : str
        Where the data are from, and what to cite.
    licence : str
    n_train : int, optional
        Where the set has a split of its own: so many first rows are normal and to learn from, the others test.
    """

    name: str
    X: np.ndarray | pl.DataFrame
    y: np.ndarray
    columns: tuple[str, ...]
    source: str
    licence: str
    n_train: int | None = None
