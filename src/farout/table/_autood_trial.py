"""AutoOD's trials: the rows that children learn from, and the outliers that reward them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VALIDATION = 0.3  # share of the usual rows that children are judged on
MOST_ROWS, MOST_JUDGED = 10_000, 2_000  # rows that children learn from, and are judged on


@dataclass(frozen=True)
class Trial:
    """The data on which children are compared.

    Attributes
    ----------
    rows : float64 array (n, C)
        What they learn from.
    usual : float64 array (m, C)
        Usual rows that they have not seen.
    far_out : tuple of float64 arrays (., C)
        Kinds of outliers that should score above these.
    """

    rows: np.ndarray
    usual: np.ndarray
    far_out: tuple[np.ndarray, ...]


def made_trial(usual: np.ndarray, owner: np.ndarray, numbers: np.ndarray, rng: np.random.Generator) -> Trial:
    """Split rows into those to learn from and those to judge by, and make outliers from the latter.

    ``owner`` and ``numbers`` are those of :func:`made_outliers`.
    """
    learned, kept = split(usual, rng)
    return Trial(learned, kept, tuple(made_outliers(kept, learned, owner, numbers, rng)))


def labelled_trial(usual: np.ndarray, far_out: np.ndarray, rng: np.random.Generator) -> Trial:
    """Split usual rows into those to learn from and those to judge by, beside the outliers that labels name."""
    learned, kept = split(usual, rng)
    return Trial(learned, kept, (far_out[rng.permutation(len(far_out))[:MOST_JUDGED]],))


def split(usual: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows to learn from and other rows to judge by."""
    order = rng.permutation(len(usual))
    judged = max(1, round(VALIDATION * len(usual)))
    return usual[order[judged:][:MOST_ROWS]], usual[order[:judged][:MOST_JUDGED]]


def made_outliers(
    rows: np.ndarray, learned: np.ndarray, owner: np.ndarray, numbers: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Make outliers of three kinds from usual rows, as many of each as there are rows.

    Parameters
    ----------
    rows : float64 array (m, columns)
    learned : float64 array (n, columns)
        Whose means and ranges count.
    owner : int array (columns,)
        The feature of each column.
    numbers : bool array (columns,)
        The columns that are numbers, and no codes of categories.
    rng : numpy.random.Generator

    Returns
    -------
    list of three float64 arrays (m, columns)
        Features shuffled against each other, so that what depends on each other does so no more; numbers scattered
        evenly over their range and a tenth beyond, and categories shuffled; numbers pushed five times as far from the
        mean.
    """
    shuffled = np.empty_like(rows)
    for feature in np.unique(owner):
        shuffled[:, owner == feature] = rows[rng.permutation(len(rows))][:, owner == feature]
    low, high = learned.min(axis=0), learned.max(axis=0)
    beyond = 0.1 * (high - low)
    scattered = np.where(numbers, rng.uniform(low - beyond, high + beyond, size=rows.shape), shuffled)
    mean = learned.mean(axis=0)
    return [shuffled, scattered, np.where(numbers, mean + 5 * (rows - mean), rows)]


def auroc(usual: np.ndarray, far_out: np.ndarray) -> float:
    """Return the chance that a far-out row scores above a usual one, equal scores counting half.

    Examples
    --------
    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    from scipy.stats import rankdata

    if not (np.isfinite(usual).all() and np.isfinite(far_out).all()):
        return np.nan
    ranks = rankdata(np.concatenate((usual, far_out)))[len(usual) :]
    return float((ranks.mean() - (len(far_out) + 1) / 2) / len(usual))
