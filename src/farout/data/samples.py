"""A few texts and images to look at a model with when its user brings none.

The texts were written for this purpose; they are of many kinds, because a model's outliers depend on what it reads.
The images are parts of the two photographs and of the digits that scikit-learn carries.
"""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np

from farout.errors import BadInput

__all__ = ["sample_images", "sample_texts"]


def sample_texts(kind: str | None = None) -> list[str]:
    """Return passages of 150 to 400 words: prose, verse, code, tables, chat, and two languages beside English.

    Parameters
    ----------
    kind : str, optional
        Only the passage of this kind, such as ``"poem"``; by default all of them, always in the same order.

    Returns
    -------
    list of str

    Raises
    ------
    BadInput
        There is no such kind.

    Examples
    --------
    >>> texts = sample_texts()
    >>> len(texts), texts[11].splitlines()[0]
    (17, "The Lamplighter's Holiday")
    """
    text = files("farout.data").joinpath("sample_texts.txt").read_text("utf-8")
    _, *parts = re.split(r"^=== (\w+)\n", text, flags=re.MULTILINE)
    found = {head: body.rstrip("\n") for head, body in zip(parts[::2], parts[1::2])}
    if kind is not None and kind not in found:
        raise BadInput(f"there is no sample text of kind '{kind}'; known: {', '.join(found)}")
    return list(found.values()) if kind is None else [found[kind]]


def sample_images(size: int = 224) -> list[np.ndarray]:
    """Return 32 images: 24 parts of photographs, of three scales, and 8 digits.

    Parameters
    ----------
    size : int
        Height and width in pixels.

    Returns
    -------
    list of uint8 array (size, size, 3)

    Examples
    --------
    >>> images = sample_images(64)
    >>> len(images), images[0].shape, images[0].dtype
    (32, (64, 64, 3), dtype('uint8'))
    """
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits, load_sample_images

    if size < 8:
        raise BadInput(f"images are 8 pixels wide at least, not {size}")
    found = []
    for photo in load_sample_images().images:
        height, width = photo.shape[:2]
        # the smallest keep off the edges, where there is little but sky and leaves
        for side, edge, rows, columns in ((height, 0, 1, 2), (height // 2, 0, 2, 3), (height // 4, height // 5, 2, 2)):
            for top in np.linspace(edge, height - side - edge, rows, dtype=int):
                for left in np.linspace(edge, width - side - edge, columns, dtype=int):
                    found.append(_scaled(photo[top : top + side, left : left + side], size))
    for digit in load_digits().images[:8]:
        grey = zoom(np.pad(digit, 2) * 15.0, size / 12, order=1, grid_mode=True, mode="nearest")
        found.append(np.repeat(np.clip(grey, 0, 255).round().astype(np.uint8)[..., None], 3, axis=2))
    return found


def _scaled(part: np.ndarray, size: int) -> np.ndarray:
    """Scale a square to a size; one that shrinks is blurred first, so that no pattern appears that is not in it."""
    from scipy.ndimage import gaussian_filter, zoom

    x, factor = part.astype(np.float64), size / len(part)
    if factor < 1:
        x = gaussian_filter(x, (0.5 / factor - 0.5, 0.5 / factor - 0.5, 0))
    x = zoom(x, (factor, factor, 1), order=1, grid_mode=True, mode="nearest")
    return np.clip(x, 0, 255).round().astype(np.uint8)
