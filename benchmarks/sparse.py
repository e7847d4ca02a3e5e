"""A sparse convolution beside its floor, one product as large as all of its own, and beside the dense convolution.

The floor multiplies the rows of all pairs of neighbours, laid side by side, with one weight: as many multiplications,
and nothing gathered or scattered. The dense convolution computes the whole plane, batch by batch.

python benchmarks/sparse.py [cpu | cuda] [--maps 16] [--points 1000] [--channels 32]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from _timing import best, report
from farout.image._sparse import Sites, SubmanifoldConv, rulebook

SIDES = {"cpu": [64, 128, 256, 512], "cuda": [64, 256, 1024]}
LIMITS = {"cpu": 4.0, "cuda": 30.0}  # times the floor, the rulebook not counted; a GPU waits for launches
LARGEST = 2**29  # numbers of a dense plane


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--maps", type=int, default=16)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    print(torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads", torch.__version__)
    for side in SIDES[asked.device]:
        compare(side, asked.maps, asked.points, asked.channels, asked.device, asked.rounds)


def compare(side: int, maps: int, points: int, channels: int, device: str, rounds: int) -> None:
    places = torch.randint(0, side, (maps * points, 2), device=device)
    sites, _ = Sites.of(places, torch.arange(maps, device=device).repeat_interleave(points), maps)
    rules = rulebook(sites)
    pairs = sum(len(out) for out, _ in rules)
    conv = SubmanifoldConv(channels, channels).to(device).requires_grad_(False)
    x_NC, rows_PC = (torch.randn(n, channels, device=device) for n in (len(sites.keys), pairs))
    rivals: dict[str, Callable[[], object]] = {
        "sparse convolution": lambda: conv(x_NC, rules),
        "its rulebook": lambda: rulebook(sites),
        "one product": lambda: rows_PC @ conv.weight[0],
    }
    if maps * channels * side**2 <= LARGEST:
        plane_BCHW = torch.randn(maps, channels, side, side, device=device)
        kernel = torch.randn(channels, channels, 3, 3, device=device)
        rivals["dense convolution"] = lambda: torch.nn.functional.conv2d(plane_BCHW, kernel, padding=1)
    with torch.no_grad():
        seconds = best({name: waiting(work, device) for name, work in rivals.items()}, rounds)
    title = f"{maps} maps of {side} x {side}, {len(sites.keys):,} sites, {pairs:,} pairs, {channels} channels"
    report(title, seconds, "one product", {"sparse convolution": LIMITS[device]})


def waiting(work: Callable[[], object], device: str) -> Callable[[], object]:
    """Wait for the GPU too."""

    def run() -> object:
        out = work()
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return run


if __name__ == "__main__":
    main()
