"""Learn what normal images look like, and set the alarm line by images that were not learned from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from farout.alarm import Alarm, check_rate
from farout.cards import find, list_cards
from farout.contract import LABEL_RATE, Detector
from farout.errors import BadInput, UnknownName
from farout.io.image_batches import Batches
from farout.kit.training import torch_or_say
from farout.report._heat import heat_of
from farout.scoring._image_source import sound, to_learn
from farout.scoring._image_words import alike, sizes

DEFAULT = "patchcore"
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
