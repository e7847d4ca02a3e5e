"""How alike two sets of features of the same samples are: RSA and linear CKA, with bootstrap intervals over samples.

The pairs of samples share samples, so a correlation over pairs has no honest p-value; samples are drawn again instead.
A drawn copy and its original are no pair: their distance of zero, the same in both sets, would count as agreement.
So both measures are written with a weight for each sample, the times it was drawn, and sums run over distinct samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.errors import BadInput

__all__ = ["Geometry", "cka", "intervals", "rsa"]

CONSTANT = 1e-6  # of a channel's largest value: what moves less is rounding of single precision


@dataclass(frozen=True)
class Geometry:
    """What both measures need of a set of features, made once however many sets it is compared with.

    Attributes
    ----------
    order, start, end : int array (n (n - 1) / 2,)
        Pairs of samples by rising distance, and where in this order the run of equal distances around each begins and
        ends.
    gram : float64 array (n, n)
        Inner products of centred rows, divided by the mean of their squared lengths, with a diagonal of zeros.
    plain : float64 array (n, n)
        The same with its diagonal.
    """

    order: np.ndarray
    start: np.ndarray
    end: np.ndarray
    gram: np.ndarray
    plain: np.ndarray

    @classmethod
    def of(cls, X: Any) -> Geometry:
        """Look at features (n, d) of at least 4 samples.

        Raises
        ------
        BadInput
            A number is not finite, or there are fewer samples.
        """
        from scipy.spatial.distance import pdist

        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or len(X) < 4:
            raise BadInput(f"features are rows (n, d) of at least 4 samples, not of shape {X.shape}")
        if not np.isfinite(X).all():
            raise BadInput(f"row {int((~np.isfinite(X).all(axis=1)).argmax())} of the features is not finite")
        X = X * np.exp2(
            -np.frexp(np.abs(X).max())[1]
        )  # squares neither overflow nor vanish, and equal distances stay equal
        X = X[:, np.ptp(X, axis=0) > CONSTANT * np.abs(X).max(axis=0)]
        distances = pdist(X) if X.shape[1] else np.zeros(len(X) * (len(X) - 1) // 2)
        X = X - X.mean(axis=0)
        order = np.argsort(distances, kind="stable")
        ordered = distances[order]
        plain = X @ X.T
        plain /= np.trace(plain) / len(X) or 1.0
        gram = plain.copy()
        np.fill_diagonal(gram, 0.0)
        start, end = (np.searchsorted(ordered, ordered, side=side) for side in ("left", "right"))
        return cls(order, start, end, gram, plain)


def rsa(X: Any, Y: Any) -> float:
    """Spearman's correlation of the Euclidean distances between samples, in one set of features and in the other.

    Parameters
    ----------
    X, Y : array (n, d), (n, e)
        Features of the same samples, at least 4, in the same order; or their :class:`Geometry`.

    Returns
    -------
    float
        1 where the distances have the same order, as after a rotation, a shift or a change of scale. NaN where all
        distances of a set are equal, as where all samples are, such as those of [CLS] before the first layer.

    Raises
    ------
    BadInput
        The sets are of different samples, of fewer than 4, or not finite.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(rsa(X, 2 - 5 * X[:, ::-1]), 9)
    1.0
    """
    a, b = _pair(X, Y)
    return _rsa(a, b, np.ones(len(a.gram)))


def cka(X: Any, Y: Any, debiased: bool = True) -> float:
    """Linear centred kernel alignment: how alike the inner products of samples are in two sets of features.

    Parameters
    ----------
    X, Y : array (n, d), (n, e)
        As for :func:`rsa`.
    debiased : bool
        With the unbiased estimate of HSIC (Song et al. 2012; Nguyen et al. 2021), which is 0 in the mean over unrelated
        features; the plain one nears 1 for any two sets that are wider than they have samples.

    Returns
    -------
    float
        1 for the same features up to a rotation, a shift and a change of scale; NaN where the estimated variance of a
        set is not positive.

    Raises
    ------
    BadInput
        As :func:`rsa` does.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.normal(size=(20, 200)), rng.normal(size=(20, 200))
    >>> round(cka(X, Y, debiased=False), 2), round(cka(X, Y), 2)
    (0.92, 0.12)
    """
    a, b = _pair(X, Y)
    if debiased:
        return _Products.of(a, b).cka(np.ones(len(a.gram)))
    sizes = (a.plain**2).sum() * (b.plain**2).sum()
    return float((a.plain * b.plain).sum() / np.sqrt(sizes)) if sizes > 0 else float("nan")


def intervals(X: Any, Y: Any, draws: int = 200, random_state: int = 0) -> dict[str, tuple[float, float]]:
    """Middle 95 % of RSA and of debiased CKA when the samples are drawn again with replacement.

    Plain CKA has none: its bias grows as a draw holds fewer distinct samples.

    Parameters
    ----------
    X, Y : array (n, d), (n, e)
        As for :func:`rsa`.
    draws, random_state : int

    Returns
    -------
    dict of str to (float, float)
        Of ``"rsa"`` and ``"cka"``.
    """
    a, b = _pair(X, Y)
    n, rng = len(a.gram), np.random.default_rng(random_state)
    products = _Products.of(a, b)
    found = np.empty((draws, 2))
    for draw in found:
        weights = np.bincount(rng.integers(n, size=n), minlength=n).astype(float)
        draw[:] = _rsa(a, b, weights), products.cka(weights)
    known = [draws[np.isfinite(draws)] for draws in found.T]
    ends = [np.quantile(one, (0.025, 0.975)).tolist() if len(one) else [float("nan")] * 2 for one in known]
    return {name: (low, high) for name, (low, high) in zip(("rsa", "cka"), ends)}


def _pair(X: Any, Y: Any) -> tuple[Geometry, Geometry]:
    a, b = (one if isinstance(one, Geometry) else Geometry.of(one) for one in (X, Y))
    if len(a.gram) != len(b.gram):
        raise BadInput(f"features of {len(a.gram):,} and of {len(b.gram):,} samples cannot be compared")
    return a, b


def _rsa(a: Geometry, b: Geometry, weights: np.ndarray) -> float:
    """Spearman's correlation over pairs of distinct samples, each as often as its two samples meet."""
    from scipy.spatial.distance import squareform

    often = squareform(np.outer(weights, weights), checks=False)
    x, y = _ranks(a, often), _ranks(b, often)
    x, y = x - often @ x / often.sum(), y - often @ y / often.sum()
    variance = (often @ x**2) * (often @ y**2)
    return float(often @ (x * y) / np.sqrt(variance)) if variance > 0 else float("nan")


