"""A product of attention, its operands and what they were made from, watched while a block runs.

The outputs of linear maps become leaves of autograd, so that only what lies between a map and the product is between
them. What is not seen is what :mod:`farout.inside.recorder` does not see: products that are no calls to torch, or
``einsum``.

Shape legend: B sequences, T tokens, H query heads, G heads of keys and values, D channels of a head, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from farout.inside._attention import Products
from farout.quantize._linear import QuantLinear

__all__ = ["Product", "attention_maps", "depends", "four", "watched"]


@dataclass
class Product:
    """A product of attention.

    Attributes
    ----------
    q, k, v : tensor (B, H or G, T, D) or (B H, T, D)
        Its operands.
    mix : callable
        Mixes anything else (B, T, I) as a head mixes values: ``mix(x, head)``.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mix: Callable[[torch.Tensor, int], torch.Tensor]


def attention_maps(run: Callable[[Any], Any], batch: Any, maps: Mapping[str, nn.Module]) -> dict[str, str]:
    """Find by experiment which maps give an attention its queries, keys and values.

    Parameters
    ----------
    run, batch
        As for :func:`farout.quantize._attention_hessians.attention_hessians`.
    maps : dict of str to Module
        Linear maps, by name.

    Returns
    -------
    dict
        ``"q"``, ``"k"`` and ``"v"`` to a name; empty where no product of attention is seen, or an operand of the first
        is not made by one map alone.

    Examples
    --------
    >>> q, kv = nn.Linear(6, 4), nn.Linear(6, 8)
    >>> heads = lambda x: x.unflatten(-1, (2, 2)).transpose(1, 2)
    >>> run = lambda x: functional.scaled_dot_product_attention(heads(q(x)), *map(heads, kv(x).chunk(2, -1)))
    >>> attention_maps(run, torch.randn(1, 5, 6), {"query": q, "both": kv, "idle": nn.Linear(6, 6)})
    {'q': 'query', 'k': 'both', 'v': 'both'}
    """
    product, leaves, _ = watched(run, batch, maps, lambda product, leaves: True)
    found: dict[str, str] = {}
    for word in "qkv" if product is not None else "":
        makers = [name for name, leaf in leaves.items() if depends(getattr(product, word), leaf)]
        if len(makers) != 1:
            return {}
        found[word] = makers[0]
    return found


def watched(
    run: Any,
    batch: Any,
    maps: Mapping[str, nn.Module],
    wanted: Callable[[Product, Mapping[str, torch.Tensor]], bool],
) -> tuple[Product | None, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Run a batch until a product is made, with the outputs of maps as leaves of autograd.

    Parameters
    ----------
    run, batch
        ``run(batch)`` calls what holds the maps.
    maps : dict of str to Module
    wanted : callable
        Whether a product, given with the leaves so far, is the one.

    Returns
    -------
    product : Product or None
    leaves, inputs : dict of str to tensor
        What maps gave and read, for those that ran.
    """
    leaves: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, module in maps.items():
        names.setdefault(module, []).append(name)

    def leaf(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        x = args[0].detach()
        x = module.enter(x) if isinstance(module, QuantLinear) else x
        out = out.detach().requires_grad_()
        leaves.update(dict.fromkeys(names[module], out))
        inputs.update(dict.fromkeys(names[module], x))
        return out

    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_hook(leaf).remove)
        watch = stack.enter_context(_Watch(lambda product: wanted(product, leaves)))
        stack.enter_context(torch.enable_grad())
        with suppress(_Found):
            run(batch)
    return watch.product, leaves, inputs


def depends(operand: torch.Tensor, leaf: torch.Tensor) -> bool:
    """Whether an operand was made from a leaf."""
    open_nodes, seen = [operand.grad_fn], set()
    while open_nodes:
        node: Any = open_nodes.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is leaf:
            return True
        seen.add(node)
        open_nodes += [earlier for earlier, _ in node.next_functions]
    return False


def four(x: torch.Tensor, B: int) -> torch.Tensor:
    """Give sequences and heads an axis each."""
    return x if x.ndim == 4 else x.unflatten(0, (B, -1))


class _Found(Exception):
    """Leaves the run when the product was seen."""


class _Watch(Products):
    """Look at every product of attention until one is wanted."""

    def __init__(self, wanted: Callable[[Product], bool]) -> None:
        super().__init__(self._keep, lambda shape, make: None)
        self.wanted = wanted
        self.product: Product | None = None
        self.operands: dict[str, torch.Tensor] = {}

    def _keep(self, word: str, tensor: torch.Tensor) -> None:
        self.operands[word] = tensor
        if word == "v":
            product, self.operands = Product(**self.operands, mix=self.mix), {}
            if self.wanted(product):
                self.product = product
                raise _Found

    def _fused(self, query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **settings: Any) -> None:
        def mix(x_BTI: torch.Tensor, head: int) -> torch.Tensor:
            share = query.shape[1] // key.shape[1]
            mask = attn_mask
            if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
                mask = mask[..., head : head + 1, :, :]
            some = query[:, head : head + 1].float(), key[:, head // share : head // share + 1].float()
            if mask is not None and mask.is_floating_point():
                mask = mask.float()
            return functional.scaled_dot_product_attention(
                *some, x_BTI[:, None], mask, is_causal=causal, scale=settings.get("scale")
            )[:, 0]

        causal = rest[1] if len(rest) > 1 else settings.get("is_causal", False)
        self.mix = mix
        super()._fused(query, key, value, attn_mask, *rest, **settings)

    def _softmax(self, out: torch.Tensor, dim: int | None) -> None:
        before = self.shape
        super()._softmax(out, dim)
        if self.shape is not before:  # then it was that of a product
            self.mix = lambda x_BTI, head: four(out, len(x_BTI))[:, head].float() @ x_BTI
