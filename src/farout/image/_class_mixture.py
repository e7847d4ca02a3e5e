"""A Gaussian for each class in the principal space of all rows: how likely a row is under any known class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from farout.errors import BadInput
from farout.io.state import saved


@saved("class-mixture")
@dataclass(frozen=True)
class ClassMixture:
    """``p(h) = sum_k pi_k N(z; mu_k, S_k)`` where z are the principal components of the standardised h.

    Attributes
    ----------
    origin : float64 array (d,)
    axes : float64 array (d, r)
        ``z = (h - origin) @ axes``; what does not vary counts for nothing.
    back : float64 array (r, d)
        ``h = origin + z @ back``.
    shares : float64 array (K,)
    means : float64 array (K, r)
    covariances : float64 array (K, r, r)
    """

    origin: np.ndarray
    axes: np.ndarray
    back: np.ndarray
    shares: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @classmethod
    def fit(
        cls, rows: np.ndarray, codes: np.ndarray, variance: float = 0.95, shrinkage: float = 0.1, ridge: float = 1e-3
    ) -> ClassMixture:
        """Estimate it; labels say which rows belong to which component.

        Parameters
        ----------
        rows : float array (n, d)
        codes : int array (n,)
            From 0 to K - 1, each at least once.
        variance : float
            Share of the variance that the principal space keeps.
        shrinkage : float
            Share of each covariance that is replaced by the mean one of all classes.
        ridge : float
            Added to the diagonals, times the mean variance within classes.

        Examples
        --------
        >>> rows = np.array([[0.0, 0], [0, 2], [2, 0], [2, 2]])
        >>> mixture = ClassMixture.fit(rows, np.zeros(4, int), variance=1, shrinkage=0, ridge=0)
        >>> mixture.covariances[0].round(6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        rows = np.asarray(rows, float)
        origin, scale = rows.mean(axis=0), rows.std(axis=0)
        varying = scale > np.finfo(np.float32).eps * np.abs(rows).max(axis=0)
        if not varying.any():
            raise BadInput("all rows are equal, so that there is no covariance; give other maps, or more")
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=varying)
        _, sizes, directions = np.linalg.svd((rows - origin) * inverse, full_matrices=False)
        kept = np.cumsum(sizes**2) / np.sum(sizes**2)
        # rounding must not leave out the last direction that varies, nor keep one that does not
        most = int(np.sum(sizes > sizes[0] * np.finfo(np.float32).eps))
        directions = directions[: min(int(np.searchsorted(kept, variance - 1e-12)) + 1, most)]
        axes, back = inverse[:, None] * directions.T, directions * scale
        z = (rows - origin) @ axes
        counts = np.bincount(codes)
        means = np.stack([z[codes == k].mean(axis=0) for k in range(len(counts))])
        own = np.stack([(z[codes == k] - means[k]).T @ (z[codes == k] - means[k]) / n for k, n in enumerate(counts)])
        shares = counts / counts.sum()
        mean = np.tensordot(shares, own, 1)
        covariances = (1 - shrinkage) * own + shrinkage * mean + ridge * np.trace(mean) / len(mean) * np.eye(len(mean))
        return cls(origin, axes, back, shares, means, covariances)

    def surprise(self, rows: np.ndarray) -> np.ndarray:
        """Return ``-log p`` of rows (n, d); float64 (n,)."""
        return -logsumexp(np.log(self.shares) + self.logs((np.asarray(rows, float) - self.origin) @ self.axes), axis=1)

    def logs(self, z: np.ndarray) -> np.ndarray:
        """Return the log density of principal components (n, r) under each Gaussian; (n, K).

        Raises
        ------
        BadInput
            A covariance is singular.
        """
        found = np.empty((len(z), len(self.means)))
        for k, (mean, covariance) in enumerate(zip(self.means, self.covariances)):
            try:
                lower = np.linalg.cholesky(covariance)
            except np.linalg.LinAlgError as error:
                raise BadInput("the covariance of a class is singular; raise ridge or shrinkage") from error
            squared = (solve_triangular(lower, (z - mean).T, lower=True) ** 2).sum(axis=0)
            found[:, k] = -0.5 * (squared + z.shape[1] * np.log(2 * np.pi)) - np.log(np.diag(lower)).sum()
        return found
