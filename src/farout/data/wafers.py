"""Wafers with the places of their defects: drawn ones of nine kinds, and the maps of a public sample.

A drawn wafer is a homogeneous background on the disc and a pattern of one kind, named as in MixedWM38 (Wang, Xu, Yang,
Zhang, Li, IEEE TSM 2020) and WM-811K. Numbers of defects are near those of failed dies in MixedWM38: the median of its
normal wafers is 196, of rings and blobs 466 to 626, of random ones 879 and of nearly full ones 1,952.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from farout.data._find import find
from farout.errors import BadInput, UnknownName

__all__ = ["KINDS", "drawn_wafers", "real_wafers"]

BACKGROUND = (60, 400)  # defects of a wafer without a pattern
Drawer = Callable[[np.random.Generator], np.ndarray]


def drawn_wafers(
    kinds: Sequence[str],
    count: int,
    side: int = 4096,
    seed: int = 0,
    background: tuple[int, int] = BACKGROUND,
    share: float = 1.0,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw wafers.

    Parameters
    ----------
    kinds : sequence of str
        Some of ``KINDS``.
    count : int
        Of each kind.
    side : int
        Of the square around the disc, in places.
    seed : int
        A wafer follows from it, its kind and its place among that kind; the other kinds do not matter.
    background : (int, int)
        Fewest and most defects that are no part of the pattern; their logarithm is drawn evenly.
    share : float
        Of the pattern's defects that are there: patterns grow faint with it.

    Returns
    -------
    list of int64 array (n_i, 2)
        Places from 0 to ``side - 1``, each once.
    array of str (len(kinds) * count,)
        Their kinds.

    Raises
    ------
    UnknownName
        A kind is none of these.
    BadInput
        ``count`` or ``side`` is below 1, the background's range is empty, or the share is not above 0 and at most 1.

    Examples
    --------
    >>> maps, kinds = drawn_wafers(["Normal", "Donut"], 2)
    >>> kinds.tolist(), maps[0].shape[1], bool(len(maps[2]) > len(maps[0]))
    (['Normal', 'Normal', 'Donut', 'Donut'], 2, True)
    """
    least, most = background
    if count < 1 or side < 1 or not 1 <= least <= most or not 0 < share <= 1:
        raise BadInput(
            "count and side are at least 1, a background goes from at least 1 up and share is above 0 and at most 1; "
            f"they are {count}, {side}, {background} and {share}"
        )
    unknown = [kind for kind in kinds if kind not in _DRAWERS]
    if unknown:
        raise UnknownName("kind of wafer", unknown[0], KINDS)
    maps = []
    for kind in kinds:
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        for _ in range(count):
            grain = _even(rng, round(np.exp(rng.uniform(np.log(least), np.log(most)))))
            pattern = _DRAWERS[kind](rng)
            xy = np.concatenate((grain, pattern[rng.uniform(size=len(pattern)) < share]))
            xy = xy[(xy**2).sum(axis=1) < 1]
            maps.append(np.unique(np.floor((xy + 1) / 2 * side).astype(np.int64), axis=0))
    return maps, np.repeat(np.array(kinds, dtype=str), count)


def real_wafers(side: int = 4096, seed: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Read the sample of MixedWM38: 104 wafers, 13 each of eight kinds, as the places of their failed dies.

    Parameters
    ----------
    side : int
        The 52 dies across are spread over so many places.
    seed : int, optional
        Draws the defect of a die anywhere within it; without one it lies in the middle.

    Returns
    -------
    list of int64 array (n_i, 2)
    array of str (104,)

    Raises
    ------
    DataMissing
        The file is not here.
    """
    with np.load(find("wafer/mixedwm38_sample.npz"), allow_pickle=False) as stored:
        states_NHW, kinds = stored["maps52"], stored["classes"][stored["labels"]]
    rng = np.random.default_rng(seed)
    maps = []
    for states_HW in states_NHW:
        dies = np.argwhere(states_HW == 2)
        within = 0.5 if seed is None else rng.uniform(size=dies.shape)
        maps.append(np.unique(np.floor((dies + within) * side / len(states_HW)).astype(np.int64), axis=0))
    return maps, kinds.astype(str)


# All drawers work in a disc of radius 1 about 0; what falls outside of it is cut off.


def _nothing(rng: np.random.Generator) -> np.ndarray:
    return np.empty((0, 2))


def _even(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw places evenly over the disc."""
    return _polar(np.sqrt(rng.uniform(size=n)), rng.uniform(0, 2 * np.pi, n))


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)


