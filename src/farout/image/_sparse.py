"""Convolutions on the active sites of a large, nearly empty plane, in plain index operations of torch.

A site is the key ``(map * 2^20 + u) * 2^20 + v`` of its map and place; keys are sorted, so a neighbour is found by
bisection. The list of all pairs (row out, row in) of an offset is the offset's part of the rulebook; a convolution is
one matrix product for each offset, whose rows are added up.

Shape legend: N active sites, C channels, M maps, K offsets of a window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput

FIELD = 20  # bits of a coordinate in a key
MARGIN = 8  # the last coordinates stay free, so that beyond an edge lies a key that no site has
LARGEST = 2**FIELD - MARGIN  # side of a plane
FEWEST = 16  # rows whose mean and variance say anything

Rules = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sites:
    """Active sites of several maps, in the order of their keys.

    Attributes
    ----------
    keys : int64 tensor (N,)
        Sorted, each once.
    maps : int
        How many maps there are, those without a site too.
    """

    keys: Tensor
    maps: int

    @classmethod
    def of(cls, places: Tensor, sample: Tensor, maps: int) -> tuple[Sites, Tensor]:
        """Return the sites where points lie, and how many points lie on each.

        Parameters
        ----------
        places : int64 tensor (n, 2)
            From 0 to ``LARGEST - 1``.
        sample : int64 tensor (n,)
            The map of each point.
        maps : int

        Examples
        --------
        >>> places = torch.tensor([[5, 1], [0, 3], [5, 1]])
        >>> sites, counts = Sites.of(places, torch.zeros(3, dtype=torch.int64), maps=1)
        >>> sites.places.tolist(), counts.tolist()
        ([[0, 3], [5, 1]], [1, 2])
        """
        if len(places) and not (places.min() >= 0 and places.max() < LARGEST):
            raise BadInput(
                f"a place lies from 0 to {LARGEST - 1}, and here from {int(places.min())} to {int(places.max())}"
            )
        keys, counts = _keys(sample, places).unique(return_counts=True)
        return cls(keys, maps), counts

    @property
    def sample(self) -> Tensor:
        """The map of each site; int64 (N,)."""
        return self.keys >> 2 * FIELD

    @property
    def places(self) -> Tensor:
        """Where each site lies in its map; int64 (N, 2)."""
        return torch.stack((self.keys >> FIELD, self.keys), 1) & (2**FIELD - 1)

    def coarser(self) -> tuple[Sites, Tensor, Tensor]:
        """Halve the plane.

        Returns
        -------
        Sites
            Where any of a site's 2 x 2 finer ones is active.
        parent : int64 tensor (N,)
            The row of the coarser site that each site falls into.
        slot : int64 tensor (N,)
            Its place there: 0, 1, 2 or 3, row by row.
        """
        places = self.places
        keys, parent = _keys(self.sample, places // 2).unique(return_inverse=True)
        return Sites(keys, self.maps), parent, 2 * (places[:, 0] % 2) + places[:, 1] % 2


def rulebook(sites: Sites, size: int = 3) -> Rules:
    """List for each offset of a window, row by row, the pairs (row out, row in) of sites that are both active.

    Parameters
    ----------
    sites : Sites
    size : int
        Of the window, odd, below 2 ``MARGIN``.

    Returns
    -------
    list of (int64 tensor, int64 tensor)
        ``size * size`` of them; a row stands at most once on either side of an offset.
    """
    keys, half = sites.keys, size // 2
    steps = torch.arange(-half, half + 1, device=keys.device)
    offsets = ((steps[:, None] << FIELD) + steps).reshape(-1)[: size * size // 2]  # the others mirror these
    wanted = keys + offsets[:, None]
    at = torch.searchsorted(keys, wanted).clamp_(max=max(len(keys) - 1, 0))
    offset, out = (keys[at] == wanted).nonzero(as_tuple=True) if len(keys) else (keys, keys)
    counts = torch.bincount(offset, minlength=len(offsets)).tolist()
    pairs = list(zip(out.split(counts), at[offset, out].split(counts)))
    rows = torch.arange(len(keys), device=keys.device)
    return [*pairs, (rows, rows), *((there, here) for here, there in reversed(pairs))]


class SubmanifoldConv(nn.Module):
    """A convolution that is active where its input is, and only there.

    ``y(p)`` is the sum of ``x(p + o) @ W_o`` over the offsets ``o`` for which ``p + o`` is active.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    size : int
        Of the window, odd.

    Attributes
    ----------
    weight : Tensor (size * size, inputs, outputs)
        Of each offset, row by row.

    Examples
    --------
    >>> sites, counts = Sites.of(torch.tensor([[2, 2], [2, 3], [9, 9]]), torch.zeros(3, dtype=torch.int64), maps=1)
    >>> conv = SubmanifoldConv(1, 1)
    >>> _ = nn.init.ones_(conv.weight)
    >>> conv(counts[:, None].float(), rulebook(sites)).flatten().tolist()
    [2.0, 2.0, 1.0]
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(_drawn(size * size, inputs, outputs))

    def forward(self, x_NC: Tensor, rules: Rules) -> Tensor:
        """Return the sums (N, outputs)."""
        middle = len(rules) // 2  # every site meets itself
        y_NC = x_NC @ self.weight[middle]
        for place, (out, into) in enumerate(rules):
            if place != middle and len(out):
                y_NC.index_add_(0, out, x_NC.index_select(0, into) @ self.weight[place])
        return y_NC


