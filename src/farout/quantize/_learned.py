"""What is learned around weights that stay as they are: how far they are clipped, and how channels move between maps.

Both make a block's tensors anew from the original ones, so that gradients reach what is learned. Moves are then folded
into the block by the same exact rewrites that recipes without learning use, each of which proves that nothing changes.

Shape legend: I channels that maps read, C channels of what gives them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from farout.quantize._blocks import Block
from farout.quantize._linear import Scale
from farout.quantize._norms import gain_of
from farout.quantize._structure import Feed
from farout.quantize.grid import Grid, Steps
from farout.quantize.move.scale import folds, scale
from farout.quantize.move.scores import Scores, scale_scores
from farout.quantize.move.shift import shift

__all__ = ["Clipping", "Move", "Moves"]

OPEN = 4.0  # logits at the start: 0.982 of the range
LEAST = 1e-2  # of a scale that is learned


class Clipping:
    """Learnable weight clipping: steps from ``sigmoid(low) min(w)`` to ``sigmoid(high) max(w)``.

    Least and greatest are those of the weights that share a step, as moves have made them by then. Logits begin at 4.

    Parameters
    ----------
    block : Block
    grid : Grid
        Its group becomes one that divides each map's inputs.
    """

    def __init__(self, block: Block, grid: Grid) -> None:
        self.ends: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # logits of the least and the greatest, by map
        for name in block.maps:
            weight = block.weight(name)
            share = grid.fitted(weight.shape[1]).view(weight)[..., :1]
            low, high = (torch.full_like(share, OPEN, dtype=torch.float32).requires_grad_() for _ in range(2))
            self.ends[name] = low, high

    @property
    def leaves(self) -> list[torch.Tensor]:
        """What is learned."""
        return [logit for ends in self.ends.values() for logit in ends]

    def steps(self, name: str, weight: torch.Tensor, grid: Grid) -> Steps:
        """Return the steps of a map's weight (O, I)."""
        v = grid.view(weight)
        low, high = (torch.sigmoid(logit) for logit in self.ends[name])
        return grid.steps_between(low * v.amin(-1, keepdim=True), high * v.amax(-1, keepdim=True))


@dataclass
class Move:
    """How the channels of a feed are shifted and scaled: ``(x - d) / s``, leaves of autograd.

    Attributes
    ----------
    feed : Feed
    s : tensor (C,)
    d : tensor (C,) or None
    """

    feed: Feed
    s: torch.Tensor
    d: torch.Tensor | None = None


class Moves:
    """Learnable equivalent transformations of a block.

    Parameters
    ----------
    block : Block
    moves : list of Move
    scores : Scores, optional
        Queries that are divided by numbers, which begin at 1, with keys that are multiplied.
    exact : bool
        Whether the scaling of scores is to prove itself.
    """

    def __init__(self, block: Block, moves: list[Move], scores: Scores | None = None, exact: bool = True) -> None:
        self.moves, self.scores, self.exact = moves, scores, exact
        device = next(block.module.parameters()).device
        self.s_scores = torch.ones(scores.count if scores else 0, device=device).requires_grad_()
        self.folded = [folds(block, move.feed) for move in moves]
        self.offsets: list[Any] = [self._offset(block, move.feed) for move in moves]
        self.settle()

    @staticmethod
    def _offset(block: Block, feed: Feed) -> torch.Tensor | float:
        """Return what a norm adds to its weight before it multiplies."""
        norm: Any = block.module.get_submodule(str(feed.source)) if feed.norm else None
        gain = None if norm is None else gain_of(norm)
        return 0.0 if gain is None else (gain - norm.weight.detach()).float()

    @property
    def leaves(self) -> list[torch.Tensor]:
        """What is learned."""
        scores = [self.s_scores] if self.scores else []
        return [one for move in self.moves for one in (move.s, move.d) if one is not None] + scores

    def settle(self) -> None:
        """Keep scales away from 0."""
        with torch.no_grad():
            for s in (*(move.s for move in self.moves), self.s_scores):
                s.clamp_(min=LEAST)

    def tensors(self, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a block's tensors, of which ``base`` has the original ones, as the moves make them."""
        out = dict(base)
        for move, folded in zip(self.moves, self.folded):  # first all that maps take, of their weights as they were
            s_I = move.feed.at_maps(move.s)
            for name in move.feed.maps:
                weight = base[f"{name}.weight"]
                if move.d is not None:
                    out[f"{name}.bias"] = base.get(f"{name}.bias", 0.0) + weight @ move.feed.at_maps(move.d)
                out[f"{name}.weight"] = weight * s_I
                if not folded:
                    out[f"{name}.before.0.s"] = s_I
        for move, folded, offset in zip(self.moves, self.folded, self.offsets):
            if not folded:
                continue
            gain, bias = out[f"{move.feed.source}.weight"], out.get(f"{move.feed.source}.bias")
            gain = (gain + offset) / move.s - offset if move.feed.norm else gain / move.s[:, None]
            out[f"{move.feed.source}.weight"] = gain
            if bias is not None:
                out[f"{move.feed.source}.bias"] = (bias - (0.0 if move.d is None else move.d)) / move.s
        if self.scores:
            for name, by in self.scores.factors(self.s_scores):
                out[f"{name}.weight"] = out[f"{name}.weight"] * by[:, None]
                if f"{name}.bias" in out:
                    out[f"{name}.bias"] = out[f"{name}.bias"] * by
        return out

    @contextmanager
    def dividing(self, block: Block) -> Iterator[None]:
        """Let maps divide as they run, while they are trained, where what gives their channels cannot."""
        maps = [
            block.own(name) for move, folded in zip(self.moves, self.folded) if not folded for name in move.feed.maps
        ]
        for module in maps:
            module.before.append(Scale(torch.ones(module.in_features, device=module.weight.device)))
        try:
            yield
        finally:
            for module in maps:
                module.before = module.before[:-1]

    def fold(self, block: Block) -> None:
        """Do to the block what was learned.

        Raises
        ------
        NotIdentity
            The block's output is not what it was.
        """
        for move in self.moves:
            if move.d is not None:
                shift(block, move.feed, move.d)
        for move in self.moves:
            scale(block, move.feed, move.s)
        if self.scores:
            scale_scores(block, self.scores, self.s_scores, exact=self.exact)
