"""COPOD: Copula-Based Outlier Detection.

Zheng Li, Yue Zhao, Nicola Botta, Cezar Ionescu, Xiyang Hu, ICDM 2020 (arXiv 2009.09463).

An empirical copula gives the probability of a row at least as extreme, which with independent features is a product of
tail probabilities: take minus their logarithms and add them over features.

The paper claims that it outperforms nine other detectors in most cases on 30 data sets, is among the fastest, and has
no parameters.

Differences between paper and official code (PyOD), both offered:

- ``rule="per_dimension"``, the default, is what the code computes: the largest over the two ways is taken in each cell,
  then cells are added.
- ``rule="paper"`` is the published algorithm: the largest of three sums. It is the same formula as ECOD's Algorithm 1,
  so the two detectors are then one.

Differences from both: new rows are scored against the training rows alone, one by one, where PyOD refits; missing
cells take the mean part of their column, categories the part ``-log(share of the level)``; states merge.
"""

from __future__ import annotations

import numpy as np

from farout.cards import paper
from farout.table._tails import TailDetector


@paper(
    "COPOD",
    title="COPOD: Copula-Based Outlier Detection",
    authors="Li, Zhao, Botta, Ionescu, Hu",
    arxiv="2009.09463",
    year=2020,
    claim="Outperforms nine other detectors in most cases on 30 data sets, and is among the fastest.",
    differs="The default is what PyOD computes, a maximum in each cell; rule='paper' is the published maximum of sums, "
    "the same formula as ECOD's. New rows are scored one by one against the training rows. Missing values, categories "
    "and merging states are added.",
    takes=("numeric", "missing", "infinite", "category", "date"),
    streams=True,
    explains=True,
)
class COPOD(TailDetector):
    """Sum over features of minus log tail probabilities, corrected for skewness.

    With tails ``F_l(z) = #{x <= z} / n`` and ``F_r(z) = #{x >= z} / n`` of each feature, ``U = -log F`` and the sign
    ``g`` of its skewness (both parts are added where it is 0)::

        U_s = U_l if g < 0, U_r if g > 0, U_l + U_r if g = 0        score = sum_j max(U_s, (U_l + U_r) / 2)

    Cost: a sort per column to fit, ``O(d log n)`` to score a new row.

    Parameters
    ----------
    rule : {"per_dimension", "paper"}
        ``"per_dimension"``: the score above. ``"paper"``: the largest of the sums of the left, the right and the
        skewness-corrected parts.
    sketch : float
        Relative rank error of the stored columns; 0 keeps every value and is exact.
    n_jobs : int, optional
        Threads; scores do not depend on it.

    Attributes
    ----------
    profile_ : Profile
        Rank tables and level counts of all features.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 10], [2, 11], [3, 12], [4, 13], [50, 99]])
    >>> COPOD().fit_score(X).round(3)
    array([1.609, 1.139, 1.022, 1.833, 3.219])
    >>> COPOD().fit(X).reasons([[50, 12]]).round(3)
    array([[1.609, 0.511]])
    """

    RULES = ("per_dimension", "paper")

    def __init__(self, rule: str = "per_dimension", sketch: float = 0.0, n_jobs: int | None = None) -> None:
        self.rule = rule
        self.sketch = sketch
        self.n_jobs = n_jobs

    def _sides(self, left: np.ndarray, right: np.ndarray, skewness: int | None) -> list[np.ndarray]:
        if self.rule == "paper":
            return [left, right, left if skewness == -1 else right]
        if skewness is None:
            return [left]  # a category has one tail
        if skewness == 0:
            return [left * right]
        # the mean of two logarithms is the logarithm of the geometric mean
        return [np.minimum(left if skewness < 0 else right, np.sqrt(left * right))]
