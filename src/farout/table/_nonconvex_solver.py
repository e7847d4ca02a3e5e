"""First-order solvers for a loss plus a nonconvex penalty, and the path of solutions over penalty levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from farout.errors import UnknownName
from farout.table._penalties import Penalty, soft

SOLVERS = ("accelerated", "original", "proximal")
RESTARTS = ("objective", "speed")
CAUTION = 0.99  # step length, in units of 1 / L
APART = 3  # iterations between two restarts by speed, and the least number of iterations
SURE = 0.01  # mean logistic loss below which classes count as apart


class Squares:
    """Least squares, ``sum (y - z)^2 / 2n`` of fitted values z (n,)."""

    curvature = 1.0
    least = 0.0

    def __init__(self, y: np.ndarray) -> None:
        self.y = y

    def value(self, z: np.ndarray) -> float:
        """Return the loss."""
        return float(np.vdot(z - self.y, z - self.y)) / (2 * len(z))

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return the gradient (n,) of the loss in z."""
        return (z - self.y) / len(z)


class Logistic:
    """Logistic loss, ``sum (log(1 + e^z) - y z) / n`` of logits z (n,) for y in {0, 1}.

    Where a plane parts the classes, it has no minimum, and a penalty that is constant far out adds none: solvers stop
    at ``least``.
    """

    curvature = 0.25
    least = SURE

    def __init__(self, y: np.ndarray) -> None:
        self.y = y

    def value(self, z: np.ndarray) -> float:
        """Return the loss."""
        return float((np.logaddexp(0, z) - self.y * z).mean())

    def slope(self, z: np.ndarray) -> np.ndarray:
        """Return the gradient (n,) of the loss in z."""
        from scipy.special import expit

        return (expit(z) - self.y) / len(z)


@dataclass(frozen=True)
class Problem:
    """Minimise ``loss(X b) + sum_j p(b_j; lam_j)``.

    Attributes
    ----------
    X : float64 array (n, p)
    loss : Squares or Logistic
    penalty : Penalty
    bound : float
        L, a Lipschitz constant of the gradient of the smooth part ``loss + sum q``.
    """

    X: np.ndarray
    loss: Squares | Logistic
    penalty: Penalty
    bound: float

    @classmethod
    def of(cls, X: np.ndarray, loss: Squares | Logistic, penalty: Penalty) -> Problem:
        """Make a problem, ``L = max(eigmax(X^T X) curvature / n, curvature of q)``."""
        return cls(X, loss, penalty, max(top_eigenvalue(X) * loss.curvature, penalty.curvature))

    def columns(self, kept: np.ndarray) -> Problem:
        """Return the problem of some of the columns."""
        return replace(self, X=np.asfortranarray(self.X[:, kept]))

    def gradient(self, z: np.ndarray) -> np.ndarray:
        """Return the gradient (p,) of the loss at fitted values z (n,)."""
        return self.loss.slope(z) @ self.X