def _cluster(rng: np.random.Generator, n: int, away: float, spread: tuple[float, float]) -> np.ndarray:
    """Draw an elliptic Gaussian so far from the centre, in any direction."""
    direction = rng.uniform(0, 2 * np.pi)
    turn = _polar(np.ones(2), rng.uniform(0, 2 * np.pi) + np.array([0, np.pi / 2]))
    return away * _polar(np.ones(1), np.array([direction])) + rng.normal(size=(n, 2)) * rng.uniform(*spread, 2) @ turn


def _centre(rng: np.random.Generator) -> np.ndarray:
    return _cluster(rng, int(rng.integers(200, 500)), rng.uniform(0, 0.1), (0.12, 0.25))


def _loc(rng: np.random.Generator) -> np.ndarray:
    return _cluster(rng, int(rng.integers(100, 300)), rng.uniform(0.4, 0.75), (0.06, 0.14))


def _ring(rng: np.random.Generator, n: int, radius: float, width: float, span: float) -> np.ndarray:
    """Draw an arc of so many radians, anywhere around the centre."""
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0, span, n)
    return _polar(rng.normal(radius, width, n), angle)


def _donut(rng: np.random.Generator) -> np.ndarray:
    ring = _ring(rng, int(rng.integers(300, 550)), rng.uniform(0.35, 0.6), rng.uniform(0.05, 0.1), 2 * np.pi)
    return ring + rng.normal(0, 0.05, 2)


def _edge_arc(rng: np.random.Generator) -> np.ndarray:
    return _ring(rng, int(rng.integers(100, 300)), 0.93, rng.uniform(0.02, 0.05), rng.uniform(0.5, 1.8))


def _edge_ring(rng: np.random.Generator) -> np.ndarray:
    return _ring(rng, int(rng.integers(300, 600)), 0.93, rng.uniform(0.02, 0.05), rng.uniform(1.7, 2) * np.pi)


def _scratch(rng: np.random.Generator) -> np.ndarray:
    """Draw a bent line, so thin that it is one place wide in a plane of some hundred."""
    n, length = int(rng.integers(80, 240)), rng.uniform(0.5, 1.3)
    along = rng.uniform(-length / 2, length / 2, n)
    bend, turn = rng.uniform(-1.5, 1.5), rng.uniform(0, 2 * np.pi)
    across = bend * (along**2 - length**2 / 12) / 2 + rng.normal(0, 0.002, n)
    middle = _polar(np.sqrt(rng.uniform(0, 0.36, 1)), rng.uniform(0, 2 * np.pi, 1))
    axes = _polar(np.ones(2), turn + np.array([0, np.pi / 2]))
    return middle + np.stack((along, across), axis=1) @ axes


_DRAWERS: dict[str, Drawer] = {
    "Normal": _nothing,
    "Center": _centre,
    "Donut": _donut,
    "Edge_Loc": _edge_arc,
    "Edge_Ring": _edge_ring,
    "Loc": _loc,
    "Near_Full": lambda rng: _even(rng, int(rng.integers(1500, 2000))),
    "Random": lambda rng: _even(rng, int(rng.integers(550, 1000))),
    "Scratch": _scratch,
}
KINDS = tuple(_DRAWERS)
