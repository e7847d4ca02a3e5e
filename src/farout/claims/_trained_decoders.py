"""What the claims about training share: small decoders of bytes, trained side by side on the classics and measured.

Every arm sees the same text in the same order from the same start. On a GPU several are trained at once, each in a
process of its own.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from farout.claims._claim import Progress
from farout.data import find
from farout.io.files import writing
from farout.kit.language import bytes_of
from farout.kit.training import device_named, torch_or_say

RUNS = "out/decoders"  # where finished runs of the full budgets lie
TEXT = "text/classics/{}.txt.xz"
SINK_HEAD = 0.3  # of a head's attention to the first token, from which on it is a sink head
AT_ONCE = 6  # models on one GPU, each too small to fill it
GRIDS = {"W8": (8, None), "W4": (4, None), "W8A8": (8, 8), "W4A4": (4, 4)}


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


def measured(model: Any, windows: np.ndarray, last: bool = True) -> dict[str, Any]:
    """Measure outliers, sinks and, at last, what rounding costs.

    Returns
    -------
    dict
        ``loss`` in nats for each byte; ``sink heads`` of all layers, whose attention to the first token is above 0.3,
        and ``first token``, the mean of that attention; ``sink columns``, key positions with a tenth of a block's
        attention; ``peak`` of the residual stream, and the same ``over median``; ``residual sink``, the largest mean
        absolute value of a channel over that of the median one; ``systematic`` channels; ``wcol``, the largest ratio of
        a weight to the mean of its row or column; and by how much each grid of :data:`GRIDS` raises
        the loss.
    """
    import torch

    from farout.inside import record
    from farout.inside.systematic_outliers import SystematicOutliers
    from farout.kit.language import evaluate

    tokens = torch.from_numpy(windows[:, :-1]).long().to(next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = tokens.split(max(1, len(tokens) // 4))
        shares = [torch.stack([probs.mean((0, 2)) for probs in model.probabilities(part)]) for part in parts]
        shares_LHK = torch.stack(shares).mean(0)[..., : tokens.shape[1]]
        recording = record(model, parts, what=("residual", "weight"))
        cycle = SystematicOutliers().measure(recording)
        sizes = [recording[f"blocks.{i}.out"] for i in range(len(model.blocks))]
        loss = evaluate(model, windows)
        facts = {
            "loss": loss,
            "sink heads": int((shares_LHK[..., 0] > SINK_HEAD).sum()),
            "first token": float(shares_LHK[..., 0].mean()),
            "sink columns": int((shares_LHK.mean(1) >= 0.1).sum()),
            "peak": max(row["peak"] for row in cycle.layers),
            "over median": max(row["peak"] / row["median"] for row in cycle.layers),
            "residual sink": max(float(size.magnitude.max() / np.median(size.magnitude)) for size in sizes),
            "systematic": cycle.systematic,
            "wcol": max(row["ratio"] for row in cycle.layers),
        }
        if last:
            for name, (bits, inputs) in GRIDS.items():
                with rounded(model, bits, inputs):
                    facts[name] = evaluate(model, windows, batch_size=len(windows)) - loss
    model.train(training)
    return facts


@contextmanager
def rounded(model: Any, bits: int, inputs: int | None) -> Iterator[None]:
    """Let linear maps of a decoder's blocks multiply rounded weights and, with ``inputs``, rounded inputs.

    Both by the largest absolute value, to symmetric integers of so many bits. With inputs of 4 bits a row of weights
    has a scale of its own, and so has a token, since nothing would survive otherwise; else a tensor has one.
    """
    from torch import nn

    whole = inputs != 4
    with ExitStack() as stack:
        for module in model.blocks.modules():
            if isinstance(module, nn.Linear):
                stack.callback(setattr, module.weight, "data", module.weight.data)
                module.weight.data = to_grid(module.weight.data, bits, whole)
                if inputs:
                    hook = module.register_forward_pre_hook(lambda _, args: (to_grid(args[0], inputs, whole),))
                    stack.callback(hook.remove)
        yield


def to_grid(x: Any, bits: int, whole: bool) -> Any:
    """Round to a symmetric integer grid whose last step is the largest absolute value, of all or of each row."""
    top = 2 ** (bits - 1) - 1
    most = x.abs().amax() if whole else x.abs().amax(-1, keepdim=True)
    scale = most.clamp(min=1e-12) / top
    return (x / scale).round() * scale


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
