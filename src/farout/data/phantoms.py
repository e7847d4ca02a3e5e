"""Drawn heads with and without lesions: slices of ellipses, whose true boxes are known, as different scanners see them.

A scene is the same under every protocol: ``phantoms(5, seed=1, protocol="inverted")`` shows the heads of
``phantoms(5, seed=1)``. These are no anatomy; they are there to test what is done with maps and boxes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farout.errors import BadInput, UnknownName

__all__ = ["PROTOCOLS", "Phantoms", "phantoms", "write_cases"]

PROTOCOLS = ("plain", "inverted", "bias", "coarse")
SKULL, FLUID, GREY, WHITE = 0.8, 0.9, 0.55, 0.4  # brightness of what heads are made of
LESION = 0.35  # brighter than what it lies in
NOISE = 0.025
COARSE = 16  # samples of the coarse protocol along a side, however many pixels the image has


@dataclass(frozen=True)
class Phantoms:
    """Drawn heads.

    Attributes
    ----------
    images : uint8 array (n, size, size)
    masks : bool array (n, size, size)
        True in lesions.
    boxes : list of float64 array (k, 4)
        Around each lesion: left, top, right, bottom; right and bottom outside.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes: list[NDArray[np.float64]]


def phantoms(
    n: int, seed: int = 0, *, size: int = 64, lesions: tuple[int, int] = (1, 3), protocol: str = "plain"
) -> Phantoms:
    """Draw heads.

    Parameters
    ----------
    n : int
    seed : int
        Of the scenes, and of the noise.
    size : int
        Height and width, 32 at least.
    lesions : (int, int)
        Fewest and most in a head; ``(0, 0)`` draws normal heads. Lesions do not touch.
    protocol : {"plain", "inverted", "bias", "coarse"}
        ``"inverted"`` turns the contrast inside of the head, ``"bias"`` lets brightness rise towards one side,
        ``"coarse"`` is sampled at 16 places along a side.

    Returns
    -------
    Phantoms

    Raises
    ------
    UnknownName
        There is no such protocol.
    BadInput
        The size is too small.

    Examples
    --------
    >>> heads = phantoms(2, size=32)
    >>> heads.images.shape, all(1 <= len(boxes) <= 3 for boxes in heads.boxes)
    ((2, 32, 32), True)
    """
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    if size < 32:
        raise BadInput(f"a head needs 32 pixels a side at least, not {size}")
    images, masks, boxes = [], [], []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        clean, head, mask, own = _scene(rng, size, lesions)
        images.append(_seen(clean, head, protocol, rng))
        masks.append(mask)
        boxes.append(np.array(own, float).reshape(-1, 4))
    empty = np.zeros((0, size, size))
    return Phantoms(np.stack(images) if n else empty.astype(np.uint8), np.stack(masks) if n else empty > 0, boxes)


def write_cases(
    folder: str | Path, heads: Phantoms, *, seed: int = 0, readers: Sequence[str] = ("a", "b"), shift: int = 2
) -> Path:
    """Write heads as ``farout bench nova`` reads them: PNG files, and ``cases.csv`` with boxes of several readers.

    Parameters
    ----------
    folder : path
    heads : Phantoms
    seed : int
        Of the readers' slips.
    readers : sequence of str
    shift : int
        Pixels by which a side of a reader's box may be off.

    Returns
    -------
    Path
        Of ``cases.csv``.
    """
    from PIL import Image

    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    size = heads.images.shape[-1]
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "image", "boxes", *(f"boxes_{name}" for name in readers), "caption", "diagnosis"])
        for i, (image, boxes) in enumerate(zip(heads.images, heads.boxes)):
            Image.fromarray(image).save(folder / f"{i:03}.png")
            own = [(boxes + rng.integers(-shift, shift + 1, boxes.shape)).clip(0, size) for _ in readers]
            many = "lesion" if len(boxes) == 1 else f"{len(boxes)} lesions"
            caption = f"T2 image of a head with {many}, hyperintense." if len(boxes) else "Normal T2 image of a head."
            name = ("normal", "single lesion", "two lesions", "three lesions")[min(len(boxes), 3)]
            listed = [json.dumps(one.tolist()) for one in (boxes, *own)]
            writer.writerow([f"{i:03}", f"{i:03}.png", *listed, caption, name])
    return folder / "cases.csv"


def _scene(
    rng: np.random.Generator, size: int, lesions: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], list[tuple[int, int, int, int]]]:
    """Draw a head: its brightness, where the head is, where lesions are, and their boxes."""
    y, x = np.mgrid[:size, :size] / (size / 2) - 1 + 1 / size
    x, y = x + rng.normal(0, 0.015), y + rng.normal(0, 0.015)
    tall, wide = 0.92 + rng.normal(0, 0.015), 0.76 + rng.normal(0, 0.015)

    def inside(scale: float, dx: float = 0, dy: float = 0, a: float = wide, b: float = tall) -> NDArray[np.bool_]:
        return ((x - dx) / (a * scale)) ** 2 + ((y - dy) / (b * scale)) ** 2 <= 1

    head, brain = inside(1), inside(0.86)
    image = np.zeros((size, size))
    image[head] = SKULL
    image[inside(0.92)] = FLUID * 0.4
    image[brain] = GREY
    image[inside(0.7)] = WHITE
    long, thick = 0.26 + rng.normal(0, 0.01), 0.08 + rng.normal(0, 0.005)
    for side in (-1, 1):
        image[inside(1, side * 0.14, -0.05, thick, long)] = FLUID
    mask = np.zeros((size, size), bool)
    boxes: list[tuple[int, int, int, int]] = []
    wanted = int(rng.integers(lesions[0], lesions[1] + 1))
    for _ in range(50):
        if len(boxes) == wanted:
            break
        angle, far = rng.uniform(0, 2 * np.pi), 0.62 * np.sqrt(rng.uniform(0.1, 1))
        a, b = rng.uniform(0.08, 0.2, 2)
        one = inside(1, wide * far * np.cos(angle), tall * far * np.sin(angle), a, b) & brain
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        if not len(rows):
            continue
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        if mask[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2].any():
            continue
        image[one] += LESION
        mask |= one
        boxes.append((int(left), int(top), int(right), int(bottom)))
    return image, head, mask, boxes


def _seen(
    clean: NDArray[np.float64], head: NDArray[np.bool_], protocol: str, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Take the picture: the protocol, a little blur, and noise."""
    from scipy.ndimage import gaussian_filter, zoom

    size = len(clean)
    angle, noise = rng.uniform(0, 2 * np.pi), rng.normal(0, NOISE, clean.shape)
    if protocol == "inverted":
        clean = np.where(head, 1.1 - clean, clean)
    elif protocol == "bias":
        y, x = np.mgrid[:size, :size] / (size / 2) - 1
        clean = clean * (1 + 0.5 * (x * np.cos(angle) + y * np.sin(angle)))
    seen = gaussian_filter(clean, size / 100)
    if protocol == "coarse":
        across = -(-size // COARSE)
        padded = np.pad(seen, (0, COARSE * across - size), mode="edge")
        small = padded.reshape(COARSE, across, COARSE, across).mean((1, 3))
        seen = zoom(small, across, order=1, grid_mode=True, mode="nearest")[:size, :size]
    return np.round(255 * (seen + noise).clip(0, 1.2) / 1.2).astype(np.uint8)
