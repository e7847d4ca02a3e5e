"""MIScreening: Contributions to Robust and Efficient Methods for Analysis of High Dimensional Data.

Kai Yang, doctoral thesis, McGill University, 2025; this part as arXiv 2410.10082 (fastHDMI).

With many more columns than rows, first keep the columns that tell something about the outcome, by mutual information,
which finds links of any shape; then fit a model to the few. Densities come from a kernel and a fast Fourier transform.

The paper claims that kernel densities choose best for a continuous outcome and histograms for a binary one, on brain
images, where correlation misses what is not linear.

Differences from the paper's package (fastHDMI):

- The bandwidth of each variable is used; the package computes both for a pair of continuous variables, passes neither
  on and smooths by 1 on scaled data. Its multiplier of bandwidths, which it applies twice, is left out.
- The kernel of a pair is the product of one for each variable, so that it adds no dependence of its own; the package's
  is radial. The grid ends a kernel beyond the data, and all masses are brought to 1.
- The improved Sheather-Jones rule multiplies by the width of its own grid; the package behind fastHDMI multiplies by
  that of the data, which makes its bandwidths less than half of what the rule says.
- Columns and outcomes of few values are discrete whatever the values are, not only 0, 1 and 2.
- A permutation null gives p-values; rows in which a column is missing count for the other columns only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.kit.kde import BANDWIDTHS, Axis, histogram_codes, mi_of_axes, mi_of_classes, robust_scaled
from farout.kit.mi import mi

LINE, PLANE = 500, 300  # points of a grid under one variable, and a side of the grid under two
FEW = 10  # a variable with at most so many values is discrete
METHODS = ("kde", "histogram", "knn", "pearson")
Rule = Callable[[np.ndarray], float]


@paper(
    "MIScreening",
    kind="selector",
    title="Contributions to Robust and Efficient Methods for Analysis of High Dimensional Data (fastHDMI)",
    authors="Yang",
    arxiv="2410.10082",
    year=2025,
    claim="Mutual information by kernel densities chooses columns best for a continuous outcome, by histograms for a "
    "binary one, on brain images.",
    differs="Each variable's bandwidth is used (the package drops both for a pair and applies its multiplier twice). "
    "Product kernels instead of radial ones, masses brought to 1, a corrected Sheather-Jones bandwidth, any columns of "
    "few values as discrete ones, a permutation null, and missing values.",
    takes=("numeric", "missing"),
)
class MIScreening(SelectorMixin, BaseEstimator):
    """Keep the columns with the most mutual information with an outcome, each column looked at alone.

    A variable that is no number, or has at most 10 values, is discrete; so columns and outcomes may be either. Scores
    are in nats (``"pearson"``: the size of the correlation); :attr:`linfoot_` puts both on one scale from 0 to 1.

    Cost: with ``"kde"`` ``O(n)`` a column and two transforms of a grid of 300 x 300 points. Extreme values stretch the
    grid; where a few lie thousands of spreads out, transform to ranks first, which changes no mutual information.

    Parameters
    ----------
    k : int
        Columns that ``transform`` keeps.
    method : {"kde", "histogram", "knn", "pearson"}
        Kernel densities; histograms with the bins of Birge and Rozenholc; scikit-learn's nearest neighbours; or the
        absolute correlation, which needs an outcome that is numeric or has two classes.
    bandwidth : {"silverman", "scott", "isj"}
        Rule for ``"kde"``; ``"isj"``, the improved Sheather-Jones rule, keeps several modes apart.
    n_neighbors : int
        For ``"knn"``.
    n_permutations : int
        Orders of the outcome to draw for :attr:`p_values_`; each costs as much as the scores.
    n_jobs : int, optional
        Threads; scores do not depend on it.
    random_state : int, RandomState or None
        For permutations, and for the noise that ``"knn"`` breaks ties by.

    Attributes
    ----------
    scores_ : float64 array (d,)
        0 for a column without two rows to compare.
    ranking_ : int64 array (d,)
        Columns, the most telling first.
    null_ : float64 array (n_permutations, d)
        Scores with the outcome in drawn orders.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 20))
    >>> y = X[:, 3] ** 2 + 0.5 * rng.normal(size=500)
    >>> MIScreening(k=1).fit(X, y).get_support(indices=True)
    array([3])
    >>> MIScreening(k=1, method="pearson").fit(X, y).get_support(indices=True)
    array([6])
    >>> MIScreening(n_permutations=19, random_state=0).fit(X[:, 3:5], y).p_values_
    array([0.05, 0.9 ])
    """

    def __init__(
        self,
        k: int = 10,
        method: str = "kde",
        bandwidth: str = "silverman",
        n_neighbors: int = 3,
        n_permutations: int = 0,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.k = k
        self.method = method
        self.bandwidth = bandwidth
        self.n_neighbors = n_neighbors
        self.n_permutations = n_permutations
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Score the columns.

        Parameters
        ----------
        X : array or data frame (n, d)
            Numbers; missing ones are left out.
        y : array (n,)
            Numbers, or classes of any kind.

        Raises
        ------
        BadInput
            A parameter is out of range, or ``"pearson"`` was asked about classes without an order.
        UnknownName
            No method or bandwidth is called so.
        """
        from joblib import Parallel, delayed
        from sklearn.utils import check_random_state

        if self.method not in METHODS:
            raise UnknownName("method of screening", self.method, METHODS)
        if self.bandwidth not in BANDWIDTHS:
            raise UnknownName("bandwidth", self.bandwidth, BANDWIDTHS)
        if self.k < 1 or self.n_permutations < 0:
            seen = f"{self.k} and {self.n_permutations}"
            raise BadInput(f"k is at least 1 and n_permutations at least 0, not {seen}")
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2)
        rule = BANDWIDTHS[self.bandwidth]
        outcome = Variable(y, rule)
        if self.method == "pearson" and not outcome.numeric and outcome.codes.max() > 1:
            raise BadInput(
                f"'pearson' needs numbers or two classes, and the outcome has {outcome.codes.max() + 1} classes; "
                "use 'kde' or 'histogram'"
            )
        rng = check_random_state(self.random_state)
        seed = rng.randint(2**31 - 1)
        outcomes = [outcome, *(outcome.taken(rng.permutation(len(y))) for _ in range(self.n_permutations))]
        columns = Parallel(n_jobs=self.n_jobs, prefer="threads")(
            delayed(self._of_column)(column, outcomes, rule, seed) for column in X.T
        )
        found = np.array(columns).T
        self.scores_, self.null_ = found[0], found[1:]
        self.ranking_ = np.argsort(-self.scores_, kind="stable")
        self._method = self.method
        return self

    @property
    def linfoot_(self) -> np.ndarray:
        """Linfoot's ``sqrt(1 - exp(-2 I))`` (d,): the size of the correlation that Gaussian variables would have."""
        check_is_fitted(self)
        return self.scores_ if self._method == "pearson" else np.sqrt(-np.expm1(-2 * self.scores_))

    @property
    def p_values_(self) -> np.ndarray:
        """Return ``(1 + #{null >= score}) / (1 + n_permutations)`` (d,): small where the outcome's order matters."""
        check_is_fitted(self)
        if not len(self.null_):
            raise BadInput("no permutation was drawn: fit with n_permutations=99 or more")
        return (1 + (self.null_ >= self.scores_).sum(axis=0)) / (1 + len(self.null_))

    def _of_column(self, column: np.ndarray, outcomes: list[Variable], rule: Rule, seed: int) -> list[float]:
        """Score one column against the outcome and its permutations, in the rows where the column is there."""
        there = np.flatnonzero(~np.isnan(column))
        if len(there) < 2:
            return [0.0] * len(outcomes)
        x = Variable(column[there], rule)
        whole = len(there) == len(column)
        return [self._score(x, y if whole else y.taken(there), seed) for y in outcomes]

    def _score(self, x: Variable, y: Variable, seed: int) -> float:
        if self.method == "pearson":
            return _correlation(x.values, y.values if y.numeric else y.codes)
        if x.discrete and y.discrete:
            return mi(x.codes, y.codes)
        if self.method == "knn":
            return _by_neighbours(x, y, self.n_neighbors, seed)
        if self.method == "histogram":
            return mi(x.codes if x.discrete else x.bins, y.codes if y.discrete else y.bins)
        if x.discrete or y.discrete:
            number, classes = (y, x) if x.discrete else (x, y)
            return mi_of_classes(number.scaled, classes.codes, x.rule, LINE)
        return mi_of_axes(x.axis, y.axis)

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return np.isin(np.arange(len(self.scores_)), self.ranking_[: self.k])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags


