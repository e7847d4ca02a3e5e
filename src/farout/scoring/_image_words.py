"""What a user must know of images before trusting their scores, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SHRUNK = 1.25  # times, from which an image loses details
ENLARGED = 4  # times, from which an image has hardly any
SQUEEZED = 1.5  # ratio of the sides
OTHER = 1.5  # times by which images differ from those that were learned from


def sizes(shapes: Sequence[tuple[int, int]], size: int, learned: dict[str, Any] | None = None) -> list[str]:
    """Say what scaling to a square does to images.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Heights and widths as stored.
    size : int
    learned : dict, optional
        ``shape`` of the images that were learned from.

    Examples
    --------
    >>> sizes([(1000, 2000)], 250)[0]
    'images of 2,000 x 1,000 are scaled to 250 x 250: defects smaller than about 16 pixels may vanish; ...'
    >>> sizes([(256, 256)], 256)
    []
    """
    heights, widths = np.array(shapes).T
    notes = []
    largest = int(np.argmax(np.maximum(heights, widths)))
    shrunk = max(heights.max(), widths.max()) / size
    if shrunk > SHRUNK:
        of = f"images of {_said(shapes[largest])}"
        if len(set(shapes)) > 1:
            smallest = int(np.argmin(heights * widths))
            of = (
                f"images have {len(set(shapes)):,} sizes, from {_said(shapes[smallest])} to {_said(shapes[largest])}, "
                "and"
            )
        notes.append(
            f"{of} are scaled to {size} x {size}: defects smaller than about {int(np.ceil(2 * shrunk)):,} pixels may "
            "vanish; a larger size sees them, and takes longer (--size)"
        )
    ratios = np.maximum(heights / widths, widths / heights)
    squeezed = int((ratios > SQUEEZED).sum())
    if squeezed:
        some = "images" if squeezed == len(shapes) else f"{squeezed:,} of {len(shapes):,} images"
        notes.append(f"{some} are squeezed to a square, their longer side by up to {ratios.max():.3g} times as much")
    tiny = int((np.minimum(heights, widths) * ENLARGED < size).sum())
    if tiny:
        some = f"{tiny:,} image{'s are' if tiny > 1 else ' is'}"
        notes.append(f"{some} enlarged more than {ENLARGED} times, and may hold too little to tell")
    if learned and learned.get("shape"):
        usual = np.array(learned["shape"])
        ratio = float(np.sqrt(np.median(heights * widths) / usual.prod()))
        if not 1 / OTHER < ratio < OTHER:
            here = (int(np.median(heights)), int(np.median(widths)))
            notes.append(
                f"images are mostly of {_said(here)}, and those that were learned from of {_said(usual.tolist())}: "
                "details have another size in them, which alone can make scores higher"
            )
    return notes


def alike(scores: np.ndarray) -> list[str]:
    """Say where all images that set the line score alike."""
    if len(scores) < 2 or np.ptp(scores) > 1e-6 * max(1e-6, float(np.abs(scores).max())):
        return []
    return [
        f"all {len(scores):,} normal images that set the line score alike, as copies of one image do: the line then "
        "says nothing of how normal images vary"
    ]


def _said(shape: Sequence[float]) -> str:
    return f"{int(shape[1]):,} x {int(shape[0]):,}"
