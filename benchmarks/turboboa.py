"""Rounding a 1024 x 1024 layer of 16 heads row by row (BoA) and 16 rows at a time (TurboBoA): the ratio of their times.

"fixed steps" is the pass over rows and columns alone; "as in the papers" is BoA with steps that are searched once, and
TurboBoA with all that it adds: steps searched when the turn of their rows comes, errors of inputs, steps refined. The
floor is GPTQ, which takes all rows at once.

python benchmarks/turboboa.py [cpu | cuda] [--size 1024] [--heads 16]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from _timing import best, report
from farout.quantize.grid import Grid
from farout.quantize.round._search import searched_steps
from farout.quantize.round.boa import boa
from farout.quantize.round.gptq import gptq

LEAST = 3.0  # times that 16 rows are to be faster than one


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(name, "torch", torch.__version__)
    W, H, H_out, R = layer(asked.size, asked.heads, asked.device)
    grid = Grid(2, rule="asymmetric")
    steps = grid.steps(W)
    plain = {"adaptive": False, "refine": 0}

    def timed(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if gpu:
                torch.cuda.synchronize()

        return run

    rivals = {
        "GPTQ": lambda: gptq(W, H, grid, steps=steps),
        "rows=1, fixed steps": lambda: boa(W, H, H_out, grid, rows=1, steps=steps, **plain),
        "rows=16, fixed steps": lambda: boa(W, H, H_out, grid, rows=16, steps=steps, **plain),
        "search of steps alone": lambda: searched_steps(W, H, grid),
        "BoA, as in the papers": lambda: boa(W, H, H_out, grid, rows=1, **plain),
        "TurboBoA, as in the papers": lambda: boa(W, H, H_out, grid, rows=16, cross=R),
        "TurboBoA's additions, rows=1": lambda: boa(W, H, H_out, grid, rows=1, cross=R),
    }
    rivals = {name: timed(work) for name, work in rivals.items()}
    if gpu:
        best(rivals, 1)  # to warm up
    seconds = best(rivals, asked.rounds)
    report(f"{asked.size} x {asked.size}, {asked.heads} heads", seconds, "GPTQ", {})
    for slow, fast in (
        ("rows=1, fixed steps", "rows=16, fixed steps"),
        ("TurboBoA's additions, rows=1", "TurboBoA, as in the papers"),
        ("BoA, as in the papers", "TurboBoA, as in the papers"),
    ):
        ratio = seconds[slow] / seconds[fast]
        verdict = "ok" if ratio >= LEAST else "LESS"
        print(f"{slow} against {fast}: {ratio:.1f} x slower (at least {LEAST:g})   {verdict}")


def layer(size: int, heads: int, device: str) -> tuple[torch.Tensor, ...]:
    """Draw a weight, Hessians of correlated inputs and outputs, and the cross term."""
    draw = torch.Generator().manual_seed(0)
    d = size // heads
    W = torch.randn(size, size, generator=draw) / size**0.5
    X = torch.randn(4 * size, size, generator=draw) * torch.linspace(0.1, 3, size)
    X = X @ (torch.eye(size) + 0.3 * torch.randn(size, size, generator=draw) / size**0.5)
    off = 0.1 * torch.randn(4 * size, size, generator=draw) + 0.05 * X
    K = torch.randn(heads, 4 * size, d, generator=draw) @ torch.randn(heads, d, d, generator=draw)
    found = W, X.T @ X / (2 * size), K.mT @ K / (2 * size), off.T @ X / (2 * size)
    return tuple(one.to(device) for one in found)


if __name__ == "__main__":
    main()
