"""What attention makes of errors in its queries, keys and values: Hessians found from the running product.

An error ``d`` of a query before its rotary embedding moves the scores of its row by ``K J d``, where ``K`` holds the
keys that the product sees and ``J`` is the map from the output of the projection to the operand at that position: the
rotation of RoPE, the identity without it. So the mean of ``J' K'K J`` over positions is what weighs the error. Neither
the layout of RoPE nor that of heads is taken from a table of models. The product is watched, which gives ``K``, and
``J'`` is applied by vector-Jacobian products from the operand back to the projection. Where a norm stands between the
two (q-norm), the path is not linear, and its Jacobian at the calibration tokens is used; of a norm over all heads, the
part within each head. ``K'K`` is that of all keys, also where the mask hides some of them from a query, as in BoA.

The inputs of values are mixed as the head mixes values: with ``A`` the probabilities of a head, its Hessian is that of
``A X``.

What is not seen is what :mod:`farout.inside.recorder` does not see: products that are no calls to torch, or ``einsum``.

Shape legend: B sequences, T tokens, H query heads, G heads of keys and values, D channels of a head, C outputs and I
inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from farout.errors import BadInput
from farout.inside._attention import Products
from farout.quantize._linear import QuantLinear

__all__ = ["HeadHessian", "attention_hessians", "attention_maps"]


@dataclass
class HeadHessian:
    """A Hessian for each head of a projection.

    Attributes
    ----------
    rows : int64 tensor (heads, D)
        Which outputs of the projection make each head.
    hessian : float32 tensor (heads, D, D) or (heads, I, I)
        Of the outputs in the order of ``rows``, for queries and keys; of the inputs, for values.
    cross : float32 tensor (heads, I, I) or None
        For values: the product of errors of the inputs with the inputs, mixed likewise.
    """

    rows: torch.Tensor
    hessian: torch.Tensor
    cross: torch.Tensor | None = None


def attention_maps(run: Callable[[Any], Any], batch: Any, maps: Mapping[str, nn.Module]) -> dict[str, str]:
    """Find by experiment which maps give an attention its queries, keys and values.

    Parameters
    ----------
    run, batch
        As for :func:`attention_hessians`.
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
    products, leaves, _ = _watched(run, batch, maps)
    if not products:
        return {}
    found = {}
    for word in "qkv":
        makers = [name for name, leaf in leaves.items() if _depends(getattr(products[0], word), leaf)]
        if len(makers) != 1:
            return {}
        found[word] = makers[0]
    return found


def attention_hessians(
    run: Callable[[Any], Any],
    batches: Iterable[Any],
    *,
    query: nn.Module,
    key: nn.Module,
    value: nn.Module | None = None,
    keep: Sequence[torch.Tensor | None] | None = None,
    full: Callable[[Any], torch.Tensor] | None = None,
) -> dict[str, HeadHessian]:
    """Find the Hessians of an attention's projections while it runs.

    Parameters
    ----------
    run : callable
        ``run(batch)`` calls the attention, or the block that it stands in, and leaves gradients on.
    batches : iterable
    query, key, value : torch.nn.Module
        Projections (B, T, I) to (B, T, C); the same one where they are one. Without ``value``, nothing is said of it.
    keep : list of bool tensor (B, T) or (B T,) or None, optional
        Which tokens of each batch are no padding.
    full : callable, optional
        ``full(batch)``, what ``value`` reads (B, T, I) in the full model, for ``cross``.

    Returns
    -------
    dict
        ``"q"`` and ``"k"``: ``(2/n) sum over tokens t of J_t' C J_t``, where ``C`` is ``K'K`` of the keys that the head
        sees for queries, and the sum of ``Q'Q`` over the heads that share it for a key. With ``value``, ``"v"``:
        ``(2/n) (A X)' A X``, summed likewise, and ``(2/n) (A (X_full - X))' A X``.

    Raises
    ------
    BadInput
        No product of attention was seen that depends on both projections, or a head does not come from D outputs.

    Examples
    --------
    Without rotary embeddings the Hessian of a query is ``K'K``:

    >>> _ = torch.manual_seed(0)
    >>> q, k = nn.Linear(6, 4), nn.Linear(6, 4)
    >>> heads = lambda x: x.unflatten(-1, (2, -1)).transpose(1, 2)
    >>> run = lambda x: functional.scaled_dot_product_attention(heads(q(x)), heads(k(x)), heads(x))
    >>> x = torch.randn(1, 5, 6)
    >>> found = attention_hessians(run, [x], query=q, key=k)["q"]
    >>> found.rows.tolist()
    [[0, 1], [2, 3]]
    >>> keys = heads(k(x))[0]
    >>> torch.allclose(found.hessian, 2 * keys.mT @ keys, rtol=1e-4)
    True
    """
    sums: dict[str, Any] = {}
    rows: dict[str, torch.Tensor] = {}
    tokens = 0
    named = {"q": query, "k": key} | ({} if value is None else {"v": value})
    for place, batch in enumerate(batches):
        seen = _Seen.of(run, batch, named)
        B, T = seen.leaves["q"].shape[:2]
        mask = None if keep is None else keep[place]
        kept = torch.ones(B, T, device=seen.q.device) if mask is None else mask.to(seen.q.device).float().view(B, T)
        rows = rows or {word: seen.rows(word) for word in named}
        found = _of_scores(seen, rows, kept)
        if value is not None:
            found |= _of_values(seen, rows["v"], kept.bool(), None if full is None else full(batch))
        sums = {word: sums.get(word, 0) + one for word, one in found.items()}
        tokens += int(kept.sum())
    if not sums:
        raise BadInput("there are no batches to watch the attention with: give at least one")
    sums = {word: 2 / tokens * one for word, one in sums.items()}
    return {word: HeadHessian(_distinct(rows[word])[0], sums[word], sums.get(f"{word} cross")) for word in named}


