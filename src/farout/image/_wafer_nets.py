"""Networks that tell kinds of wafers apart: on the places of defects as they are, and on counts in bins.

Both take :class:`farout.image._points.Points`. ``features`` of a map are the mean and the maximum over its last sites,
and log(1 + n) of its n defects; they are 0 where there is none. ``head`` makes logits of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from farout.image._points import Points
from farout.image._sparse import ActiveNorm, Sites, StridedConv, SubmanifoldConv, pooled, rulebook


class _PointsNet(nn.Module):
    """The head, and how many defects there are; the head brings features to one scale, as log(1 + n) is large."""

    def __init__(self, last: int, classes: int) -> None:
        super().__init__()
        self.width = 2 * last + 1
        self.head = nn.Sequential(ActiveNorm(self.width, affine=False), nn.Linear(self.width, classes))

    def features(self, points: Points) -> Tensor:
        """Return what the head reads (maps, width)."""
        pooled_MC = self.body(points)
        return torch.cat((pooled_MC, points.counts.float().log1p()[:, None]), 1)

    def body(self, points: Points) -> Tensor:
        """Return means and maxima (maps, width - 1)."""
        raise NotImplementedError(f"'{type(self).__name__}' must write body")

    def forward(self, points: Points) -> Tensor:
        """Return logits (maps, classes)."""
        return self.head(self.features(points))


class SparseNet(_PointsNet):
    """Counts summed by halving the plane ``stem`` times; then blocks of two submanifold convolutions, halving between.

    Every block also reads log(1 + n) of the n defects of each of its sites.

    Parameters
    ----------
    stem : int
    widths : sequence of int
        Channels of each block.
    classes : int
    """

    def __init__(self, stem: int, widths: Sequence[int], classes: int) -> None:
        super().__init__(widths[-1], classes)
        self.stem = stem
        self.blocks = nn.ModuleList(_Block(before + 1, width) for before, width in zip((0, *widths), widths))
        self.strides = nn.ModuleList(StridedConv(width, width) for width in widths[:-1])

    def body(self, points: Points) -> Tensor:
        """Return means and maxima over the sites of the last block."""
        sites, counts = Sites.of(points.places, points.sample, len(points))
        n_N1 = counts[:, None].float()
        for _ in range(self.stem):
            sites, n_N1 = _summed(sites, n_N1)[:2]
        x_NC = n_N1[:, :0]
        for place, block in enumerate(self.blocks):
            if place:
                coarse, n_N1, parent, slot = _summed(sites, n_N1)
                x_NC, sites = self.strides[place - 1](x_NC, parent, slot, coarse), coarse
            x_NC = block(torch.cat((x_NC, n_N1.log1p()), 1), rulebook(sites))
        return torch.cat([pooled(x_NC, sites.sample, sites.maps, how) for how in ("mean", "max")], 1)


class BinnedNet(_PointsNet):
    """The same on an ordinary image, log(1 + n) of the n defects in each of ``bins`` x ``bins`` squares.

    Parameters
    ----------
    side : int
        Of the plane.
    bins : int
    widths : sequence of int
        Channels of each block; the image is halved between blocks.
    classes : int
    """

    def __init__(self, side: int, bins: int, widths: Sequence[int], classes: int) -> None:
        super().__init__(widths[-1], classes)
        self.side, self.bins = side, bins
        layers: list[nn.Module] = [*_convolved(1, widths[0])]
        for before, width in pairwise(widths):
            layers += [nn.Conv2d(before, before, 2, 2, bias=False), *_convolved(before, width)]
        self.layers = nn.Sequential(*layers)

    def body(self, points: Points) -> Tensor:
        """Return means and maxima over the last image; a map without defects has zeros."""
        n_BCHW = binned(points, self.side, self.bins)[:, None].float()
        x_BCHW = self.layers(n_BCHW.log1p())
        found = torch.cat((x_BCHW.mean((2, 3)), x_BCHW.amax((2, 3))), 1)
        return found * (points.counts > 0)[:, None]


def binned(points: Points, side: int, bins: int) -> Tensor:
    """Count the places in each of ``bins`` x ``bins`` squares.

    Returns
    -------
    int64 tensor (maps, bins, bins)
    """
    squares = points.places * bins // side
    at = (points.sample * bins + squares[:, 0]) * bins + squares[:, 1]
    return torch.bincount(at, minlength=len(points) * bins * bins).view(len(points), bins, bins)


class _Block(nn.Module):
    """Twice a submanifold convolution, batch norm over active rows, and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = SubmanifoldConv(inputs, outputs), SubmanifoldConv(outputs, outputs)
        self.norms = nn.ModuleList((ActiveNorm(outputs), ActiveNorm(outputs)))

    def forward(self, x_NC: Tensor, rules: list[tuple[Tensor, Tensor]]) -> Tensor:
        x_NC = self.norms[0](self.first(x_NC, rules)).relu()
        return self.norms[1](self.second(x_NC, rules)).relu()


def _summed(sites: Sites, n_N1: Tensor) -> tuple[Sites, Tensor, Tensor, Tensor]:
    """Halve the plane and sum the counts; also return where each site went."""
    coarse, parent, slot = sites.coarser()
    return coarse, pooled(n_N1, parent, len(coarse.keys), "sum"), parent, slot


def _convolved(inputs: int, outputs: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for before in (inputs, outputs):
        found += [nn.Conv2d(before, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return found
