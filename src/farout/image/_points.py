"""Lists of places, many at once: one long list, and which map each place belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
