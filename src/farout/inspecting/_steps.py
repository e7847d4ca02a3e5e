"""The steps of looking inside a model: open it, record it, round its linear maps, and name what it read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, nearest

if TYPE_CHECKING:
    from farout.inside import Recording
    from farout.inside.quantization_cost import Cost
    from farout.io.models import OpenModel

Progress = Callable[[str, float], None]
WHAT = ("residual", "norm", "linear", "attention", "probs", "weight")


def open_named(model: Any, settings: dict[str, Any], name: str | None) -> OpenModel:
    """Open a model by its name or path, or take a module as it is."""
    from dataclasses import replace

    from torch import nn

    from farout.data.pretrained import pretrained, pretrained_names
    from farout.io.models import OpenModel, open_model

    if isinstance(model, OpenModel):
        opened = model
    else:
        source = model
        if model in pretrained_names():
            source, name = pretrained(model), name or model
        elif isinstance(model, str) and "." not in model and ":" not in model and not os.path.exists(model):
            raise BadInput(
                f"there is no folder '{model}' and no packaged model of that name "
                f"({nearest(model, pretrained_names())}); give a folder of transformers, a .gguf, .safetensors or "
                ".onnx file, timm:NAME or py:EXPRESSION"
            )
        weight = next(source.parameters(), None) if isinstance(source, nn.Module) else None
        device = settings["device"] if weight is None else str(weight.device)  # a module stays where it is
        opened = open_model(source, tokenizer=settings["tokenizer"], device=device)
    return replace(opened, name=name) if name else opened


@contextmanager
def modes_kept(model: Any) -> Iterator[None]:
    """Put a module of the user back into the mode in which each of its parts was; it is looked at in evaluation."""
    parts = list(model.modules()) if hasattr(model, "modules") else []
    modes = [part.training for part in parts]
    try:
        yield
    finally:
        for part, training in zip(parts, modes):
            part.training = training


def recorded(opened: OpenModel, batches: Iterable[Any]) -> Recording:
    """Record a module, or a graph of ONNX."""
    from torch import nn

    from farout.inside import record
    from farout.inside._onnx import record_onnx

    if not isinstance(opened.model, nn.Module):
        return record_onnx(opened.model.path, batches, what=WHAT)
    return record(opened.model, batches, what=WHAT)


def costs_of(opened: OpenModel, batches: list[Any], seed: int, tell: Progress) -> list[Cost]:
    """Round the linear maps of a module; a graph of ONNX has no modules to round."""
    from torch import nn

    from farout.inside.quantization_cost import quantization_costs

    if not isinstance(opened.model, nn.Module):
        opened.notes.append("what rounding costs is measured on modules of torch, and not on a graph of ONNX")
        return []
    few = _one_by_one(batches) if opened.takes == "tokens" else batches  # a few hundred tokens are enough
    return quantization_costs(opened.model, few, seed=seed, progress=lambda done: tell("rounding", done))


def told(batches: list[Any], tell: Progress) -> Iterator[Any]:
    """Hand on batches, and say how many have been read."""
    for place, batch in enumerate(batches):
        tell("recording", place / len(batches))
        yield batch
    tell("recording", 1.0)


def _one_by_one(batches: list[Any]) -> Iterator[Any]:
    """Take batches apart into their sequences."""
    from farout.inside._sites import length_of, mapped

    for batch in batches:
        for row in range(length_of(batch)):
            yield mapped(batch, lambda tensor, row=row: tensor[row : row + 1] if tensor.ndim else tensor)


def pieces_of(opened: OpenModel, batches: list[Any]) -> list[list[str]]:
    """Return the pieces of text of each sequence by position."""
    if opened.tokenizer is None:
        return []
    rows = []
    for batch in batches:
        ids = batch["input_ids"] if isinstance(batch, dict) else batch
        keep = batch.get("attention_mask") if isinstance(batch, dict) else None
        for place, row in enumerate(ids.tolist()):
            size = len(row) if keep is None else int(keep[place].sum())
            rows.append([opened.tokenizer.piece(token) for token in row[:size]])
    return rows
