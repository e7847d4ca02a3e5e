"""What the largest channels before a norm do to the others, as numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CONTROL", "EVERY", "GAINLESS", "Lever", "Rescaling", "Sums"]

EVERY, GAINLESS, CONTROL = "every norm", "gain near zero", "median channel"


@dataclass(frozen=True)
class Lever:
    """The sink of one norm; means are over tokens.

    Attributes
    ----------
    norm : str
    channels : tuple of int
        The channels of the sink, the largest first.
    ratio : float
        Mean absolute value of the largest over that of the median channel.
    share : float
        Mean of r, the length of the sink over the length of the token.
    shrink : float
        Mean of sqrt(1 - r^2), by which the norm shrinks the other channels.
    gain : float
        The largest absolute gain of the sink's channels: slope of the norm's output over its normalised input.
    median_gain : float
        Median absolute gain of all channels.
    contribution : float
        Mean share of the sink in the squared length of what leaves the norm.
    correlation : float
        Of r with the length of the other channels behind the norm, over tokens; NaN where one of them is constant.
    """

    norm: str
    channels: tuple[int, ...]
    ratio: float
    share: float
    shrink: float
    gain: float
    median_gain: float
    contribution: float
    correlation: float


@dataclass(frozen=True)
class Rescaling:
    """Whether the outliers of a residual stream rescale or contribute.

    Attributes
    ----------
    levers : tuple of Lever
        One for each norm, in the order in which they run.
    loss : float
        Of the model as it is.
    changes : dict of str to dict of str to float
        The loss where sinks are ``"clipped before"``, ``"zeroed before"`` and ``"zeroed after"`` norms: ``"every
        norm"``; those in the same place of a block, by their name; ``"gain near zero"``, those whose gain for the sink
        is at most a hundredth of the median gain, where there are any; and as ``"median channel"`` the channel of
        median size at every norm.
    """

    levers: tuple[Lever, ...]
    loss: float
    changes: dict[str, dict[str, float]]

    def rise(self, change: str, norms: str = EVERY) -> float:
        """Return by how much a change raises the loss."""
        return self.changes[norms][change] - self.loss

    def ratio(self, norms: str = EVERY) -> float:
        """Return the rise by clipping before norms, over what zeroing after them changes; infinite for nothing."""
        before, after = self.rise("clipped before", norms), abs(self.rise("zeroed after", norms))
        return before / after if after > 0 else math.copysign(math.inf, before)

    def frame(self) -> pl.DataFrame:
        """Return one row for each norm, see :class:`Lever`."""
        return pl.DataFrame([asdict(lever) for lever in self.levers])


class Sums:
    """Running sums over the tokens of one norm."""

    def __init__(self) -> None:
        self.tokens = 0
        self.facts: Any = 0.0
        self.products: Any = 0.0
        self.squares: Any = 0.0

    def add(self, x_NC: Tensor, y_NC: Tensor, sink: Tensor, centred: bool) -> None:
        """Add tokens before and after the norm, both float64; ``centred`` where the norm takes the mean away."""
        import torch

        normal_NC = x_NC - x_NC.mean(-1, keepdim=True) if centred else x_NC
        length_N = normal_NC.norm(dim=-1).clamp(min=1e-30)
        r_N = normal_NC[:, sink].norm(dim=-1) / length_N
        normal_NC = normal_NC / length_N[:, None] * math.sqrt(x_NC.shape[1])
        sink_N, whole_N = y_NC[:, sink].square().sum(-1), y_NC.square().sum(-1)
        rest_N = (whole_N - sink_N).clamp(min=0).sqrt()
        facts = (r_N, (1 - r_N**2).clamp(min=0).sqrt(), sink_N / whole_N.clamp(min=1e-30), rest_N)
        powers = (r_N**2, rest_N**2, r_N * rest_N)
        self.facts = self.facts + torch.stack([fact.sum() for fact in (*facts, *powers)])
        self.products = self.products + (y_NC * normal_NC).sum(0)
        self.squares = self.squares + normal_NC.square().sum(0)
        self.tokens += len(x_NC)

    def lever(self, norm: str, sink: Tensor, ratio: float) -> Lever:
        """Return what the sums say."""
        share, shrink, contribution, rest, r2, rest2, both = (self.facts / self.tokens).tolist()
        spread = (r2 - share**2) * (rest2 - rest**2)
        gains = (self.products / self.squares.clamp(min=1e-30)).abs()
        return Lever(
            norm=norm,
            channels=tuple(sink.tolist()),
            ratio=ratio,
            share=share,
            shrink=shrink,
            gain=float(gains[sink].amax()),
            median_gain=float(gains.median()),
            contribution=contribution,
            correlation=(both - share * rest) / math.sqrt(spread) if spread > 1e-24 else float("nan"),
        )
