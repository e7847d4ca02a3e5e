"""What products and quantizers cost on an NVIDIA GPU, beside PyTorch's bfloat16 product and the part no kernel avoids.

python benchmarks/quantize_kernels.py [--sweep] [--only int8,fp8,int4,hadamard] [-o FILE]

Times are medians in microseconds, the cache flushed before each call (``triton.testing.do_bench``); ``graph`` is the
same work replayed from a CUDA graph, with no launch of Python's in it and a warm cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from farout.quantize import kernels
from farout.quantize.kernels import Int4Weight, fp8, hadamard_quantize, int8, reference, w4a16

TOKENS = 2048
SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008)]  # outputs, inputs: the maps of a LLaMA of 7 billion parameters
GOALS = {"int8": 0.9, "fp8": 0.7, "int4": 2.5, "hadamard": 1.3}


def micro(work: Callable[..., object], *given: Any, graph: bool = False) -> float:
    """The median time of ``work(*given)`` in microseconds."""
    if graph:
        with torch.cuda.stream(torch.cuda.Stream()):
            return 1e3 * triton.testing.do_bench_cudagraph(lambda: work(*given), rep=10, return_mode="median")
    return 1e3 * triton.testing.do_bench(lambda: work(*given), warmup=5, rep=25, return_mode="median")


class Table:
    """Lines of one kind of work: what was timed, and the ratio that has a goal."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, kind: str, case: str, base: float, error: float, times: dict[str, float], ours: str) -> None:
        """Print and keep a line; ``base`` is what the goal is a ratio to."""
        faster = kind == "int4"
        ratio = base / times[ours] if faster else times[ours] / base
        met = ratio >= GOALS[kind] if faster else ratio <= GOALS[kind]
        shown = "  ".join(f"{name} {value:.1f}" for name, value in times.items())
        goal = f"{'>=' if faster else '<='} {GOALS[kind]:g}  {'ok' if met else 'MISSED'}"
        print(f"{kind:8} {case:22} {shown}   ratio {ratio:.2f} (goal {goal})  error {error:.1e}", flush=True)
        self.lines.append({"kind": kind, "case": case, "us": times, "ratio": ratio, "met": met, "error": error})


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance over norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def problem(M: int, N: int, K: int, outliers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with so many columns above 6 in every token, and a weight."""
    x = torch.randn(M, K, device="cuda").clamp(-5, 5)
    x[:, torch.randperm(K, device="cuda")[:outliers]] *= 20
    return x.bfloat16(), (torch.randn(N, K, device="cuda") / K**0.5).bfloat16()


def time_int8(table: Table, N: int, K: int) -> None:
    plain, w = problem(TOKENS, N, K)
    x, _ = problem(TOKENS, N, K, outliers=7)
    codes, absmax, _ = kernels.quantize_int8(w)
    x_codes, x_absmax, flags = int8.quantize(x, 6.0)
    linear = kernels.int8_linear
    times = {
        "bf16": micro(torch.matmul, x, w.T),
        "_int_mm": micro(torch._int_mm, x_codes, codes.T),
        "product": micro(int8.product, x_codes, x_absmax, codes, absmax, None, 6.2e-5, x.dtype),
        "quantize": micro(int8.quantize, plain, 6.0),
        "quantize7": micro(int8.quantize, x, 6.0),
        "split7": micro(int8.split, x, x_codes, flags, codes, absmax),
        "t=0": micro(linear, plain, codes, absmax, None, 0.0),
        "none": micro(linear, plain, codes, absmax),
        "seven": micro(linear, x, codes, absmax),
        "bf16 graph": micro(torch.matmul, x, w.T, graph=True),
        "seven graph": micro(linear, x, codes, absmax, graph=True),
    }
    wrong = error(linear(x, codes, absmax), reference.int8_linear(x, codes, absmax, None, 6.0))
    table.add("int8", f"{TOKENS}x{K} -> {N}", times["bf16"], wrong, times, "seven")


def time_fp8(table: Table, N: int, K: int) -> None:
    x, w = problem(TOKENS, N, K)
    codes, scale = kernels.quantize_fp8(w)
    x_codes, x_scale = fp8.quantize(x)
    scaled_mm = partial(torch._scaled_mm, out_dtype=x.dtype, use_fast_accum=True)
    times = {
        "bf16": micro(torch.matmul, x, w.T),
        "_scaled_mm": micro(scaled_mm, x_codes, codes.T, x_scale[:, None], scale[None, :]),
        "product": micro(int8.product, x_codes, x_scale, codes, scale, None, 1.0, x.dtype),
        "quantize": micro(fp8.quantize, x),
        "with _scaled_mm": micro(fp8.linear, x, codes, scale, None),
        "with product": micro(fp8.linear, x, codes, scale, None, int8.tile_for(TOKENS)),
        "ours": micro(kernels.fp8_linear, x, codes, scale),
        "ours graph": micro(kernels.fp8_linear, x, codes, scale, graph=True),
    }
    wrong = error(kernels.fp8_linear(x, codes, scale), reference.fp8_linear(x, codes, scale, None))
    table.add("fp8", f"{TOKENS}x{K} -> {N}", times["bf16"], wrong, times, "ours")


def packed(N: int, K: int, zeros: bool) -> Int4Weight:
    """A random weight in four bits, groups of 128."""
    scale = (torch.rand(N, K // 128, device="cuda") / K**0.5).bfloat16()
    zero = torch.randint(16, scale.shape, device="cuda") if zeros else None
    return Int4Weight.from_codes(torch.randint(16, (N, K), device="cuda"), scale, zero)


def time_int4(table: Table, N: int, K: int) -> None:
    symmetric, zeros = packed(N, K, False), packed(N, K, True)
    for M in (1, 4, 16):
        x, w = problem(M, N, K)
        times = {
            "bf16": micro(torch.matmul, x, w.T),
            "symmetric": micro(kernels.int4_linear, x, symmetric),
            "zeros": micro(kernels.int4_linear, x, zeros),
            "graph": micro(kernels.int4_linear, x, symmetric, graph=True),
        }
        wrong = max(
            error(kernels.int4_linear(x, weight), reference.int4_linear(x, weight.dense(), None))
            for weight in (symmetric, zeros)
        )
        table.add("int4", f"{M}x{K} -> {N}", times["bf16"], wrong, times, "symmetric")


def time_hadamard(table: Table, K: int) -> None:
    x, _ = problem(TOKENS, 8, K)
    times = {
        "clone": micro(torch.clone, x),
        "int8": micro(kernels.quantize_hadamard, x),
        "int4": micro(kernels.quantize_hadamard, x, 4),
        "clone graph": micro(torch.clone, x, graph=True),
        "graph": micro(kernels.quantize_hadamard, x, graph=True),
    }
    codes, step = kernels.quantize_hadamard(x)
    expected, expected_step = reference.quantize_hadamard(x, 8, None)
    wrong = error(codes * step[:, None], expected * expected_step[:, None])
    table.add("hadamard", f"{TOKENS}x{K}", times["clone"], wrong, times, "int8")


TILES = [
    (128, 256, 128, 8, 8, 4), (128, 256, 128, 8, 8, 3), (256, 128, 128, 8, 8, 4), (128, 128, 128, 8, 4, 3),
    (128, 128, 128, 8, 8, 3), (128, 256, 128, 4, 8, 4), (128, 256, 64, 8, 8, 6), (128, 128, 128, 8, 4, 6),
    (128, 128, 256, 8, 4, 3),
]  # fmt: skip
WALKS = {
    4096: [(2, 4, 3), (3, 4, 2), (4, 4, 2), (4, 4, 3), (6, 4, 2), (2, 8, 2), (4, 8, 2), (16, 4, 1)],
    11008: [(1, 8, 2), (1, 16, 2), (1, 16, 3), (2, 8, 2), (2, 16, 1), (16, 16, 1)],
}


class Sweep:
    """Times of settings, best first, by what they were tried on."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, Any]]] = {}

    def best(self, title: str, settings: Iterable[Any], work: Callable[[Any], object]) -> None:
        """Time ``work`` with each setting; print each time, or why it does not run."""
        print(title, flush=True)
        times = []
        for setting in settings:
            try:
                times.append((micro(work, setting), setting))
                print(f"  {setting!s:40} {times[-1][0]:8.1f}", flush=True)
            except Exception as reason:
                print(f"  {setting!s:40} {type(reason).__name__}: {str(reason).splitlines()[0][:90]}", flush=True)
        self.found[title] = sorted(times)
        print(f"  best: {self.found[title][:1]}", flush=True)

    def int8(self, N: int, K: int) -> None:
        """Tiles of the 8-bit product, with outlier columns and without."""
        x, w = problem(TOKENS, N, K, outliers=7)
        a, sa, flags = int8.quantize(x, 6.0)
        b, sb, _ = kernels.quantize_int8(w)
        beside = (x, *int8.split(x, a, flags, b, sb))

        def product(tile: tuple[int, ...], beside: Any = None) -> None:
            int8.product(a, sa, b, sb, None, 6.2e-5, x.dtype, int8.Tile(*tile), beside)

        self.best(f"int8, seven columns, {K} -> {N}", TILES, partial(product, beside=beside))
        self.best(f"int8 alone, {K} -> {N}", TILES[:5], product)

    def fp8(self, N: int, K: int) -> None:
        """Tiles of the product of E4M3 codes."""
        x, w = problem(TOKENS, N, K)
        a, sa = fp8.quantize(x)
        b, sb = kernels.quantize_fp8(w)
        self.best(
            f"fp8, {K} -> {N}", TILES[:5], lambda tile: int8.product(a, sa, b, sb, None, 1.0, x.dtype, int8.Tile(*tile))
        )

    def int4(self, M: int, N: int, K: int) -> None:
        """Shares of the product with a packed weight."""
        x, _ = problem(M, 8, K)
        weight = packed(N, K, False)
        blocks = weight.words.shape[1] // 128
        shares = [(n, s, n // 8, 2) for n in (16, 32, 64) for s in sorted({1, 2, 4, blocks})]
        shares += [(n, s, n // 8, 3) for n in (16, 32, 64) for s in (1, 2)]
        self.best(f"int4, {M}x{K} -> {N}", shares, lambda share: w4a16.linear(x, weight, None, w4a16.Share(*share)))

    def hadamard(self, K: int) -> None:
        """Walks over the rows to transform."""
        x, _ = problem(TOKENS, 8, K)
        block = reference.hadamard_block(K)
        self.best(
            f"hadamard, {K}",
            WALKS[K],
            lambda walk: hadamard_quantize.quantize(x, 8, block, hadamard_quantize.Walk(*walk)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="try other tiles, shares and walks afterwards")
    parser.add_argument("--only", default=",".join(GOALS), help="kinds of work, separated by commas")
    parser.add_argument("-o", "--output", type=Path, help="where to write the numbers as JSON")
    options = parser.parse_args()
    only = options.only.split(",")
    torch.manual_seed(0)
    started, table, tried = time.perf_counter(), Table(), Sweep()
    for kind, timed in (("int8", time_int8), ("fp8", time_fp8), ("int4", time_int4)):
        for shape in SHAPES if kind in only else []:
            timed(table, *shape)
    for K in WALKS if "hadamard" in only else []:
        time_hadamard(table, K)
    print(f"{sum(line['met'] for line in table.lines)} of {len(table.lines)} goals met")
    if options.sweep:
        for kind, works in (("int8", tried.int8), ("fp8", tried.fp8)):
            for shape in SHAPES[:2] if kind in only else []:
                works(*shape)
        for M, shape in [(1, SHAPES[0]), (16, SHAPES[0]), (1, SHAPES[1]), (1, SHAPES[2])] if "int4" in only else []:
            tried.int4(M, *shape)
        for K in WALKS if "hadamard" in only else []:
            tried.hadamard(K)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.output:
        settings = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "unit": "microseconds, median",
            "tokens": TOKENS,
            "goals": GOALS,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        lines = {"settings": settings, "lines": table.lines, "sweep": tried.found}
        options.output.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
