"""GPTQ beside the loop of its official code and beside its floor: ratios, measured in one run.

The loop is that of IST-DASLab/gptq, written anew: the inverse by two Cholesky decompositions, a column at a time, and a
product for each block of 128 columns. The floor is one Cholesky decomposition and one product for each block.

python benchmarks/gptq.py [cpu | cuda] [--outputs 4096] [--inputs 4096] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import layer_error
from farout.quantize.round.gptq import factored, gptq

LIMIT = 1.1  # times the official loop
BLOCK = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--outputs", type=int)
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(name, "torch", torch.__version__)
    sizes = [(4096, 4096), (14336, 4096), (4096, 14336)] if gpu else [(576, 576), (1536, 576), (576, 1536)]
    if asked.outputs or asked.inputs:
        sizes = [(asked.outputs or asked.inputs, asked.inputs or asked.outputs)]
    for outputs, inputs in sizes:
        compare(outputs, inputs, asked.device, asked.rounds)


def compare(outputs: int, inputs: int, device: str, rounds: int) -> None:
    weight, hessian = made(outputs, inputs, device)
    grid, groups, columns = Grid(4), Grid(4, "group", 64), Grid(4, "input", 64, "clamped")
    steps, factor = grid.steps(weight), factored(hessian)
    ours = gptq(weight, hessian, grid).weight
    theirs = official(weight, hessian, steps, grid)
    apart = layer_error(weight, ours, hessian) / layer_error(weight, theirs, hessian)
    rivals = {
        "official loop": lambda: official(weight, hessian, steps, grid),
        "gptq": lambda: gptq(weight, hessian, grid),
        "gptq, Hessian factored before": lambda: gptq(weight, factor, grid),
        "gptq, groups of 64": lambda: gptq(weight, hessian, groups),
        "gptq, fresh groups of 64": lambda: gptq(weight, hessian, groups, order=False, static_groups=False),
        "gptq, steps along outputs": lambda: gptq(weight, hessian, columns),
        "floor: Cholesky and products": lambda: floor(weight, hessian),
        "floor: products alone": lambda: products(weight, hessian),
    }
    seconds = timed(rivals, rounds)
    print(f"\nweight ({outputs}, {inputs}), 4 bits; error of the layer {apart:.4f} times the official loop's")
    for name, time_ in seconds.items():
        loop, least = time_ / seconds["official loop"], time_ / seconds["floor: Cholesky and products"]
        print(f"  {name:32} {loop:7.3f} x the official loop {least:8.2f} x the floor")
    ratio = seconds["gptq"] / seconds["official loop"]
    verdict = "ok" if ratio <= LIMIT else "TOO SLOW"
    print(f"gptq: {ratio:.3f} x (at most {LIMIT}): {verdict}; the official loop took {seconds['official loop']:.3g} s")


def made(outputs: int, inputs: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a weight, and the Hessian of correlated inputs of different size."""
    torch.manual_seed(0)
    tokens = 4 * inputs
    x = torch.randn(tokens, inputs, device=device) * torch.exp(torch.randn(inputs, device=device))
    x += torch.randn(tokens, 32, device=device) @ torch.randn(32, inputs, device=device)
    return torch.randn(outputs, inputs, device=device), 2 / tokens * x.T @ x


def official(weight: torch.Tensor, hessian: torch.Tensor, steps: Steps, grid: Grid) -> torch.Tensor:
    """Round a weight as the official code does, with act-order, a step a row."""
    order = hessian.diagonal().argsort(descending=True)
    W, H = weight[:, order].clone(), hessian[order][:, order].clone()
    H.diagonal().add_(0.01 * H.diagonal().mean())
    H = torch.linalg.cholesky(H)
    H = torch.cholesky_inverse(H)
    H = torch.linalg.cholesky(H, upper=True)
    Q = torch.zeros_like(W)
    low, high = grid.ends
    for i1 in range(0, W.shape[1], BLOCK):
        i2 = min(i1 + BLOCK, W.shape[1])
        W1, H1 = W[:, i1:i2].clone(), H[i1:i2, i1:i2]
        Q1, E1, losses = torch.zeros_like(W1), torch.zeros_like(W1), torch.zeros_like(W1)
        for i in range(i2 - i1):
            w, d = W1[:, i], H1[i, i]
            q = torch.clamp(torch.round(w.unsqueeze(1) / steps.scale), low, high).mul(steps.scale).flatten()
            Q1[:, i] = q
            losses[:, i] = (w - q) ** 2 / d**2
            e = (w - q) / d
            W1[:, i:] -= e.unsqueeze(1).matmul(H1[i, i:].unsqueeze(0))
            E1[:, i] = e
        Q[:, i1:i2] = Q1
        W[:, i2:] -= E1.matmul(H[i1:i2, i2:])
    return Q[:, order.argsort()]


def floor(weight: torch.Tensor, hessian: torch.Tensor) -> None:
    """Do one decomposition and the products, without anything between them."""
    damped = hessian.clone()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    products(weight, torch.linalg.cholesky(damped))


def products(weight: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply each block of columns with what moves those behind it."""
    W = weight.clone()
    for start in range(0, W.shape[1] - BLOCK, BLOCK):
        stop = start + BLOCK
        W[:, stop:].addmm_(W[:, start:stop], factor[start:stop, stop:])


def timed(rivals: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """As ``_timing.best``, with a round to warm up and waits for the GPU."""
    seconds = dict.fromkeys(rivals, float("inf"))
    for at in range(rounds + 1):
        for name, work in rivals.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            if at:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
