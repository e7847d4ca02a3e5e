"""Recording all sites of a language model beside running it: ratios to the plain pass, and memory as batches grow.

The model has the shape of SmolLM2-135M (30 layers of width 576, 9 heads that share 3 keys) and random weights; on a CPU
the layers may be fewer, which changes no ratio but that of the head. The floor of recording is one pass over what is
recorded, which is measured as the sum of each recorded tensor.

python benchmarks/recorder.py [cpu | cuda] [--layers 8] [--batch 4] [--length 256]
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from farout.inside import record

LIMITS = {"cpu": 1.5, "cuda": 1.3}  # times the plain pass
ALL = ("residual", "norm", "linear", "attention", "probs")
CHOICES = {
    "all sites": ALL,
    "all but probabilities": ALL[:-1],
    "inputs of linear maps": ("linear",),
    "residual stream": ("residual",),
    "probabilities": ("probs",),
    "outputs of linear maps too": (*ALL, "output"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    layers, batch, length = asked.layers or 30, asked.batch or (8 if gpu else 4), asked.length or (2048 if gpu else 256)
    print(
        torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads", "torch", torch.__version__
    )
    for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
        compare(made(layers, asked.device, dtype), batch, length, asked.rounds, LIMITS[asked.device])
    memory(made(2, asked.device, torch.float32))


def made(layers: int, device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(device, dtype).eval()


def compare(model: nn.Module, batch: int, length: int, rounds: int, limit: float) -> None:
    weight = next(model.parameters())
    inner: Any = model.model
    batches = [torch.randint(0, 49152, (batch, length), device=weight.device) for _ in range(4)]

    def forward(_: nn.Module, ids: torch.Tensor) -> None:
        inner(ids, use_cache=False)

    def plain() -> None:
        with torch.no_grad():
            for ids in batches:
                forward(model, ids)

    rivals: dict[str, Callable[[], object]] = {"plain": plain}
    for name, what in CHOICES.items():
        rivals[name] = lambda what=what: record(model, batches, what=what, forward=forward)
    seconds = timed(rivals, rounds)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"\n{parameters / 1e6:.0f}M parameters, {len(batches)} batches of {batch} x {length} tokens, {weight.dtype}")
    for name, time_ in seconds.items():
        print(f"  {name:28} {time_ / seconds['plain']:6.3f} x the plain pass")
    floor = passes(model, batches[0], forward) * len(batches)
    print(f"  {'floor: one pass over them':28} {1 + floor / seconds['plain']:6.3f} x the plain pass")
    ratio = seconds["all sites"] / seconds["plain"]
    verdict = "ok" if ratio <= limit else "TOO SLOW"
    print(f"all sites: {ratio:.2f} x (at most {limit}): {verdict}; the plain pass took {seconds['plain']:.3g} s")


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


def passes(model: nn.Module, ids: torch.Tensor, forward: Callable[[Any, Any], None]) -> float:
    """Seconds of summing up each tensor that is recorded once."""
    recording = record(model, [ids], what=ALL[:-1], forward=forward)
    widths = [len(stats.count) for stats in recording.stats.values()]
    most = torch.randn(ids.numel(), max(widths), device=ids.device).to(next(model.parameters()).dtype)
    flat = most.view(-1)
    return timed({"sums": lambda: [flat[: width * ids.numel()].sum() for width in widths]}, 3)["sums"]


def memory(model: nn.Module) -> None:
    """Peaks for 2 and for 200 batches."""
    device = next(model.parameters()).device
    peaks = []
    for count in (2, 200):
        batches = (torch.randint(0, 49152, (2, 64), device=device) for _ in range(count))
        tracemalloc.start()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        record(model, batches, what=ALL, forward=lambda model, ids: model.model(ids, use_cache=False))
        here, there = (
            tracemalloc.get_traced_memory()[1],
            torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        )
        tracemalloc.stop()
        peaks.append(f"{count} batches: {here / 1e6:.1f} MB on the host, {there / 1e6:.1f} MB on the GPU")
    print("\npeak memory, " + "; ".join(peaks))


if __name__ == "__main__":
    main()
