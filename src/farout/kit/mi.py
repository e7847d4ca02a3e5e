"""Mutual information of two columns of codes, plain and corrected for the number of their values.

Noise with many values seems to say much about any label: with few rows a value, each value's rows agree by accident.
The corrected score compares with labels whose tie to the values is cut, so that the accident is on both sides. All
sums run over the cells of the table of both columns; one table costs a pass over the rows and its cells, never a pass
a value. Natural logarithms throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from farout.errors import BadInput, UnknownName

BACKGROUNDS = ("shift", "permutation")
ROOM = 4  # cells a row up to which a table of counts is laid out whole; beyond it its cells are sorted


def codes(values: Any) -> np.ndarray:
    """Turn values into codes from 0 on: integers of a small range by a subtraction, anything else by sorting.

    Parameters
    ----------
    values : array (n,)

    Returns
    -------
    int64 array (n,)
        Equal where the values are; not every code need occur.

    Examples
    --------
    >>> codes([7, 9, 7]), codes(["b", "a", "b"])
    (array([0, 2, 0]), array([1, 0, 1]))
    """
    values = np.asarray(values)
    if values.ndim != 1 or len(values) == 0:
        raise BadInput(f"a column of codes has shape (n,) and at least one row, not {values.shape}")
    if values.dtype.kind in "biu":
        low, high = int(values.min()), int(values.max())
        if high - low < ROOM * len(values) + 1024 and high < 2**63:
            found = values.astype(np.intp)
            return found - low if low else found
    return np.unique(values, return_inverse=True)[1].astype(np.intp, copy=False)


def mi(x: Any, y: Any) -> float:
    """Return the mutual information of two columns, in nats.

    ``I = H(Y) - H(Y|X)``, with ``H(Y|X) = sum_v (c_v / n) H(Y | X = v)`` and ``c_v`` the number of rows with value v.

    Parameters
    ----------
    x, y : array (n,)
        Codes, or values of any kind.

    Examples
    --------
    >>> round(mi([0, 0, 1, 1], ["no", "no", "yes", "yes"]), 4)
    0.6931
    """
    x, y = _both(x, y)
    return pair_scores(x, y, Background(len(x)))[0]


def mi_corrected(x: Any, y: Any, background: str = "shift", draws: int = 4, ratio: float = 1.0, seed: Any = 0) -> float:
    """Return the mutual information of two columns less that of labels whose tie to ``x`` is cut, in nats.

    ``sum_v (c_v / n) [H(Y~_v) - H(Y_v)]``: ``Y_v`` are the labels of the rows with value v, ``Y~_v`` as many others.
    Noise has 0 in expectation, whatever the number of its values; so has a value that occurs once. Where each value of
    ``x`` stands for one of ``y`` and back, ``x`` is ``y`` in other words, and nothing is subtracted. Never above H(Y).

    Parameters
    ----------
    x, y : array (n,)
        Codes, or values of any kind.
    background : {"shift", "permutation"}
        Other labels: those ``c_v`` rows further down, which is quick and repeats, but lets signal vanish where
        neighbouring rows share their labels; or the labels in drawn order, averaged over ``draws``.
    draws : int
    ratio : float
        Share of the rows to look at, drawn and equally many for each value; the score is then times ``ratio``.
    seed : int, sequence of int or numpy.random.Generator

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> noise, y = rng.integers(0, 2000, 16_384), rng.random(16_384) < 0.3
    >>> round(mi(noise, y), 3), round(mi_corrected(noise, y), 3)
    (0.069, -0.002)
    """
    x, y = _both(x, y)
    return pair_scores(x, y, Background.draw(len(x), background, draws, ratio, np.random.default_rng(seed)))[1]


@dataclass(frozen=True)
class Background:
    """What the labels of ``n`` rows are compared with; drawn once, it serves any number of columns.

    Attributes
    ----------
    n : int
    orders : tuple of int64 arrays (n,)
        Orders to put the labels into; empty for the shift.
    ratio : float
        Share of the rows to look at.
    rows : int64 array (n,) or None
        An order in which a value's rows are drawn, where ``ratio`` is below 1.
    """

    n: int
    orders: tuple[np.ndarray, ...] = ()
    ratio: float = 1.0
    rows: np.ndarray | None = None

    @classmethod
    def draw(cls, n: int, kind: str, draws: int, ratio: float, rng: np.random.Generator) -> Background:
        """Draw the orders that a background of some kind needs."""
        if kind not in BACKGROUNDS:
            raise UnknownName("background", kind, BACKGROUNDS)
        if draws < 1 or not 0 < ratio <= 1:
            raise BadInput(f"it takes at least 1 draw and a ratio in (0, 1], not {draws} and {ratio}")
        orders = tuple(rng.permutation(n) for _ in range(draws)) if kind == "permutation" else ()
        return cls(n, orders, ratio, rng.permutation(n) if ratio < 1 else None)

    def labels(self, y: np.ndarray, further: np.ndarray) -> list[np.ndarray]:
        """Return labels (n,) whose tie to the rows is cut; the shift is by ``further`` (n,) rows."""
        if self.orders:
            return [y[order] for order in self.orders]
        return [np.concatenate((y, y))[further + _counting(self.n)]]


def pair_scores(x: np.ndarray, y: np.ndarray, background: Background) -> tuple[float, float]:
    """Return plain and corrected mutual information of two columns of codes (n,) from :func:`codes`.

    With ``f(c) = c log c`` the plain form is ``H(Y) - [sum_v f(c_v) - sum_vy f(c_vy)] / n``; in the corrected one the
    ``c_v`` cancel: ``[sum_vy f(c_vy) - sum_vy f(c~_vy)] / n``, with ``c~`` counted on the background.
    """
    n, f = len(x), _c_log_c(len(x))
    shape = int(x.max()) + 1, int(y.max()) + 1
    cells = shape[0] * shape[1]
    rows = x * shape[1]
    _, counts = _table(rows + y, cells)
    if 4 * cells < n:  # adding up a small table is quicker than counting again
        of_x, of_y = counts.reshape(shape).sum(axis=1), counts.reshape(shape).sum(axis=0)
    else:
        of_x, of_y = np.bincount(x), np.bincount(y)
    sum_x, sum_y, sum_xy = (float(f[c].sum()) for c in (of_x, of_y, counts))
    entropy = max(0.0, float(np.log(n)) - sum_y / n)
    plain = min(entropy, max(0.0, entropy - (sum_x - sum_xy) / n))
    n_x, n_y = np.count_nonzero(of_x), np.count_nonzero(of_y)
    if np.count_nonzero(counts) == n_x == n_y < n:  # y in other words; two columns without repeats only seem so
        return plain, plain
    others = background.labels(y, of_x[x])
    quota = int(background.ratio * n / n_x)
    if background.rows is None or quota == 0:
        sums = [float(f[_table(rows + labels, cells)[1]].sum()) / n for labels in others]
        return plain, min(entropy, background.ratio * (sum_xy / n - sum(sums) / len(sums)))
    # a value with m_v of its c_v rows drawn weighs c_v / (n m_v)
    chosen = _drawn(x, of_x, quota, background.rows)
    weights = of_x / (n * np.maximum(np.minimum(of_x, quota), 1))
    found = (_table(rows[chosen] + labels[chosen], cells) for labels in (y, *others))
    seen, *cut = (float(f[counts] @ weights[keys // shape[1]]) for keys, counts in found)
    return plain, min(entropy, background.ratio * (seen - sum(cut) / len(cut)))


def _drawn(x: np.ndarray, of_x: np.ndarray, quota: int, order: np.ndarray) -> np.ndarray:
    """Return the first ``quota`` rows of each value in a drawn order; all of its rows where it has fewer."""
    by_value = order[np.argsort(x[order], kind="stable")]
    place = np.arange(len(x)) - (np.cumsum(of_x) - of_x)[x[by_value]]
    return by_value[place < quota]


def _table(joint: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cells, some maybe empty, and the counts of the rows in them."""
    if cells < ROOM * len(joint) + 1024:
        return np.arange(cells), np.bincount(joint, minlength=cells)
    joint.sort()
    starts = np.flatnonzero(np.append(True, joint[1:] != joint[:-1]))
    return joint[starts], np.diff(np.append(starts, len(joint)))


@lru_cache(maxsize=4)
def _counting(n: int) -> np.ndarray:
    return np.arange(n)


@lru_cache(maxsize=4)
def _c_log_c(n: int) -> np.ndarray:
    """Return ``c log c`` of the counts 0 to n."""
    counts = np.arange(n + 1)
    return counts * np.log(np.maximum(counts, 1))


def _both(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Code two columns, which must have the same rows."""
    x, y = codes(x), codes(y)
    if len(x) != len(y):
        raise BadInput(f"two columns must have the same rows, not {len(x):,} and {len(y):,}")
    return x, y
