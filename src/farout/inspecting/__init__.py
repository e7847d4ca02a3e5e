"""Look inside a model from beginning to end: open it, record it, round it, and say what is wrong. ``farout inspect``.

One pass over a sample records what the residual stream, norms, linear maps and attention carry; a second one measures
what rounding each linear map costs, and what remedies leave of it; then both are read for findings.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.inspecting._changes import Change
from farout.inspecting._inspection import Inspection
from farout.inspecting._samples import sample_for
from farout.inspecting._steps import Progress, costs_of, modes_kept, open_named, pieces_of, recorded, told
from farout.kit.training import device_named, torch_or_say

__all__ = ["Change", "Inspection", "inspect"]


def inspect(
    model: Any,
    data: Any = None,
    *,
    compare: Any = None,
    length: int = 256,
    samples: int = 8,
    batch_size: int = 4,
    device: str = "auto",
    tokenizer: Any = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look inside a model: where its outliers are, what they cost at few bits, and what to do about them.

    Parameters
    ----------
    model : path, str or torch.nn.Module
        A folder of transformers, a file of GGUF, safetensors or ONNX, ``timm:NAME``, the name of a packaged model,
        ``py:EXPRESSION``, or a module, which needs ``data``.
    data : path, list of str, array or iterable of batches, optional
        Texts: a ``.txt`` file of paragraphs, ``.jsonl`` with a field ``text``, ``.csv`` or ``.tsv`` with a column
        ``text``. Images: a folder. Features: ``.npy`` or ``.npz``. For a module: batches as for
        :func:`farout.inside.record`. Without it a small set that comes with farout is read.
    compare : path, str or torch.nn.Module, optional
        Another model, such as this one after a change; it reads the same data.
    length : int
        Tokens of each text.
    samples : int
        Texts or images that are read.
    batch_size : int
    device : str
        ``"auto"`` is the first GPU where there is one.
    tokenizer : path, optional
        Where the model brings none.
    seed : int
        For everything that is drawn.
    name : str, optional
        Of the model, for reports.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    Inspection

    Raises
    ------
    BadInput
        The model or the data cannot be used.

    Examples
    --------
    >>> import torch
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8))
    >>> model = torch.nn.Sequential(block(), block(), block())
    >>> _ = model[1][1].bias.data.index_fill_(0, torch.tensor([5]), 900.0)
    >>> found = inspect(model, [torch.randn(16, 8)], name="three blocks")
    >>> found.layers.select("layer", "channel").row(2)
    (1, 5)
    """
    torch_or_say("looking inside a model")
    tell: Progress = progress or (lambda what, done: None)
    sizes = {"length": length, "samples": samples, "batch_size": batch_size}
    for word, size in sizes.items():
        if size < 1:
            raise BadInput(f"{word.replace('_', ' ')} is at least 1, not {size}")
    if hasattr(data, "ndim") and not isinstance(data, np.ndarray):
        data = [data]  # one tensor is one batch
    elif not isinstance(data, str | os.PathLike | np.ndarray) and isinstance(data, Iterable):
        data = list(data)  # read twice, and by both models
    settings = {**sizes, "seed": seed, "tokenizer": tokenizer, "device": str(device_named(device))}
    found = _inspect(model, data, settings, name, tell)
    if compare is not None:
        found.other = _inspect(compare, data, settings, None, tell)
    return found


def _inspect(model: Any, data: Any, settings: dict[str, Any], name: str | None, tell: Progress) -> Inspection:
    """Look into one model."""
    import torch

    from farout.inside.diagnosis import diagnose

    started = time.perf_counter()
    seconds: dict[str, float] = {}
    seed = settings["seed"]

    def took(what: str) -> None:
        seconds[what] = round(time.perf_counter() - started - sum(seconds.values()), 3)

    with torch.random.fork_rng(), modes_kept(model):
        torch.manual_seed(seed)  # an expression may draw weights
        tell("opening", 0.0)
        opened = open_named(model, settings, name)
        sample = sample_for(opened, data, settings["samples"])
        batches = list(sample.batches(opened, settings["length"], settings["batch_size"]))
        if not batches:
            raise BadInput(f"there is nothing to read in {sample.source}")
        tell("opening", 1.0)
        if sample.ready:  # batches need no tokenizer
            opened.notes = [note for note in opened.notes if "no tokenizer" not in note]
        took("opening")
        recording = recorded(opened, told(batches, tell))
        took("recording")
        costs = costs_of(opened, batches, seed, tell)
        took("rounding")
        tell("reading", 0.0)
        known = [cost for cost in costs if all(map(math.isfinite, cost.errors.values()))]
        findings = diagnose(recording, known)
        if len(known) < len(costs):
            lost = ", ".join(f"'{cost.layer}'" for cost in costs if cost not in known)
            opened.notes.append(f"no cost is known of maps whose output holds values that are no numbers: {lost}")
        tell("reading", 1.0)
        took("reading")
    return Inspection(
        name=opened.name,
        facts=opened.facts,
        recording=recording,
        findings=findings,
        costs=costs,
        takes=opened.takes,
        causal=opened.causal,
        tokens=pieces_of(opened, batches),
        notes=list(dict.fromkeys([*opened.notes, *sample.notes, *recording.notes])),
        settings={
            "model": str(model) if isinstance(model, str | os.PathLike) else type(opened.model).__name__,
            "data": sample.source,
            "read": sample.read(opened, batches),
            **{word: value for word, value in settings.items() if value is not None},
            "seconds": {**seconds, "in all": round(time.perf_counter() - started, 3)},
            "versions": _versions(),
        },
    )


def _versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("farout", "numpy", "polars", "torch", "transformers", "timm", "onnx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
