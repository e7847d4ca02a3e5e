"""FOD's network: a transformer a level of features, whose attention is held against Gaussians of learned widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.image._maps import blurred
from farout.image.backbones import Backbone

SLACK = 1e-4  # inside all logarithms; it bounds the divergences, some of which are driven up
WEIGHT = 0.5  # of divergences and entropies, beside the error of reconstruction
FLOOR = 0.01  # of a position's weight, in shares of a uniform one, so that equal correlations leave the error alone
SMOOTHING = 4.0  # pixels
MOST = 2**24  # correlations of a layer and branch that are trained on at once

# what a layer shows of a branch: its name, correlations (B, heads, L, L) and widths of the target (B, heads, L, 2)
Seen = Callable[[str, Tensor, Tensor], None]


class FodNet(nn.Module):
    """Images in, scores and maps out: a reconstruction of each level, whose map is the mean of the levels'."""

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        widths: Sequence[int],
        depth: int,
        heads: int,
        branches: Sequence[str],
        weighed_by: str | None,
    ) -> None:
        super().__init__()
        self.backbone, self.size = backbone, size
        found = backbone(torch.zeros(1, 3, size, size, device=backbone.mean.device))
        self.levels: Any = nn.ModuleList(
            Level(f_BCHW.shape[1], tuple(f_BCHW.shape[2:]), width, depth, heads, branches, weighed_by)
            for f_BCHW, width in zip(found, widths)
        )

    def tokens(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return each level's features, averaged over 3 x 3 positions (B, L, D)."""
        with torch.no_grad():
            return [F.avg_pool2d(f, 3, 1, 1).flatten(2).transpose(1, 2).float() for f in self.backbone(x_BCHW)]

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, size, size)."""
        maps = [
            F.interpolate(level.scores(x)[:, None], (self.size, self.size), mode="bilinear", align_corners=True)
            for level, x in zip(self.levels, self.tokens(x_BCHW))
        ]
        map_BHW = blurred(torch.cat(maps, 1).mean(1), SMOOTHING)
        return map_BHW.amax((1, 2)), map_BHW


class Level(nn.Module):
    """One level of features: embedding, layers, and back to the features.

    Parameters
    ----------
    features : int
        D, of a position.
    grid : (int, int)
        Height and width; L positions.
    width, depth, heads : int
    branches : sequence of str
        What a layer is made of: ``"intra"``, ``"inter"``.
    weighed_by : str, optional
        The branch whose correlations weigh the error; None leaves the error alone.
    """

    reference: Tensor
    position: Tensor

    def __init__(
        self,
        features: int,
        grid: tuple[int, ...],
        width: int,
        depth: int,
        heads: int,
        branches: Sequence[str],
        weighed_by: str | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.depth, self.weighed_by = grid, depth, weighed_by
        length = math.prod(grid)
        self.at_once = max(1, MOST // (heads * length**2))
        self.embed = _embedding(features, width)
        if "inter" in branches:
            self.embed_reference = _embedding(features, width)
            self.register_buffer("reference", torch.zeros(1, length, features))
        self.register_buffer("position", sine_code(grid, width), persistent=False)
        self.layers = nn.ModuleList(Layer(width, heads, branches) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, features)

    def forward(self, x_BLD: Tensor, seen: Seen) -> Tensor:
        """Reconstruct features (B, L, D), and show what each layer's branches saw."""
        hidden = self.embed(x_BLD) + self.position
        reference = self.embed_reference(self.reference) + self.position if hasattr(self, "embed_reference") else None
        for layer in self.layers:
            hidden = layer(hidden, reference, seen)
        return self.out(self.norm(hidden)).float()

    def losses(self, x_BLD: Tensor, learned: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the loss of each phase; both are to be differentiated for a step.

        The first holds correlations still and moves the targets: nearer to those within the image, away from those with
        the reference. The second holds targets still and moves the correlations the other way, with entropies.
        """
        moved: list[tuple[float, Tensor, Tensor]] = []

        def seen(branch: str, own_BHLL: Tensor, sigma_BHL2: Tensor) -> None:
            if branch in learned:
                sign = WEIGHT / self.depth if branch == "intra" else -WEIGHT / self.depth
                moved.append((sign, *phases(own_BHLL, gaussian_target(sigma_BHL2, self.grid))))

        rebuilt_BLD = self(x_BLD, seen)
        error = errors(x_BLD, rebuilt_BLD).mean()
        first = error + sum(sign * targets for sign, targets, _ in moved)
        second = error - sum(sign * correlations for sign, _, correlations in moved)
        return first, second

    def scores(self, x_BLD: Tensor) -> Tensor:
        """Return how far out each position is (B, height, width)."""
        apart: list[Tensor] = []

        def seen(branch: str, own_BHLL: Tensor, sigma_BHL2: Tensor) -> None:
            if branch == self.weighed_by:
                apart.append(symmetric_kl(own_BHLL, gaussian_target(sigma_BHL2, self.grid)).mean(1))

        score_BL = errors(x_BLD, self(x_BLD, seen))
        if apart:
            weight_BL = (-torch.stack(apart).mean(0)).softmax(1)
            if self.weighed_by == "inter":  # far from the target is far out; within the image, near to it is
                weight_BL = weight_BL.amax(1, keepdim=True) - weight_BL + FLOOR / math.prod(self.grid)
            score_BL = score_BL * weight_BL
        return score_BL.unflatten(1, self.grid)


class Layer(nn.Module):
    """Correlations within the image and with the reference, and what is left of one without the other."""

    def __init__(self, width: int, heads: int, branches: Sequence[str]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: Correlation(width, heads) for name in branches})
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BLD: Tensor, reference: Tensor | None, seen: Seen) -> Tensor:
        y_BLD = self.norm1(self.correlated(x_BLD, reference, seen))
        return self.norm2(y_BLD + self.feed(y_BLD))

    def correlated(self, x_BLD: Tensor, reference: Tensor | None, seen: Seen) -> Tensor:
        """Return what attention brings (B, L, D): the branches' difference, in which the input itself cancels."""
        found = {}
        for name, branch in self.branches.items():
            found[name], *correlations = branch(x_BLD, x_BLD if name == "intra" else reference)
            seen(name, *correlations)
        if len(found) == 2:
            return found["intra"] - found["inter"]  # (x + a) - (x + b)
        return x_BLD + next(iter(found.values()))


class Correlation(nn.Module):
    """Attention without a map behind it, which also says how wide a neighbourhood it is held against."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.sigma = nn.Linear(width, 2 * heads)

    def forward(self, x_BLD: Tensor, other_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is attended to (B, L, D), correlations (B, heads, L, L) and widths (B, heads, L, 2)."""
        query, key = self._split(self.query(x_BLD)), self._split(self.key(other_BLD))
        own_BHLL = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).float().softmax(-1)
        values = (own_BHLL @ self._split(self.value(other_BLD))).transpose(1, 2).flatten(2)
        sigma_BHL2 = 3 ** (torch.sigmoid(5 * self._split(self.sigma(x_BLD)).float()) + 1e-5) - 1
        return values, own_BHLL, sigma_BHL2

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2)


