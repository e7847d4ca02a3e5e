"""Images of one size, batch by batch: decoded and scaled in worker threads while the last batch is at work."""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farout.errors import BadInput, MissingExtra
from farout.io._image import Size, read_image, reason
from farout.io.images import ImageList, list_images

__all__ = ["Batches"]

THREADS = 16
AHEAD = 3  # batches that are decoded before they are asked for


@dataclass
class Batches:
    """Images as uint8 arrays (B, 3, height, width), in order; iterate as often as you like.

    Height and width are squeezed to the size, whatever they were, as the benchmarks of defect detection do.

    Parameters
    ----------
    images : ImageList or whatever :func:`farout.io.images.list_images` takes
    size : int or (int, int)
        Height and width.
    batch_size : int
    skip_broken : bool
        Leave out files that cannot be read, instead of refusing.
    threads : int, optional
        By default as many as there are cores, at most 16.

    Attributes
    ----------
    kept : list of int
        Places of the images that were read, of the last time through.
    shapes : list of (int, int)
        Their heights and widths as stored.
    notes : list of str
        What a user must know, in sentences.

    Examples
    --------
    >>> batches = Batches(np.zeros((3, 4, 5), np.uint8), size=2, batch_size=2)
    >>> [x_BCHW.shape for x_BCHW in batches]
    [(2, 3, 2, 2), (1, 3, 2, 2)]
    """

    images: Any
    size: int | Size
    batch_size: int = 32
    skip_broken: bool = False
    threads: int | None = None
    kept: list[int] = field(default_factory=list)
    shapes: list[Size] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = list_images(self.images)
        if min(self._shape()) < 1 or self.batch_size < 1:
            raise BadInput(f"a size is 1 pixel and a batch 1 image at least, not {self.size} and {self.batch_size}")

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        listed: ImageList = self.images
        broken: list[str] = []
        done: Counter[str] = Counter()
        self.kept, self.shapes, self.notes = [], [], list(listed.notes)
        starts = range(0, len(listed), self.batch_size)
        workers = self.threads or min(THREADS, os.cpu_count() or 1)
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
            warnings.simplefilter("ignore")  # of large images and odd metadata; what matters is raised
            ahead: deque[list[Future[_Read]]] = deque()
            try:
                for turn in range(len(starts) + AHEAD):
                    if turn < len(starts):
                        places = range(starts[turn], min(starts[turn] + self.batch_size, len(listed)))
                        ahead.append([pool.submit(_one, listed, place, self._shape()) for place in places])
                    if turn < AHEAD:
                        continue
                    first = starts[turn - AHEAD]
                    pictures = []
                    for place, future in enumerate(ahead.popleft(), first):
                        pixels, shape, what = future.result()
                        if pixels is None:
                            broken.append(f"'{listed.names[place]}' ({what[0]})")
                            if not self.skip_broken:
                                raise BadInput(
                                    f"{broken[0]} cannot be read as an image; mend or remove it, or leave such files "
                                    "out: skip_broken=True (--skip-broken)"
                                )
                            continue
                        pictures.append(pixels)
                        self.kept.append(place)
                        self.shapes.append(shape)
                        done.update(what)
                    if pictures:
                        yield np.stack(pictures)
            finally:
                for futures in ahead:
                    for future in futures:
                        future.cancel()
        self.notes += [f"{count:,} image{'s are' if count > 1 else ' is'} {what}" for what, count in done.items()]
        if broken:
            shown = ", ".join(broken[:5]) + (" and others" if len(broken) > 5 else "")
            self.notes.insert(0, f"{len(broken):,} of {len(listed):,} images are broken and left out: {shown}")
        if not self.kept:
            raise BadInput(f"none of the {len(listed):,} images can be read: {', '.join(broken[:5])}")

    def _shape(self) -> Size:
        return (self.size, self.size) if isinstance(self.size, int) else self.size


_Read = tuple[np.ndarray | None, Size, Sequence[str]]


def _one(listed: ImageList, place: int, size: Size) -> _Read:
    """Read an image, scaled to the size; None and the reason where it is broken."""
    from PIL import Image

    try:
        pixels, what = read_image(listed.items[place], None)
    except MissingExtra:
        raise
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        return None, (0, 0), [reason(error)]
    shape = pixels.shape[:2]
    if shape != size:
        pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), shape, what
