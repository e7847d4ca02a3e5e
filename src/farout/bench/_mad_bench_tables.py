"""Tables whose anomalies have levels: attacks of NSL-KDD in two orders, and one defect painted at five strengths.

What a severity means is a judgment, so each is said here:

- ``nsl_kdd/agreement`` grades an attack by how many of the 21 learners of Tavallaee et al. (2009) told it from normal
  traffic. That is how plainly an attack shows to someone who has seen labelled ones, not how much harm it does.
- ``nsl_kdd/harm`` grades by what the attacker gets: knowledge (probe), the loss of a service (dos), access as a user
  (r2l), access as root (u2r). The order is the usual one of risk ratings, the equal steps are not measured.
- ``defect/NAME`` takes normal rows of a set of ADBench. A quarter of a row's columns is moved, by the same multiple of
  each column's standard deviation: the strength, which is the level. Every row stands at all strengths, so that no
  level holds other rows than the next. No judgment is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from farout import data
from farout.data import adbench_names
from farout.errors import UnknownName

STRENGTHS = (4.0, 6.0, 9.0, 13.0, 20.0)  # standard deviations: levels 1 to 5
MOVED = 4  # one column of so many is moved
LEARNERS = (0, 11, 18, 21)  # least numbers of learners that were right, of 21: few, most, nearly all, all
HARM: Mapping[str, int] = {"normal": 0, "probe": 1, "dos": 2, "r2l": 3, "u2r": 4}
NSL_KDD = ("nsl_kdd/agreement", "nsl_kdd/harm")
_PARTS = ("events/nsl_kdd/train_20percent.parquet", "events/nsl_kdd/test.parquet")
_NO_FEATURES = ("attack", "difficulty", "family", "anomaly")


class Graded(NamedTuple):
    """Normal rows to learn from, and rows with levels to score."""

    normal: Any
    X: Any
    severity: np.ndarray


def graded_names() -> list[str]:
    """Names that :func:`graded` knows."""
    return [*NSL_KDD, *(f"defect/{name.removeprefix('adbench/')}" for name in adbench_names())]


def graded(name: str, seed: int, most: int) -> Graded:
    """Return a table whose anomalies have levels.

    Parameters
    ----------
    name : str
        One of :func:`graded_names`, in any case.
    seed : int
        Draws the rows to learn from and, for defects, what is moved.
    most : int
        Rows to learn from, at most; of a defect's rows, as many stay normal and as many are painted, at most.

    Returns
    -------
    Graded

    Raises
    ------
    UnknownName
    """
    known = {one.lower(): one for one in graded_names()}
    if name.lower() not in known:
        raise UnknownName("graded table", name, known.values())
    kind, _, rest = known[name.lower()].partition("/")
    return _nsl_kdd(rest, seed, most) if kind == "nsl_kdd" else _defect(rest, seed, most)


def painted(
    X: np.ndarray, scales: np.ndarray, rng: np.random.Generator, strengths: tuple[float, ...] = STRENGTHS
) -> tuple[np.ndarray, np.ndarray]:
    """Move the same drawn columns of each row, in the same directions, by growing multiples of their scales.

    Parameters
    ----------
    X : float64 array (n, d)
    scales : float64 array (d,)
        Standard deviations; a column whose scale is 0 is never moved.
    rng : numpy.random.Generator
    strengths : tuple of float

    Returns
    -------
    rows : float64 array (n * strengths, d)
        All rows at the first strength, then all at the second.
    severity : float64 array (n * strengths,)
        1, 2, ... in the order of the strengths.
    """
    varying = np.flatnonzero(scales > 0)
    moved = np.zeros(X.shape)
    for row in moved:
        chosen = rng.choice(varying, -(-len(varying) // MOVED), replace=False)
        row[chosen] = rng.choice([-1.0, 1.0], len(chosen)) * scales[chosen]
    rows = np.concatenate([X + strength * moved for strength in strengths])
    return rows, np.repeat(np.arange(1.0, len(strengths) + 1), len(X))


def _nsl_kdd(by: str, seed: int, most: int) -> Graded:
    train, test = (
        pl.read_parquet(data.find(part)).with_columns(pl.col(pl.Categorical).cast(pl.String)) for part in _PARTS
    )
    normal = train.filter(pl.col("anomaly") == 0)
    rows = np.random.default_rng(seed).permutation(len(normal))[:most]
    if by == "harm":
        severity = np.array([HARM[family] for family in test["family"]], np.float64)
    else:
        right = np.searchsorted(LEARNERS, test["difficulty"].to_numpy(), side="right")
        severity = np.where(test["anomaly"].to_numpy() == 1, right, 0).astype(np.float64)
    return Graded(normal[rows].drop(_NO_FEATURES), test.drop(_NO_FEATURES), severity)


def _defect(short: str, seed: int, most: int) -> Graded:
    found = data.load(f"adbench/{short}")
    X = np.asarray(found.X)[found.y == 0]
    rng = np.random.default_rng(seed)
    X = X[rng.permutation(len(X))]
    half = len(X) // 2
    learned, kept, broken = X[:half][:most], *(part[:most] for part in np.array_split(X[half:], 2))
    rows, severity = painted(broken, learned.std(axis=0), rng)
    return Graded(learned, np.concatenate((kept, rows)), np.concatenate((np.zeros(len(kept)), severity)))
