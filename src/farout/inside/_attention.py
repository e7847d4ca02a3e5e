"""The product of attention, seen in the calls to torch that make it; loads torch, so import it lazily.

Shape legend: B sequences, H heads, Q queries, K keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from farout.inside._accumulators import AttentionStats

_FUSED = F.scaled_dot_product_attention
_SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}
_PRODUCT = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm, torch.Tensor.__matmul__}
_LOGITS = 1 << 18  # of a fused product are held at a time: few enough for a cache


class Products(TorchFunctionMode):
    """Report the operands of attention: of the fused call, or of product, softmax over keys and product.

    Parameters
    ----------
    operand : callable
        Takes 'q', 'k' or 'v' and a tensor (B, H, T, D).
    probs : callable
        Takes (B, Q) and a function that makes probabilities: an iterator over (first query, tensor (B, H, Q, K)).
    """

    def __init__(self, operand: Callable[[str, torch.Tensor], None], probs: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.operand, self.probs = operand, probs
        self.factors: tuple[torch.Size, torch.Tensor, torch.Tensor] | None = None
        self.shape: torch.Size | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call as it is, and look at it."""
        kwargs = kwargs or {}
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
        self.probs((probs.shape[0], probs.shape[2]), lambda: iter([(0, probs)]))
        self.factors, self.shape = None, out.shape


def fused_probs(query: Any, key: Any, mask: Any, is_causal: bool, scale: float | None) -> Any:
    """Yield the probabilities softmax(scale q k' + mask) of a fused product, some queries at a time, in float32."""
    B, H, Q, D = query.shape
    K = key.shape[2]
    key = key.float()
    key = (key if key.shape[1] == H else key.repeat_interleave(H // key.shape[1], 1)).transpose(-1, -2)
    scale = D**-0.5 if scale is None else scale
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], Q, K)
    step = max(1, _LOGITS // (B * H * K))
    for start in range(0, Q, step):
        stop = min(start + step, Q)
        seen = min(stop, K) if is_causal else K  # later keys get nothing
        logits = (query[:, :, start:stop].float() * scale) @ key[..., :seen]
        if is_causal:
            later = torch.ones(stop - start, seen, dtype=torch.bool, device=query.device).triu(start + 1)
            logits = logits.masked_fill_(later, -torch.inf)
        if mask is not None:
            part = mask[..., start:stop, :seen]
            logits = logits.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else logits.add_(part)
        yield start, F.pad(logits.softmax(-1), (0, K - seen))


def attention_stats(parts: Any, keep_BQ: torch.Tensor | None) -> AttentionStats:
    """Add up the pieces that :func:`fused_probs` yields; queries outside ``keep_BQ`` are left out."""
    total: AttentionStats | None = None
    for start, probs in parts:
        keep = None if keep_BQ is None else keep_BQ[:, start : start + probs.shape[2]].to(probs.device)
        stats = AttentionStats.of(probs, keep)
        total = stats if total is None else total.merge(stats)
    assert total is not None
    return total
