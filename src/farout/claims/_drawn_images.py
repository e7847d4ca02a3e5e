"""Drawn images whose class is known to the pixel: bodies that differ by marks, and objects on textures.

All are float32 arrays (n, 3, size, size) of about mean 0 and deviation 1, drawn from a seed.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

PLACES = list(combinations(range(6), 2))  # the places of the two marks of a body, by class: 15
OBJECTS = ("disc", "cross", "triangle", "ring")
TEXTURES = ("waves", "strokes")


def marked_bodies(classes: np.ndarray, size: int, seed: int, spread: float = 0.3) -> np.ndarray:
    """Draw round bodies with two marks, which sit at two of six places on a circle, or near; the class is which.

    Parameters
    ----------
    classes : int array (n,)
        Of ``PLACES``.
    size : int
    seed : int
    spread : float
        Deviation of the angles of marks; places are pi / 3 apart. Where marks sit exactly, pairs of places that are
        new are flagged better than images of anything else; at 0.3 they are not, as fine-grained classes are not.
    """
    rng = np.random.default_rng(seed)
    n, unit = len(classes), size / 16
    y_BHW, x_BHW = _grid(rng, n, size, jitter=unit)
    x_BCHW = np.broadcast_to(_colours(rng, n, 0.4, 0.6), (n, 3, size, size)).copy()
    body, mark = _colours(rng, n, 0.5, 0.9), _colours(rng, n, 0.0, 0.3)
    x_BCHW = np.where((x_BHW**2 + y_BHW**2 < (7 * unit) ** 2)[:, None], body, x_BCHW)
    for place in np.array(PLACES)[classes].T:
        angle = (place * np.pi / 3 + rng.normal(scale=spread, size=n))[:, None, None]
        away = (x_BHW - 4 * unit * np.cos(angle)) ** 2 + (y_BHW - 4 * unit * np.sin(angle)) ** 2
        x_BCHW = np.where((away < (1.5 * unit) ** 2)[:, None], mark, x_BCHW)
    return _finished(rng, x_BCHW)


def objects_on_textures(objects: np.ndarray | None, textures: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw an object anywhere on a texture that fills the image; or, with ``objects=None``, textures alone.

    Parameters
    ----------
    objects : int array (n,) of ``OBJECTS``, or None
    textures : int array (n,)
        Of ``TEXTURES``: waves run across the image, strokes down.
    size : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    n, unit = len(textures), size / 32
    y_BHW, x_BHW = _grid(rng, n, size, jitter=0)
    along = np.where((textures == 0)[:, None, None], y_BHW, x_BHW)
    across = np.where((textures == 0)[:, None, None], x_BHW, y_BHW)
    period, bend, phase, where = (rng.uniform(low, high, (n, 1, 1)) for low, high in [(5, 10), (0, 2), (0, 1), (0, 1)])
    bent = along / unit + bend * np.sin(2 * np.pi * (across / unit / 16 + where))
    wave = (0.5 + 0.5 * np.sin(2 * np.pi * (bent / period + phase)))[:, None]
    x_BCHW = _colours(rng, n, 0.2, 0.5) + _colours(rng, n, 0.2, 0.5) * wave
    if objects is not None:
        inside = _inside(rng, objects, x_BHW / unit, y_BHW / unit)
        x_BCHW = np.where(inside[:, None], _colours(rng, n, 0.7, 1.0), x_BCHW)
    return _finished(rng, x_BCHW)


def agreeing(objects: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Draw for each object of the first two a texture that agrees with it at a rate."""
    return np.where(np.random.default_rng(seed).uniform(size=len(objects)) < rate, objects, 1 - objects)


def _inside(rng: np.random.Generator, objects: np.ndarray, x_BHW: np.ndarray, y_BHW: np.ndarray) -> np.ndarray:
    """Return which pixels an object covers, of a size, at a place and turned as is drawn."""
    n = len(objects)
    radius, turn = rng.uniform(9, 12, (n, 1, 1)), rng.uniform(0, 2 * np.pi, (n, 1, 1))
    right, down = (rng.uniform(-5, 5, (n, 1, 1)) for _ in range(2))
    u, v = (x_BHW - right) / radius, (y_BHW - down) / radius
    u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    away = np.hypot(u, v)
    third = 2 * np.pi / 3
    shapes = {
        "disc": away < 0.8,
        "triangle": np.max([u * np.cos(k * third) + v * np.sin(k * third) for k in range(3)], axis=0) < 0.6,
        "cross": (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95),
        "ring": (away < 0.95) & (away > 0.5),
    }
    return np.choose(objects[:, None, None], [shapes[name] for name in OBJECTS])


def _grid(rng: np.random.Generator, n: int, size: int, jitter: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of pixels from the middle (n, size, size), moved a little in each image."""
    places = np.arange(size) - (size - 1) / 2
    right, down = (rng.uniform(-jitter, jitter, (n, 1, 1)) for _ in range(2))
    shape = (n, size, size)
    return np.broadcast_to(places[:, None] - down, shape), np.broadcast_to(places - right, shape)


def _colours(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, (n, 3, 1, 1))


def _finished(rng: np.random.Generator, x_BCHW: np.ndarray) -> np.ndarray:
    """Add noise, and bring pixels of 0 to 1 to the scale that networks take."""
    return ((x_BCHW + rng.normal(scale=0.04, size=x_BCHW.shape) - 0.5) / 0.25).astype(np.float32)
