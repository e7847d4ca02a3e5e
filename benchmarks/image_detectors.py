"""Detectors of images: time from images to the first heat map, and images a second, beside the backbone's own pass.

python benchmarks/image_detectors.py [cpu | cuda] [method ...]

Methods are those of the catalogue that learn from normal images, each with its defaults; trainings are cut, and their
time to the first map says nothing. The floor is one pass of EfficientNet-Lite0 over the same images in the same
batches: of all training images once, and of the images that are scored. Images lie decoded in memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from _timing import best, report
from farout.bench.defects import SHORT, default_methods, detectors
from farout.data.defects import defect_set
from farout.image import Backbone
from farout.image._detector import pixels
from farout.io.image_batches import Batches

SET, TRAINED, SCORED = "magnetic_tile", 100, 64
LIMITS = {"gaussian_ad": 1.3, "padim": 2.0, "patchcore": 2.0}  # times the floor, in scoring
FIRST_MAP, LEAST = 60.0, 5.0  # seconds, and images a second, on two cores


def main(device: str = "cpu", *methods: str) -> None:
    found = defect_set(SET)
    for name, make in detectors(methods or default_methods(), device, short=True).items():
        detector = make(0)
        raced(name, detector, _decoded(found.train[:TRAINED], detector), _decoded(found.test[:SCORED], detector))


def raced(name: str, detector: Any, train: np.ndarray, test: np.ndarray) -> None:
    """Print how long a detector takes, as ratios to the backbone's pass."""
    cut = any(hasattr(detector, word) for word in SHORT)
    backbone = Backbone().to(detector._place())
    once = _pass(backbone, detector, train)
    once()  # warms up
    start = time.perf_counter()
    once()
    floor = time.perf_counter() - start
    start = time.perf_counter()
    detector.fit(train)
    try:
        detector.score_maps(test[:1])
        what = "first map"
    except ValueError:  # there are no maps
        detector.outlier_score(test[:1])
        what = "first score"
    seconds = time.perf_counter() - start
    title = f"{name}, {detector.size} pixels, {detector.device}"
    print(f"\n{title}: {what} {seconds:.1f} s after {len(train)} images", end="")
    if cut:
        print(", of a training that was cut")
    else:
        print(f", {seconds / floor:.1f} x a pass over them; limit {FIRST_MAP:.0f} s")
    ours: Callable[[], object] = lambda: detector.outlier_score(test)  # noqa: E731
    times = best({"backbone": _pass(backbone, detector, test), name: ours}, rounds=3)
    report(f"scoring {len(test)} images", times, "backbone", LIMITS)
    print(f"  {len(test) / times[name]:,.1f} images a second, where {LEAST:.0f} are wanted on two cores")


def _pass(backbone: Backbone, detector: Any, images: np.ndarray) -> Callable[[], object]:
    """Return a pass of the backbone over images, in the detector's batches."""
    place = detector._place()

    def run() -> None:
        with torch.inference_mode():
            for part in torch.from_numpy(images).split(detector.batch_size):
                backbone(pixels(part.to(place).permute(0, 3, 1, 2)))
            if place.type == "cuda":
                torch.cuda.synchronize()

    return run


def _decoded(paths: list[Any], detector: Any) -> np.ndarray:
    """Read images at the detector's size, (n, height, width, 3)."""
    return np.concatenate(list(Batches(paths, detector.size))).transpose(0, 2, 3, 1).copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
