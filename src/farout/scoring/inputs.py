"""Score a model's inputs from beginning to end. ``farout score INPUTS --model MODEL --fit-on TRAIN`` in Python.

What is usual is learned from one part of the training inputs; another part, drawn at random, sets the alarm line and
the p-values. Where outliers are known, how well they are told apart is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from farout.alarm import check_rate
from farout.cards import Card, find, list_cards
from farout.contract import LABEL_RATE
from farout.errors import BadInput, UnknownName, nearest
from farout.io.models import OpenModel, open_model
from farout.kit.training import torch_or_say
from farout.scoring import versions
from farout.scoring._given import Given, read_given
from farout.scoring._input_result import InputResult, Look, above, quality_of
from farout.scoring._passes import Progress
from farout.scoring._watched import WORDS, Run

__all__ = ["DEFAULT", "InputResult", "Look", "score_inputs"]

DEFAULT = "deep_knn"
SETTINGS = ("features", "layers", "pool", "batch_size", "length", "tokenizer", "size", "mean", "deviation")


def score_inputs(
    data: Any,
    model: Any,
    method: Any = None,
    *,
    fit_on: Any = None,
    calibrate_on: Any = None,
    ood: Any = None,
    rate: float | None = None,
    parameters: dict[str, Any] | None = None,
    column: str | None = None,
    label: str | None = None,
    leave_out: Sequence[str] = (),
    skip_broken: bool = False,
    device: str = "auto",
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> InputResult:
    """Score inputs by how unlike the training inputs they are to a classifier.

    Parameters
    ----------
    data : path, list, array, TableFile or data frame
        For a model of images what :func:`farout.io.images.read_images` reads; for one of texts what
        :func:`farout.scoring.texts.score_texts` reads; for one of rows a table of numbers. A folder with just the
        sub-folders ``id`` and ``ood`` says which inputs are outliers. Images are scaled down as they are read, to what
        the model needs.
    model : str, Path, OpenModel or torch.nn.Module
        A classifier: what :func:`farout.io.models.open_model` opens, or the name of a packaged model.
    method : str or Score, optional
        Of the room ``ood`` (``farout list ood``); ``"deep_knn"`` where none is given.
    fit_on : as ``data``, optional
        Inputs that the model was trained on; needed by methods that learn, and for p-values. Sub-folders, or a column
        of labels, are their classes if they fit the model's by name, number or order; else predicted classes stand in.
    calibrate_on : as ``data``, optional
        Usual inputs that set the line; by default three tenths of ``fit_on``. To a model that was trained on these,
        they look more usual than new ones do, which then ring more often than the rate says.
    ood : as ``data``, optional
        Known outliers, which are scored too; ``data`` then are taken as usual.
    rate : float, optional
        Share of usual inputs that may ring; 0.01 where it is not given.
    parameters : dict, optional
        Of the method; of the watch: ``features``, ``layers`` and ``pool``; of reading: ``batch_size``, ``length``
        (tokens of a text), ``tokenizer``, and for a model that says nothing of its images ``size``, ``mean`` and
        ``deviation``, where pixels go from 0 to 1.
    column, label : str, optional
        That hold the texts, and the labels of ``fit_on``.
    leave_out : sequence of str
        Columns of a table that the model does not take.
    skip_broken : bool
        Leave out images that cannot be read, and note it.
    device : str
        ``"auto"`` is the first GPU where there is one.
    seed : int
        For which training inputs are held out.
    name : str, optional
        Of the inputs, for reports.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    InputResult

    Raises
    ------
    BadInput
        An input cannot be read, the model has no view that the method needs, or too few inputs are held out.
    UnknownName
        There is no such method, parameter, layer or column.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> usual = np.random.default_rng(0).normal(size=(400, 2))
    >>> far = np.array([[0.1, 0.2], [90.0, -90.0]])
    >>> result = score_inputs(far, net, "mahalanobis", fit_on=usual, rate=0.05)
    >>> bool(result.alarms[1]), float(result.p_values[1].round(4))
    (True, 0.0083)
    """
    started = time.perf_counter()
    torch_or_say("watching a model")
    from farout.ood.views import evaluating, module_of

    tell: Progress = progress or (lambda what, done: None)
    card = _card(method)
    score, chosen = _split(method, card, parameters or {})
    rate = LABEL_RATE if rate is None else rate
    check_rate(rate)
    if score.learns and fit_on is None:
        raise BadInput(f"'{card.slug}' learns from training inputs: give some (fit_on, --fit-on TRAIN)")
    tell("opening", 0.0)
    with ExitStack() as stack:
        if hasattr(model, "training"):  # a module of the user is left in the mode it was in
            stack.enter_context(evaluating(model))
        opened = _prepared(_opened(model, chosen["tokenizer"]), chosen)
        stack.enter_context(evaluating(module_of(opened)))
        tell("opening", 1.0)
        reading: dict[str, Any] = {"column": column, "label": label, "leave_out": leave_out, "skip_broken": skip_broken}
        sources = {"training": fit_on, "held out": calibrate_on, WORDS[opened.takes]: data, "outliers": ood}
        read: dict[str, Given] = {}
        for title, source in sources.items():
            if source is not None:
                like = next(iter(read.values()), None)
                told = partial(tell, f"reading {title}")
                read[title] = read_given(source, opened, **reading, like=like, progress=told)
        notes = [*opened.notes, *(note for part in read.values() for note in part.notes)]
        run = Run(opened, score, chosen, device, notes, tell)
        found = run.watched(*(read.get(title) for title in sources), rate=rate, seed=seed)
    seen, held, known = found.seen, found.held, found.known
    plain = seen.scores if known is None else seen.scores[~known]
    quality = {} if known is None else quality_of(seen.scores, known, found.alarms)
    return InputResult(
        name=name or _name_of(data, run.what),
        model=opened.name,
        what=run.what,
        look=seen,
        held=held,
        p_values=found.p_values,
        alarms=found.alarms,
        rate=rate,
        calibrated=held is not None,
        threshold=None if held is None else found.watch.threshold_,
        card=card,
        classes=found.classes,
        columns=list(read[run.what].columns),
        known=known,
        groups=found.groups,
        quality=quality,
        shift=None if held is None or not len(plain) else above(plain, held.scores),
        watch=found.watch,
        notes=notes,
        settings={
            "data": str(data) if isinstance(data, str | PathLike) else None,
            run.what: len(seen.scores),
            "model": str(model) if isinstance(model, str | PathLike) else opened.name,
            "method": card.slug,
            "parameters": score.get_params(deep=False),
            "learned from": found.learned,
            "classes": found.labels,
            "held out": None if held is None else len(held.scores),
            "line set on": None
            if held is None
            else "training inputs"
            if calibrate_on is None
            else "inputs given for it",
            "accuracy on what was held out": found.accuracy,
            "rate": rate,
            "seed": seed,
            "watch": {key: value for key, value in chosen.items() if value is not None},
            "quality": quality,
            "seconds": {"in all": round(time.perf_counter() - started, 3)},
            "versions": versions() | {"torch": version("torch")},
        },
    )


def _card(method: Any) -> Card:
    """Find the card of a method that scores inputs."""
    card = find(method if isinstance(method, str) else getattr(type(method), "__paper__", DEFAULT))
    if card.kind != "score":
        able = ", ".join(f"'{one.slug}'" for one in list_cards(kind="score"))
        raise BadInput(f"'{card.slug}' does not score a model's inputs ({card.room}, {card.kind}); methods: {able}")
    return card


def _split(method: Any, card: Card, parameters: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make the score, and part its parameters from those of watching and reading."""
    from farout.ood.watch import score_named

    score = score_named(card.slug if method is None or isinstance(method, str) else method)
    own = score.get_params(deep=False)
    chosen: dict[str, Any] = dict.fromkeys(SETTINGS) | {"batch_size": 64, "length": 256}
    for key, value in parameters.items():
        if key in own:
            score.set_params(**{key: value})
        elif key in SETTINGS:
            chosen[key] = value
        else:
            raise UnknownName(f"parameter of '{card.slug}' or of watching", key, [*own, *SETTINGS])
    for key in ("layers", "mean", "deviation", "size"):
        if isinstance(chosen[key], str):
            chosen[key] = [part.strip() for part in chosen[key].split(",")]
    for key in ("batch_size", "length"):
        if not isinstance(chosen[key], int) or chosen[key] < 1:
            raise BadInput(f"{key} is a whole number, 1 at least, and not {chosen[key]!r}")
    return score, chosen


