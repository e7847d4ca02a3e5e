"""A sweep of QuantEase beside all of GPTQ, and beside its floor, the product of the Hessian with the weights.

A sweep is measured on its grid and relaxed. Sweeps of the variant with outliers take the slope besides, another
product, and select the outliers.

python benchmarks/quantease.py [cpu | cuda] [--sizes 4096x4096 ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from _timing import best, report
from farout.quantize.grid import Grid
from farout.quantize.round._common import layer_error
from farout.quantize.round._descent import Descent
from farout.quantize.round.coordinate_descent import coordinate_descent, with_outliers
from farout.quantize.round.gptq import gptq

SIZES = {"cpu": ["576x576", "1536x576", "384x1536"], "cuda": ["4096x4096", "11008x4096", "4096x11008"]}
LIMIT = 1.0  # times GPTQ, for a sweep at 4096 x 4096 on a GPU
GRID = Grid(3, rule="asymmetric")
SWEEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", help="outputs x inputs")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    print(torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads", torch.__version__)
    for size in asked.sizes or SIZES[asked.device]:
        compare(*map(int, size.split("x")), asked.device, asked.rounds)


def compare(outputs: int, inputs: int, device: str, rounds: int) -> None:
    weight, hessian = problem(outputs, inputs, device)
    descent = Descent.of(weight, hessian, GRID, True, None)
    descent.sweep(False)
    rivals: dict[str, Callable[[], object]] = {
        "GPTQ": lambda: gptq(weight, hessian, GRID),
        "a sweep": lambda: descent.sweep(False),
        "a relaxed sweep": lambda: descent.sweep(True),
        "product": lambda: descent.pull @ descent.change,
        f"QuantEase, {SWEEPS} sweeps": lambda: coordinate_descent(weight, hessian, GRID, sweeps=SWEEPS),
        f"with outliers, {SWEEPS} sweeps": lambda: with_outliers(weight, hessian, GRID, sweeps=SWEEPS),
    }
    seconds = best({name: waiting(work, device) for name, work in rivals.items()}, rounds)
    title = f"{outputs} outputs, {inputs} inputs"
    report(f"{title}, beside GPTQ", seconds, "GPTQ", {"a sweep": LIMIT, "a relaxed sweep": LIMIT})
    report(f"{title}, beside the floor", seconds, "product", {})
    for name in ("GPTQ", f"QuantEase, {SWEEPS} sweeps", f"with outliers, {SWEEPS} sweeps"):
        print(f"  error of the layer, {name}: {layer_error(weight, rivals[name]().weight, hessian):.4g}")


def problem(outputs: int, inputs: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a weight and the Hessian of inputs that are correlated, and a few of them large."""
    torch.manual_seed(0)
    x = torch.randn(2 * inputs, inputs, device=device) * torch.exp(torch.randn(inputs, device=device))
    x = x @ torch.randn(inputs, inputs, device=device) / inputs**0.5 + x
    return torch.randn(outputs, inputs, device=device), x.T @ x / inputs


def waiting(work: Callable[[], object], device: str) -> Callable[[], object]:
    """Return work that is done when it returns, also on a GPU."""

    def done() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return done


if __name__ == "__main__":
    main()
