"""The fast Hadamard transform beside its floor, a pass over memory, beside the whole matrix, and beside butterflies.

python benchmarks/hadamard.py [cpu | cuda] [--rows 2048]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch

from _timing import best, report
from farout.kit.hadamard import factors, hadamard, transform

WIDTHS = {"cpu": [576, 1536, 4096], "cuda": [4096, 11008, 14336]}
LIMIT = 1.0  # times the product with the whole matrix


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    print(torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads", torch.__version__)
    for width in WIDTHS[asked.device]:
        compare(asked.rows, width, asked.device, asked.rounds)


def compare(rows: int, width: int, device: str, rounds: int) -> None:
    x = torch.randn(rows, width, device=device)
    matrix = torch.from_numpy(hadamard(width)).to(x) / math.sqrt(width)
    rivals: dict[str, Callable[[], torch.Tensor]] = {
        "transform": lambda: transform(x),
        "whole matrix": lambda: x @ matrix,
        "a pass": lambda: x * 2,
    }
    if width & (width - 1) == 0:
        rivals["butterflies"] = lambda: butterflies(x)
    seconds = best({name: waiting(work, device) for name, work in rivals.items()}, rounds)
    title = f"{rows} rows, {width} channels, factors {factors(width)}"
    report(f"{title}, beside the whole matrix", seconds, "whole matrix", {"transform": LIMIT})
    report(f"{title}, beside the floor", seconds, "a pass", {})


def butterflies(x: torch.Tensor) -> torch.Tensor:
    """Add and take away two by two, as few times as can be."""
    width, half = x.shape[-1], 1
    y = x
    while half < width:
        a, b = y.view(-1, width // (2 * half), 2, half).unbind(2)
        y = torch.stack([a + b, a - b], 2)
        half *= 2
    return y.view(x.shape) / math.sqrt(width)


def waiting(work: Callable[[], torch.Tensor], device: str) -> Callable[[], object]:
    """Wait for the GPU too."""

    def run() -> object:
        out = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return run


if __name__ == "__main__":
    main()
