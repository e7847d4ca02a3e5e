"""Likelihood and fit of a mixed model whose groups have a q-Gaussian, that is multivariate t, distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from farout.table._penalties import Penalty, soft

LEAST = 1e-10  # least variance of the noise, in variances of the outcome
HALVINGS = 40  # of a step before it is given up
ENOUGH = 1e-4  # share of the decrease that the slope promises at which a step is taken
INNER = 50  # steps in the coefficients between two updates of the variances


@dataclass(frozen=True)
class Groups:
    """Rows in the order of their groups, and the sums over groups that do not change.

    Attributes
    ----------
    order : int64 array (n,)
        Where each row came from.
    starts, sizes : int64 array (m,)
        First row and number of rows of each group.
    X : float64 array (n, p)
        Fixed effects, the intercept among them.
    Z : float64 array (n, q)
        Random effects; q may be 0.
    y : float64 array (n,)
    gram : float64 array (m, q, q)
        ``Z_i^T Z_i``.
    """

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    y: np.ndarray
    gram: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, Z: np.ndarray, y: np.ndarray, owner: np.ndarray) -> Groups:
        """Sort rows by their groups, coded 0 to m - 1 in ``owner`` (n,)."""
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner)
        starts = np.cumsum(sizes) - sizes
        Z = Z[order]
        gram = np.add.reduceat(Z[:, :, None] * Z[:, None, :], starts, axis=0)
        return cls(order, starts, sizes, X[order], Z, y[order], gram)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Add up rows (n, ...) within each group: (m, ...)."""
        return np.add.reduceat(values, self.starts, axis=0)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Give each row the value (m, ...) of its group: (n, ...)."""
        return np.repeat(values, self.sizes, axis=0)


@dataclass(frozen=True)
class Model:
    """Parameters of ``y_i ~ t_nu(X_i b, V_i)``, ``V_i = Z_i D Z_i^T + noise I``.

    Attributes
    ----------
    coef : float64 array (p,)
    D : float64 array (q, q)
    noise : float
        s^2, a variance where ``nu`` is infinite, and in proportion to one else.
    nu : float
        Degrees of freedom; infinite for Gaussian groups.
    """

    coef: np.ndarray
    D: np.ndarray
    noise: float
    nu: float


@dataclass(frozen=True)
class Fitted:
    """What a model says of groups.

    Attributes
    ----------
    rest : float64 array (n,)
        ``y - X b``.
    effects : float64 array (m, q)
        Random effects ``D Z_i^T V_i^-1 (y_i - X_i b)``.
    spread : float64 array (m, q, q)
        ``M_i = (noise D^-1 + Z_i^T Z_i)^-1``; noise times it is the effects' covariance given y_i and weight 1.
    distances : float64 array (m,)
        ``d_i^2 = (y_i - X_i b)^T V_i^-1 (y_i - X_i b)``.
    weights : float64 array (m,)
        ``w_i = (nu + n_i) / (nu + d_i^2)``.
    log_likelihood : float
    """

    rest: np.ndarray
    effects: np.ndarray
    spread: np.ndarray
    distances: np.ndarray
    weights: np.ndarray
    log_likelihood: float


def read(groups: Groups, model: Model) -> Fitted:
    """Measure groups by a model, by q x q matrices only (Woodbury): ``V^-1 r = (r - Z M Z^T r) / noise``."""
    q = len(model.D)
    rest = groups.y - groups.X @ model.coef
    inner = model.noise * np.eye(q) + groups.gram @ model.D
    spread = model.D @ np.linalg.inv(inner)
    pull = groups.sums(groups.Z * rest[:, None])
    effects = np.einsum("mqr,mr->mq", spread, pull)
    distances = np.maximum(groups.sums(rest**2) - (pull * effects).sum(axis=1), 0) / model.noise
    log_det = (groups.sizes - q) * np.log(model.noise) + np.linalg.slogdet(inner)[1]
    n, nu = groups.sizes, model.nu
    weights = np.ones(len(n)) if np.isinf(nu) else (nu + n) / (nu + distances)
    log_density = q_gaussian_log_density(distances, log_det, n, tsallis_q(nu, n))
    return Fitted(rest, effects, spread, distances, weights, float(log_density.sum()))


def tsallis_q(nu: float, d: np.ndarray | int) -> np.ndarray:
    """Return the entropic index ``q = (nu + d + 2) / (nu + d)`` of a t with nu degrees of freedom in d dimensions.

    Examples
    --------
    >>> float(tsallis_q(3.0, 1)), float(tsallis_q(np.inf, 1))
    (1.5, 1.0)
    """
    return 1 + 2 / (nu + np.asarray(d))


def q_gaussian_log_density(distance: np.ndarray, log_det: np.ndarray, d: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the logarithm of the q-Gaussian density in d dimensions.

    ``f = C [1 + (q - 1) beta d^2]^(-1 / (q - 1))``, with ``beta = 1 / ((q - 1) nu)`` and ``nu = 2 / (q - 1) - d``, is
    the largest of Tsallis' entropies ``(1 - int f^q) / (q - 1)`` for its second moments, where 1 < q < 1 + 2 / d; for
    q = 1 it is the Gaussian.

    Parameters
    ----------
    distance : float64 array (m,)
        ``(y - mu)^T S^-1 (y - mu)``.
    log_det : float64 array (m,)
        ``log |S|``.
    d, q : array (m,)

    Examples
    --------
    >>> q_gaussian_log_density(*(np.array([v]) for v in (0.0, 0.0, 1, 2.0)))  # Cauchy: -log pi
    array([-1.14472989])
    """
    from scipy.special import gammaln

    if np.all(q == 1):
        return -(d * np.log(2 * np.pi) + log_det + distance) / 2
    power = 1 / (q - 1)
    slope = 1 / (2 * power - d)  # (q - 1) beta
    constant = gammaln(power) - gammaln(power - d / 2) + d / 2 * np.log(slope / np.pi)
    return constant - log_det / 2 - power * np.log1p(slope * distance)


