"""How well boxes around something find the true boxes: overlap, matching, average precision, F1, hits and false boxes.

A box is (left, top, right, bottom) in pixels, right and bottom outside. All boxes are of one kind. Boxes with equal
scores are one threshold, where COCO's code lets the order of the images decide, and an image can count more or less
than another, so that a case with many images need not rule the number. Otherwise average precision is COCO's: greedy
matching from the highest score downwards, 100 boxes an image at most, precision made to fall, and read at 101 recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.errors import BadInput

__all__ = ["LIMITS", "Found", "Localisation", "iou", "map_boxes", "matched"]

STRICT = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # of the mean average precision
LIMITS = (0.3, *STRICT)
LOOSE = 0.3  # overlap of a hit, and of a box that is not false
MOST = 100  # boxes of an image, those with the highest scores


class Found(NamedTuple):
    """Boxes of an image, found and true.

    Attributes
    ----------
    boxes : float array (n, 4)
    scores : float array (n,)
        Larger = surer.
    truth : float array (m, 4)
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    truth: NDArray[np.float64]


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the area that two boxes share over the area of both together, for all pairs.

    Parameters
    ----------
    a : array (n, 4)
    b : array (m, 4)

    Returns
    -------
    float64 array (n, m)
        0 where a box is empty.

    Examples
    --------
    >>> iou([[0, 0, 2, 2]], [[0, 0, 2, 2], [1, 0, 3, 2], [2, 2, 3, 3]])
    array([[1.        , 0.33333333, 0.        ]])
    """
    a_N14, b_1M4 = np.reshape(np.asarray(a, float), (-1, 1, 4)), np.reshape(np.asarray(b, float), (1, -1, 4))
    sides = np.minimum(a_N14[..., 2:], b_1M4[..., 2:]) - np.maximum(a_N14[..., :2], b_1M4[..., :2])
    shared = sides.clip(0).prod(-1)
    together = _area(a_N14) + _area(b_1M4) - shared
    return np.divide(shared, together, out=np.zeros_like(shared), where=together > 0)


def matched(found: Found, limit: float) -> NDArray[np.bool_]:
    """Tell which boxes meet a true box: from the highest score downwards, each takes the best one that is left.

    Parameters
    ----------
    found : Found
    limit : float
        Least overlap.

    Returns
    -------
    bool array (n,)

    Examples
    --------
    >>> twice = Found(np.array([[0, 0, 2, 2], [0, 0, 2, 2]]), np.array([0.5, 0.9]), np.array([[0, 0, 2, 2]]))
    >>> matched(twice, 0.5)
    array([False,  True])
    """
    return _matched(iou(found.boxes, found.truth), found.scores, limit)


class Localisation:
    """The boxes of many images, matched once for all numbers.

    Parameters
    ----------
    images : sequence of Found

    Attributes
    ----------
    hit : float64 array (n_images,)
        1 where some box overlaps a true one by 0.3, or has its centre inside one; NaN where there is no true box.
    false : int64 array (n_images,)
        Boxes that do not meet a true one at an overlap of 0.3; a second box on one true box is false.

    Raises
    ------
    BadInput
        Boxes are not of shape (n, 4), there are not as many scores, or something is not finite.

    Examples
    --------
    >>> truth = np.array([[0.0, 0, 4, 4], [6, 6, 9, 9]])
    >>> found = Localisation([Found(np.array([[0.0, 0, 4, 4]]), np.ones(1), truth)])
    >>> round(found.ap(0.5), 4), round(found.f1(0.5), 4), found.hit, found.false
    (0.505, 0.6667, array([1.]), array([0]))
    """

    def __init__(self, images: Sequence[Found]) -> None:
        images = [_checked(found) for found in images]
        self._true = np.array([len(found.truth) for found in images], float)
        self._image = np.repeat(np.arange(len(images)), [len(found.boxes) for found in images])
        scores = np.concatenate([found.scores for found in images]) if images else np.zeros(0)
        overlaps = [iou(found.boxes, found.truth) for found in images]
        flags = [[_matched(o, found.scores, limit) for limit in LIMITS] for o, found in zip(overlaps, images)]
        met = np.concatenate(flags, axis=1) if images else np.zeros((len(LIMITS), 0), bool)
        loose = met[LIMITS.index(LOOSE)]
        self.false = np.bincount(self._image[~loose], minlength=len(images))
        self.hit = np.array([_hit(o, found) for o, found in zip(overlaps, images)])
        order = np.argsort(-scores, kind="stable")
        self._met, self._sorted_image = met[:, order], self._image[order]
        falling = scores[order]
        self._last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.zeros(0, int)

    def ap(self, limit: float) -> float:
        """Return the average precision at an overlap of :data:`LIMITS`; NaN where there is no true box."""
        return float(self.aps()[_place(limit)])

    def mean_ap(self) -> float:
        """Return the mean average precision over overlaps of 0.5, 0.55 and so on to 0.95."""
        return float(self.aps()[-len(STRICT) :].mean())

    def f1(self, limit: float) -> float:
        """Return F1 of all boxes, whatever their scores; NaN where there is no box at all."""
        return float(self.f1s()[_place(limit)])

    def aps(self, weights: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return the average precisions at all overlaps of :data:`LIMITS`.

        Parameters
        ----------
        weights : array (..., n_images), optional
            How much the boxes of each image count.

        Returns
        -------
        float64 array (..., 11)
        """
        weight, total = self._counted(weights)
        right = np.cumsum(self._met * weight[..., None, :], axis=-1)[..., self._last]
        given = np.cumsum(weight, axis=-1)[..., None, self._last]
        precision = right / np.where(given > 0, given, 1)
        falling = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        # how many of the recalls 0, 0.01, ..., 1 are reached; sums of fractions are rounded, and 1 must not be missed
        share = right / np.where(total > 0, total, 1)[..., None, None]
        reached = np.floor(100 * share + 1e-6) + 1
        found = (falling * np.diff(reached, prepend=0, axis=-1)).sum(-1) / 101
        return np.where(total[..., None] > 0, found, np.nan)

    def f1s(self, weights: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return F1 at all overlaps of :data:`LIMITS`; weights and shapes as of :meth:`aps`."""
        weight, total = self._counted(weights)
        both = weight.sum(-1) + total
        right = weight @ self._met.T.astype(float)
        return np.where(both[..., None] > 0, 2 * right / np.where(both > 0, both, 1)[..., None], np.nan)

    def _counted(self, weights: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each box counts, from the highest score downwards; and what the true ones count together."""
        each = np.ones(len(self._true)) if weights is None else np.asarray(weights, float)
        return each[..., self._sorted_image], np.asarray(each @ self._true)


def map_boxes(map_HW: ArrayLike, threshold: float, least: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn a map of anomalies into boxes: one around each connected part above a threshold.

    Pixels that touch at a corner are connected.

    Parameters
    ----------
    map_HW : array (H, W)
        Larger = farther out.
    threshold : float
        Such as a high quantile of the maps of normal images.
    least : int
        Pixels of a part; smaller ones are dropped.

    Returns
    -------
    boxes : float64 array (n, 4)
    scores : float64 array (n,)
        The mean of each part.

    Examples
    --------
    >>> x = np.zeros((4, 5))
    >>> x[1, 2], x[2, 3] = 4, 6
    >>> map_boxes(x, 1)
    (array([[2., 1., 4., 3.]]), array([5.]))
    """
    from scipy.ndimage import find_objects, label
    from scipy.ndimage import mean as mean_of

    x_HW = np.asarray(map_HW, float)
    numbers, count = label(x_HW > threshold, np.ones((3, 3)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    boxes = [(side.start, top.start, side.stop, top.stop) for top, side in find_objects(numbers)]
    scores = np.asarray(mean_of(x_HW, numbers, np.arange(1, count + 1)), float).reshape(-1)
    kept = sizes >= least
    return np.reshape(np.asarray(boxes, float), (-1, 4))[kept], scores[kept]


def _place(limit: float) -> int:
    if limit not in LIMITS:
        raise BadInput(f"an overlap is one of {', '.join(map(str, LIMITS))}, not {limit}")
    return LIMITS.index(limit)


def _area(box: np.ndarray) -> np.ndarray:
    return (box[..., 2:] - box[..., :2]).clip(0).prod(-1)


def _matched(overlap: np.ndarray, scores: np.ndarray, limit: float) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    left, met = np.ones(overlap.shape[1], bool), np.zeros(len(overlap), bool)
    for i in order[:MOST]:
        free = np.where(left, overlap[i], -1.0)
        if free.size and free.max() >= limit:
            left[free.argmax()], met[i] = False, True
    return met


def _hit(overlap: np.ndarray, found: Found) -> float:
    if not len(found.truth):
        return np.nan
    centre = (found.boxes[:, None, :2] + found.boxes[:, None, 2:]) / 2
    inside = ((centre >= found.truth[None, :, :2]) & (centre < found.truth[None, :, 2:])).all(-1)
    return float((inside | (overlap >= LOOSE)).any())


def _checked(found: Found) -> Found:
    boxes, scores, truth = (np.asarray(part, float) for part in found)
    boxes, truth = (part.reshape(0, 4) if part.size == 0 else part for part in (boxes, truth))
    if boxes.shape != (len(scores), 4) or truth.ndim != 2 or truth.shape[1] != 4:
        raise BadInput(
            f"boxes have the shape (n, 4) and scores (n,); here are boxes {boxes.shape}, scores {scores.shape} and "
            f"true boxes {truth.shape}"
        )
    if not all(np.isfinite(part).all() for part in (boxes, scores, truth)):
        raise BadInput("a box or a score is not finite")
    order = np.argsort(-scores, kind="stable")[:MOST]
    return Found(boxes[order], scores[order], truth)
