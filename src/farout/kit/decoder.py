"""A small decoder whose norm, attention and positions can be exchanged; loads torch, so import it lazily.

Papers on outliers say what makes them arise while a language model is trained, and what does not. This is the model
for trying that: the block of GPT-2 as nanoGPT writes it (LayerNorm before each half, no biases, output projections
drawn smaller), or of Llama, and the variants of the papers in between. It follows no paper of its own.

Shape legend: B sequences, T tokens, H heads, D channels of a head, C channels of the residual stream, V vocabulary.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput, UnknownName
from farout.kit._attention_variants import MIXES, wide
from farout.kit._norms import NORMS
from farout.kit.training import seeded

__all__ = ["G0", "G1", "Decoder", "DecoderConfig"]

MLPS = ("gelu", "swiglu")
POSITIONS = ("learned", "rope")
GATES = ("none", "head", "element")
WRITERS = ("attention.o.weight", "mlp.down.weight")


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder is made of.

    Parameters
    ----------
    layers, width, heads, context : int
        ``width`` is that of the residual stream; ``context`` the longest sequence.
    kv_heads : int, optional
        Heads of keys and values; as many as ``heads`` by default.
    vocabulary : int
        256 for bytes.
    norm : {"layer", "rms", "pre affine", "gated"}
    mlp : {"gelu", "swiglu"}
    positions : {"learned", "rope"}
    attention : {"softmax", "value bias", "context bias", "attention bias", "context scale", "sigmoid"}
    gate : {"none", "head", "element"}
        A sigmoid of the input on what attention gives, before the output projection: a number for each head, or for
        each channel.
    tied : bool
        Whether the unembedding is the embedding.

    Raises
    ------
    UnknownName
        A word is none of those above.
    BadInput
        ``width`` is no multiple of ``heads``, or ``heads`` none of ``kv_heads``, or RoPE meets an odd head.
    """

    layers: int = 2
    width: int = 128
    heads: int = 4
    context: int = 128
    kv_heads: int | None = None
    vocabulary: int = 256
    norm: str = "layer"
    mlp: str = "gelu"
    positions: str = "learned"
    attention: str = "softmax"
    gate: str = "none"
    tied: bool = True

    def __post_init__(self) -> None:
        words = {"norm": NORMS, "mlp": MLPS, "positions": POSITIONS, "attention": MIXES, "gate": GATES}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise UnknownName(f"'{name}' of a decoder", getattr(self, name), known)
        for whole, part in ((self.width, self.heads), (self.heads, self.kv_heads or self.heads)):
            if whole % part:
                raise BadInput(f"width, heads and kv_heads must divide each other: {whole} is no multiple of {part}")
        if self.positions == "rope" and self.width // self.heads % 2:
            raise BadInput(f"RoPE turns pairs of channels, and a head has {self.width // self.heads}")


G0 = DecoderConfig()  # 0.45M parameters: seconds on a CPU
G1 = DecoderConfig(layers=6, width=384, heads=6, context=256)  # 10.8M parameters: minutes on a GPU