def start(groups: Groups) -> Model:
    """Begin with least squares, and half of what it leaves as noise; Gaussian."""
    coef = np.linalg.lstsq(groups.X, groups.y, rcond=None)[0]
    rest = groups.y - groups.X @ coef
    half = max(float(rest.var()) / 2, floor(groups))
    return Model(coef, np.diag(half / np.maximum((groups.Z**2).mean(axis=0), 1e-300)), half, np.inf)


def floor(groups: Groups) -> float:
    """Return the least variance of the noise."""
    return LEAST * (float(groups.y.var()) or 1.0)


def fit(groups: Groups, model: Model, lam: np.ndarray, penalty: Penalty, tol: float, most: int) -> tuple[Model, int]:
    """Maximise ``log likelihood / n - sum_j p(b_j; lam_j)`` for a given ``nu``, by an EM algorithm that always climbs.

    Given the weights, coefficients are weighted generalised least squares, or with a penalty the minimiser that
    :func:`conjugate_steps` finds; then ``D = A mean_i (w_i u_i u_i^T + noise M_i) A^T`` with the effects u_i, and the
    noise is what is left (Liu, Rubin and Wu 1998).

    Parameters
    ----------
    groups : Groups
    model : Model
        Where to begin.
    lam : float64 array (p,)
        Level for each coefficient; all 0 for none.
    penalty : Penalty
    tol : float
        Rise of the log likelihood, or of the objective times n, at which to stop.
    most : int
        Iterations.

    Returns
    -------
    Model
    int
        Iterations; ``most`` where it did not come to rest.
    """
    n, penalised = len(groups.y), bool(np.any(lam))
    cross = None if penalised else groups.sums(groups.Z[:, :, None] * groups.X[:, None, :])
    found = read(groups, model)
    value = found.log_likelihood - n * penalty.value(model.coef, lam)
    for iteration in range(1, most + 1):
        if cross is None:
            model = replace(model, coef=conjugate_steps(groups, model, lam, penalty, tol))
        else:
            model = replace(model, coef=_least_squares(groups, cross, found))
        found = read(groups, model)
        model = _variances(groups, model, found)
        found = read(groups, model)
        before, value = value, found.log_likelihood - n * penalty.value(model.coef, lam)
        if value - before < tol:
            return model, iteration
    return model, most


def _least_squares(groups: Groups, cross: np.ndarray, found: Fitted) -> np.ndarray:
    """Solve ``sum_i w_i X_i^T V_i^-1 (y_i - X_i b) = 0``; of many solutions the shortest."""
    X, w = groups.X, found.weights
    weighted = X * groups.rows(w)[:, None]
    pull = groups.sums(groups.Z * groups.y[:, None])
    shrunk = np.einsum("m,mqp,mqr->mrp", w, cross, found.spread)
    A = weighted.T @ X - np.einsum("mrp,mrs->ps", shrunk, cross)
    c = weighted.T @ groups.y - np.einsum("mrp,mr->p", shrunk, pull)
    return np.linalg.lstsq(A, c, rcond=None)[0]


