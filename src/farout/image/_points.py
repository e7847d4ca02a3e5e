"""Lists of places, many at once: one long list, and which map each place belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farout.errors import BadInput


class Points:
    """Places of several maps.

    Parameters
    ----------
    places : int64 tensor (n, 2)
        Those of a map stand together, maps in their order.
    counts : int64 tensor (maps,)
        How many places a map has.

    Attributes
    ----------
    sample : int64 tensor (n,)
        The map of each place.
    """

    def __init__(self, places: Tensor, counts: Tensor) -> None:
        self.places, self.counts = places, counts
        self.sample = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, maps: Sequence[np.ndarray], device: torch.device) -> Points:
        """Join arrays (n_i, 2).

        Examples
        --------
        >>> Points.of([np.array([[1, 2]]), np.empty((0, 2), int)], torch.device("cpu")).counts.tolist()
        [1, 0]
        """
        places = np.concatenate([np.empty((0, 2), np.int64), *maps])
        counts = np.array([len(one) for one in maps], np.int64)
        return cls(torch.from_numpy(places).to(device), torch.from_numpy(counts).to(device))

    def chosen(self, rows: Tensor) -> Points:
        """Return the places of some maps, in their order."""
        starts, counts = (self.counts.cumsum(0) - self.counts)[rows], self.counts[rows]
        shift = starts - (counts.cumsum(0) - counts)
        there = shift.repeat_interleave(counts)
        return Points(self.places[there + torch.arange(len(there), device=there.device)], counts)

    def moved(
        self, side: int, generator: torch.Generator, *, turn: bool, translation: float, drop: float, noise: float
    ) -> Points:
        """Draw a wafer that could as well have been made, of each map.

        Turned by any angle about the centre of the plane and mirrored or not, translated, of its places up to a share
        left out, and up to such a share added anywhere on the disc. What leaves the plane is lost.

        Parameters
        ----------
        side : int
        generator : torch.Generator
            Of the CPU, so that a seed means the same on every device.
        turn : bool
        translation : float
            Largest, in either direction, in sides.
        drop, noise : float
            Largest share of places left out, and added.
        """
        device, maps = self.places.device, len(self)

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64).to(device)

        centre = (side - 1) / 2
        kept = drawn(len(self.places)) >= (drop * drawn(maps))[self.sample]
        xy, sample = self.places[kept] - centre, self.sample[kept]
        if turn:
            angle, mirrored = 2 * math.pi * drawn(maps)[sample], drawn(maps)[sample] < 0.5
            x, y = xy[:, 0], torch.where(mirrored, -xy[:, 1], xy[:, 1])
            xy = torch.stack((angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y), 1)
        xy = xy + ((2 * drawn(maps, 2) - 1) * translation * side)[sample]
        more = (noise * drawn(maps) * self.counts).round().long()
        total = int(more.sum())
        radius, angle = drawn(total).sqrt() * side / 2, 2 * math.pi * drawn(total)
        added = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
        places = (torch.cat((xy, added)) + centre).round().long()
        sample = torch.cat((sample, torch.arange(maps, device=device).repeat_interleave(more)))
        inside = ((places >= 0) & (places < side)).all(1)
        places, sample = places[inside], sample[inside]
        return Points(places[sample.argsort(stable=True)], torch.bincount(sample, minlength=maps))


def read_maps(X: Any, side: int) -> list[np.ndarray]:
    """Check lists of places, and name each place once.

    Parameters
    ----------
    X : iterable of int array (n_i, 2)
    side : int
        Places go from 0 to ``side - 1``.

    Returns
    -------
    list of int64 array (m_i, 2)
        Sorted.

    Raises
    ------
    BadInput

    Examples
    --------
    >>> [one.tolist() for one in read_maps([[[3, 1], [0, 2], [3, 1]], []], side=4)]
    [[[0, 2], [3, 1]], []]
    """
    maps = []
    for at, one in enumerate(X):
        places = np.asarray(one)
        if places.size == 0:
            places = np.empty((0, 2), np.int64)
        if places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu":
            raise BadInput(
                f"map {at} is an array {places.shape} of {places.dtype}; a map is an array (n, 2) of whole numbers, "
                "the places of its defects"
            )
        if len(places) and not (places.min() >= 0 and places.max() < side):
            raise BadInput(
                f"the places of map {at} go from {places.min()} to {places.max()}, and the plane from 0 to {side - 1}; "
                "scale them, or set side"
            )
        maps.append(np.unique(places.astype(np.int64), axis=0))
    return maps


def read_labels(y: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, sorted, and the place of each of n labels among them.

    Raises
    ------
    BadInput
        There is no word or whole number for each map, there are fewer than two classes, or one is below 0.

    Examples
    --------
    >>> classes, codes = read_labels(["b", "a", "b"], 3)
    >>> classes.tolist(), codes.tolist()
    (['a', 'b'], [1, 0, 1])
    """
    if y is None:
        raise BadInput("open-set recognition learns known classes: fit(X, y) takes the class of each map")
    labels = np.asarray(y)
    if labels.dtype.kind == "O":
        labels = labels.astype(str)
    if labels.shape != (n,) or labels.dtype.kind not in "iuUS":
        raise BadInput(f"y is {labels.shape} of {labels.dtype}; give a word or whole number for each of {n} maps")
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise BadInput(f"the classes are {classes.tolist()}; a network tells two apart at least")
    if classes.dtype.kind == "i" and classes[0] < 0:
        raise BadInput(f"a class is called {classes[0]}, and -1 says 'novel'; number them from 0")
    return classes, codes
