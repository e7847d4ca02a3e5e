"""Images from beginning to end: learn from normal ones, score others. ``farout fit`` and ``farout score`` in Python.

What is usual is learned from one part of the normal images; another part, drawn at random, sets the alarm line and the
p-values. Images stream through the detector, so that memory does not grow with their number.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from farout.alarm import Alarm, check_rate
from farout.cards import Card, find
from farout.contract import LABEL_RATE, load
from farout.errors import BadInput, UnknownName
from farout.io.image_batches import Batches
from farout.kit.training import torch_or_say
from farout.scoring import versions
from farout.scoring._image_fit import DEFAULT, Progress, fit_images
from farout.scoring._image_maps import MapWriter
from farout.scoring._image_pass import Pass
from farout.scoring._image_result import ImageResult, maps_beside
from farout.scoring._image_source import holds_images, to_score
from farout.scoring._image_words import sizes
from farout.scoring._input_result import quality_of

__all__ = ["DEFAULT", "ImageResult", "fit_images", "holds_images", "maps_beside", "score_images"]

MANY = 1000  # images, beyond which heat maps are written of those above the line only
MAPS = ("all", "alarms", "none")


def score_images(
    source: Any,
    method: Any = None,
    *,
    fit_on: Any = None,
    saved: Any = None,
    rate: float | None = None,
    parameters: dict[str, Any] | None = None,
    skip_broken: bool = False,
    device: str = "auto",
    seed: int = 0,
    maps: str | Path | None = None,
    which: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> ImageResult:
    """Score images, and say where in them they are far out.

    Parameters
    ----------
    source : str, Path, list or array
        As for :func:`fit_images`; of a set of defects the test images, whose kinds, and masks where there are some,
        then say how well defects are told apart.
    method, rate, parameters, skip_broken, device, seed, progress
        As for :func:`fit_images`.
    fit_on : str, Path, list or array, optional
        Normal images to learn from; a set of defects brings its own.
    saved : path or Detector, optional
        What :func:`fit_images` returned, or the path it was saved to; ``method`` and ``fit_on`` are then not used.
    maps : str or Path, optional
        A folder that heat maps are written to while images are scored; by default they are written by
        :meth:`ImageResult.save`, and only for the images that its page shows.
    which : {"all", "alarms", "none"}, optional
        Images whose heat maps are written; by default all where there are no more than 1,000.
    name : str, optional
        Of the images, for reports.

    Returns
    -------
    ImageResult

    Raises
    ------
    BadInput
        There is nothing to learn from, or an image cannot be read.
    UnknownName
        There is no such method, parameter or set.
    """
    started = time.perf_counter()
    torch_or_say("detecting defects in images")
    tell: Progress = progress or (lambda what, done: None)
    if which not in (None, *MAPS):
        raise UnknownName("choice of heat maps", str(which), MAPS)
    found = to_score(source)
    if saved is not None:
        fitted: Any = load(Path(saved)) if isinstance(saved, str | PathLike) else saved
    else:
        normal = fit_on if fit_on is not None else found.defects
        if normal is None:
            raise BadInput(
                f"there are no normal images to learn from beside '{found.name}': give some (fit_on, --fit-on GOOD), "
                "or a detector that was fitted (saved, --with SAVED)"
            )
        fitted = fit_images(
            normal, method, rate=rate, parameters=parameters, skip_broken=skip_broken, device=device, seed=seed,
            progress=progress,
        )  # fmt: skip
    fitted_in = time.perf_counter() - started
    alarm, detector = parts_of(fitted)
    about: dict[str, Any] = getattr(fitted, "images_", {})
    rate = _rate(alarm, rate)
    line = None if alarm is None else _line(alarm.calibration_scores_, rate)
    batches = Batches(found.images, detector.size, detector.batch_size, skip_broken)
    every = which == "all" or (which is None and len(found.images) <= MANY)
    run = Pass(found, about.get("heat"), line, all_maps=every)
    tell("scoring", 0.0)
    with MapWriter(maps) if maps is not None and which != "none" else nullcontext() as writer:
        run.writer = writer
        run.run(detector, batches, partial(tell, "scoring"))
        closing = time.perf_counter()
    run.spent["maps"] += time.perf_counter() - closing
    scores, kept = run.scores, found.images[batches.kept]
    alarms = (p_values := alarm.p_values_of(scores) if alarm else _rank_p_values(scores)) <= rate
    kinds = None if found.kinds is None else [found.kinds[place] for place in batches.kept]
    quality: dict[str, float] = {}
    if kinds is not None:
        quality = quality_of(scores, np.array([kind != "good" for kind in kinds]), alarms)
        quality |= run.pixels.quality() if run.pixels else {}
    notes = [*about.get("few", []), *found.notes, *batches.notes, *sizes(batches.shapes, detector.size, about)]
    if run.odd_masks:
        notes.append(f"{run.odd_masks:,} masks have another size than their images; maps were scaled to the masks")
    if writer is not None and run.boxes and not every:
        notes.append(f"heat maps were written of the {len(writer.written):,} images above the line")
    seconds = {"fit": fitted_in} if saved is None else {}
    seconds |= run.spent | {"in all": time.perf_counter() - started}
    return ImageResult(
        name=name or found.name,
        images=kept,
        scores=scores,
        p_values=p_values,
        alarms=alarms,
        rate=rate,
        calibrated=alarm is not None,
        threshold=line,
        card=_card(detector),
        detector=fitted,
        shapes=batches.shapes,
        boxes=run.boxes or None,
        seconds=run.seconds,
        kinds=kinds,
        quality=quality,
        kept=run.kept,
        heat=run.heat or (0.0, 1.0),
        folder=writer.folder if writer is not None and writer.written else None,
        written=writer.written if writer is not None else {},
        notes=list(dict.fromkeys(notes)),
        settings={
            "data": str(source) if isinstance(source, str | PathLike) else None,
            "images": len(scores),
            "method": _card(detector).slug,
            "parameters": detector.get_params(deep=False),
            "learned from": about.get("learned"),
            "held out": None if alarm is None else len(alarm.calibration_scores_),
            "rate": rate,
            "threshold": line,
            "seed": seed if saved is None else None,
            "left out": [one for place, one in enumerate(found.images.names) if place not in set(batches.kept)],
            "quality": quality,
            "seconds": {what: round(spent, 3) for what, spent in seconds.items()},
            "versions": versions() | {"torch": version("torch"), "pillow": version("pillow")},
        },
    )


def parts_of(fitted: Any) -> tuple[Alarm | None, Any]:
    """Part an alarm, or a detector without one, into both; it must be of images.

    Raises
    ------
    BadInput
    """
    alarm = fitted if isinstance(fitted, Alarm) else None
    detector = alarm.detector_ if alarm else fitted
    if not hasattr(detector, "stream") or not hasattr(detector, "net_"):
        raise BadInput(
            f"'{type(detector).__name__}' does not score images; fit one that does: farout fit GOOD -o SAVED"
        )
    return alarm, detector


def _rate(alarm: Alarm | None, rate: float | None) -> float:
    """Return the rate that was asked for, or that of the alarm, which must be able to keep it."""
    if rate is None:
        return alarm.rate if alarm else LABEL_RATE
    check_rate(rate)
    m = None if alarm is None else len(alarm.calibration_scores_)
    if m is not None and 1 / (m + 1) > rate:
        raise BadInput(
            f"the line was set on {m} normal images, which allow a rate of {1 / (m + 1):.2g} at least, and not {rate:g}"
        )
    return rate


def _line(usual: np.ndarray, rate: float) -> float:
    """Return the score above which p-values are at most the rate."""
    m = len(usual)
    return float(usual[m - int((np.arange(1, m + 2) / (m + 1) <= rate).sum())])


def _card(detector: Any) -> Card:
    """Return a detector's card; one of the user's own gets a plain one."""
    if hasattr(detector, "__paper__"):
        return find(detector.__paper__)
    name = type(detector).__name__
    return Card(name, "image", name.lower(), name, type(detector).__module__)


def _rank_p_values(scores: np.ndarray) -> np.ndarray:
    """Return the share of images that score at least as high."""
    return (len(scores) - np.searchsorted(np.sort(scores), scores, side="left")) / len(scores)
