"""PatchCore: Towards Total Recall in Industrial Anomaly Detection.

Karsten Roth, Latha Pemula, Joaquin Zepeda, Bernhard Scholkopf, Thomas Brox, Peter Gehler, CVPR 2022 (arXiv 2106.08265).

A bank holds features of patches of normal images, thinned out to those that cover the others best. A patch is as far
out as its nearest neighbour in the bank is away, an image as its farthest patch, the less so where the neighbour is
itself in a sparse region of the bank.

The paper claims, on MVTec AD with WideResNet-50, image AUROC 99.1 with 25 % of the patches, 99.0 with 10 % and 99.0
with 1 %; pixel AUROC 98.1, 98.1 and 98.0, AUPRO 93.4, 93.5 and 93.1; PaDiM's image AUROC is 95.3.

Differences from the paper and the official code (amazon-science/patchcore-inspection):

- The backbone is EfficientNet-Lite0, whose weights a Python package carries, at the ends of its stages with strides 8
  and 16, which is where the paper's ResNet layers 2 and 3 end; any other can be named.
- Images are squeezed to 256 pixels, and not scaled to 256 and cut to 224, so that nothing at the edge is missed.
- A patch has the mean of each channel over its neighbourhood. The code pools channels and neighbourhood together to
  1,024 numbers a level, and again to 1,024 for all levels.
- The image score is weighted by the neighbours of the neighbour, as the paper has it; the code leaves that out.
- The selection starts at one random patch; the code starts at the patch that is farthest from ten random ones. Random
  projection is to 128 dimensions, as in the code, by Gaussian numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from farout.cards import paper
from farout.errors import BadInput
from farout.image._detector import ImageDetector, Progress, pixels
from farout.image._maps import blurred, scaled
from farout.image._patches import at_strides, patches
from farout.image.backbones import DEFAULT, Backbone

__all__ = ["PatchCore", "greedy_coreset"]

STRIDES = (8, 16)
AT_ONCE = 4096  # patches among which some are chosen together
COMPARED = 512  # patches of the bank that are compared together; more takes longer, to get the memory


@paper(
    "PatchCore",
    title="Towards Total Recall in Industrial Anomaly Detection",
    authors="Roth, Pemula, Zepeda, Scholkopf, Brox, Gehler",
    year=2022,
    arxiv="2106.08265",
    kind="detector",
    takes=("image",),
    extra="vision",
    claim="MVTec AD, WideResNet-50: image AUROC 99.1 with 25 % of the patches and 99.0 with 1 %, pixel AUROC 98.1 and "
    "98.0; PaDiM has 95.3 and 97.5.",
    differs="EfficientNet-Lite0 at strides 8 and 16 by default; whole images of 256 pixels; channels are averaged over "
    "the neighbourhood and kept; image scores are weighted as in the paper, which the code leaves out.",
)
class PatchCore(ImageDetector):
    """The farthest distance of a patch to its nearest neighbour among patches of normal images.

    Parameters
    ----------
    coreset : float
        Share of the patches that the bank keeps.
    projection : int, optional
        Dimensions in which patches are chosen, by a random projection of longer features; None for all.
    neighbours : int
        Of the nearest patch of the bank, itself included, that weight the score of the image; 1 for no weighting.
    pool : int
        Side of the neighbourhood that a patch's features are averaged over.
    blur : float
        Deviation of the Gaussian that smooths maps, in pixels.
    backbone : str, Path or torch.nn.Module
        What :class:`farout.image.Backbone` takes.
    layers : sequence of str, optional
        The finest first, which sets the patches; by default the last stages of strides 8 and 16.
    size : int
        Pixels of a side.
    batch_size : int
    device : str
    random_state : int
        Of the projection and of the first patch chosen.

    Raises
    ------
    BadInput
        When fitted: a number is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1))
    >>> images = np.random.default_rng(0).integers(100, 150, (20, 32, 32, 3), dtype=np.uint8)
    >>> detector = PatchCore(coreset=0.1, backbone=net, layers=["0", "1"], size=32, blur=1).fit(images)
    >>> broken = images[:1].copy()
    >>> broken[0, 20:26, 4:10] = 255
    >>> map_HW = detector.score_maps(broken)[0]
    >>> row, column = np.unravel_index(map_HW.argmax(), map_HW.shape)
    >>> bool(20 <= row < 26 and 4 <= column < 10)
    True
    """

    def __init__(
        self,
        *,
        coreset: float = 0.01,
        projection: int | None = 128,  # d*
        neighbours: int = 9,  # b
        pool: int = 3,  # p
        blur: float = 4.0,
        backbone: Any = DEFAULT,
        layers: Sequence[str] | None = None,
        size: int = 256,
        batch_size: int = 32,
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.coreset = coreset
        self.projection = projection
        self.neighbours = neighbours
        self.pool = pool
        self.blur = blur
        self.backbone = backbone
        self.layers = layers
        self.size = size
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _net(self) -> _Net:
        projection = 1 if self.projection is None else self.projection
        if not 0 < self.coreset <= 1 or min(self.neighbours, projection) < 1 or self.blur < 0:
            raise BadInput(
                "'coreset' is above 0 and up to 1, 'neighbours' and 'projection' are 1 at least and 'blur' 0, but they "
                f"are {self.coreset}, {self.neighbours}, {self.projection} and {self.blur}"
            )
        backbone = Backbone(self.backbone, self.layers)
        levels = at_strides(backbone.strides, STRIDES) if self.layers is None else range(len(backbone.layers))
        return _Net(backbone, tuple(levels), self.pool, self.neighbours, self.size, self.blur)

    @torch.no_grad()
    def _learn(self, net: _Net, x_BCHW: Tensor, progress: Progress) -> None:
        parts, found = x_BCHW.split(self.batch_size), []
        for done, part in enumerate(parts, 1):
            found.append(net.embedded(pixels(part.to(self._place()))).flatten(0, 2))
            progress(0.5 * done / len(parts))
        bank = torch.cat(found)
        del found
        count = max(1, int(self.coreset * len(bank)))
        if count < len(bank):
            generator = torch.Generator().manual_seed(self.random_state)
            start = int(torch.randint(len(bank), (1,), generator=generator))
            seen = bank
            if self.projection is not None and self.projection < bank.shape[1]:
                drawn = torch.randn(bank.shape[1], self.projection, generator=generator) / self.projection**0.5
                seen = bank @ drawn.to(bank)
            bank = bank[greedy_coreset(seen, count, start, lambda share: progress(0.5 + 0.5 * share))]
        net.bank = bank
        progress(1.0)


def greedy_coreset(x: Tensor, count: int, start: int = 0, progress: Callable[[float], None] | None = None) -> Tensor:
    """Choose rows that cover all: each is the farthest from those that were chosen before it.

    Parameters
    ----------
    x : float Tensor (n, d)
    count : int
        Of rows to choose, up to n.
    start : int
        The first of them.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    int64 Tensor (count,)
        No row twice, in the order in which they were chosen.

    Raises
    ------
    BadInput
        There are not so many rows.

    Examples
    --------
    >>> greedy_coreset(torch.tensor([[0.0], [1.0], [4.0], [9.0]]), 3)
    tensor([0, 3, 2])
    """
    if not 0 < count <= len(x) or not 0 <= start < len(x):
        raise BadInput(f"{count} rows from row {start} on cannot be chosen among {len(x)}")
    x = x - x.mean(0)  # shorter rows lose less to rounding
    squares = x.square().sum(1)
    least = torch.full_like(squares, torch.inf)  # squared distance to the nearest chosen row
    chosen = new = torch.tensor([start], device=x.device)
    while True:
        for rows, square, near in zip(*(one.split(AT_ONCE) for one in (x, squares, least))):
            apart = torch.addmm(squares[new], rows, x[new].T, alpha=-2).amin(1) + square
            torch.minimum(near, apart, out=near)
        least[new] = -torch.inf  # even where others lie at the same place
        if len(chosen) >= count:
            return chosen
        new = _next(x, squares, least, min(count - len(chosen), AT_ONCE // 16))
        chosen = torch.cat([chosen, new])
        if progress is not None:
            progress(len(chosen) / count)


def _next(x: Tensor, squares: Tensor, least: Tensor, most: int) -> Tensor:
    """Choose rows as long as they are sure to be among the farthest ones of now.

    Distances to what is chosen only shrink. So what is chosen among the farthest rows is what would be chosen among
    all, until they come nearer than all others were at first; and only they are compared meanwhile.
    """
    far = least.topk(min(AT_ONCE, len(x))).indices.sort().values
    bound = least.index_fill(0, far, -torch.inf).max()
    x, squares, least = x[far], squares[far], least[far]
    found = []
    row = least.argmax(keepdim=True)
    while True:
        found.append(far[row])
        torch.minimum(least, torch.addmv(squares + squares[row], x, x[row][0], alpha=-2), out=least)
        least.index_fill_(0, row, -torch.inf)
        row = least.argmax(keepdim=True)
        if len(found) >= most or least[row] <= bound:
            return torch.cat(found)


class _Net(nn.Module):
    """Images in, scores and maps out; m patches in the bank, D channels."""

    bank: Tensor

    def __init__(
        self, backbone: Backbone, levels: tuple[int, ...], pool: int, neighbours: int, size: int, blur: float
    ) -> None:
        super().__init__()
        self.backbone, self.levels, self.pool, self.neighbours = backbone, levels, pool, neighbours
        self.size, self.blur = size, blur
        self.register_buffer("bank", torch.zeros(0, sum(backbone.channels[level] for level in levels)))  # (m, D)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BHWD = self.embedded(x_BCHW)
        with torch.autocast(x_BHWD.device.type, enabled=False):
            x_BPD = x_BHWD.flatten(1, 2)
            nearest_BP = self._nearest(x_BPD.flatten(0, 1)).unflatten(0, (-1, x_BPD.shape[1]))
            distance_BP = torch.linalg.vector_norm(x_BPD - self.bank[nearest_BP], dim=2)
            map_BHW = scaled(distance_BP.unflatten(1, x_BHWD.shape[1:3]), (self.size, self.size))
            return self._weighted(x_BPD, nearest_BP, distance_BP), blurred(map_BHW, self.blur)

    def embedded(self, x_BCHW: Tensor) -> Tensor:
        """Return the features of patches (B, h, w, D)."""
        features = self.backbone(x_BCHW)
        return patches([features[level].float() for level in self.levels], self.pool).permute(0, 2, 3, 1)

    def _nearest(self, x: Tensor) -> Tensor:
        """Return the places in the bank (N,) of the nearest neighbours of rows (N, D)."""
        centre = self.bank.mean(0)  # shorter rows lose less to rounding
        x, best, found = x - centre, None, None
        for start in range(0, len(self.bank), COMPARED):
            part = self.bank[start : start + COMPARED] - centre
            least, place = torch.addmm(part.square().sum(1), x, part.T, alpha=-2).min(1)
            if best is None or found is None:
                best, found = least, place
            else:
                found = torch.where(least < best, place + start, found)
                best = torch.minimum(least, best)
        assert found is not None
        return found

    def _weighted(self, x_BPD: Tensor, nearest_BP: Tensor, distance_BP: Tensor) -> Tensor:
        """Return the largest distance of a patch (B,), weighted by how near its neighbour's neighbours are."""
        largest, patch = distance_BP.max(1)
        count = min(self.neighbours, len(self.bank))
        if count == 1:
            return largest
        nearest_B1 = nearest_BP.gather(1, patch[:, None])
        farthest_BD = x_BPD.gather(1, patch[:, None, None].expand(-1, 1, x_BPD.shape[2]))[:, 0]
        centred = self.bank - self.bank.mean(0)
        apart_Bm = torch.addmm(centred.square().sum(1), centred[nearest_B1[:, 0]], centred.T, alpha=-2)
        apart_Bm = apart_Bm.scatter(1, nearest_B1, -torch.inf)  # itself is the first, even beside one at its place
        kin_Bb = apart_Bm.topk(count, dim=1, largest=False).indices
        distance_Bb = torch.linalg.vector_norm(farthest_BD[:, None] - self.bank[kin_Bb], dim=2)
        return largest * (1 - distance_Bb.softmax(1)[:, 0])