class StridedConv(nn.Module):
    """A convolution of windows 2 x 2 that do not overlap: active where any site of its window is.

    Attributes
    ----------
    weight : Tensor (4, inputs, outputs)
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_drawn(4, inputs, outputs))

    def forward(self, x_NC: Tensor, parent: Tensor, slot: Tensor, coarse: Sites) -> Tensor:
        """Return the sums, a row for each coarser site; the arguments are what ``Sites.coarser`` returns."""
        y_NC = x_NC.new_zeros(len(coarse.keys), self.weight.shape[2])
        for place, weight in enumerate(self.weight):
            rows = (slot == place).nonzero()[:, 0]
            y_NC.index_add_(0, parent[rows], x_NC.index_select(0, rows) @ weight)
        return y_NC


class ActiveNorm(nn.BatchNorm1d):
    """Batch norm over active rows; a batch of fewer than 16 says too little, and takes the running statistics."""

    def forward(self, x_NC: Tensor) -> Tensor:
        """Return the normalised rows (N, C)."""
        if self.training and len(x_NC) < FEWEST:
            return F.batch_norm(x_NC, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x_NC)


def pooled(x_NC: Tensor, group: Tensor, groups: int, how: str) -> Tensor:
    """Pool rows by the group that each belongs to: a coarser site, or a map.

    Parameters
    ----------
    x_NC : tensor (N, C)
    group : int64 tensor (N,)
    groups : int
    how : {"sum", "mean", "max"}

    Returns
    -------
    tensor (groups, C)
        A group without rows is 0.

    Examples
    --------
    >>> rows, group = torch.tensor([[-1.0], [-3.0], [5.0]]), torch.tensor([0, 0, 2])
    >>> [pooled(rows, group, 3, how).flatten().tolist() for how in ("sum", "mean", "max")]
    [[-4.0, 0.0, 5.0], [-2.0, 0.0, 5.0], [-1.0, 0.0, 5.0]]
    """
    start = x_NC.new_zeros(groups, x_NC.shape[1])
    if how == "max":
        return start.scatter_reduce(0, group[:, None].expand_as(x_NC), x_NC, "amax", include_self=False)
    total = start.index_add(0, group, x_NC)
    return total / torch.bincount(group, minlength=groups).clamp(min=1)[:, None] if how == "mean" else total


def _keys(sample: Tensor, places: Tensor) -> Tensor:
    return (((sample << FIELD) | places[:, 0]) << FIELD) | places[:, 1]


def _drawn(offsets: int, inputs: int, outputs: int) -> Tensor:
    """Draw weights as He does: of windows in which all sites are active."""
    return torch.randn(offsets, inputs, outputs) * math.sqrt(2 / (offsets * inputs))