@dataclass(frozen=True)
class Settings:
    """How to solve.

    Attributes
    ----------
    solver : {"accelerated", "original", "proximal"}
    restart : {"objective", "speed"}
        For the accelerated solver.
    tol : float
        Largest change of a coefficient of the extrapolated point at which to stop; also where a loss is so small that
        its classes are apart.
    max_iter : int
    """

    solver: str = "accelerated"
    restart: str = "objective"
    tol: float = 1e-5
    max_iter: int = 10_000

    def check(self) -> None:
        """Refuse unknown words."""
        for kind, name, known in (("solver", self.solver, SOLVERS), ("restart", self.restart, RESTARTS)):
            if name not in known:
                raise UnknownName(kind, name, known)


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes
    ----------
    coef : float64 array (p,)
    objectives : list of float
        Of the start, and of the answer after each iteration that changed it.
    n_iter : int
        Gradients, those of dropped iterates included.
    converged : bool
    """

    coef: np.ndarray
    objectives: list[float]
    n_iter: int
    converged: bool


def minimise(problem: Problem, lam: Any, start: np.ndarray, settings: Settings) -> Solution:
    """Solve for one penalty level by (accelerated) proximal gradients.

    With ``ag`` the answer, ``x`` the sequence of long steps and ``md = (1 - alpha) ag + alpha x``, ``g`` the gradient
    of the smooth part at md and ``beta = 0.99 / L``, an iteration is ``x = soft(x - step g, step lam)`` and ``ag =
    soft(md - beta g, beta lam)``.

    - accelerated: ``alpha = 2 / (1 + sqrt(1 + 4 / alpha'^2))`` after alpha', beginning with 1, and ``step = beta /
      alpha``. A restart sets alpha to 1 and x to ag: where the objective would rise, which drops the iterate, or where
      md moves less than before, at most every third iteration.
    - original (Ghadimi and Lan): ``alpha = 2 / (k + 1)`` and ``step = k beta / 2``.
    - proximal: ``alpha = 1`` and ``step = beta``, which makes x, ag and md the same.

    Parameters
    ----------
    problem : Problem
    lam : float or float array (p,)
        Penalty levels; 0 for a coefficient that is not penalised.
    start : float64 array (p,)
    settings : Settings

    Returns
    -------
    Solution

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 50))
    >>> y = X[:, 3] * 4 - X[:, 7] * 2 + rng.normal(size=200)
    >>> found = minimise(Problem.of(X, Squares(y), Penalty.of("mcp", None)), 0.4, np.zeros(50), Settings())
    >>> np.flatnonzero(found.coef), found.coef[[3, 7]].round(1)
    (array([3, 7]), array([ 4. , -1.9]))
    """
    beta = CAUTION / problem.bound
    ag = x = md = start
    z_ag = z_x = times(problem.X, start)
    objectives = [problem.loss.value(z_ag) + problem.penalty.value(ag, lam)]
    alpha, moved, restarted = 1.0, 0.0, 0
    fresh = True  # the next step begins a sequence
    for k in range(1, settings.max_iter + 1):
        if settings.solver == "original":
            alpha, step = 2 / (k + 1), k * beta / 2
        else:
            plain = fresh or settings.solver == "proximal"
            alpha = 1.0 if plain else 2 / (1 + np.sqrt(1 + 4 / alpha**2))
            step = beta / alpha
        fresh = False
        before, md = md, (1 - alpha) * ag + alpha * x
        gradient = problem.gradient((1 - alpha) * z_ag + alpha * z_x) + problem.penalty.slope(md, lam)
        x, new = soft(x - step * gradient, step * lam), soft(md - beta * gradient, beta * lam)
        z_x, z_new = times(problem.X, x), times(problem.X, new)
        loss = problem.loss.value(z_new)
        value = loss + problem.penalty.value(new, lam)
        if settings.solver == "accelerated" and settings.restart == "objective" and value > objectives[-1]:
            x, z_x, fresh = ag, z_ag, True
        else:
            ag, z_ag = new, z_new
            objectives.append(value)
        if loss < problem.loss.least or (k >= APART and np.abs(md - before).max(initial=0) < settings.tol):
            return Solution(ag, objectives, k, True)
        if settings.solver == "accelerated" and settings.restart == "speed":
            slower, moved = float(np.linalg.norm(md - before)) < moved, float(np.linalg.norm(md - before))
            if slower and k - restarted >= APART:
                x, z_x, fresh, restarted = ag, z_ag, True, k
    return Solution(ag, objectives, settings.max_iter, False)


def path(
    problem: Problem, lams: np.ndarray, free: np.ndarray, start: np.ndarray, settings: Settings
) -> tuple[np.ndarray, int, bool]:
    """Solve for falling penalty levels, each from the solution before, on the columns that the strong rule keeps.

    A column is left out where its gradient is below ``2 lam - lam'`` at the solution for the level lam' before. What is
    left out is checked afterwards, and taken back in where its gradient exceeds lam.

    Parameters
    ----------
    problem : Problem
    lams : float64 array (m,)
        Falling levels; the first one is at least that at which all coefficients are 0.
    free : bool array (p,)
        Coefficients that are not penalised.
    start : float64 array (p,)
        The solution for the level before the first: 0 except for ``free``.
    settings : Settings

    Returns
    -------
    coefs : float64 array (m, p)
    iterations : int
        Of all levels together.
    converged : bool
        Whether all of them did.
    """
    coefs = np.zeros((len(lams), len(start)))
    coef, before, iterations, converged = start, lams[0], 0, True
    gradient = problem.gradient(times(problem.X, coef))
    for i, lam in enumerate(lams):
        kept = free | (coef != 0) | (np.abs(gradient) >= 2 * lam - before)
        while True:
            levels = np.where(free[kept], 0.0, lam)
            found = minimise(problem.columns(kept), levels, coef[kept], settings)
            coef = np.zeros_like(coef)
            coef[kept] = found.coef
            iterations += found.n_iter
            gradient = problem.gradient(times(problem.X, coef))
            missed = ~kept & (np.abs(gradient) > lam)
            if not missed.any():
                break
            kept |= missed
        converged &= found.converged
        coefs[i], before = coef, lam
    return coefs, iterations, converged


def times(X: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``X b`` (n,), by the columns with coefficients where those are few."""
    some = np.flatnonzero(b)
    return X[:, some] @ b[some] if 4 * len(some) < len(b) else X @ b


def top_eigenvalue(X: np.ndarray) -> float:
    """Return the largest eigenvalue of ``X^T X / n``."""
    n = len(X)
    if min(X.shape) < 500:
        return float(np.linalg.norm(X, 2)) ** 2 / n
    from scipy.sparse.linalg import svds

    return float(svds(X, k=1, return_singular_vectors=False, v0=np.ones(min(X.shape)), tol=1e-4)[0]) ** 2 / n