class Decoder(nn.Module):
    """A decoder: tokens in, logits of the next token out.

    Weights are drawn on the CPU from ``seed``, so that a seed is the same start on every device; what variants have in
    common starts alike in all of them.

    Parameters
    ----------
    config : DecoderConfig
    seed : int

    Examples
    --------
    >>> model = Decoder(DecoderConfig(layers=1, width=8, heads=2, context=4))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 256])
    """

    def __init__(self, config: DecoderConfig = G0, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with seeded(seed):  # torch draws too, and nobody else shall notice
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            self.places = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
            self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = NORMS[config.norm](config.width)
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        self._draw(seed)

    def _draw(self, seed: int) -> None:
        """Draw all but gains from N(0, 0.02), as GPT-2 does; with less spread where matrices write to the stream."""
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                spread = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith(WRITERS) else 0.02
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                with torch.no_grad():
                    weight.copy_(spread * torch.randn(weight.shape, generator=generator))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B, T, V).

        Raises
        ------
        BadInput
            Sequences are longer than the context.
        """
        x_BTC = self._embedded(tokens_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        return self.head(self.norm(x_BTC))

    def probabilities(self, tokens_BT: Tensor) -> list[Tensor]:
        """Return, of each layer, the weights (B, H, T, K) with which attention adds up values, unfused.

        K is T; with an attention bias T + 1, the learned key last.
        """
        x_BTC, found = self._embedded(tokens_BT), []
        for block in self.blocks:
            found.append(block.probabilities(x_BTC))
            x_BTC = block(x_BTC)
        return found

    def _embedded(self, tokens_BT: Tensor) -> Tensor:
        T = tokens_BT.shape[1]
        if self.config.context < T:
            raise BadInput(f"sequences of {T} tokens do not fit in a context of {self.config.context}; cut them")
        x_BTC = self.embedding(tokens_BT)
        return x_BTC if self.places is None else x_BTC + self.places.weight[:T]


class Block(nn.Module):
    """Attention and an MLP, each on the normalised stream, each added to it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1, self.attention = NORMS[config.norm](config.width), Attention(config)
        self.norm2, self.mlp = NORMS[config.norm](config.width), MLP(config)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Add to the residual stream what both halves give."""
        x_BTC = x_BTC + self.attention(self.norm1(x_BTC))
        return x_BTC + self.mlp(self.norm2(x_BTC))

    def probabilities(self, x_BTC: Tensor) -> Tensor:
        """Return the weights (B, H, T, K) with which attention adds up values."""
        q, k, _ = self.attention.operands(self.norm1(x_BTC))
        return self.attention.mix.probabilities(q, k)


class Attention(nn.Module):
    """Queries, keys and values, what mixes them, a gate where there is one, and the output projection."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        C, self.heads, self.kv_heads = config.width, config.heads, config.kv_heads or config.heads
        D = C // self.heads
        self.q = nn.Linear(C, C, bias=False)
        self.k, self.v = (nn.Linear(C, self.kv_heads * D, bias=False) for _ in "kv")
        self.o = nn.Linear(C, C, bias=False)
        gates = {"none": 0, "head": self.heads, "element": C}[config.gate]
        self.gate = nn.Linear(C, gates, bias=False) if gates else None
        self.mix = MIXES[config.attention](config)
        self.rope = config.positions == "rope"

    def operands(self, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, H, T, D); heads that share keys see copies."""
        B, T, C = x_BTC.shape
        q, k, v = (part(x_BTC).view(B, T, -1, C // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.rope:
            q, k = turned(q), turned(k)
        shared = self.heads // self.kv_heads
        return (q, k, v) if shared == 1 else (q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Attend, gate and project."""
        y_BHTD = self.mix(*self.operands(x_BTC), x_BTC)
        if self.gate is not None:
            B, T, _ = x_BTC.shape
            gate = torch.sigmoid(self.gate(x_BTC)).view(B, T, self.heads, -1).transpose(1, 2)
            y_BHTD = y_BHTD * gate
        return self.o(y_BHTD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two matrices around GELU, or three around a gate (SwiGLU) of two thirds of the width."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        C = config.width
        middle = 4 * C if config.mlp == "gelu" else 8 * math.ceil(C / 3)
        self.gate = nn.Linear(C, middle, bias=False) if config.mlp == "swiglu" else None
        self.up = nn.Linear(C, middle, bias=False)
        self.down = nn.Linear(middle, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, bend and narrow again."""
        middle = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        return self.down(middle)


def turned(x_BHTD: Tensor) -> Tensor:
    """Turn pairs of channels by angles that grow with the position (RoPE), channel i with i + D / 2."""
    T, D = x_BHTD.shape[2:]
    speed = 10_000.0 ** (-torch.arange(0, D, 2, device=x_BHTD.device) / D)
    angle = torch.arange(T, device=x_BHTD.device)[:, None] * speed
    cos, sin = angle.cos(), angle.sin()
    a, b = wide(x_BHTD).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x_BHTD.dtype)
