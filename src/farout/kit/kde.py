"""Densities by a kernel and a Fourier transform, and the mutual information that is read from them.

Rows are spread over the points of a grid (linear binning), and the grid is smoothed by an Epanechnikov kernel of unit
variance, ``K(u) = 3 / (4 sqrt 5) (1 - u^2 / 5)`` for ``|u| < sqrt 5``, so that a bandwidth means what it means for a
Gaussian kernel. The grid ends one kernel beyond the outermost rows: no mass wraps around, and a transform of the grid's
own size is exact. A density costs ``O(n)`` and one transform there and back, whatever the bandwidth.

All sums are over masses (density times step) that are brought to 1 on the grid. Natural logarithms throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from farout.errors import BadInput

REACH = float(np.sqrt(5))  # where the kernel ends, in bandwidths
LEAST = 1e-12  # least mass whose logarithm is taken
NORMAL_IQR = 1.3489795003921634  # interquartile range of a standard normal variable
STAGES = 7  # of the improved Sheather-Jones rule, as its authors have it


def silverman(values: np.ndarray) -> float:
    """Return Silverman's bandwidth ``(4 / 3n)^(1/5) s``, with s the lesser of standard deviation and IQR / 1.349.

    Parameters
    ----------
    values : float array (n,)

    Examples
    --------
    >>> round(silverman(np.random.default_rng(0).normal(size=1000)), 3)
    0.258
    """
    return _spread(values) * float((4 / (3 * len(values))) ** 0.2)


def scott(values: np.ndarray) -> float:
    """Return Scott's bandwidth ``n^(-1/5) s``, with s as for :func:`silverman`.

    Parameters
    ----------
    values : float array (n,)
    """
    return _spread(values) * float(len(values) ** -0.2)


def isj(values: np.ndarray) -> float:
    """Return the improved Sheather-Jones bandwidth (Botev, Grotowski and Kroese, Annals of Statistics 2010).

    The density diffuses for a time ``t = h^2``; the best t is the fixed point ``t = (2 n sqrt(pi) |f''|^2)^(-2/5)``, in
    which each derivative's norm is estimated at a time that the norm of the next one sets. No normality is assumed, so
    that several modes stay apart. Where no fixed point exists, as with few or repeated values, it is Silverman's.

    Parameters
    ----------
    values : float array (n,)
    """
    from scipy.fft import dct
    from scipy.optimize import brentq
    from scipy.special import factorial2

    low, high = values.min(), values.max()
    if low == high:
        return silverman(values)
    width = 1.2 * (high - low)  # a tenth of the range beyond either end, since the cosines reflect there
    counts, _ = np.histogram(values, bins=2**10, range=(low - width / 12, high + width / 12))
    n = len(np.unique(values))
    power = (dct(counts / len(values))[1:] / 2) ** 2
    square = np.arange(1.0, 2**10) ** 2

    def norm(stage: int, t: float) -> float:
        return 2 * np.pi ** (2 * stage) * float((square**stage * power) @ np.exp(-square * np.pi**2 * t))

    def excess(t: float) -> float:
        found = norm(STAGES, t)
        for stage in range(STAGES - 1, 1, -1):
            odd = factorial2(2 * stage - 1) / np.sqrt(2 * np.pi)
            time = (2 * (1 + 0.5 ** (stage + 0.5)) / 3 * odd / (n * found)) ** (2 / (3 + 2 * stage))
            found = norm(stage, time)
        return t - float((2 * n * np.sqrt(np.pi) * found) ** -0.4)

    first = 1e-14
    with np.errstate(all="ignore"):
        for last in np.geomspace(1e-5, 0.1, 9) if excess(first) < 0 else ():
            if excess(last) > 0:  # the least of the fixed points
                return float(np.sqrt(brentq(excess, first, last)) * width)
    return silverman(values)


BANDWIDTHS: dict[str, Callable[[np.ndarray], float]] = {"silverman": silverman, "scott": scott, "isj": isj}


@dataclass(frozen=True)
class Axis:
    """A grid under the values of a variable, and where each row lies on it.

    Attributes
    ----------
    size : int
        Points of the grid.
    place : int64 array (n,)
        The grid point at or below each row.
    above : float64 array (n,)
        The part of each row that belongs to the next point.
    response : float64 array (size,)
        Fourier transform of the kernel, whose masses add up to 1; real, because the kernel is symmetric.

    Examples
    --------
    >>> Axis.of(np.array([0.0, 1.0]), 0.5, 8).masses().round(3)
    array([0.028, 0.093, 0.161, 0.218, 0.218, 0.161, 0.093, 0.028])
    """

    size: int
    place: np.ndarray
    above: np.ndarray
    response: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, width: float, size: int, margin: float | None = None) -> Axis:
        """Lay a grid of ``size`` points under values (n,), for a kernel of bandwidth ``width``.

        ``margin`` is the bandwidth for which the grid's ends leave room, where that is another.
        """
        room = REACH * (width if margin is None else margin)
        low, high = float(values.min()) - room, float(values.max()) + room
        step = (high - low) / (size - 1)
        at = (values - low) / step
        place = np.minimum(at.astype(np.intp), size - 2)
        steps = np.arange(size)
        away = np.minimum(steps, size - steps) * (step / width)
        kernel = np.maximum(1 - away**2 / REACH**2, 0)
        return cls(size, place, at - place, np.fft.fft(kernel / kernel.sum()).real)

    def masses(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the masses (size,) of the density, of all rows or of the chosen ones."""
        from scipy.fft import irfft, rfft

        place, above = (self.place, self.above) if rows is None else (self.place[rows], self.above[rows])
        counts = np.bincount(place, 1 - above, self.size) + np.bincount(place + 1, above, self.size)
        return _to_one(irfft(rfft(counts) * self.response[: self.size // 2 + 1], self.size))

    def joint(self, other: Axis) -> np.ndarray:
        """Return the masses (size, other.size) of the joint density, smoothed by the product of both kernels."""
        from scipy.fft import irfft2, rfft2

        cell = self.place * other.size + other.place
        a, b = self.above, other.above
        ab = a * b
        cells = np.concatenate((cell, cell + 1, cell + other.size, cell + other.size + 1))
        parts = np.concatenate((1 - a - b + ab, b - ab, a - ab, ab))
        counts = np.bincount(cells, parts, self.size * other.size).reshape(self.size, other.size)
        waves = rfft2(counts, overwrite_x=True)
        waves *= self.response[:, None]
        waves *= other.response[: other.size // 2 + 1]
        return _to_one(irfft2(waves, counts.shape, overwrite_x=True))


def mi_of_axes(x: Axis, y: Axis) -> float:
    """Return the mutual information of two continuous variables, in nats.

    ``sum f(a, b) [log f(a, b) - log f(a) - log f(b)] da db``, marginals by summing the joint grid. Smoothing lowers it
    where the dependence is strong (a Gaussian's correlation shrinks by ``1 + h^2``); few rows raise it.

    Parameters
    ----------
    x, y : Axis
        Of the same rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, e = rng.normal(size=(2, 5000))
    >>> y = 0.6 * x + 0.8 * e
    >>> found = mi_of_axes(*(Axis.of(v, silverman(v), 300) for v in (x, y)))
    >>> round(found, 2), round(float(-np.log(1 - 0.6**2)) / 2, 2)
    (0.21, 0.22)
    """
    joint = x.joint(y)
    found = _negentropy(joint) - _negentropy(joint.sum(axis=1)) - _negentropy(joint.sum(axis=0))
    return max(0.0, found)


def mi_of_classes(x: np.ndarray, classes: np.ndarray, rule: Callable[[np.ndarray], float], size: int) -> float:
    """Return the mutual information of a continuous and a discrete variable, in nats.

    ``sum_c p_c sum_a f(a|c) [log f(a|c) - log sum_c' p_c' f(a|c')] da``. Each class has a bandwidth of its own; one
    of fewer than three rows or without spread takes that of all rows.

    Parameters
    ----------
    x : float array (n,)
    classes : int array (n,)
        Codes from 0 on.
    rule : callable
        From values to a bandwidth, such as :func:`silverman`.
    size : int
        Points of the grid.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> c = rng.integers(0, 2, 4000)
    >>> apart, same = (mi_of_classes(rng.normal(size=4000) + gap * c, c, silverman, 500) for gap in (9, 0))
    >>> round(apart, 2), round(same, 2)
    (0.69, 0.0)
    """
    rows = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    whole = rule(x)
    widths = [rule(x[some]) if len(some) > 2 and np.ptp(x[some]) > 0 else whole for some in rows]
    margin = max(widths)
    shares = np.array([len(some) for some in rows]) / len(x)
    masses = np.array([Axis.of(x, width, size, margin).masses(some) for width, some in zip(widths, rows)])
    within = sum(p * _negentropy(f) for p, f in zip(shares, masses))
    return max(0.0, float(within) - _negentropy(shares @ masses))


def histogram_codes(values: np.ndarray, most: int = 99) -> np.ndarray:
    """Return codes (n,) of values in a regular histogram, with as many bins as Birge and Rozenholc (2006) advise.

    The number D of bins, 2 to ``most``, has the largest ``sum_j N_j log N_j + n log D - (D - 1 + log^2.5 D)``. A single
    bin, which is best for a uniform variable, is left out: it would say nothing about another variable.

    Parameters
    ----------
    values : float array (n,)
    most : int

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> [len(np.unique(histogram_codes(values))) for values in (rng.uniform(size=1000), rng.normal(size=1000))]
    [2, 10]
    """
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values), np.intp)
    unit = (values - low) / (high - low)

    def binned(bins: int) -> np.ndarray:
        return np.minimum((unit * bins).astype(np.intp), bins - 1)

    def worth(bins: int) -> float:
        counts = np.bincount(binned(bins))
        fit = float(counts @ np.log(np.maximum(counts, 1))) + len(values) * np.log(bins)
        return fit - (bins - 1 + np.log(bins) ** 2.5)

    return binned(max(range(2, most + 1), key=worth))


def robust_scaled(values: np.ndarray) -> np.ndarray:
    """Bring values (n,) to median 0 and interquartile range 1; where that range is 0, to standard deviation 1.

    Raises
    ------
    BadInput
        There are no values.
    """
    if len(values) == 0:
        raise BadInput("there is nothing to scale: the variable has no values")
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return (values - middle) / ((high - low) or values.std() or 1.0)


def _spread(values: np.ndarray) -> float:
    """Return the lesser of standard deviation and IQR / 1.349; 1 for a constant, which any bandwidth suits."""
    if len(values) < 2 or values.min() == values.max():
        return 1.0
    low, high = np.quantile(values, (0.25, 0.75))
    deviation = float(values.std(ddof=1))
    return min(deviation, float(high - low) / NORMAL_IQR) or deviation


def _to_one(masses: np.ndarray) -> np.ndarray:
    """Remove the transform's rounding below 0 and bring the sum to 1."""
    np.maximum(masses, 0, out=masses)
    masses /= masses.sum()
    return masses


def _negentropy(masses: np.ndarray) -> float:
    """Return ``sum f log f``."""
    return float(np.vdot(masses, np.log(np.maximum(masses, LEAST))))
