"""What EfficientAD-S takes on an NVIDIA GPU: one image, many, and files; beside the convolutions that it cannot avoid.

python benchmarks/efficientad.py [--variant S] [--batch 64] [--files 2000] [-o FILE]

256 x 256 pixels, half precision, channels last; weights are random, which changes no time. The detector is whole:
bytes in, normalised maps and scores out, as one CUDA graph. The floor is teacher and student alone, as plain
convolutions, ReLU and pooling of PyTorch, in a CUDA graph of their own, measured in the same run in turns. Times are
medians. From files: JPEGs of random textures are decoded in 16 threads while the GPU works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from farout.image._efficientad_graph import Replay
from farout.image._efficientad_net import EfficientADNet
from farout.io.image_batches import Batches

SIZE, THREADS = 256, 16
GOALS = {"milliseconds": 0.8, "images per second": 2_200.0}


def in_turns(tasks: dict[str, Callable[[], object]], turns: int = 30, repeats: int = 10) -> dict[str, float]:
    """Return the median milliseconds of a call of each task, by events around some calls in a row."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns):
        for name, task in tasks.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                task()
            stop.record()
            torch.cuda.synchronize()
            if turn > 2:  # the first warm up
                times[name].append(start.elapsed_time(stop) / repeats)
    return {name: median(values) for name, values in times.items()}


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """Return what replays a CUDA graph of some work."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        graph.kept = work, work()  # type: ignore[attr-defined]  # what is read must stay where it is
    return graph.replay


def floor(variant: str, batch: int) -> Callable[[], None]:
    """Return teacher and student alone."""
    torch.backends.cudnn.benchmark = True
    net: Any = EfficientADNet(variant, SIZE).eval().cuda().half().to(memory_format=torch.channels_last)
    x_BCHW = torch.rand(batch, 3, SIZE, SIZE, device="cuda").half().contiguous(memory_format=torch.channels_last)
    return captured(lambda: (net.teacher(x_BCHW), net.student(x_BCHW)))


def waited(replay: Replay, images: torch.Tensor, turns: int = 200) -> float:
    """Return the median milliseconds from bytes on the host to scores on the host, one call after the other."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        replay.images.copy_(images, non_blocking=True)
        replay.replay()
        replay.scores.cpu()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[10:])


def write_textures(folder: Path, count: int) -> None:
    """Write JPEGs of blurred noise."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        grain = rng.normal(0, 6, (SIZE, SIZE, 3))
        pixels = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=90)


def from_files(replay: Replay, batch: int, count: int) -> dict[str, float]:
    """Return images a second: decoded alone, and decoded and scored."""
    with tempfile.TemporaryDirectory() as folder:
        write_textures(Path(folder), count)
        list(Batches(folder, SIZE, batch, threads=THREADS))  # files are in the system's cache for both
        start = time.perf_counter()
        for _ in Batches(folder, SIZE, batch, threads=THREADS):
            pass
        decoded = time.perf_counter() - start
        scores = []
        start = time.perf_counter()
        for part in Batches(folder, SIZE, batch, threads=THREADS):
            n = len(part)
            replay.images[:n].copy_(torch.from_numpy(part))
            replay.replay()
            scores.append(replay.scores[:n].clone())
        torch.cat(scores).cpu()
        scored = time.perf_counter() - start
    return {"decoded": count / decoded, "decoded and scored": count / scored}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="S", choices=["S", "M"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    net = EfficientADNet(args.variant, SIZE).eval().cuda()
    place = torch.device("cuda")
    one, many = Replay(net, 1, place), Replay(net, args.batch, place)
    images = torch.randint(256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(images.cuda().float() / 255)[1]
    error = float((one(images)[1] - expected).norm() / expected.norm())
    times = {}
    for batch, replay in ((1, one), (args.batch, many)):
        tasks = {"detector": replay.replay, "teacher and student alone": floor(args.variant, batch)}
        times[batch] = in_turns(tasks, repeats=50 if batch == 1 else 5)
    rates = {batch: {name: 1e3 * batch / ms for name, ms in found.items()} for batch, found in times.items()}
    files = from_files(many, args.batch, args.files)
    host = waited(one, images.pin_memory())
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "variant": args.variant,
        "distance of half precision from single, over its norm": error,
        "milliseconds an image at batch 1": times[1],
        "milliseconds at batch 1, from host to host": host,
        f"images per second at batch {args.batch}": rates[args.batch],
        "ratio to the floor": {
            str(batch): found["detector"] / found["teacher and student alone"] for batch, found in times.items()
        },
        "images per second from JPEG files, 16 threads": files,
    }
    print(json.dumps(report, indent=2))
    if args.variant == "S":
        latency, rate = times[1]["detector"], rates[args.batch]["detector"]
        print(f"batch 1: {latency:.3f} ms (goal < {GOALS['milliseconds']}) {said(latency < GOALS['milliseconds'])}")
        goal = GOALS["images per second"]
        print(f"batch {args.batch}: {rate:,.0f} images a second (goal > {goal:,.0f}) {said(rate > goal)}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def said(met: bool) -> str:
    return "met" if met else "MISSED"


if __name__ == "__main__":
    main()
