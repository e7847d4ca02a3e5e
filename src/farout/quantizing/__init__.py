"""Quantize a model from beginning to end: open it, calibrate, quantize, measure, and write it. ``farout quantize``.

What is written is a folder in the compressed-tensors layout, which transformers and vLLM load as it is, with the
tokenizer, the recipe and, where asked for, a page that shows the model before and after.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, MissingExtra
from farout.kit.training import device_named, torch_or_say
from farout.quantizing._measures import loss_of, recorded, size_of
from farout.quantizing._quantization import Quantization
from farout.quantizing._tokenizer import tokenizer_of

if TYPE_CHECKING:
    from farout.quantize.grid import Grid, Steps
    from farout.quantize.recipe import QuantizedModel
    from farout.quantize.round._common import Rounded

__all__ = ["Quantization", "quantize_to"]

Progress = Callable[[str, float], None]


def quantize_to(
    out: str | Path | None,
    model: Any,
    recipe: Any = "gptq",
    scheme: str = "w4a16g128",
    data: str | Path | Sequence[str] = "built-in",
    *,
    samples: int = 128,
    length: int = 512,
    batch_size: int = 4,
    test: str | Path | Sequence[str] | None = "built-in",
    windows: int = 8,
    device: str = "auto",
    dtype: str | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
    talk: Callable[[str], None] | None = None,
) -> Quantization:
    """Quantize a model and write it; a run that was stopped goes on where it was.

    Parameters
    ----------
    out : str, path or None
        The folder to write, which must not exist or be empty; None writes nothing. Finished blocks wait in
        ``OUT.blocks`` until the folder is complete.
    model : path, str or torch.nn.Module
        As for :func:`farout.inspect`.
    recipe : str, mapping or Recipe
        See ``farout list quantize``.
    scheme : str
        Such as ``"w4a16g128"``; see :meth:`farout.quantize.scheme.Scheme.parse`.
    data : str, path or list of str
        Calibration text: a name or file of :func:`farout.data.texts.text`, or texts.
    samples, length, batch_size : int
        Windows that are drawn from it, tokens of each, and how many run at once.
    test : str, path or list of str, optional
        The text of which the loss is measured before and after; None measures none.
    windows : int
        Of it, of ``length`` tokens at most.
    device, dtype, tokenizer, seed
        As for :func:`farout.inspect`.
    progress : callable, optional
        Called with what is being done and the share done.
    talk : callable, optional
        Called with sentences that a user wants to read before the work begins.

    Returns
    -------
    Quantization

    Raises
    ------
    BadInput
        The model, the data or the scheme cannot be used, or the folder is not empty.
    """
    import torch

    from farout.data.calibration import calibration
    from farout.inspecting._steps import open_named
    from farout.quantize.recipe import quantize, recipe_of
    from farout.quantize.scheme import Scheme

    torch_or_say("quantizing a model")
    tell, say = progress or (lambda what, share: None), talk or (lambda sentence: None)
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    target = None if out is None else Path(out)
    if target is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"'{target}' is there already and not empty; name another folder, or remove it")
    if target is not None and find_spec("compressed_tensors") is None:
        raise MissingExtra("writing a quantized model", "llm")  # now, not after an hour
    recipe, parsed = recipe_of(recipe), Scheme.parse(scheme)
    recipe.check(parsed)

    def took(what: str) -> None:
        seconds[what] = round(time.perf_counter() - started - sum(seconds.values()), 3)

    tell("opening", 0.0)
    opened = open_named(model, {"device": str(device_named(device)), "tokenizer": tokenizer, "dtype": dtype}, None)
    if dtype is not None:
        opened.model.to(getattr(torch, dtype))
    if opened.takes != "tokens":
        raise BadInput(
            f"'{opened.name}' takes {opened.takes}; this verb calibrates with text, so use farout.quantize.quantize"
        )
    batches = calibration(data, opened, samples=samples, length=length, seed=seed, batch_size=batch_size)
    tell("opening", 1.0)
    took("opening")
    need = size_of(opened.model, batches, recipe.both)
    say(f"{opened.name}: {need.sentence}")
    before = loss_of(opened, test, length, windows, tell, "loss before")
    maps_before = recorded(opened, batches[:2])
    took("measuring before")
    keep = None if target is None else target.with_name(target.name + ".blocks")
    found = quantize(opened.model, recipe, parsed, batches, progress=tell, keep=keep)
    took("quantizing")
    after = loss_of(opened, test, length, windows, tell, "loss after")
    maps_after = recorded(opened, batches[:2])
    took("measuring after")
    saved = None
    if target is not None:
        tell("writing", 0.0)
        from farout.quantize.save import save_checkpoint

        saved = save_checkpoint(
            target,
            opened.model,
            _stored(found),
            recipe=found.as_dict(),
            tokenizer=tokenizer_of(opened, model, tokenizer),
        )
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
        tell("writing", 1.0)
        took("writing")
    return Quantization(
        name=opened.name,
        facts=opened.facts,
        quantized=found,
        loss=(before, after),
        recordings=(maps_before, maps_after),
        saved=saved,
        notes=list(dict.fromkeys([*opened.notes, *found.notes])),
        settings={
            "model": str(model) if isinstance(model, str | Path) else type(opened.model).__name__,
            "data": str(data) if isinstance(data, str | Path) else f"{len(data)} texts",
            "test": str(test) if isinstance(test, str | Path) else "none" if test is None else f"{len(test)} texts",
            "samples": samples, "length": length, "batch_size": batch_size, "windows": windows, "seed": seed,
            "device": str(device_named(device)), "dtype": dtype,
            "peak memory, bytes": _peak(device_named(device)), "memory foretold, bytes": need.total,
            "seconds": {**seconds, "in all": round(time.perf_counter() - started, 3)},
        },
    )  # fmt: skip


def _stored(found: QuantizedModel) -> dict[str, tuple[Rounded, Grid | None, Steps | None]]:
    """Return what a checkpoint can say of each map; how inputs are rounded otherwise is said in the notes."""
    from farout.quantize._linear import Rounding

    stored: dict[str, tuple[Rounded, Grid | None, Steps | None]] = {}
    for name, module in found.maps.items():
        rounded, inputs = module.rounded, module.rounding
        plain = isinstance(inputs, Rounding)
        if inputs is not None and not plain:
            found.notes.append(
                "the checkpoint leaves inputs in 16 bits: its format cannot say how this recipe rounds them"
            )
        if rounded is not None:
            stored[name] = (
                (rounded, inputs.grid, inputs.steps) if isinstance(inputs, Rounding) else (rounded, None, None)
            )
    found.notes[:] = list(dict.fromkeys(found.notes))
    return stored


def _peak(device: Any) -> int:
    """Return the most memory that this process has held, on the GPU where it worked there."""
    import torch

    if str(device).startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
