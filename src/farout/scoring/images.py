"""Images from beginning to end: learn from normal ones, score others. ``farout fit`` and ``farout score`` in Python.

What is usual is learned from one part of the normal images; another part, drawn at random, sets the alarm line and the
p-values. Images stream through the detector, so that memory does not grow with their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from farout.alarm import Alarm, check_rate
from farout.cards import Card, find, list_cards
from farout.contract import LABEL_RATE, Detector, load
from farout.errors import BadInput, UnknownName
from farout.io.image_batches import Batches
from farout.kit.training import torch_or_say
from farout.report._heat import heat_of
from farout.scoring import versions
from farout.scoring._image_maps import MapWriter
from farout.scoring._image_pass import Pass
from farout.scoring._image_result import ImageResult, maps_beside
from farout.scoring._image_source import holds_images, sound, to_learn, to_score
from farout.scoring._image_words import alike, sizes
from farout.scoring._input_result import quality_of

__all__ = ["DEFAULT", "ImageResult", "fit_images", "holds_images", "maps_beside", "score_images"]

DEFAULT = "patchcore"
MANY = 1000  # images, beyond which heat maps are written of those above the line only
MAPS = ("all", "alarms", "none")
Progress = Callable[[str, float], None]


def fit_images(
    source: Any,
    method: Any = None,
    *,
    rate: float | None = None,
    parameters: dict[str, Any] | None = None,
    skip_broken: bool = False,
    device: str = "auto",
    seed: int = 0,
    calibration: float = 0.3,
    progress: Progress | None = None,
) -> Alarm:
    """Learn what normal images look like, and set the alarm line.

    Parameters
    ----------
    source : str, Path, list or array
        Normal images: a folder, a list of paths, or an array. Of a set of defects, which is one of
        :func:`farout.data.defects.defect_set_names` or a folder in its layout, the training images.
    method : str or ImageDetector, optional
        Of the room ``image`` (``farout list image``); ``"patchcore"`` where none is given.
    rate : float, optional
        Share of normal images that may ring. Where none is given it is 0.01, or what the number of images allows.
    parameters : dict, optional
        Of the method, such as ``{"size": 320}``.
    skip_broken : bool
        Leave out images that cannot be read, and note it.
    device : str
        ``"auto"`` is the first GPU where there is one.
    seed : int
        For all that is drawn.
    calibration : float
        Share of the images that sets the line and is not learned from.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    Alarm
        ``alarm.save(path)`` keeps it, and :func:`farout.load` reads it. ``alarm.images_`` holds what is known of the
        images that it was made with: ``notes``, ``learned`` and ``shape``, and ``heat``, which colours maps.

    Raises
    ------
    BadInput
        There are too few images, for the method or for the rate, or one cannot be read.
    UnknownName
        There is no such method, parameter or set.

    Examples
    --------
    >>> from farout.image import ImageDetector
    >>> import torch
    >>> class Bright(ImageDetector):
    ...     def __init__(self, size=8, batch_size=4, device="cpu"):
    ...         self.size, self.batch_size, self.device = size, batch_size, device
    ...     def _net(self):
    ...         class Net(torch.nn.Module):
    ...             def forward(self, x_BCHW):
    ...                 return x_BCHW.amax((1, 2, 3)), x_BCHW.mean(1)
    ...         return Net()
    ...     def _learn(self, net, x_BCHW, progress): ...
    >>> dark = np.random.default_rng(0).integers(0, 60, (40, 8, 8), dtype=np.uint8)
    >>> alarm = fit_images(dark, Bright())
    >>> alarm.predict(np.array([dark[0], dark[0] + 90])), round(alarm.rate, 3)
    (array([ 1, -1]), 0.077)
    """
    torch_or_say("detecting defects in images")
    tell: Progress = progress or (lambda what, done: None)
    made = _detector(method, parameters, seed, device)
    if not 0 < calibration < 1:
        raise BadInput(f"calibration is a share of the images between 0 and 1, not {calibration}")
    found = to_learn(source)
    listed, notes = found.images, list(found.notes)
    if skip_broken:
        tell("looking", 0.0)
        listed, broken = sound(listed)
        notes += broken
        tell("looking", 1.0)
    n = len(listed)
    held = min(max(1, round(calibration * n)), n - made.least)
    if held < 1:
        raise BadInput(
            f"'{type(made).__name__}' learns from {made.least} normal images at least, and one more sets the line; "
            f"'{found.name}' holds {n}: give more"
        )
    rate, few = _able(rate, held, n, calibration)
    order = check_random_state(seed).permutation(n)
    tell("learning", 0.0)
    made.fit(listed[sorted(order[held:].tolist())], progress=partial(tell, "learning"))
    tell("learning", 1.0)
    batches = Batches(listed[sorted(order[:held].tolist())], made.size, made.batch_size)
    scores, peaks, middles = [], [], []
    for score, maps in made.stream(batches):
        scores.append(score)
        if maps is not None:
            peaks.append(maps.max((1, 2)))
            middles.append(np.median(maps, (1, 2)))
        tell("setting the line", len(batches.kept) / held)
    alarm = Alarm(made, rate, calibration, seed).calibrate_scores(np.concatenate(scores))
    alarm.detector = clone(made)
    heat = None
    if peaks:
        peak = np.concatenate(peaks)
        heat = heat_of(
            peak, float(np.quantile(peak, 1 - rate, method="higher")), float(np.median(np.concatenate(middles)))
        )
    notes += [note for note in batches.notes if note not in notes]
    notes += alike(alarm.calibration_scores_)
    notes += sizes(batches.shapes, made.size)
    height, width = np.median(batches.shapes, axis=0).tolist()
    alarm.images_ = {
        "name": found.name,
        "learned": n - held,
        "shape": (height, width),
        "heat": heat,
        "few": few,
        "notes": few + notes,
    }
    return alarm


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


def _detector(method: Any, parameters: dict[str, Any] | None, seed: int, device: str) -> Any:
    """Make an unfitted detector of images."""
    if isinstance(method, Detector):
        return clone(method).set_params(**(parameters or {}))
    card = find(method or DEFAULT)
    if card.kind != "detector" or card.room != "image" or "image" not in card.takes:
        able = ", ".join(f"'{one.slug}'" for one in list_cards("image", "detector") if "image" in one.takes)
        raise BadInput(f"'{card.slug}' does not score images ({card.room}, {card.kind}); methods that do: {able}")
    made = card.load()()
    known = made.get_params()
    defaults = {"random_state": seed, "device": device}
    chosen = {name: value for name, value in defaults.items() if name in known} | (parameters or {})
    for name in chosen:
        if name not in known:
            raise UnknownName(f"parameter of '{card.slug}'", name, known)
    return made.set_params(**chosen)


def _able(rate: float | None, held: int, n: int, calibration: float) -> tuple[float, list[str]]:
    """Return the rate, and what is to be said of it: images can be too few for the one that is taken by default."""
    need = round(1 / LABEL_RATE) - 1
    more = f"give about {int(np.ceil(need / calibration)):,} for {LABEL_RATE:g}"
    are = "is" if held == 1 else "are"
    if rate is None:
        if 1 / (held + 1) <= LABEL_RATE:
            return LABEL_RATE, []
        return 1 / (held + 1), [
            f"of {n} normal images {held} {are} held out to set the line, which is where 1 of {held + 1} normal images "
            f"may ring (rate {1 / (held + 1):.3g}): fewer cannot be promised with so few; {more}"
        ]
    check_rate(rate)
    if 1 / (held + 1) > rate:
        raise BadInput(
            f"a rate of {rate:g} takes {int(np.ceil(1 / rate)) - 1:,} normal images that are held out, and of {n} "
            f"{held} {are}: give more, or a rate of {1 / (held + 1):.2g} at least"
        )
    return rate, []


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
