"""Recording all sites of a decoder beside running it: time as a ratio to the plain pass, and memory as batches grow.

The plain pass grows with the square of the width and recording with the width, so the ratio falls with it.

python benchmarks/recorder.py [width ...]
"""

from __future__ import annotations

import sys
from dataclasses import fields

import torch
from torch import nn
from torch.nn import functional as F

from _timing import best
from farout.inside import Recording, record

LIMIT = 1.5  # times the plain pass
ACTIVATIONS = ("residual", "norm", "linear", "attention", "probs")


class Block(nn.Module):
    """A block as in LLaMA, with heads of 64 channels."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(d, d * 8 // 3, bias=False), nn.Linear(d, d * 8 // 3, bias=False)
        self.down = nn.Linear(d * 8 // 3, d, bias=False)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Attend, then think."""
        B, T, C = x_BTC.shape
        h = self.norm1(x_BTC)
        q, k, v = (part(h).view(B, T, -1, 64).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTC = x_BTC + self.o(mixed.transpose(1, 2).reshape(B, T, C))
        h = self.norm2(x_BTC)
        return x_BTC + self.down(F.silu(self.gate(h)) * self.up(h))


def main(*widths: int) -> None:
    for width in widths or (512, 1024):
        compare(width)


def compare(width: int, layers: int = 2) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(1000, width), *(Block(width) for _ in range(layers)), nn.RMSNorm(width)).eval()
    batches = [torch.randint(0, 1000, (4, 256)) for _ in range(2)]

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    seconds = best(
        {
            "plain": plain,
            "all sites": lambda: record(model, batches, what=ACTIVATIONS),
            "all but attention": lambda: record(model, batches, what=("residual", "norm", "linear")),
            "outputs of linear maps too": lambda: record(model, batches, what=(*ACTIVATIONS, "output")),
            "inputs of linear maps": lambda: record(model, batches, what=("linear",)),
        },
        rounds=5,
    )
    threads = torch.get_num_threads()
    print(f"\n{layers} blocks of width {width}, 2 batches of 4 x 256 tokens, float32, {threads} threads")
    for name, time in seconds.items():
        print(f"  {name:28} {time / seconds['plain']:6.2f} x the plain pass")
    ratio = seconds["all sites"] / seconds["plain"]
    print(f"all sites: {ratio:.2f} x (at most {LIMIT}): {'ok' if ratio <= LIMIT else 'TOO SLOW'}")

    def size(recording: Recording) -> int:
        return sum(getattr(s, f.name).nbytes for s in recording.stats.values() for f in fields(s))

    few, many = (size(record(model, batches[:1] * n, what=ACTIVATIONS)) for n in (1, 8))
    print(f"a recording of 1 batch takes {few / 1e6:.2f} MB, of 8 batches {many / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
