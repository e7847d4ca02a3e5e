"""Ways to mix values by attention, one class each; loads torch, so import it lazily.

``y = softmax(q k' / sqrt(D)) v`` for each head, over the keys up to the query's own. What the variants change is what
an attention sink does in secret: a sink takes probability away from the other keys and adds nothing, so it scales the
output of a head by a factor that depends on the context.

Shape legend: B sequences, H heads, T tokens, K keys, D channels of a head, C channels of the residual stream.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SoftmaxMix(nn.Module):
    """The default, a in the paper on systematic outliers; the others change one thing about it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.head_width, self.context = config.heads, config.width // config.heads, config.context

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x_BTC: Tensor) -> Tensor:
        """Mix values.

        Parameters
        ----------
        q, k, v : tensor (B, H, T, D)
        x_BTC : tensor
            What queries, keys and values were made of.

        Returns
        -------
        tensor (B, H, T, D)
        """
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Return products of queries and keys (B, H, T, K), at least in float32; -inf for keys behind the query."""
        logits = wide(q @ k.transpose(-1, -2)) / math.sqrt(self.head_width)
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return logits.masked_fill(later, -torch.inf)

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the weights (B, H, T, K) with which values are added up, unfused."""
        return self.logits(q, k).softmax(-1)

    def _learned(self) -> nn.Parameter:
        """A vector for each head (H, 1, D), which meets (B, H, T, D); the decoder draws it."""
        return nn.Parameter(torch.zeros(self.heads, 1, self.head_width))


class ValueBiasMix(SoftmaxMix):
    """b: ``y + v'``, a bias that does not depend on the context."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.value = self._learned()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x_BTC: Tensor) -> Tensor:
        """Mix values, and add the same vector everywhere."""
        return super().forward(q, k, v, x_BTC) + self.value.to(v.dtype)


class ContextBiasMix(SoftmaxMix):
    """c: ``y + SDPA(q, [k'; k], [v'; 0])``, a bias that depends on the context.

    Of the second product only ``v'`` is left, weighted with the probability of the extra key.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.key, self.value = self._learned(), self._learned()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x_BTC: Tensor) -> Tensor:
        """Mix values, and add a vector by as much as its key is looked at."""
        extra = (wide(q) * self.key).sum(-1) / math.sqrt(self.head_width)
        share = torch.sigmoid(extra - self.logits(q, k).logsumexp(-1))
        return super().forward(q, k, v, x_BTC) + (share[..., None] * self.value).to(v.dtype)


class AttentionBiasMix(SoftmaxMix):
    """d: ``SDPA(q, [k; k'], [v; v'])``, a learned key and value that every query sees.

    It stands behind the tokens, so that their keys keep their positions; softmax does not mind. With ``S = sigmoid(
    logsumexp(l) - q k' / sqrt(D))`` it is ``S y + (1 - S) v'``: a scale, and a bias.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.key, self.value = self._learned(), self._learned()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x_BTC: Tensor) -> Tensor:
        """Mix values, the learned one among them."""
        T = q.shape[2]
        seen = torch.ones(T, T + 1, dtype=torch.bool, device=q.device).tril()
        seen[:, -1] = True
        return F.scaled_dot_product_attention(q, _behind(k, self.key), _behind(v, self.value), attn_mask=seen)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """Return products (B, H, T, T + 1); the last column is the learned key's."""
        extra = (wide(q) * self.key).sum(-1, keepdim=True) / math.sqrt(self.head_width)
        return torch.cat([super().logits(q, k), extra], -1)


class ContextScaleMix(SoftmaxMix):
    """e: ``S(x) y`` with ``S = 2 sigmoid(W x)``, a number for each head and token; zero weights give ``y``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.scale = nn.Linear(config.width, config.heads, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x_BTC: Tensor) -> Tensor:
        """Mix values, and scale what comes out."""
        scale_BHT = 2 * torch.sigmoid(self.scale(x_BTC)).transpose(1, 2)
        return super().forward(q, k, v, x_BTC) * scale_BHT[..., None]


class SigmoidMix(SoftmaxMix):
    """f: ``sigmoid(l - log n) v``, whose weights need not add up to 1; n is the longest context, as in the code."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x_BTC: Tensor) -> Tensor:
        """Mix values without a normalisation."""
        return self.probabilities(q, k).to(v.dtype) @ v

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the weights (B, H, T, K)."""
        return torch.sigmoid(self.logits(q, k) - math.log(self.context))


MIXES: dict[str, type[SoftmaxMix]] = {
    "softmax": SoftmaxMix,
    "value bias": ValueBiasMix,
    "context bias": ContextBiasMix,
    "attention bias": AttentionBiasMix,
    "context scale": ContextScaleMix,
    "sigmoid": SigmoidMix,
}


def wide(x: Tensor) -> Tensor:
    """Return half precision as float32, and the rest as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _behind(x: Tensor, extra: Tensor) -> Tensor:
    """Set a learned vector for each head behind the tokens: (B, H, T + 1, D)."""
    return torch.cat([x, extra.to(x.dtype).expand(len(x), -1, -1, -1)], 2)