@dataclass
class Variable:
    """A column or outcome, and what the methods make of it, each made once.

    Attributes
    ----------
    values : array (n,)
    rule : callable
        From scaled values to a bandwidth.
    """

    values: np.ndarray
    rule: Rule

    @cached_property
    def codes(self) -> np.ndarray:
        """Code of each row's value: equal where the values are."""
        return np.unique(self.values, return_inverse=True)[1]

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers, booleans counting as such."""
        return self.values.dtype.kind in "biuf"

    @cached_property
    def discrete(self) -> bool:
        """Whether the values are classes: no numbers, or few of them."""
        return not self.numeric or int(self.codes.max()) < FEW

    @cached_property
    def scaled(self) -> np.ndarray:
        """Values with median 0 and interquartile range 1."""
        return robust_scaled(self.values.astype(np.float64))

    @cached_property
    def bins(self) -> np.ndarray:
        """Each row's bin."""
        return histogram_codes(self.scaled)

    @cached_property
    def axis(self) -> Axis:
        """Place of each row on a side of the grid under two variables."""
        return Axis.of(self.scaled, self.rule(self.scaled), PLANE)

    def taken(self, rows: np.ndarray) -> Variable:
        """Return some of the rows, or all of them in another order."""
        return Variable(self.values[rows], self.rule)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return the absolute correlation, 0 for a constant."""
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt(np.vdot(x, x) * np.vdot(y, y))
    return min(1.0, abs(float(np.vdot(x, y))) / size) if size > 0 else 0.0


def _by_neighbours(x: Variable, y: Variable, n_neighbors: int, seed: int) -> float:
    """Return scikit-learn's estimate."""
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    settings = {"discrete_features": x.discrete, "n_neighbors": n_neighbors, "random_state": seed}
    matrix = (x.codes if x.discrete else x.scaled)[:, None]
    if y.discrete:
        return float(mutual_info_classif(matrix, y.codes, **settings)[0])
    return float(mutual_info_regression(matrix, y.scaled, **settings)[0])
