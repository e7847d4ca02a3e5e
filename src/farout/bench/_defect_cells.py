"""One cell of the benchmark of defects: a detector on a set with a seed, measured and kept when it is finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.bench.metrics import auroc, average_precision
from farout.bench.pixels import Pixels
from farout.data.defects import DefectSet
from farout.errors import BadInput
from farout.io.files import writing
from farout.scoring import versions

if TYPE_CHECKING:
    from farout.image._detector import ImageDetector

RATE = 0.05  # of false alarms, at which the threshold of F1 is set


@dataclass(frozen=True)
class Images:
    """The images of a set that are used: all, or at most so many.

    Attributes
    ----------
    found : DefectSet
    most : int or None
    share : float
        Of the training images, to fit to; the others calibrate.
    """

    found: DefectSet
    most: int | None
    share: float

    def train(self, seed: int) -> tuple[list[Path], list[Path]]:
        """Draw the images to fit to, and those that calibrate: one at least."""
        drawn = [self.found.train[i] for i in np.random.default_rng(seed).permutation(len(self.found.train))]
        drawn = drawn[: self.most]
        fitted = min(max(1, round(self.share * len(drawn))), len(drawn) - 1)
        if fitted < 1:
            raise BadInput(f"'{self.found.name}' has {len(drawn)} image to learn from; two are the least")
        return sorted(drawn[:fitted]), sorted(drawn[fitted:])

    @cached_property
    def tested(self) -> list[int]:
        """Places of the test images: where they are cut, half are normal and the kinds of defects have equal shares."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, kind in enumerate(self.found.kinds):
            places[kind].append(place)
        if self.most is None or len(self.found.test) <= self.most:
            return list(range(len(self.found.test)))
        normal = places.pop("good", [])
        defective = _equal_shares(list(places.values()), max(self.most // 2, self.most - len(normal)))
        return sorted([normal[i] for i in spread(len(normal), self.most - len(defective))] + defective)

    @cached_property
    def masks(self) -> dict[int, np.ndarray]:
        """Masks by place, of the tested images whose defects are marked."""
        marked = set(self.found.marked)
        return {place: self.found.mask(place) for place in self.tested if place in marked}

    @cached_property
    def identity(self) -> str:
        """What tells the files of this set from others."""
        paths = [*self.found.train, *self.found.test, *(mask for mask in self.found.masks if mask)]
        sizes = [[path.parent.name, path.name, path.stat().st_size] for path in paths]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]

    def file(self, method: str, detector: ImageDetector, seed: int) -> str | None:
        """Name the file that keeps a finished cell; None where a parameter is no plain value."""
        kind = type(detector)
        facts = [self.found.name, self.identity, self.most, self.share, method, kind.__module__, kind.__qualname__]
        facts += [detector.get_params(deep=False), seed, versions()["farout"]]
        try:
            text = json.dumps(facts, sort_keys=True)
        except TypeError:
            return None
        return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def alarm_threshold(calibration: np.ndarray, rate: float = RATE) -> float:
    """Return the score above which an image is called defective: normal images are at most at this rate.

    Where there are too few images for the rate, it is the largest of their scores.

    Examples
    --------
    >>> alarm_threshold(np.arange(39.0)), alarm_threshold(np.arange(5.0))
    (37.0, 4.0)
    """
    falling = np.sort(calibration)[::-1]
    return float(falling[max(1, int(rate * (len(falling) + 1) + 1e-9)) - 1])


def f1(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """F1 of the scores above a threshold.

    Examples
    --------
    >>> f1(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.7, 0.2]), 0.5)
    0.5
    """
    flagged = scores > threshold
    return 2 * float(np.sum(flagged & (labels == 1))) / float(np.sum(labels == 1) + np.sum(flagged))


def measured(detector: ImageDetector, images: Images, seed: int, progress: Callable[[float], None]) -> dict[str, Any]:
    """Fit, score and judge."""
    train, calibration = images.train(seed)
    started = time.perf_counter()
    detector.fit(train, progress=lambda done: progress(0.7 * done))
    fit_seconds = time.perf_counter() - started
    threshold = alarm_threshold(scored(detector, calibration)[0])
    progress(0.75)
    tested = images.tested
    started = time.perf_counter()
    scores, maps = scored(detector, [images.found.test[place] for place in tested])
    seconds = time.perf_counter() - started
    labels = images.found.labels[tested]
    return {
        "auroc": auroc(labels, scores),
        "ap": average_precision(labels, scores),
        "f1": f1(labels, scores, threshold),
        **_pixels(images, maps),
        "fit_seconds": round(fit_seconds, 4),
        "images_per_second": round(len(tested) / seconds, 3),
        "fitted": len(train),
        "tested": len(tested),
        "defective": int(labels.sum()),
    }


def scored(detector: ImageDetector, paths: list[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return scores (n,), and maps (n, size, size) where the detector has them."""
    from farout.io.image_batches import Batches

    parts = list(detector.stream(Batches(paths, detector.size, detector.batch_size)))
    maps = [drawn for _, drawn in parts if drawn is not None]
    return np.concatenate([score for score, _ in parts]), np.concatenate(maps) if maps else None


def _pixels(images: Images, maps: np.ndarray | None) -> dict[str, float | None]:
    """Judge the maps, each scaled to its mask; None where there are no maps or no masks."""
    from farout.image._detector import map_like

    masks = images.masks
    if maps is None or not any(mask.any() for mask in masks.values()):
        return {"pixel_auroc": None, "pixel_ap": None, "aupro": None}
    place_of = {place: i for i, place in enumerate(images.tested)}
    drawn = [map_like(maps[place_of[place]], mask.shape) for place, mask in masks.items()]
    pixels = Pixels(list(masks.values()), drawn)
    return {"pixel_auroc": pixels.auroc(), "pixel_ap": pixels.ap(), "aupro": pixels.aupro()}


def _equal_shares(groups: list[list[int]], most: int) -> list[int]:
    """Take at most so many, as equally as the groups' sizes let."""
    taken: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len)):
        taken += [group[i] for i in spread(len(group), -(-(most - len(taken)) // left))]
    return taken


def spread(n: int, most: int | None) -> np.ndarray:
    """Return at most so many places of ``n``, evenly spread.

    Examples
    --------
    >>> spread(10, 4), spread(3, None)
    (array([0, 2, 5, 7]), array([0, 1, 2]))
    """
    return np.arange(n) if most is None or n <= most else (np.arange(most) * n / most).astype(int)


def kept(folder: Path | None, file: str | None) -> dict[str, Any] | None:
    """Return the finished cell of an earlier run, if there is one."""
    path = folder / file if folder and file else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def keep(folder: Path | None, file: str | None, row: dict[str, Any]) -> None:
    """Write a finished cell."""
    if folder and file:
        with writing(folder / file) as temporary:
            temporary.write_text(json.dumps(row), encoding="utf-8")
