"""Maps of anomalies as colours: where heat begins, how it looks over an image, and the box of its hottest part."""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any

import numpy as np

from farout.io._image import read_image

Heat = tuple[float, float]  # the values at which colour begins, and is half strong
STOPS = np.array(
    [[110, 0, 120], [220, 30, 60], [255, 130, 30], [255, 215, 50], [255, 240, 110]], float
)  # from faint to hot
OPAQUE = 0.75  # of full colour, so that the image stays visible
LEVELS = 96  # of colour in a page


def heat_of(peaks: np.ndarray, line: float, middle: float) -> Heat:
    """Choose where colour begins and is half strong, by maps of normal images.

    It begins at the hottest pixel of a middling normal image, and is half strong at the line, which few normal images
    reach; so normal images stay bare, and defects glow.

    Parameters
    ----------
    peaks : float array (m,)
        Largest values of the maps of normal images.
    line : float
        What few of them exceed.
    middle : float
        A typical value of a normal image's map.

    Examples
    --------
    >>> heat_of(np.array([1.0, 2.0, 3.0]), 3.0, 0.5)
    (2.0, 3.0)
    """
    low = float(np.median(peaks))
    span = max(line - low, (low - middle) / 2, 1e-6 * abs(low), 1e-12)
    return low, low + span


def hottest(map_HW: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box of the hottest region: around the peak, what is at least half as hot as it.

    Half way from the map's median to its peak, that is.

    Parameters
    ----------
    map_HW : float array (H, W)
    shape : (int, int)
        Height and width of the image.

    Returns
    -------
    (int, int, int, int)
        Left, top, right and bottom in pixels of the image; right and bottom are the first outside.

    Examples
    --------
    >>> map_HW = np.zeros((4, 4))
    >>> map_HW[1, 2:] = [1.0, 0.7]
    >>> hottest(map_HW, (40, 80))
    (40, 10, 80, 20)
    """
    from scipy.ndimage import label

    peak = map_HW.argmax()
    regions, _ = label(map_HW >= (float(np.median(map_HW)) + float(map_HW.flat[peak])) / 2)
    rows, columns = np.nonzero(regions == regions.flat[peak])
    y, x = shape[0] / map_HW.shape[0], shape[1] / map_HW.shape[1]
    return (
        int(columns.min() * x),
        int(rows.min() * y),
        int(np.ceil((columns.max() + 1) * x)),
        int(np.ceil((rows.max() + 1) * y)),
    )


def strength(map_HW: np.ndarray, heat: Heat) -> np.ndarray:
    """Return how strong the colour of each pixel is: what is missing to 1 is halved again and again.

    So peaks keep a form however far above the line they are.

    Examples
    --------
    >>> strength(np.array([[0.0, 2.0, 3.0, 4.0]]), (2.0, 3.0))
    array([[0.  , 0.  , 0.5 , 0.75]])
    """
    return 1 - 0.5 ** (np.maximum(map_HW - heat[0], 0) / (heat[1] - heat[0]))


def tinted(strong: np.ndarray) -> np.ndarray:
    """Colour what :func:`strength` gives: bytes (..., 4) of red, green, blue and how opaque."""
    at = strong * (len(STOPS) - 1)
    first = np.minimum(at.astype(int), len(STOPS) - 2)
    part = (at - first)[..., None]
    colour = STOPS[first] * (1 - part) + STOPS[first + 1] * part
    alpha = 255 * OPAQUE * np.minimum(1, 1.8 * strong)
    return np.concatenate([colour, alpha[..., None]], -1).round().astype(np.uint8)


def picture(item: Any, side: int) -> Any:
    """Read an image, upright, as one of Pillow with at most ``side`` pixels a side."""
    from PIL import Image

    image = Image.fromarray(read_image(item, (side, side))[0])
    image.thumbnail((side, side))
    return image


def overlaid(image: Any, map_HW: np.ndarray, heat: Heat, box: tuple[float, ...] | None = None) -> Any:
    """Lay a map over an image of Pillow, and a box in shares of its width and height around the hottest region."""
    from PIL import Image, ImageDraw

    over = Image.fromarray(tinted(strength(map_HW, heat))).resize(image.size, Image.Resampling.BICUBIC)
    grey = image.convert("L").convert("RGBA")  # colours of the image would be taken for heat
    laid = Image.alpha_composite(grey, over).convert("RGB")
    if box is not None:
        left, top, right, bottom = (round(at * side) for at, side in zip(box, image.size * 2))
        corners = [left, top, max(left, right - 1), max(top, bottom - 1)]
        ImageDraw.Draw(laid).rectangle(corners, outline="white", width=max(1, max(image.size) // 300))
    return laid


def jpeg(image: Any, quality: int = 80) -> str:
    """Write an image of Pillow as the address of a JPEG image."""
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + b64encode(stored.getvalue()).decode()


def heat_png(map_HW: np.ndarray, heat: Heat, side: int) -> str:
    """Write a coloured map as the address of a PNG image, transparent where it is cold; empty where all of it is."""
    from PIL import Image

    scaled = Image.fromarray(map_HW.astype(np.float32))
    if max(scaled.size) > side:
        share = side / max(scaled.size)
        sides = [max(1, round(one * share)) for one in scaled.size]
        scaled = scaled.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
    levels = np.round((LEVELS - 1) * strength(np.asarray(scaled), heat)).astype(np.uint8)
    if not levels.any():
        return ""
    colours = tinted(np.arange(LEVELS) / (LEVELS - 1))
    painted = Image.fromarray(levels).convert("L")
    painted.putpalette(colours[:, :3].tobytes())
    stored = io.BytesIO()
    painted.save(stored, "PNG", optimize=True, transparency=colours[:, 3].tobytes())
    return "data:image/png;base64," + b64encode(stored.getvalue()).decode()
