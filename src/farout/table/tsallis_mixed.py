"""TsallisMixed: Contributions to Robust and Efficient Methods for Analysis of High Dimensional Data.

Kai Yang, doctoral thesis, McGill University, 2025; this part is in the thesis only.

Groups of rows, such as the visits of a patient, share random effects. Maximising Tsallis' entropy instead of Shannon's
gives the errors power-law tails: the q-Gaussian, a multivariate t. Groups far out then get little weight in the fit.

The paper claims mixed models that outlying groups do not lead astray, fitted with penalties by a proximal nonlinear
conjugate gradient.

Differences from the paper: neither its text nor its code was at hand. The model follows from the maximum-entropy
argument, and the fit is the EM algorithm of the multivariate t. The penalised fit alternates that algorithm's variances
with proximal conjugate gradients (Polak and Ribiere) of this library's own design, which fall back on proximal
gradients. Each group's squared distance, with its F tail probability, is given as the group's outlier score.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from farout.cards import paper
from farout.errors import BadInput
from farout.table import _tsallis_groups as tsallis
from farout.table._penalties import Penalty, location

GRID = (2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)  # degrees of freedom that are tried


@paper(
    "TsallisMixed",
    kind="regressor",
    title="Contributions to Robust and Efficient Methods for Analysis of High Dimensional Data (Tsallis mixed effects)",
    authors="Yang",
    url="https://escholarship.mcgill.ca",
    year=2025,
    claim="Mixed-effects models with power-law tails, from Tsallis' entropy, are not led astray by outlying groups; "
    "penalised fits by a proximal nonlinear conjugate gradient.",
    differs="Derived anew, since neither text nor code was at hand: q-Gaussian groups as multivariate t, an EM "
    "algorithm, proximal conjugate gradients of our own design, and outlier scores of groups.",
)
class TsallisMixed(RegressorMixin, BaseEstimator):
    """Regression with random effects of groups and power-law tails: ``y_i ~ t_nu(X_i b, Z_i D Z_i^T + s^2 I)``.

    A group at squared distance ``d_i^2`` has the weight ``(nu + n_i) / (nu + d_i^2)``, at most ``1 + n_i / nu``. A
    q-Gaussian with index ``q = (nu + n_i + 2) / (nu + n_i)`` is the same distribution. Without groups each row is one
    of its own, and there are no random effects: robust regression with t errors.

    What it withstands: as for any multivariate t, a share of at most about ``1 / (nu + n_i)`` of groups that are
    shifted together. Beyond it, so with many rows a group, D grows until the shift is usual, as in the Gaussian model.

    Cost: an iteration is a pass over the rows, and a matrix of random effects' size to invert for each group.

    Parameters
    ----------
    nu : float, optional
        Degrees of freedom; infinite for the Gaussian model. Where it is None, that of 2.5 to 50 with the largest
        likelihood. There is no covariance at 2 and below.
    slopes : sequence of int
        Columns whose slope each group has for itself, beside the intercept.
    lam : float
        Level of a penalty on the fixed effects of standardised columns, on the scale of the log likelihood a row; 0 for
        none.
    penalty : {"scad", "mcp"}
    shape : float, optional
        See :class:`farout.table.nonconvex.NonconvexRegressor`.
    tol : float
        Rise of the log likelihood at which to stop.
    max_iter : int
        For one value of ``nu``.

    Attributes
    ----------
    coef_ : float64 array (d,)
        Fixed effects.
    intercept_ : float
    random_covariance_ : float64 array (q, q)
        D, of intercept and slopes; the covariance of the effects is ``nu / (nu - 2)`` times it.
    noise_ : float
        s^2; the variance of the noise is ``nu / (nu - 2)`` times it.
    nu_ : float
    log_likelihood_ : float
    log_likelihoods_ : dict of float to float
        For each value of ``nu`` that was tried.
    groups_ : array (m,)
        Names of the training groups; ``effects_`` (m, q) are their random effects.
    training_ : GroupScores
        Outlier scores of the training groups.
    n_iter_ : int
        Of the chosen fit.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> groups = np.repeat(np.arange(100), 3)
    >>> X = rng.normal(size=(300, 2))
    >>> y = 3 * X[:, 0] + rng.normal(size=100)[groups] + rng.normal(size=300)
    >>> y[groups < 4] += 50  # four groups are far out
    >>> model = TsallisMixed().fit(X, y, groups)
    >>> round(model.intercept_, 1), round(TsallisMixed(nu=np.inf).fit(X, y, groups).intercept_, 1)
    (-0.1, 1.9)
    >>> model.training_.groups[model.training_.p_values < 0.01]
    array([0, 1, 2, 3])
    """

    def __init__(
        self,
        nu: float | None = None,
        slopes: Sequence[int] = (),
        lam: float = 0.0,
        penalty: str = "scad",
        shape: float | None = None,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        self.nu = nu
        self.slopes = slopes
        self.lam = lam
        self.penalty = penalty
        self.shape = shape
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit fixed effects, variances and degrees of freedom.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : float array (n,)
        groups : array (n,), optional
            The group of each row: names or numbers of any kind.

        Raises
        ------
        BadInput
            A parameter is out of range, or ``groups`` has another length.
        UnknownName
            No penalty is called so.
        """
        from sklearn.exceptions import ConvergenceWarning

        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        penalty = Penalty.of(self.penalty, self.shape)
        if (self.nu is not None and not self.nu > 2) or not self.lam >= 0:
            raise BadInput(f"nu is above 2 and lam at least 0, not {self.nu} and {self.lam}")
        if any(not 0 <= j < X.shape[1] for j in self.slopes):
            raise BadInput(f"slopes are columns 0 to {X.shape[1] - 1}, not {list(self.slopes)}")
        self._grouped = groups is not None
        self._middle, self._scale = location(X)
        self.groups_, owner = np.unique(self._names(groups, len(y)), return_inverse=True)
        data = self._groups(X, y.astype(np.float64), owner)
        lam = np.append(0.0, np.full(X.shape[1], float(self.lam)))
        fits = {}
        model = tsallis.start(data)
        for nu in GRID if self.nu is None else (float(self.nu),):
            model = replace(model, nu=nu)  # from where the last one ended
            model, iterations = tsallis.fit(data, model, lam, penalty, self.tol, self.max_iter)
            found = tsallis.read(data, model)
            worth = found.log_likelihood - len(y) * penalty.value(model.coef, lam)
            fits[nu] = worth, iterations, model, found
        self.nu_ = max(fits, key=lambda nu: fits[nu][0])
        _, self.n_iter_, self._model, found = fits[self.nu_]
        if self.n_iter_ == self.max_iter:
            warnings.warn(
                f"no rest after {self.max_iter:,} iterations: raise max_iter", ConvergenceWarning, stacklevel=2
            )
        self.log_likelihoods_ = {nu: one[3].log_likelihood for nu, one in fits.items()}
        self.log_likelihood_ = found.log_likelihood
        self.coef_ = self._model.coef[1:] / self._scale
        self.intercept_ = float(self._model.coef[0] - self.coef_ @ self._middle)
        self.random_covariance_, self.noise_ = self._model.D, self._model.noise
        self.effects_ = found.effects
        self.training_ = self._scores(self.groups_, data, found)
        return self

    def predict(self, X: Any, groups: Any = None) -> np.ndarray:
        """Predict rows by the fixed effects, and by the random effects of the groups that are named and known.

        Parameters
        ----------
        X : array or data frame (n, d)
        groups : array (n,), optional

        Returns
        -------
        float64 array (n,)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        fixed = X @ self.coef_ + self.intercept_
        if groups is None or not self._grouped:
            return fixed
        names = self._names(groups, len(X))
        place = np.minimum(np.searchsorted(self.groups_, names), len(self.groups_) - 1)
        effects = np.where((self.groups_[place] == names)[:, None], self.effects_[place], 0)
        return fixed + (self._random(X) * effects).sum(axis=1)

    def score_groups(self, X: Any, y: Any, groups: Any = None) -> GroupScores:
        """Score groups, known or new, by how far out they are as a whole.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : float array (n,)
        groups : array (n,), optional
            Without them each row is a group.

        Returns
        -------
        GroupScores
        """
        check_is_fitted(self)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=False)
        names, owner = np.unique(self._names(groups, len(y)), return_inverse=True)
        data = self._groups(X, y.astype(np.float64), owner)
        return self._scores(names, data, tsallis.read(data, self._model))

    def _names(self, groups: Any, n: int) -> np.ndarray:
        """Return the group (n,) of each row."""
        if groups is None:
            return np.arange(n)
        names = column_or_1d(np.asarray(groups))
        if len(names) != n:
            raise BadInput(f"groups names the group of each of the {n:,} rows, not of {len(names):,}")
        return names

    def _random(self, X: np.ndarray) -> np.ndarray:
        """Return the columns (n, q) of random effects: intercept and slopes, or none where there are no groups."""
        if not self._grouped:
            return np.empty((len(X), 0))
        return np.column_stack((np.ones(len(X)), X[:, list(self.slopes)]))

    def _groups(self, X: np.ndarray, y: np.ndarray, owner: np.ndarray) -> tsallis.Groups:
        fixed = np.column_stack((np.ones(len(X)), (X - self._middle) / self._scale))
        return tsallis.Groups.of(fixed, self._random(X), y, owner)

    def _scores(self, names: np.ndarray, data: tsallis.Groups, found: tsallis.Fitted) -> GroupScores:
        from scipy.stats import chi2, f

        n, distances = data.sizes, found.distances
        tails = chi2.sf(distances, n) if np.isinf(self.nu_) else f.sf(distances / n, n, self.nu_)
        return GroupScores(names, n, distances, tails, found.weights)


@dataclass(frozen=True)
class GroupScores:
    """How far out groups are.

    Attributes
    ----------
    groups : array (m,)
        Their names.
    sizes : int64 array (m,)
    distances : float64 array (m,)
        ``d_i^2``; larger is farther out among groups of a size.
    p_values : float64 array (m,)
        Share of groups of the size that the model expects at least as far out: ``d_i^2 / n_i ~ F(n_i, nu)``.
    weights : float64 array (m,)
        ``(nu + n_i) / (nu + d_i^2)``: the say that the group has in the fit.
    """

    groups: np.ndarray
    sizes: np.ndarray
    distances: np.ndarray
    p_values: np.ndarray
    weights: np.ndarray