class _Watch(Products):
    """Keep the operands of every product of attention, and how it mixes what it is given as values."""

    def __init__(self) -> None:
        super().__init__(self._keep, lambda shape, make: None)
        self.products: list[_Product] = []
        self.operands: dict[str, torch.Tensor] = {}

    def _keep(self, word: str, tensor: torch.Tensor) -> None:
        self.operands[word] = tensor
        if word == "v":
            self.products.append(_Product(**self.operands, mix=self.mix))
            self.operands = {}

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
            self.mix = lambda x_BTI, head: _four(out, len(x_BTI))[:, head].float() @ x_BTI


@dataclass
class _Product:
    """A product of attention with its operands (B, H or G, T, D), or with sequences and heads in one axis."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mix: Callable[[torch.Tensor, int], torch.Tensor]


class _Seen:
    """A product, and the projections' outputs that it was made from."""

    def __init__(self, product: _Product, leaves: Mapping[str, torch.Tensor], inputs: torch.Tensor | None) -> None:
        B = len(leaves["q"])
        self.q, self.k, self.v = (_four(x, B) for x in (product.q, product.k, product.v))
        self.mix, self.leaves, self.inputs = product.mix, leaves, inputs

    @classmethod
    def of(cls, run: Any, batch: Any, named: Mapping[str, nn.Module]) -> _Seen:
        """Run a batch, and find the product that projections make."""
        products, leaves, inputs = _watched(run, batch, named)
        for product in products:
            if len(leaves) == len(named) and all(_depends(getattr(product, w), leaf) for w, leaf in leaves.items()):
                return cls(product, leaves, inputs.get("v"))
        raise BadInput(
            f"{len(products)} products of attention were seen, none of which depends on the projections "
            "that were named: quantize this attention without Hessians of its heads"
        )

    def back(self, word: str, cotangent: torch.Tensor) -> torch.Tensor:
        """Apply the transposed Jacobian: from an operand (B, heads, T, D) to the projection (B, T, C), in float32."""
        operand, leaf = getattr(self, word), self.leaves[word]
        cotangent = cotangent.expand_as(operand).to(operand.dtype)
        return torch.autograd.grad(operand, leaf, cotangent, retain_graph=True)[0].float()

    def rows(self, word: str) -> torch.Tensor:
        """Return the outputs (heads, D) that each head of an operand listens to most, in their order."""
        operand = getattr(self, word)
        heads, D = operand.shape[1], operand.shape[3]
        drawn = torch.randn(operand.shape, generator=torch.Generator().manual_seed(0)).to(operand.device)
        found = []
        for head in range(heads):
            only = torch.zeros_like(drawn)
            only[:, head] = drawn[:, head]
            size_C = self.back(word, only).square().sum((0, 1))
            if int((size_C > 0).sum()) < D:
                raise BadInput(
                    f"head {head} of '{word}' has {D} channels, of which the projection gives "
                    f"{int((size_C > 0).sum())}: quantize this attention without Hessians of its heads"
                )
            found.append(size_C.topk(D).indices.sort().values)
        return torch.stack(found)


