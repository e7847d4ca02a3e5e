"""What the claims about training share: small decoders of bytes, trained side by side on the classics and measured.

Every arm sees the same text in the same order from the same start. On a GPU several are trained at once, each in a
process of its own.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from farout.claims._claim import Progress
from farout.claims._measured_decoders import GRIDS, measured
from farout.data import find
from farout.io.files import writing
from farout.kit.language import bytes_of
from farout.kit.training import device_named, torch_or_say

RUNS = "out/decoders"  # where finished runs of the full budgets lie
TEXT = "text/classics/{}.txt.xz"
AT_ONCE = 6  # models on one GPU, each too small to fill it


@dataclass(frozen=True)
class Scale:
    """How much is trained and looked at.

    Attributes
    ----------
    size : str
        Which decoder: ``"G0"`` or ``"G1"`` of :mod:`farout.kit.decoder`.
    steps, batch_size : int
    learning_rate : float
    windows : int
        Of the validation text that is looked at.
    looks : int
        How often peaks and sinks are looked at on the way.
    reads : int
        Bytes of the training text; -1 for all.
    kept : bool
        Whether finished runs are kept.
    """

    size: str
    steps: int
    batch_size: int
    learning_rate: float
    windows: int
    looks: int
    reads: int
    kept: bool = False


SCALES = {
    "small": Scale("G0", steps=40, batch_size=8, learning_rate=1e-3, windows=8, looks=2, reads=1 << 20),
    "full": Scale("G1", steps=4_000, batch_size=32, learning_rate=1e-3, windows=64, looks=6, reads=-1, kept=True),
}


def trained(
    arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], scale: Scale, progress: Progress
) -> list[dict[str, Any]]:
    """Train every arm from every seed and measure it.

    Runs of a scale that is kept lie in :data:`RUNS` when they are finished; a later call takes them from there, also on
    another machine.

    Parameters
    ----------
    arms : dict of str to dict
        What the configuration of each arm changes.
    seeds : list of int
        For the start and the order of the text.
    scale : Scale
    progress : callable

    Returns
    -------
    list of dict
        A row for each arm, seed and look: arm, seed, step, device, and what :func:`measured` finds; losses of rounded
        models at the last look only.
    """
    torch_or_say("training decoders")
    import torch

    jobs = [(arm, dict(changes), seed, scale) for seed in seeds for arm, changes in arms.items()]
    open_jobs = [job for job in jobs if not _kept(*job[1:]).is_file()]
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = {}
    if open_jobs:
        for part in ("train", "valid"):
            find(TEXT.format(part))  # so that a missing file is said before anything starts
    if devices and open_jobs:
        with ProcessPoolExecutor(AT_ONCE * len(devices), get_context("spawn")) as pool:
            running = {
                pool.submit(_train, *job[1:], devices[place % len(devices)]): job for place, job in enumerate(open_jobs)
            }
            for place, done in enumerate(as_completed(running), start=1):
                arm, _, seed, _ = running[done]
                found[arm, seed] = done.result()
                progress(f"{arm}, seed {seed}", place / len(open_jobs))
    rows = []
    for place, (arm, changes, seed, _) in enumerate(jobs):
        kept = _kept(changes, seed, scale)
        if kept.is_file():
            run = json.loads(kept.read_text(encoding="utf-8"))
        elif (arm, seed) in found:
            run = found[arm, seed]
        else:
            share_done = lambda share, at=place, what=arm: progress(what, (at + share) / len(jobs))  # noqa: E731
            run = _train(changes, seed, scale, "cpu", share_done)
        rows += [{"arm": arm, "seed": seed} | row for row in run]
    return rows


def _kept(changes: Mapping[str, Any], seed: int, scale: Scale) -> Path:
    """Return the file of a finished run, which is there when its scale is kept."""
    what = json.dumps([sorted(changes.items()), seed, asdict(scale)])
    return Path(RUNS) / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"


@cache
def classics(part: str, most: int = -1) -> np.ndarray:
    """Return the first bytes of a part of the classics."""
    with lzma.open(find(TEXT.format(part))) as file:
        return bytes_of(file.read(most))


def _train(
    changes: dict[str, Any], seed: int, scale: Scale, device: str, progress: Callable[[float], None] | None = None
) -> list[dict[str, Any]]:
    """Train one decoder, and measure it on the way and at the end."""
    import torch

    from farout.kit import decoder
    from farout.kit.language import evaluation_windows, train_language_model

    train, valid = classics("train", scale.reads), classics("valid")
    config = replace(getattr(decoder, scale.size), **changes)
    model = decoder.Decoder(config, seed).to(device_named(device))
    windows = evaluation_windows(valid, config.context, scale.windows)
    looks = {max(1, round(scale.steps * (i + 1) / scale.looks)) for i in range(scale.looks)}
    rows: list[dict[str, Any]] = []
    where = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"

    def look(step: int) -> None:
        if step in looks:
            rows.append({"step": step, "device": where} | measured(model, windows, last=step == scale.steps))

    train_language_model(
        model,
        train,
        context=config.context,
        steps=scale.steps,
        batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        seed=seed,
        after_step=look,
        progress=progress,
    )
    if scale.kept:
        kept = _kept(changes, seed, scale)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with writing(kept) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def means(rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, dict[str, float]]:
    """Average what was measured at a step over the seeds, for each arm."""
    at = [row for row in rows if row["step"] == step]
    names = [name for name in at[0] if name not in ("arm", "seed", "step", "device")]
    arms = dict.fromkeys(row["arm"] for row in at)
    return {arm: {n: float(np.mean([row[n] for row in at if row["arm"] == arm])) for n in names} for arm in arms}


def table_of(late: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Lay means out as rows; losses of rounded models are those added."""
    return [
        {"arm": arm} | {(f"added by {name}" if name in GRIDS else name): value for name, value in facts.items()}
        for arm, facts in late.items()
    ]
