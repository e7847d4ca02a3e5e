"""Training what the rounding of a block depends on, with the block in two streams: for recipes that learn.

The block's own numbers stay as they are. At each step tensors that were made of them, and of what is learned, are put
in their places for one pass, so gradients reach what is learned and memory holds the graph of one block. The block is
given the stream of the model as it has been quantized so far, and shall give what its recipe aims at: mostly what the
full block gives in the stream of the full model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from farout.errors import BadInput
from farout.quantize._blocks import Block
from farout.quantize._linear import Rounding
from farout.quantize.grid import Grid

__all__ = ["inputs_rounded_through", "originals", "run_with", "train"]


class _Through(Rounding):
    """Round, with gradients straight through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grid.rounded(x, self.steps, through=True)


def originals(block: Block) -> dict[str, torch.Tensor]:
    """Return a block's parameters and buffers of floating point, by path, in float32 and without their history."""
    named = [*block.module.named_parameters(), *block.module.named_buffers()]
    return {name: tensor.detach().float() for name, tensor in named if tensor.is_floating_point()}


@contextmanager
def inputs_rounded_through(block: Block, names: Sequence[str], grid: Grid | None) -> Iterator[None]:
    """Let maps round what they read, by steps of the tensor at hand, for as long as they are trained."""
    maps = [] if grid is None else [block.own(name) for name in names]
    for module in maps:
        module.rounding = _Through(grid)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in maps:
            module.rounding = None


def run_with(block: Block, at: int, tensors: dict[str, torch.Tensor], x: torch.Tensor | None = None) -> torch.Tensor:
    """Run a block in float32 on a batch, by default on its state in the quantized stream, with other tensors in it.

    Parameters
    ----------
    block : Block
    at : int
        Which batch.
    tensors : dict of str to tensor
        By path; those that are not named are the block's own.
    x : tensor (B, T, C), optional
    """

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return functional_call(block.module, tensors, (x, *args), kwargs)

    return block.calls.run(block.name, call, at, block.states[at] if x is None else x, torch.float32)  # type: ignore[arg-type]


def train(
    block: Block,
    tensors: Callable[[], dict[str, torch.Tensor]],
    aims: Sequence[Sequence[torch.Tensor]],
    learned: Sequence[tuple[Sequence[torch.Tensor], float]],
    epochs: int,
    *,
    settle: Callable[[], None] | None = None,
    amp: bool = False,
) -> list[float]:
    """Train with AdamW, without weight decay: a step for each batch, in their order.

    Parameters
    ----------
    block : Block
    tensors : callable
        Makes what takes the place of the block's tensors, by path.
    aims : list of list of tensor
        What the block shall give, by batch. The loss is the sum, over the aims, of the mean squared difference; tokens
        of padding do not count.
    learned : list of (list of tensor, float)
        Leaves that are learned, with their learning rate.
    epochs : int
    settle : callable, optional
        Called after each step, to put what is learned back where it may be.
    amp : bool
        Whether products are made in bfloat16.

    Returns
    -------
    list of float
        The mean loss in each epoch.

    Raises
    ------
    BadInput
        A loss is not finite.
    """
    groups = [{"params": list(leaves), "lr": rate} for leaves, rate in learned if len(leaves)]
    if not groups or epochs == 0:
        return []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    history = []
    with torch.enable_grad():
        for epoch in range(epochs):
            losses = []
            for at in range(len(block.states)):
                made = tensors()
                with torch.autocast(block.states[at].device.type, torch.bfloat16, enabled=amp):
                    out = run_with(block, at, made)
                loss = torch.stack([_squared(out, aim[at], block.calls.keep[at]) for aim in aims]).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if settle is not None:
                    settle()
                losses.append(loss.detach())
            history.append(float(torch.stack(losses).mean()))
            if not math.isfinite(history[-1]):
                raise BadInput(
                    f"training '{block.name}' gave a loss of {history[-1]} in epoch {epoch + 1}; lower the learning "
                    "rates"
                )
    return history


def _squared(out: torch.Tensor, aim: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Return the mean squared difference of two outputs, over tokens that are no padding."""
    if keep is not None:
        out, aim = (x.reshape(-1, x.shape[-1])[keep] for x in (out, aim))
    return functional.mse_loss(out.float(), aim.float())
