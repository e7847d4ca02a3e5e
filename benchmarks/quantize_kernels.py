"""What products and quantizers cost on an NVIDIA GPU, beside PyTorch's bfloat16 product and the part no kernel avoids.

python benchmarks/quantize_kernels.py [--sweep] [--only int8,fp8,int4,hadamard] [-o FILE]

Times are medians in microseconds of device time, PyTorch's and ours alike: the work is captured in a CUDA graph and
replayed, so no launch of Python's is in it, and it goes through copies of what it is given, together beyond the cache,
so weights come from memory as they do in a model. Ratios and goals are of these. ``plain`` columns are ordinary calls,
the cache flushed before each (``triton.testing.do_bench``), with the host's launches in them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton

from farout.quantize import kernels
from farout.quantize.kernels import Int4Weight, fp8, hadamard_quantize, int8, reference, w4a16

TOKENS = 2048
SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008)]  # outputs, inputs: the maps of a LLaMA of 7 billion parameters
GOALS = {"int8": 0.9, "fp8": 0.7, "int4": 2.5, "hadamard": 1.3}


CACHE = 160 * 2**20  # bytes that what is given takes before it is given again: three times an H100's cache


def copied(value: Any) -> Any:
    """The same values elsewhere in memory."""
    if isinstance(value, torch.Tensor):
        return value.clone(memory_format=torch.preserve_format)
    if isinstance(value, Int4Weight):
        return replace(value, words=value.words.clone(), scale=value.scale.clone())
    return value


def size(value: Any) -> int:
    """Bytes of what is given."""
    value = value.words if isinstance(value, Int4Weight) else value
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def micro(work: Callable[..., object], *given: Any) -> float:
    """The median time of ``work(*given)`` in microseconds, replayed from a CUDA graph over copies of what is given."""
    turns = min(64, max(8, -(-CACHE // max(1, sum(map(size, given))))))
    copies = [given, *([copied(value) for value in given] for _ in range(turns - 1))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work(*given)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for each in copies:
                work(*each)
        times = []
        for _ in range(23):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            times.append((start, stop))
        stream.synchronize()
    return median(1e3 * start.elapsed_time(stop) / turns for start, stop in times[3:])


def plain_call(work: Callable[..., object], *given: Any) -> float:
    """The median time of ``work(*given)`` in microseconds, launched from Python after the cache is flushed."""
    return 1e3 * triton.testing.do_bench(lambda: work(*given), warmup=5, rep=20, return_mode="median")


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
    ordinary, w = problem(TOKENS, N, K)
    x, _ = problem(TOKENS, N, K, outliers=7)
    codes, absmax, _ = kernels.quantize_int8(w)
    x_codes, x_absmax, listed = int8.quantize(x, 6.0)

    def beside(x: torch.Tensor, x_codes: torch.Tensor, codes: torch.Tensor) -> None:
        int8.product(x_codes, x_absmax, codes, absmax, None, 6.2e-5, x.dtype, None, x, listed)

    linear = kernels.int8_linear
    times = {
        "bf16": micro(torch.nn.functional.linear, x, w),
        "_int_mm": micro(lambda a, b: torch._int_mm(a, b.T), x_codes, codes),
        "product": micro(int8.product, x_codes, x_absmax, codes, absmax, None, 6.2e-5, x.dtype),
        "product7": micro(beside, x, x_codes, codes),
        "copy": micro(torch.clone, x.flatten()[: x.numel() * 3 // 4]),  # of as many bytes as quantizing moves
        "quantize t=0": micro(int8.quantize, ordinary, 0.0),
        "quantize": micro(int8.quantize, ordinary, 6.0),
        "quantize7": micro(int8.quantize, x, 6.0),
        "t=0": micro(linear, ordinary, codes, absmax, None, 0.0),
        "none": micro(linear, ordinary, codes, absmax),
        "seven": micro(linear, x, codes, absmax),
        "bf16 plain": plain_call(torch.nn.functional.linear, x, w),
        "seven plain": plain_call(linear, x, codes, absmax),
    }
    wrong = error(linear(x, codes, absmax), reference.int8_linear(x, codes, absmax, None, 6.0))
    table.add("int8", f"{TOKENS}x{K} -> {N}", times["bf16"], wrong, times, "seven")


def time_fp8(table: Table, N: int, K: int) -> None:
    x, w = problem(TOKENS, N, K)
    codes, scale = kernels.quantize_fp8(w)
    x_codes, x_scale = fp8.quantize(x)

    def scaled_mm(x_codes: torch.Tensor, codes: torch.Tensor) -> None:
        torch._scaled_mm(x_codes, codes.T, x_scale[:, None], scale[None, :], out_dtype=x.dtype, use_fast_accum=True)

    times = {
        "bf16": micro(torch.nn.functional.linear, x, w),
        "_scaled_mm": micro(scaled_mm, x_codes, codes),
        "product": micro(int8.product, x_codes, x_scale, codes, scale, None, 1.0, x.dtype),
        "quantize": micro(fp8.quantize, x),
        "with product": micro(fp8.linear, x, codes, scale, None, int8.tile_for(TOKENS)),
        "ours": micro(kernels.fp8_linear, x, codes, scale),
        "bf16 plain": plain_call(torch.nn.functional.linear, x, w),
        "ours plain": plain_call(kernels.fp8_linear, x, codes, scale),
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
            "bf16": micro(torch.nn.functional.linear, x, w),
            "symmetric": micro(kernels.int4_linear, x, symmetric),
            "zeros": micro(kernels.int4_linear, x, zeros),
            "bf16 plain": plain_call(torch.nn.functional.linear, x, w),
            "plain": plain_call(kernels.int4_linear, x, symmetric),
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
        "clone plain": plain_call(torch.clone, x),
        "plain": plain_call(kernels.quantize_hadamard, x),
    }
    codes, step = kernels.quantize_hadamard(x)
    expected, expected_step = reference.quantize_hadamard(x, 8, None)
    wrong = error(codes * step[:, None], expected * expected_step[:, None])
    table.add("hadamard", f"{TOKENS}x{K}", times["clone"], wrong, times, "int8")


TILES = [
    (128, 128, 128, 8, 4, 3), (128, 128, 128, 16, 4, 3), (128, 128, 128, 4, 4, 3), (128, 128, 64, 8, 4, 6),
    (256, 128, 128, 8, 8, 4), (128, 256, 128, 8, 8, 4),
]  # fmt: skip
WALKS = {
    4096: [(4, 4, 3), (4, 4, 2), (2, 4, 3), (5, 4, 2), (8, 4, 2), (2, 8, 3), (2, 8, 2), (3, 8, 2)],
    11008: [(2, 8, 3), (2, 8, 2), (1, 8, 3), (3, 8, 2), (1, 16, 3), (2, 16, 2)],
}


class Sweep:
    """Times of settings, best first, by what they were tried on."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, Any]]] = {}

    def best(self, title: str, settings: Iterable[Any], work: Callable[..., object], *given: Any) -> None:
        """Time ``work(setting, *given)``; print each time, or why it does not run."""
        print(title, flush=True)
        times = []
        for setting in settings:
            try:
                times.append((micro(partial(work, setting), *given), setting))
                print(f"  {setting!s:40} {times[-1][0]:8.1f}", flush=True)
            except Exception as reason:
                print(f"  {setting!s:40} {type(reason).__name__}: {str(reason).splitlines()[0][:90]}", flush=True)
        self.found[title] = sorted(times)
        print(f"  best: {self.found[title][:1]}", flush=True)

    def int8(self, N: int, K: int) -> None:
        """Tiles of the 8-bit product with outlier columns."""
        x, w = problem(TOKENS, N, K, outliers=7)
        a, sa, listed = int8.quantize(x, 6.0)
        b, sb, _ = kernels.quantize_int8(w)

        def product(tile: tuple[int, ...], *given: torch.Tensor) -> None:
            x, a, b = given
            int8.product(a, sa, b, sb, None, 6.2e-5, x.dtype, int8.Tile(*tile), x, listed)

        self.best(f"int8, seven columns, {K} -> {N}", TILES, product, x, a, b)

    def fp8(self, N: int, K: int) -> None:
        """Tiles of the product of E4M3 codes."""
        x, w = problem(TOKENS, N, K)
        a, sa = fp8.quantize(x)
        b, sb = kernels.quantize_fp8(w)

        def product(tile: tuple[int, ...], *given: torch.Tensor) -> None:
            int8.product(given[0], sa, given[1], sb, None, 1.0, x.dtype, int8.Tile(*tile))

        self.best(f"fp8, {K} -> {N}", TILES, product, a, b)

    def int4(self, M: int, N: int, K: int) -> None:
        """Shares of the product with a packed weight."""
        x, _ = problem(M, 8, K)
        weight = packed(N, K, False)
        blocks = weight.words.shape[1] // 128
        splits = {16: (1, 2), 32: (1, 2, 4, blocks), 64: (1, 2, 4)}
        shares = [(n, s, n // 8, stages) for n in splits for s in sorted(set(splits[n])) for stages in (2, 3)]

        def product(share: tuple[int, ...], *given: Any) -> None:
            w4a16.linear(*given, None, w4a16.Share(*share))

        self.best(f"int4, {M}x{K} -> {N}", shares, product, x, weight)

    def hadamard(self, K: int) -> None:
        """Walks over the rows to transform."""
        x, _ = problem(TOKENS, 8, K)
        block = reference.hadamard_block(K)

        def transform(walk: tuple[int, ...], x: torch.Tensor) -> None:
            hadamard_quantize.quantize(x, 8, block, hadamard_quantize.Walk(*walk))

        self.best(f"hadamard, {K}", WALKS[K], transform, x)


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
            "unit": "microseconds of device time, median; plain: with launches",
            "tokens": TOKENS,
            "goals": GOALS,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        lines = {"settings": settings, "lines": table.lines, "sweep": tried.found}
        options.output.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
