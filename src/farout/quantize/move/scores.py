"""Scores: divide queries by numbers, and multiply the keys that they meet by the same.

``q k' = (q / s) (k s)'``. The projections take the numbers into their rows and biases. Rotary embeddings turn channels
in pairs, and only numbers that are the same for both of a pair pass through; heads that share keys share numbers.

Which outputs of which maps become which channel of an operand is found by experiment, with gradients of the operands.

Shape legend: B sequences, H heads, T tokens, D channels of a head, C outputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from farout.inside._attention import Products
from farout.quantize._blocks import Block

__all__ = ["Scores", "scale_scores", "scores_of"]

_LINEAR = {torch.float32: 1e-3, torch.float64: 1e-6}  # how exactly a linear path must be its own derivative


@dataclass(frozen=True)
class Scores:
    """Which numbers may scale the queries and keys of a block.

    Attributes
    ----------
    query, key : str
        Paths of the maps that give them; one map may give both.
    of_query, of_key : tensor (C,) of int
        The number by which each output of the map is divided or multiplied; -1 for none.
    count : int
        How many numbers there are.
    """

    query: str
    key: str
    of_query: torch.Tensor
    of_key: torch.Tensor
    count: int

    def factors(self, s: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """Return by what the outputs (C,) of the query map and of the key map are multiplied."""
        return [(self.query, 1 / _laid_out(s, self.of_query)), (self.key, _laid_out(s, self.of_key))]


def _laid_out(s: torch.Tensor, index_C: torch.Tensor) -> torch.Tensor:
    """Return the number of each output, and 1 where there is none."""
    index_C = index_C.to(s.device)
    return torch.where(index_C >= 0, s[index_C.clamp(min=0)], 1.0)


def scores_of(block: Block, pairs: bool = True) -> Scores | None:
    """Find the queries and keys of a block.

    Parameters
    ----------
    block : Block
    pairs : bool
        Whether channels that a rotary embedding turns into each other share a number. If not, numbers are those of the
        channels at the first token, which is not turned; to scale by them is no exact rewrite.

    Returns
    -------
    Scores or None
        None where no product of attention is seen, or its operands do not come from one map each in a linear way, as
        where queries are normalised.
    """
    leaves: dict[str, torch.Tensor] = {}
    operands: dict[str, torch.Tensor] = {}

    def leaf(name: str) -> Callable:
        def hook(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            leaves[name] = out.detach().requires_grad_()
            return leaves[name]

        return hook

    def take(word: str, operand: torch.Tensor) -> None:
        operands.setdefault(word, operand)

    with ExitStack() as stack:
        for name in block.maps:
            stack.callback(block.module.get_submodule(name).register_forward_hook(leaf(name)).remove)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(Products(take, lambda shape, make: None))
        block.calls.run(block.name, block.module, 0, block.states[0])
        found = {word: _path(operands.get(word), leaves, pairs) for word in "qk"}
    if found["q"] is None or found["k"] is None:
        return None
    (query, of_q), (key, of_k) = found["q"], found["k"]
    if of_q.shape[1:2] != of_k.shape[1:2] or of_q.shape[0] % of_k.shape[0]:
        return None
    return _joined(query, key, of_q, of_k.repeat_interleave(of_q.shape[0] // of_k.shape[0], 0))


def _path(
    operand: torch.Tensor | None, leaves: dict[str, torch.Tensor], pairs: bool
) -> tuple[str, torch.Tensor] | None:
    """Return the map that an operand comes from, and which of its outputs (H, D, C) make which channel."""
    if operand is None or not operand.requires_grad:
        return None
    names = list(leaves)
    drawn = torch.randn(operand.shape, generator=torch.Generator().manual_seed(0)).to(operand)

    def back(cotangent: torch.Tensor) -> list[torch.Tensor | None]:
        return list(
            torch.autograd.grad(operand, list(leaves.values()), cotangent, retain_graph=True, allow_unused=True)
        )

    read = [(name, grad) for name, grad in zip(names, back(drawn)) if grad is not None and bool(grad.any())]
    if len(read) != 1:
        return None
    (name, grad), leaf = read[0], leaves[read[0][0]]
    product = float((operand.detach() * drawn).double().sum())
    size = float((operand.detach() * drawn).double().norm())
    if abs(float((leaf.detach() * grad).double().sum()) - product) > _LINEAR.get(operand.dtype, 5e-2) * size:
        return None
    B, T = leaf.shape[:2]
    shape = operand.shape if operand.ndim == 4 else (B, operand.shape[0] // B, *operand.shape[1:])
    at = names.index(name)

    def outputs(keep: torch.Tensor) -> torch.Tensor:
        """Return whether outputs (C,) have a part in the channels that are kept."""
        if not pairs:
            keep = keep & (torch.arange(T, device=keep.device) == 0)[None, None, :, None]
        grads = back((drawn.reshape(shape) * keep).reshape(operand.shape))[at]
        assert grads is not None
        return grads.flatten(0, -2).abs().amax(0) > 0

    every = torch.ones(shape, dtype=torch.bool, device=operand.device)
    heads, channels = shape[1], shape[3]
    of_head = [outputs(every & _only(heads, h, every)[None, :, None, None]) for h in range(heads)]
    of_channel = [outputs(every & _only(channels, d, every)) for d in range(channels)]
    return name, torch.stack(of_head)[:, None] & torch.stack(of_channel)[None]


def _only(n: int, i: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(n, device=like.device) == i


def _joined(query: str, key: str, of_q: torch.Tensor, of_k: torch.Tensor) -> Scores:
    """Let outputs (H, D, C) of both maps that make one channel of an operand share a number."""
    C = of_q.shape[-1]
    members = torch.cat([of_q, of_k], -1).flatten(0, 1).cpu()
    group = list(range(members.shape[1]))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for row in members:
        first, *others = row.nonzero().flatten().tolist()
        for other in others:
            group[root(other)] = root(first)
    used = members.any(0).tolist()
    roots = [root(i) if there else -1 for i, there in enumerate(used)]
    numbers = {one: place for place, one in enumerate(sorted(set(roots) - {-1}))}
    index = torch.tensor([numbers.get(one, -1) for one in roots], device=of_q.device)
    return Scores(query, key, index[:C], index[C:], len(numbers))


def scale_scores(block: Block, scores: Scores, s: torch.Tensor, exact: bool = True) -> None:
    """Divide queries by ``s``, and multiply keys.

    Parameters
    ----------
    block : Block
    scores : Scores
    s : tensor (count,)
        Positive.
    exact : bool
        Whether to prove that nothing changes. What :func:`scores_of` finds without pairs is not exact.

    Raises
    ------
    NotIdentity
        The block's output is not what it was.
    """
    s = s.detach().double()
    proof = block.unchanged(f"scaling queries and keys of '{scores.query}'") if exact else nullcontext()
    with proof, torch.no_grad():
        for name, by in scores.factors(s):
            module: Any = block.module.get_submodule(name)
            module.weight.copy_((module.weight.double() * by[:, None]).to(module.weight.dtype))
            if module.bias is not None:
                module.bias.copy_((module.bias.double() * by).to(module.bias.dtype))
