"""What rounding does to the scores of attention: the error of ``Q K'`` of every block, on inputs of the full model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def score_errors(full: Any, rounded: Any, batches: Sequence[Any]) -> np.ndarray:
    """Return ``||Q K' - Q^ K^'||^2 / ||Q K'||^2`` of each block, over all heads and pairs of tokens.

    Parameters
    ----------
    full, rounded : torch.nn.Module
        A model, and the same with maps that are rounded.
    batches : list
        What the models are called with, without padding.

    Returns
    -------
    float64 array (blocks,)
    """
    import torch

    from farout.quantize._blocks import Calls, blocks_of

    blocks, others = blocks_of(full), blocks_of(rounded)
    calls = Calls(full, blocks, batches)
    off, size = np.zeros(len(blocks)), np.zeros(len(blocks))
    with torch.no_grad():
        for at, state in enumerate(calls.states):
            for place, (name, block) in enumerate(blocks.items()):
                (q, k), after = _operands(calls, name, block, at, state)
                (other_q, other_k), _ = _operands(calls, name, others[name], at, state)
                expected = q @ k.mT
                off[place] += float((expected - other_q @ other_k.mT).square().sum())
                size[place] += float(expected.square().sum())
                state = after
    return off / size


def _operands(calls: Any, name: str, block: Any, at: int, state: Any) -> tuple[tuple[Any, Any], Any]:
    """Run a block; return its queries and keys (B, H, T, D) as the product sees them, and what leaves it."""
    from farout.inside._attention import Products

    seen: dict[str, Any] = {}
    with Products(lambda word, tensor: seen.setdefault(word, tensor.float()), lambda shape, make: None):
        after = calls.run(name, block, at, state)
    share = seen["q"].shape[1] // seen["k"].shape[1]
    return (seen["q"], seen["k"].repeat_interleave(share, 1)), after