def _ranks(of: Geometry, often: np.ndarray) -> np.ndarray:
    """Mid-ranks of pairs that occur so often; a constant is left out."""
    upto = np.concatenate([[0.0], np.cumsum(often[of.order])])
    ranks = np.empty(len(often))
    ranks[of.order] = (upto[of.start] + upto[of.end]) / 2
    return ranks


@dataclass(frozen=True)
class _Products:
    """Two Gram matrices and their products by element, so that a draw costs products with a vector only."""

    a: np.ndarray
    b: np.ndarray
    aa: np.ndarray
    bb: np.ndarray
    ab: np.ndarray

    @classmethod
    def of(cls, a: Geometry, b: Geometry) -> _Products:
        return cls(a.gram, b.gram, a.gram**2, b.gram**2, a.gram * b.gram)

    def cka(self, weights: np.ndarray) -> float:
        """Debiased CKA of samples drawn so often."""
        together = _hsic(self.a, self.b, self.ab, weights)
        own = _hsic(self.a, self.a, self.aa, weights), _hsic(self.b, self.b, self.bb, weights)
        return together / float(np.sqrt(own[0] * own[1])) if min(own) > 0 else float("nan")


def _hsic(a: np.ndarray, b: np.ndarray, ab: np.ndarray, w: np.ndarray) -> float:
    """Unbiased HSIC: the mean of ``a_ij (b_ij - 2 b_ik + b_kl)`` over distinct i, j, k, l, each drawn ``w`` times.

    Sums over distinct samples come from sums over all by inclusion and exclusion; both diagonals are zero. All three
    terms run over the same quadruples, or a shift of the features would change them.
    """
    w2, w3 = w**2, w**3
    s1, s2, s3, s4 = (float(power.sum()) for power in (w, w2, w3, w2**2))
    aw, bw, abw, abw2 = a @ w, b @ w, ab @ w, ab @ w2
    pairs = (s1**2 - s2) * (w @ abw) - 4 * s1 * (w2 @ abw) + 4 * (w3 @ abw) + 2 * (w2 @ abw2)
    triples = (w * (s1 - w)) @ (aw * bw - abw2) - w @ ((a @ w2) * bw + aw * (b @ w2) - 2 * (ab @ w3))
    fours = (w @ aw) * (w @ bw) - 4 * (w2 @ (aw * bw)) + 2 * (w2 @ abw2)
    count = s1**4 - 6 * s1**2 * s2 + 3 * s2**2 + 8 * s1 * s3 - 6 * s4
    return float((pairs - 2 * triples + fours) / count) if count > 0 else float("nan")