def gaussian_target(sigma_BHL2: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return for each position a Gaussian over the grid around it, whose rows sum to 1.

    A row's share along the height times its share along the width is the same as the whole Gaussian divided by its sum.

    Parameters
    ----------
    sigma_BHL2 : tensor (B, heads, L, 2)
        Standard deviations along height and width, in positions.
    grid : (int, int)

    Returns
    -------
    tensor (B, heads, L, L)

    Examples
    --------
    >>> narrow = gaussian_target(torch.full((1, 1, 6, 2), 1e-3), (2, 3))
    >>> bool((narrow[0, 0] == torch.eye(6)).all())
    True
    """
    height, width = grid
    place = torch.arange(height * width, device=sigma_BHL2.device)
    shares = []
    for at, side, sigma_BHL in zip((place // width, place % width), grid, sigma_BHL2.unbind(-1)):
        squared = (at[:, None] - torch.arange(side, device=place.device)).square().to(sigma_BHL.dtype)
        shares.append((-squared / (2 * sigma_BHL[..., None] ** 2)).softmax(-1))
    return (shares[0][..., :, None] * shares[1][..., None, :]).flatten(-2)


def symmetric_kl(own: Tensor, target: Tensor) -> Tensor:
    """Return KL(own | target) + KL(target | own) of rows that sum to 1, with a slack inside the logarithms."""
    return ((own - target) * ((own + SLACK).log() - (target + SLACK).log())).sum(-1)


def phases(own: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean divergence with correlations held still; and, with targets held still, that plus the entropy.

    Logarithms are shared, because they are what the time goes to.
    """
    log_own, log_target = (own + SLACK).log(), (target + SLACK).log()
    targets = ((own.detach() - target) * (log_own.detach() - log_target)).sum(-1).mean()
    correlations = ((own - target.detach()) * (log_own - log_target.detach())).sum(-1).mean()
    return targets, correlations - (own * log_own).sum(-1).mean()


def errors(x_BLD: Tensor, rebuilt_BLD: Tensor) -> Tensor:
    """Return each position's mean squared error plus one minus the cosine (B, L)."""
    return (x_BLD - rebuilt_BLD).square().mean(2) + 1 - F.cosine_similarity(x_BLD, rebuilt_BLD, 2)


def sine_code(grid: tuple[int, ...], width: int) -> Tensor:
    """Return a fixed code of positions (1, L, width): half of it for the column, half for the row.

    Examples
    --------
    >>> sine_code((2, 3), 8).shape
    torch.Size([1, 6, 8])
    """
    place = torch.arange(math.prod(grid))
    rate = torch.exp(torch.arange(0, width // 2, 2) * (-math.log(1e4) / (width // 2)))
    angles = [at[:, None] * rate for at in (place % grid[1], place // grid[1])]
    return torch.cat([torch.stack([one.sin(), one.cos()], 2).flatten(1) for one in angles], 1)[None]


def _embedding(features: int, width: int) -> nn.Linear:
    linear = nn.Linear(features, width)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="leaky_relu")
    return linear
