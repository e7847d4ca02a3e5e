"""Methods against each other, set by set: win rates, and Elo ratings as leaderboards print them.

Every function takes a ``table`` of shape (n_sets, n_methods): one number per data set and method, larger is better,
NaN where the method was not run. A set counts for every pair of methods that were both run on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.errors import BadInput

CENTRE = 1000.0  # mean rating
SCALE = 400.0  # a method rated so much above another wins ten times as often as it loses


def wins(table: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Count on how many sets each method beats each other one; a tie is half a win for either.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        Larger is better, NaN = not run.

    Returns
    -------
    won : array of shape (n_methods, n_methods)
        Wins of the row's method over the column's, 0 on the diagonal.
    met : int array of shape (n_methods, n_methods)
        Sets on which both were run, 0 on the diagonal.

    Raises
    ------
    BadInput
        The table is not two-dimensional.

    Examples
    --------
    >>> wins([[0.9, 0.8], [0.7, 0.7], [0.5, float("nan")]])
    (array([[0. , 1.5], [0.5, 0. ]]), array([[0, 2], [2, 0]]))
    """
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2:
        raise BadInput(f"'table' must hold a number for each set and method; its shape is {values.shape}")
    a, b = values[:, :, None], values[:, None, :]
    won = ((a > b) + 0.5 * (a == b)).sum(axis=0)
    met = (~np.isnan(a) & ~np.isnan(b)).sum(axis=0)
    np.fill_diagonal(won, 0.0)
    np.fill_diagonal(met, 0)
    return won, met


def win_rates(table: ArrayLike, against: int) -> NDArray[np.float64]:
    """Share of sets on which each method beats one of them, ties half.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        Larger is better, NaN = not run.
    against : int
        Column of the rival.

    Returns
    -------
    array of shape (n_methods,)
        NaN for the rival itself and for methods that never met it.

    Examples
    --------
    >>> win_rates([[0.9, 0.8], [0.7, 0.6], [0.5, 0.6], [0.4, 0.4]], against=1)
    array([0.625,   nan])
    """
    won, met = wins(table)
    with np.errstate(invalid="ignore"):
        return won[:, against] / met[:, against]


def elo(table: ArrayLike) -> NDArray[np.float64]:
    """Elo ratings as the maximum-likelihood strengths of the model of Bradley and Terry (1952).

    A method rated R_i beats one rated R_j with probability ``1 / (1 + 10^((R_j - R_i) / 400))``. The ratings that make
    the wins of :func:`wins` most likely do not depend on the order of the sets, as ratings that are updated from game
    to game do. Every pair is given one drawn set beside those in the table, so that a method that never loses has a
    rating; the mean rating is 1000.

    Parameters
    ----------
    table : array of shape (n_sets, n_methods)
        Larger is better, NaN = not run.

    Returns
    -------
    array of shape (n_methods,)

    Raises
    ------
    BadInput
        As in :func:`wins`.

    Examples
    --------
    >>> elo([[2, 1]] * 9).round(1)  # 9 wins and the drawn set: 9.5 to 0.5
    array([1255.8,  744.2])
    """
    won, met = wins(table)
    others = ~np.eye(len(won), dtype=bool)
    won, met = won + 0.5 * others, met + others
    strength = np.zeros(len(won))
    for _ in range(100):  # Newton's method on a concave function; a dozen steps are the rule
        share = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        slope = (won - met * share).sum(axis=1)
        weight = met * share * (1 - share)
        # Adding a constant to all strengths changes nothing: the ones fill that direction.
        curvature = np.diag(weight.sum(axis=1)) - weight + 1 / len(won)
        step = np.linalg.solve(curvature, slope)
        strength += step * min(1.0, 2 / (np.abs(step).max() + 1e-300))
        if np.abs(step).max() < 1e-12:
            break
    return CENTRE + SCALE / np.log(10) * (strength - strength.mean())