def _variances(groups: Groups, model: Model, found: Fitted) -> Model:
    """Update D and the noise, the parameters expanded: the effects may be stretched by a matrix A that fits best.

    With ``W_i = w_i u_i u_i^T + noise M_i`` and ``R = sum_i w_i Z_i^T r_i u_i^T``, A solves ``sum_i Z_i^T Z_i A W_i =
    R``. Without A (that is, A = 1) steps become ever shorter where D tends to 0.
    """
    w, u, q = found.weights, found.effects, len(model.D)
    W = w[:, None, None] * u[:, :, None] * u[:, None, :] + model.noise * found.spread
    R = (groups.Z * (groups.rows(w) * found.rest)[:, None]).T @ groups.rows(u)
    normal = np.einsum("mac,mdb->abcd", groups.gram, W).reshape(q * q, q * q)
    A = np.linalg.lstsq(normal, R.ravel(), rcond=None)[0].reshape(q, q)
    D = A @ W.mean(axis=0) @ A.T
    noise = (float(groups.rows(w) @ found.rest**2) - float((A * R).sum())) / len(groups.y)
    return replace(model, D=(D + D.T) / 2, noise=max(noise, floor(groups)))


def conjugate_steps(groups: Groups, model: Model, lam: np.ndarray, penalty: Penalty, tol: float) -> np.ndarray:
    """Minimise ``-log likelihood / n + sum_j p(b_j; lam_j)`` in the coefficients, the variances given."""
    n = len(groups.y)

    def smooth(b: np.ndarray) -> float:
        whole = penalty.value(b, lam) - float((lam * np.abs(b)).sum())
        return whole - read(groups, replace(model, coef=b)).log_likelihood / n

    def gradient(b: np.ndarray) -> np.ndarray:
        found = read(groups, replace(model, coef=b))
        white = (found.rest - (groups.Z * groups.rows(found.effects)).sum(axis=1)) / model.noise
        return penalty.slope(b, lam) - (groups.rows(found.weights) * white) @ groups.X / n

    return conjugate_gradients(smooth, gradient, lam, model.coef, tol / n, INNER)


def conjugate_gradients(
    smooth: Callable[[np.ndarray], float],
    gradient: Callable[[np.ndarray], np.ndarray],
    lam: np.ndarray,
    b: np.ndarray,
    tol: float,
    most: int,
) -> np.ndarray:
    """Minimise ``smooth(b) + sum_j lam_j |b_j|`` by proximal nonlinear conjugate gradients; no step goes up.

    The proximal step of length t from b gives the generalised gradient ``G = (b - soft(b - t grad, t lam)) / t``. The
    direction is ``-G + max(0, G^T (G - G') / |G'|^2) direction'`` (Polak and Ribiere), or -G where that leads up. A
    line search along it, halving from twice the last length, is followed by one proximal step; where no length along
    the direction leads down, the proximal step is all there is.

    Parameters
    ----------
    smooth, gradient : callable
    lam : float64 array (p,)
    b : float64 array (p,)
        Where to begin.
    tol : float
        Decrease at which to stop.
    most : int
        Iterations.

    Returns
    -------
    float64 array (p,)
    """

    def whole(b: np.ndarray) -> float:
        return smooth(b) + float((lam * np.abs(b)).sum())

    def proximal(b: np.ndarray, t: float) -> tuple[np.ndarray, float]:
        """Step by the longest of t, t / 2, ... whose parabola lies above the function."""
        slope, height = gradient(b), smooth(b)
        for _ in range(HALVINGS):
            new = soft(b - t * slope, t * lam)
            move = new - b
            if smooth(new) <= height + slope @ move + move @ move / (2 * t):
                return new, t
            t /= 2
        return b, t

    value, length = whole(b), 1.0
    direction = old = np.zeros_like(b)
    t = 1.0
    for _ in range(most):
        new, t = proximal(b, 2 * t)
        G = (b - new) / t
        turned = max(0.0, float(G @ (G - old)) / float(old @ old)) if old.any() else 0.0
        direction = turned * direction - G
        if direction @ G >= 0:
            direction = -G
        length, old = 2 * length, G
        for _ in range(HALVINGS):
            if whole(b + length * direction) <= value + ENOUGH * length * float(direction @ G):
                new, t = proximal(b + length * direction, t)
                break
            length /= 2
        before, b, value = value, new, whole(new)
        if before - value < tol:
            break
    return b
