"""The product of attention, seen in the calls to torch that make it; loads torch, so import it lazily.

Shape legend: B sequences, H heads, Q queries, K keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
        rows = some_queries(Q, probs.device)
        self.probs((B, Q), lambda: iter([(rows, probs if len(rows) == Q else probs[:, :, rows])]))
        self.factors, self.shape = None, out.shape


@cache
def some_queries(Q: int, device: torch.device) -> torch.Tensor:
    """Choose the queries to look at: all of them, or 64 that are spread evenly; kept, since to send one is to wait."""
    step = max(Q / _MOST_QUERIES, 1.0)
    return torch.tensor([int((i + 0.5) * step) for i in range(min(Q, _MOST_QUERIES))], device=device)


def fused_probs(query: Any, key: Any, mask: Any, is_causal: bool, scale: float | None) -> Any:
    """Yield some probabilities softmax(scale q k' + mask) of a fused product in float32, as (queries, (B, H, Q, K))."""
    B, H, Q, D = query.shape
    heads, K = key.shape[1:3]
    key = key.float().transpose(-1, -2)
    scale = D**-0.5 if scale is None else scale
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], Q, K)
    step = max(1, _LOGITS // (B * H * K)) if query.device.type == "cpu" else _MOST_QUERIES
    for rows in some_queries(Q, query.device).split(step):
        some = query[:, :, rows].float().mul_(scale)
        shared = some.reshape(B, heads, -1, D)  # groups of heads that share a key lie side by side
        logits = (shared @ key).view(B, H, len(rows), K)
        if is_causal:
            logits.masked_fill_(torch.arange(K, device=query.device) > rows[:, None], -torch.inf)
        if mask is not None:
            part = mask[..., rows, :]
            logits = logits.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else logits.add_(part)
        yield rows, logits.softmax(-1)


def attention_sums(parts: Any, keep_BQ: torch.Tensor | None) -> tuple[Any, Any, Any, Any]:
    """Add up the pieces that :func:`fused_probs` yields; queries outside ``keep_BQ`` are left out.

    Returns
    -------
    mass : float64 tensor (H, K)
    high, bad : float64 tensor (H,)
    queries : int or tensor
    """
    total: tuple[Any, Any, Any, Any] | None = None
    for rows, probs_BHQK in parts:
        probs = probs_BHQK.float()
        B, _, Q, K = probs.shape
        keep, queries = probs.new_ones(B, Q), B * Q
        if keep_BQ is not None:
            keep = keep_BQ.to(probs.device)[:, rows].float()
            queries = keep.sum().long()
        lost = probs[..., 0].isnan()  # then all of the row is
        if probs.device.type != "cpu" or bool(lost.any()):  # to ask a GPU is to wait for it
            probs = probs.nan_to_num(0.0)
        mass = (keep[:, None, None, :] @ probs)[:, :, 0].double().sum(0)
        high = (probs.amax(3) * keep[:, None]).amax((0, 2)).double()
        bad = (lost * keep[:, None]).sum((0, 2)).double() * K
        if total is not None:
            mass, high = total[0] + mass, torch.maximum(total[1], high)
            bad, queries = total[2] + bad, total[3] + queries
        total = mass, high, bad, queries
    assert total is not None
    return total