def _opened(model: Any, tokenizer: Any) -> OpenModel:
    """Open a model by its name or path, or take what is open."""
    from farout.data.pretrained import pretrained, pretrained_names

    source = model
    if isinstance(model, str) and model in pretrained_names():
        source = pretrained(model)
    elif isinstance(model, str) and not any(mark in model for mark in "./:\\") and not Path(model).exists():
        raise BadInput(
            f"there is no folder '{model}' and no packaged model of that name ({nearest(model, pretrained_names())}); "
            "give a folder of transformers, a .safetensors or .onnx file, timm:NAME or py:EXPRESSION"
        )
    from farout.ood.views import with_module

    return with_module(model if isinstance(model, OpenModel) else open_model(source, tokenizer=tokenizer))


def _prepared(opened: OpenModel, chosen: dict[str, Any]) -> OpenModel:
    """Tell a model how images are to be scaled, where the user says so."""
    said = {key: chosen[key] for key in ("size", "mean", "deviation") if chosen[key] is not None}
    if opened.pixels is None:
        if said:
            raise BadInput(f"'{opened.name}' takes no images, so that {', '.join(said)} mean nothing to it")
        return opened
    try:
        changes: dict[str, Any] = {
            key: tuple(255 * float(one) for one in np.atleast_1d(value)) for key, value in said.items() if key != "size"
        }
        if "size" in said:
            sides = [int(one) for one in np.atleast_1d(said["size"])]
            changes["size"] = (sides[0], sides[-1])
    except ValueError as error:
        raise BadInput(f"size, mean and deviation are numbers, one or one for each channel: {error}") from error
    notes = opened.notes
    if not said and opened.pixels.deviation == (255.0,) and opened.pixels.mean == (0.0,):
        notes = [
            *notes,
            f"'{opened.name}' does not say how its images are scaled: pixels go from 0 to 1 (--set mean=... --set "
            "deviation=... where it was trained on others)",
        ]
    return replace(opened, pixels=replace(opened.pixels, **changes), notes=notes)


def _name_of(data: Any, what: str) -> str:
    named = getattr(data, "name", None)
    return str(named or (Path(data).resolve().stem if isinstance(data, str | PathLike) else what))
