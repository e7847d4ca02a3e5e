"""One pass of a detector over images: scores, boxes and timings of all, maps of the few that a page shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farout.io.image_batches import Batches
from farout.report._heat import Heat, heat_of, hottest
from farout.scoring._image_maps import MapWriter
from farout.scoring._image_pixels import PixelCounts
from farout.scoring._image_source import ImageSource

SHOWN = 180  # images of a page, farthest out first
MISSED = 20  # known defects with the lowest scores, which a page shows too


class Timed:
    """Batches, with the time that was spent waiting for them; a detector streams these as it does those."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        waiting = iter(self.batches)
        while True:
            started = time.perf_counter()
            part = next(waiting, None)
            self.waited += time.perf_counter() - started
            if part is None:
                return
            yield part


@dataclass
class Pass:
    """Scores a pass of a detector over images, batch by batch, and keeps little of each.

    Attributes
    ----------
    source : ImageSource
        Of the images in the batches.
    heat : (float, float) or None
        Values of a map at which colour begins, and is half strong; None takes them from the first batch.
    line : float or None
        Above which an image rings.
    writer : MapWriter or None
        Of heat maps.
    all_maps : bool
        Whether maps are written of all images, or of those above the line.
    """

    source: ImageSource
    heat: Heat | None = None
    line: float | None = None
    writer: MapWriter | None = None
    all_maps: bool = True
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    seconds: np.ndarray = field(default_factory=lambda: np.empty(0))
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    pixels: PixelCounts | None = None
    odd_masks: int = 0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "model", "maps"), 0.0))

    def run(self, detector: Any, batches: Batches, tell: Callable[[float], None]) -> None:
        """Score all images."""
        kinds = self.source.kinds
        known = None if kinds is None else np.array([kind != "good" for kind in kinds])
        timed = Timed(batches)

        def forget() -> None:
            self._forget(None if known is None else known[batches.kept])

        stream = detector.stream(timed)
        while True:
            started, waited = time.perf_counter(), timed.waited
            one = next(stream, None)
            waited, took = timed.waited - waited, time.perf_counter() - started
            self.spent["decode"] += waited
            self.spent["model"] += took - waited
            if one is None:
                break
            scores, maps = one
            first = len(self.scores)
            self.scores = np.concatenate([self.scores, scores])
            self.seconds = np.concatenate([self.seconds, np.full(len(scores), took / len(scores))])
            if maps is not None:
                started = time.perf_counter()
                self._see(maps, first, batches)
                if len(self.kept) > 2 * SHOWN:
                    forget()
                self.spent["maps"] += time.perf_counter() - started
            tell((batches.kept[-1] + 1) / len(batches.images))
        forget()

    def _see(self, maps: np.ndarray, first: int, batches: Batches) -> None:
        """Take from the maps of a batch what is needed, and hand them to be written."""
        if self.heat is None:
            peaks = maps.max((1, 2))
            self.heat = heat_of(peaks, float(peaks.max()), float(np.median(maps)))
        if self.writer is not None:
            self.writer.heat = self.heat
        listed, defects = batches.images, self.source.defects
        marked = set(defects.marked) if defects else set()
        for row, map_HW in enumerate(maps, first):
            place, shape = batches.kept[row], batches.shapes[row]
            box = hottest(map_HW, shape)
            self.boxes.append(box)
            self.kept[row] = map_HW.astype(np.float32)
            if self.writer is not None and (self.all_maps or self.line is None or self.scores[row] > self.line):
                part = (box[0] / shape[1], box[1] / shape[0], box[2] / shape[1], box[3] / shape[0])
                self.writer.add(row, listed.names[place], listed.items[place], map_HW, part)
            if defects is not None and place in marked:
                self._compare(map_HW, defects.mask(place, None if defects.masks[place] else shape), shape)

    def _compare(self, map_HW: np.ndarray, mask_HW: np.ndarray, shape: tuple[int, int]) -> None:
        """Count the pixels of an image whose defects are marked."""
        from farout.image import map_like

        self.odd_masks += mask_HW.shape != shape
        if self.pixels is None:
            assert self.heat is not None
            self.pixels = PixelCounts(self.heat[1])
        self.pixels.add(map_like(map_HW, mask_HW.shape), mask_HW)

    def _forget(self, known: np.ndarray | None) -> None:
        """Keep maps of the images farthest out, and of known defects with the lowest scores."""
        order = np.argsort(-self.scores, kind="stable")
        wanted = set(order[:SHOWN].tolist())
        if known is not None:
            wanted |= set(order[known[order]][::-1][:MISSED].tolist())
        self.kept = {row: map_HW for row, map_HW in self.kept.items() if row in wanted}
