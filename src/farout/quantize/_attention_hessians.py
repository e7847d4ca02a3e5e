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

A path that is the same for all sequences, as where there is no such norm, is walked back once for each channel, and for
as many channels at once as there are sequences in a batch.

Shape legend: B sequences, T tokens, H query heads, G heads of keys and values, D channels of a head, C outputs and I
inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farout.errors import BadInput
from farout.quantize._attention_watch import Product, attention_maps, depends, four, watched

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

    >>> from torch.nn import functional
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
    paths = _Paths(query, key, value)
    sums: dict[str, Any] = {}
    tokens = 0
    for place, batch in enumerate(batches):
        seen = paths.of(run, batch)
        B, T = seen.leaves["q"].shape[:2]
        mask = None if keep is None else keep[place]
        kept = torch.ones(B, T, device=seen.q.device) if mask is None else mask.to(seen.q.device).float().view(B, T)
        found = paths.of_scores(seen, kept)
        if value is not None:
            found |= _of_values(seen, paths.rows["v"], kept.bool(), None if full is None else full(batch))
        sums = {word: sums.get(word, 0) + one for word, one in found.items()}
        tokens += int(kept.sum())
    if not sums:
        raise BadInput("there are no batches to watch the attention with: give at least one")
    sums |= {word: sums[word] + one for word, one in paths.kept_back().items()}
    sums = {word: 2 / tokens * one for word, one in sums.items()}
    return {
        word: HeadHessian(_distinct(rows)[0], sums[word], sums.get(f"{word} cross"))
        for word, rows in paths.rows.items()
    }


class _Seen:
    """A product, and the projections' outputs that it was made from."""

    def __init__(self, product: Product, leaves: dict[str, torch.Tensor], inputs: torch.Tensor | None) -> None:
        B = len(leaves["q"])
        self.q, self.k, self.v = (four(x, B) for x in (product.q, product.k, product.v))
        self.mix, self.leaves, self.inputs = product.mix, leaves, inputs

    def back(self, word: str, cotangent: torch.Tensor) -> torch.Tensor:
        """Apply the transposed Jacobian: from an operand (B, heads, T, D) to the projection (B, T, C), in float32."""
        operand, leaf = getattr(self, word), self.leaves[word]
        return torch.autograd.grad(operand, leaf, cotangent.to(operand.dtype), retain_graph=True)[0].float()

    def rows(self, word: str) -> torch.Tensor:
        """Return the outputs (heads, D) that each head of an operand listens to most, in their order."""
        operand = getattr(self, word)
        B, heads, _, D = operand.shape
        drawn = _drawn(operand)
        found = []
        for some in torch.arange(heads).split(B):  # a head in each sequence
            only = torch.zeros(operand.shape, device=operand.device)
            only[: len(some)][range(len(some)), some] = drawn[0, some]
            for head, size_C in zip(some.tolist(), self.back(word, only).square().sum(1)):
                if int((size_C > 0).sum()) < D:
                    raise BadInput(
                        f"head {head} of '{word}' has {D} channels, of which the projection gives "
                        f"{int((size_C > 0).sum())}: quantize this attention without Hessians of its heads"
                    )
                found.append(size_C.topk(D).indices.sort().values)
        return torch.stack(found)


