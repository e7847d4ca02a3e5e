"""How well maps of anomalies find the marked pixels of images.

Functions take ``masks`` (true where something is defective) and ``maps`` (larger = farther out), one of each an image;
images may differ in size, a map has the shape of its mask. Pixels of all images are pooled. Pixels with equal values
are one threshold, so no number depends on their order.

The pixel AUROC is flattered by large normal areas. The pixel AP is stricter. AUPRO counts small defects as much as
large ones: the PRO at a threshold is the mean over marked regions of the share that is found, and AUPRO is the mean PRO
over false positive rates from 0 to 0.3.

Only the values of marked pixels matter as thresholds, so they alone are looked up among the sorted others: a set of
thirty million pixels takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from farout.errors import BadInput

__all__ = ["Pixels", "aupro", "pixel_ap", "pixel_auroc", "pixel_f1"]

Maps = Sequence[NDArray[np.floating]]
Masks = Sequence[NDArray[np.bool_]]


def pixel_auroc(masks: Masks, maps: Maps) -> float:
    """Chance that a marked pixel has a larger value than another one; equal values count one half.

    Parameters
    ----------
    masks : sequence of bool arrays (H, W)
    maps : sequence of float arrays (H, W)

    Returns
    -------
    float
        1 for perfect maps, 0.5 for constant ones.

    Raises
    ------
    BadInput
        Shapes differ, a value is not finite, or no pixel is marked, or all are.

    Examples
    --------
    >>> pixel_auroc([np.array([[True, False], [False, True]])], [np.array([[0.9, 0.1], [0.4, 0.4]])])
    0.875
    """
    return Pixels(masks, maps).auroc()


def pixel_ap(masks: Masks, maps: Maps) -> float:
    """Return the precision at each distinct threshold, weighted by the recall that is gained there.

    Parameters
    ----------
    masks : sequence of bool arrays (H, W)
    maps : sequence of float arrays (H, W)

    Returns
    -------
    float
        1 for perfect maps, the share of marked pixels for constant ones.

    Raises
    ------
    BadInput
        As in :func:`pixel_auroc`.

    Examples
    --------
    >>> round(pixel_ap([np.array([[True, False], [False, True]])], [np.array([[0.9, 0.1], [0.4, 0.4]])]), 4)
    0.8333
    """
    return Pixels(masks, maps).ap()


def aupro(masks: Masks, maps: Maps, limit: float = 0.3) -> float:
    """Return the mean per-region overlap, over false positive rates from 0 to ``limit``.

    A region is a connected marked area of one image; pixels that touch at a corner are connected. The false positive
    rate is a share of the pixels outside all regions. Between thresholds, and at the limit, the curve is a straight
    line.

    Parameters
    ----------
    masks : sequence of bool arrays (H, W)
    maps : sequence of float arrays (H, W)
    limit : float
        In (0, 1]. Numbers of different limits cannot be compared.

    Returns
    -------
    float
        1 for perfect maps, ``limit`` / 2 for constant ones.

    Raises
    ------
    BadInput
        As in :func:`pixel_auroc`, or the limit is outside (0, 1].

    Examples
    --------
    >>> masks = [np.array([[True, False, False, True, True]])]
    >>> round(aupro(masks, [np.array([[0.1, 0.2, 0.3, 0.8, 0.9]])]), 4)  # the large region is found, the small one not
    0.5
    """
    return Pixels(masks, maps).aupro(limit)


def pixel_f1(masks: Masks, maps: Maps, threshold: float) -> float:
    """F1 of the pixels whose value is above a threshold that is given, never chosen on the same images.

    Parameters
    ----------
    masks : sequence of bool arrays (H, W)
    maps : sequence of float arrays (H, W)
    threshold : float

    Returns
    -------
    float
        0 where nothing is found.

    Raises
    ------
    BadInput
        As in :func:`pixel_auroc`.

    Examples
    --------
    >>> pixel_f1([np.array([[True, False], [False, True]])], [np.array([[0.9, 0.1], [0.4, 0.6]])], 0.5)
    1.0
    """
    return Pixels(masks, maps).f1(threshold)


@dataclass(frozen=True)
class _Curve:
    """Pixels above and at each distinct value of a marked pixel, from the largest value to the smallest."""

    found: NDArray[np.int64]  # marked pixels at or above it
    false: NDArray[np.int64]  # other pixels at or above it
    before: NDArray[np.int64]  # other pixels above it
    pro: NDArray[np.float64]  # mean share of a region at or above it


class Pixels:
    """Pooled pixels of maps, sorted once for all numbers.

    Parameters
    ----------
    masks : sequence of bool arrays (H, W)
    maps : sequence of float arrays (H, W)

    Raises
    ------
    BadInput
        Shapes differ, a value is not finite, or no pixel is marked, or all are.

    Examples
    --------
    >>> pixels = Pixels([np.array([[True, False], [False, True]])], [np.array([[0.9, 0.1], [0.4, 0.4]])])
    >>> pixels.auroc(), pixels.regions
    (0.875, 1)
    """

    def __init__(self, masks: Masks, maps: Maps) -> None:
        inside, weight, outside, self.regions = _pooled(masks, maps)
        order = np.argsort(-inside, kind="stable")
        self._inside, weight = inside[order], weight[order]
        self._outside = np.sort(outside)
        last = np.flatnonzero(np.append(self._inside[1:] != self._inside[:-1], True))  # of equal values
        values = self._inside[last]
        total = len(self._outside)
        self._curve = _Curve(
            found=last + 1,
            false=total - np.searchsorted(self._outside, values, "left"),
            before=total - np.searchsorted(self._outside, values, "right"),
            pro=np.minimum(np.cumsum(weight)[last] / self.regions, 1),  # sums of many shares are rounded
        )

    def auroc(self) -> float:
        """Return the pixel AUROC."""
        gained = np.diff(self._curve.found, prepend=0)
        # integers up to the last division: equal rankings give equal floats
        lost = int(np.sum(gained * (self._curve.false + self._curve.before)))
        pairs = len(self._inside) * len(self._outside)
        return (2 * pairs - lost) / (2 * pairs)

    def ap(self) -> float:
        """Return the pixel AP."""
        curve = self._curve
        gained = np.diff(curve.found, prepend=0)
        return float(np.sum(gained * (curve.found / (curve.found + curve.false))) / len(self._inside))

    def aupro(self, limit: float = 0.3) -> float:
        """Return AUPRO up to a false positive rate."""
        if not 0 < limit <= 1:
            raise BadInput(f"'limit' is a false positive rate above 0 and at most 1; it is {limit}")
        curve, n = self._curve, len(self._outside)
        # at each value the curve arrives at the old height, for other pixels alone move it so far, and then climbs
        rate = np.ravel(np.column_stack([curve.before, curve.false])) / n
        height = np.ravel(np.column_stack([np.append(0, curve.pro[:-1]), curve.pro]))
        rate, height = np.concatenate([[0.0], rate, [1.0]]), np.concatenate([[0.0], height, [1.0]])
        below = int(np.searchsorted(rate, limit, "right"))
        if below < len(rate):
            left, right = rate[below - 1], rate[below]
            share = (limit - left) / (right - left)
            end = height[below - 1] + share * (height[below] - height[below - 1])
            rate, height = np.append(rate[:below], limit), np.append(height[:below], end)
        return min(1.0, float(np.trapezoid(height, rate) / limit))

    def f1(self, threshold: float) -> float:
        """Return F1 of the pixels whose value is above the threshold."""
        found = int(np.sum(self._inside > threshold))
        false = len(self._outside) - int(np.searchsorted(self._outside, threshold, "right"))
        return 2 * found / (len(self._inside) + found + false)


def _pooled(masks: Masks, maps: Maps) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Values of marked pixels, each one's share of its region, values of the other pixels, and how many regions."""
    from scipy.ndimage import label

    if len(masks) != len(maps):
        raise BadInput(f"there are {len(masks)} masks and {len(maps)} maps; give one of each an image")
    inside, weight, outside, regions = [], [], [], 0
    for place, (mask, drawn) in enumerate(zip(masks, maps)):
        mask, drawn = np.asarray(mask).astype(bool), np.asarray(drawn)
        if mask.ndim != 2 or mask.shape != drawn.shape:
            raise BadInput(
                f"the mask and the map of an image have one shape (height, width); those of image {place} have "
                f"{mask.shape} and {drawn.shape}"
            )
        if not np.isfinite(drawn).all():
            raise BadInput(f"{int(np.sum(~np.isfinite(drawn)))} values of the map of image {place} are not finite")
        outside.append(drawn[~mask])
        if mask.any():
            numbers, count = label(mask, np.ones((3, 3)))
            own = numbers[mask]
            inside.append(drawn[mask])
            weight.append(1 / np.bincount(own)[own])
            regions += count
    if not inside or not sum(map(len, outside)):
        raise BadInput(
            f"maps are judged on marked pixels and others together; of {len(masks)} masks "
            f"{'none marks a pixel' if not inside else 'all mark every pixel'}"
        )
    return np.concatenate(inside), np.concatenate(weight), np.concatenate(outside), regions