def _watched(
    run: Any, batch: Any, maps: Mapping[str, nn.Module]
) -> tuple[list[_Product], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Run a batch with the outputs of maps as leaves of autograd; return products, these, and what the maps read."""
    leaves: dict[int, torch.Tensor] = {}
    inputs: dict[int, torch.Tensor] = {}

    def leaf(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        x = args[0].detach()
        inputs[id(module)] = module.enter(x) if isinstance(module, QuantLinear) else x
        leaves[id(module)] = out.detach().requires_grad_()
        return leaves[id(module)]

    with ExitStack() as stack:
        for module in {id(one): one for one in maps.values()}.values():
            stack.callback(module.register_forward_hook(leaf).remove)
        watch = stack.enter_context(_Watch())
        stack.enter_context(torch.enable_grad())
        run(batch)
    by_name = [{n: found[id(m)] for n, m in maps.items() if id(m) in found} for found in (leaves, inputs)]
    return watch.products, by_name[0], by_name[1]


def _depends(operand: torch.Tensor, leaf: torch.Tensor) -> bool:
    """Whether an operand was made from a leaf."""
    if not operand.requires_grad:
        return False
    found = torch.autograd.grad(operand, leaf, torch.ones_like(operand), retain_graph=True, allow_unused=True)
    return found[0] is not None


def _of_scores(seen: _Seen, rows: dict[str, torch.Tensor], kept_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum the Hessians of queries and keys over the tokens of a batch."""
    keep = kept_BT[:, None, :, None]
    q, k = (x.detach().float() * keep for x in (seen.q, seen.k))
    share = q.shape[1] // k.shape[1]
    own, shared, first = _distinct(rows["k"])  # which head of keys each head of the operand is
    of_query = shared.repeat_interleave(share)
    group = torch.stack([(of_query == head).nonzero()[:, 0] for head in range(len(own))])
    together = q[:, group].flatten(2, 3)  # the queries of a key one after another (B, G, heads T, D)
    return {
        "q": _summed(seen, "q", k.repeat_interleave(share, 1), rows["q"], range(q.shape[1]), keep),
        "k": _summed(seen, "k", together, own, first, keep),
    }


def _of_values(
    seen: _Seen, rows: torch.Tensor, kept_BT: torch.Tensor, full: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Sum the Hessians of what values read, as heads mix it, over the tokens of a batch."""
    assert seen.inputs is not None
    own, shared, _ = _distinct(rows)
    of_query = shared.repeat_interleave(seen.q.shape[1] // seen.v.shape[1])
    x = seen.inputs.float()
    total, cross = (x.new_zeros(len(own), x.shape[-1], x.shape[-1]) for _ in range(2))
    with torch.no_grad():
        for head, owner in enumerate(of_query.tolist()):
            mixed = seen.mix(x, head)[kept_BT]
            total[owner] += mixed.mT @ mixed
            if full is not None:
                cross[owner] += seen.mix(full.to(x) - x, head)[kept_BT].mT @ mixed
    return {"v": total} | ({} if full is None else {"v cross": cross})


def _summed(
    seen: _Seen, word: str, against: torch.Tensor, rows: torch.Tensor, heads: Sequence[int], keep: torch.Tensor
) -> torch.Tensor:
    """Sum ``J_t' F'F J_t`` over tokens, with ``F = against`` (B, heads, any, D), by row of its triangular factor."""
    factor = torch.linalg.qr(against, mode="r").R
    operand = getattr(seen, word)
    total = factor.new_zeros(*rows.shape, rows.shape[1])
    for i in range(factor.shape[2]):
        cotangent = torch.zeros_like(operand, dtype=factor.dtype)
        cotangent[:, list(heads)] = factor[:, :, i, None] * keep
        by_head = seen.back(word, cotangent).flatten(0, 1)[:, rows].transpose(0, 1)  # (heads, B T, D)
        total += by_head.mT @ by_head
    return total


def _distinct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return different heads (G, D), which of them each of an operand's heads is, and the first that is each."""
    own, place, first = [], [], []
    for head, one in enumerate(rows.tolist()):
        if one not in own:
            own.append(one)
            first.append(head)
        place.append(own.index(one))
    return torch.tensor(own, device=rows.device), torch.tensor(place, device=rows.device), first


def _four(x: torch.Tensor, B: int) -> torch.Tensor:
    """Give sequences and heads an axis each."""
    return x if x.ndim == 4 else x.unflatten(0, (B, -1))