class _Paths:
    """The ways from projections to operands, over batches.

    Attributes
    ----------
    rows : dict of str to int64 tensor (heads, D)
        Outputs that make each head of an operand.
    later : dict
        Of operands and lengths for which the path was the same in all sequences so far: a batch, what it gave for a
        drawn cotangent, and the triangular factor of what weighs errors, for each head.
    """

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module | None) -> None:
        self.maps = {"q": query, "k": key} | ({} if value is None else {"v": value})
        self.rows: dict[str, torch.Tensor] = {}
        self.later: dict[tuple[str, int], list[Any]] = {}

    def of(self, run: Any, batch: Any) -> _Seen:
        """Run a batch, and find the product that the projections make."""
        made: list[Product] = []

        def wanted(product: Product, leaves: Any) -> bool:
            made.append(product)
            return len(leaves) == len(self.maps) and all(depends(getattr(product, w), leaves[w]) for w in self.maps)

        product, leaves, inputs = watched(run, batch, self.maps, wanted)
        if product is None:
            raise BadInput(
                f"{len(made)} products of attention were seen, none of which depends on the projections that were "
                "named: quantize this attention without Hessians of its heads"
            )
        seen = _Seen(product, leaves, inputs.get("v"))
        self.rows = self.rows or {word: seen.rows(word) for word in self.maps}
        return seen

    def of_scores(self, seen: _Seen, kept_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sum the Hessians of queries and keys over the tokens of a batch, but for what waits for the last batch."""
        keep = kept_BT[:, None, :, None]
        q, k = (x.detach().float() * keep for x in (seen.q, seen.k))
        share = q.shape[1] // k.shape[1]
        own, shared, first = _distinct(self.rows["k"])  # which head of keys each head of the operand is
        of_query = shared.repeat_interleave(share)
        group = torch.stack([(of_query == head).nonzero()[:, 0] for head in range(len(own))])
        together = q[:, group].flatten(2, 3)  # the queries of a key one after another (B, G, heads T, D)
        against = {
            "q": (k.repeat_interleave(share, 1), self.rows["q"], list(range(q.shape[1]))),
            "k": (together, own, first),
        }
        whole = bool(kept_BT.all())
        found = {}
        for word, (factor, rows, heads) in against.items():
            found[word] = torch.zeros(*rows.shape, rows.shape[1], device=rows.device)
            if not (whole and self._waits(seen, word, factor, rows, heads)):
                factor = torch.linalg.qr(factor, mode="r").R
                for i in range(factor.shape[2]):
                    cotangent = torch.zeros(getattr(seen, word).shape, device=factor.device)
                    cotangent[:, heads] = factor[:, :, i, None] * keep
                    by_head = seen.back(word, cotangent).flatten(0, 1)[:, rows].transpose(0, 1)  # (heads, B T, D)
                    found[word] += by_head.mT @ by_head
        return found

    def _waits(self, seen: _Seen, word: str, factor: torch.Tensor, rows: torch.Tensor, heads: list[int]) -> bool:
        """Keep the factors of a batch for later, if its path is the same for all sequences and that of earlier ones."""
        operand = getattr(seen, word)
        gave = seen.back(word, _drawn(operand).expand_as(operand))
        before = self.later.get((word, operand.shape[2]))
        usual = gave[0] if before is None else before[1]
        if float((gave - usual).abs().max()) > 8 * torch.finfo(operand.dtype).eps * float(usual.abs().max()):
            return False
        factor = factor.transpose(0, 1).flatten(1, 2)  # all sequences of a head one after another
        factor = factor if before is None else torch.cat([before[2], factor], 1)
        factor = torch.linalg.qr(factor, mode="r").R
        self.later[word, operand.shape[2]] = [seen, usual, factor, rows, heads]
        return True

    def kept_back(self) -> dict[str, torch.Tensor]:
        """Sum what was kept for later, with a row of the factors in each sequence of a batch."""
        found: dict[str, torch.Tensor] = {}
        for (word, _), (seen, _, factor, rows, heads) in self.later.items():
            operand = getattr(seen, word)
            total = torch.zeros(*rows.shape, rows.shape[1], device=rows.device)
            for some in factor.transpose(0, 1).split(len(operand)):  # (sequences, heads, D)
                cotangent = torch.zeros(operand.shape, device=factor.device)
                cotangent[: len(some), heads] = some[:, :, None]
                by_head = seen.back(word, cotangent).flatten(0, 1)[:, rows].transpose(0, 1)
                total += by_head.mT @ by_head
            found[word] = found.get(word, 0) + total
        return found


def _drawn(operand: torch.Tensor) -> torch.Tensor:
    """Draw numbers (1, heads, T, D), always the same ones."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn((1, *operand.shape[1:]), generator=draw).to(operand.device)


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


def _distinct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return different heads (G, D), which of them each of an operand's heads is, and the first that is each."""
    own, place, first = [], [], []
    for head, one in enumerate(rows.tolist()):
        if one not in own:
            own.append(one)
            first.append(head)
        place.append(own.index(one))
    return torch.tensor(own, device=rows.device), torch.tensor(place, device=rows.device), first
