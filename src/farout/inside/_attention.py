"""The product of attention, seen in the calls to torch that make it; loads torch, so import it lazily.

Shape legend: B sequences, H heads, Q queries, K keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_FUSED = F.scaled_dot_product_attention
_SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}
_PRODUCT = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__}
_WATCHED = {_FUSED} | _SOFTMAX | _PRODUCT
_LOGITS = 1 << 18  # of a fused product are held at a time by a CPU: few enough for a cache
_MOST_QUERIES = 64  # of a sequence whose probabilities are looked at


class Products(TorchFunctionMode):
    """Report the operands of attention: of the fused call, or of product, softmax over keys and product.

    Parameters
    ----------
    operand : callable
        Takes 'q', 'k' or 'v' and a tensor (B, H, T, D).
    probs : callable
        Takes (B, Q) and a function that makes probabilities: an iterator over (queries, tensor (B, H, Q, K) of these).
    """

    def __init__(self, operand: Callable[[str, torch.Tensor], None], probs: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.operand, self.probs = operand, probs
        self.factors: tuple[torch.Size, torch.Tensor, torch.Tensor] | None = None
        self.shape: torch.Size | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call as it is, and look at it."""
        kwargs = kwargs or {}
        if func not in _WATCHED:
            return func(*args, **kwargs)
        if func is _FUSED:
            self._fused(*args, **kwargs)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if func in _PRODUCT and len(args) == 2 and out.ndim in (3, 4):
            self._product(args[0], args[1], out)
        elif func in _SOFTMAX:
            self._softmax(out, kwargs.get("dim", args[1] if len(args) > 1 else None))
        return out

    def _fused(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        for word, tensor in zip("qkv", (query, key, value)):
            self.operand(word, tensor)
        if query.ndim == 4:
            shape = query.shape[0], query.shape[2]
            self.probs(shape, lambda: fused_probs(query.detach(), key.detach(), attn_mask, is_causal, scale))

    def _product(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
        if self.shape is not None and left.shape == self.shape and right.ndim == left.ndim:
            self.operand("v", right)
            self.shape = None
        elif left.ndim == right.ndim:
            self.factors = out.shape, left, right

    def _softmax(self, out: torch.Tensor, dim: int | None) -> None:
        if self.factors is None or dim not in (-1, out.ndim - 1) or out.shape != self.factors[0]:
            return
        _, left, right = self.factors
        self.operand("q", left)
        self.operand("k", right.transpose(-1, -2))
        probs = out.detach() if out.ndim == 4 else out.detach()[:, None]
        B, _, Q, _ = probs.shape
        rows = some_queries(Q)
        self.probs((B, Q), lambda: iter([(rows, probs if len(rows) == Q else probs[:, :, rows])]))
        self.factors, self.shape = None, out.shape


def some_queries(Q: int) -> list[int]:
    """Choose the queries to look at: all of them, or 64 that are spread evenly."""
    step = max(Q / _MOST_QUERIES, 1.0)
    return [int((i + 0.5) * step) for i in range(min(Q, _MOST_QUERIES))]


def fused_probs(query: Any, key: Any, mask: Any, is_causal: bool, scale: float | None) -> Any:
    """Yield some probabilities softmax(scale q k' + mask) of a fused product in float32, as (queries, (B, H, Q, K))."""
    B, H, Q, D = query.shape
    heads, K = key.shape[1:3]
    key = key.float().transpose(-1, -2)
    scale = D**-0.5 if scale is None else scale
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], Q, K)
    rows = some_queries(Q)
    step = max(1, _LOGITS // (B * H * K)) if query.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        seen = min(part[-1] + 1, K) if is_causal else K  # later keys get nothing
        some = query[:, :, part].float().mul_(scale)
        shared = some.reshape(B, heads, -1, D)  # groups of heads that share a key lie side by side
        logits = (shared @ key[..., :seen]).view(B, H, len(part), seen)
        if is_causal:
            at, last = torch.arange(seen, device=query.device), torch.tensor(part, device=query.device)
            logits.masked_fill_(at > last[:, None], -torch.inf)
        if mask is not None:
            some_mask = mask[..., part, :seen]
            boolean = some_mask.dtype == torch.bool
            logits = logits.masked_fill_(~some_mask, -torch.inf) if boolean else logits.add_(some_mask)
        yield part, F.pad(logits.softmax(-1), (0, K - seen))


def attention_sums(parts: Any, keep_BQ: torch.Tensor | None) -> tuple[Any, Any, Any, Any]:
    """Add up the pieces that :func:`fused_probs` yields; queries outside ``keep_BQ`` are left out.

    Returns
    -------
    mass : float64 tensor (H, K)
    high, bad : float64 tensor (H,)
    queries : int or tensor
    """
    total: list[Any] = []
    for rows, probs in parts:
        probs = probs.float()
        queries: Any = probs.shape[0] * probs.shape[2]
        if keep_BQ is not None:
            keep = keep_BQ[:, rows].to(probs.device)
            probs, queries = torch.where(keep[:, None, :, None], probs, 0.0), keep.sum()
        mass = probs.sum(2)
        bad = torch.zeros(probs.shape[1], dtype=torch.float64, device=probs.device)
        if probs.device.type != "cpu" or not bool(mass.isfinite().all()):  # to ask a GPU is to wait for it
            bad += probs.isnan().sum((0, 2, 3))
            probs = probs.nan_to_num(0.0)
            mass = probs.sum(2)
        found = mass.double().sum(0), probs.amax((0, 2, 3)).double(), bad, queries
        if total:
            found = total[0] + found[0], torch.maximum(total[1], found[1]), total[2] + bad, total[3] + queries
        total = list(found)
    mass, high, bad, queries = total
    return mass, high, bad, queries
