"""How well maps find marked pixels, counted image by image, so that no map need be kept."""

from __future__ import annotations

import numpy as np

LEVELS = 1 << 16  # of half precision: values are told apart to a part in a thousand


class PixelCounts:
    """Counts of the values of marked and other pixels.

    Parameters
    ----------
    unit : float
        A typical value; values are told apart best from a ten-thousandth of it to a ten-thousandfold.

    Examples
    --------
    >>> counts = PixelCounts(1.0)
    >>> counts.add(np.array([[0.9, 0.1], [0.4, 0.4]]), np.array([[True, False], [False, True]]))
    >>> {name: round(value, 3) for name, value in counts.quality().items()}
    {'pixel AUROC': 0.875, 'pixel average precision': 0.833, 'hottest pixel is marked': 1.0}
    """

    def __init__(self, unit: float) -> None:
        self.unit = abs(unit) or 1.0
        self.marked = np.zeros(LEVELS, np.int64)
        self.others = np.zeros(LEVELS, np.int64)
        self.pointed = self.defects = 0

    def add(self, map_HW: np.ndarray, mask_HW: np.ndarray) -> None:
        """Count the pixels of one image; its map has the shape of its mask."""
        largest = np.finfo(np.float16).max
        bits = np.clip(map_HW / self.unit, -largest, largest).astype(np.float16).view(np.uint16)
        # the bits of floats in an order that is that of their values
        places = np.where(bits >> 15, ~bits, bits | np.uint16(1 << 15))
        self.marked += np.bincount(places[mask_HW], minlength=LEVELS)
        self.others += np.bincount(places[~mask_HW], minlength=LEVELS)
        if mask_HW.any():
            self.defects += 1
            self.pointed += bool(mask_HW.flat[map_HW.argmax()])

    def quality(self) -> dict[str, float]:
        """Return pixel AUROC, pixel average precision, and the share of defects whose hottest pixel is marked."""
        n, m = self.marked.sum(), self.others.sum()
        if not n or not m:
            return {}
        below = np.cumsum(self.others) - 0.5 * self.others
        found, wrong = np.cumsum(self.marked[::-1]), np.cumsum(self.others[::-1])
        precision = found / np.maximum(found + wrong, 1)
        return {
            "pixel AUROC": float((self.marked * below).sum() / (n * m)),
            "pixel average precision": float((precision * self.marked[::-1]).sum() / n),
            "hottest pixel is marked": self.pointed / self.defects,
        }
