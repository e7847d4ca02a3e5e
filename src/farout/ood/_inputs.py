"""Whatever holds inputs in; batches with their labels, where there are any, out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from farout.errors import BadInput

LABELS = ("labels", "label")  # as loaders of transformers name them


def batches_of(model: Any, data: Any, batch_size: int, labels: Any = None) -> tuple[Iterable[tuple[Any, Any]], int]:
    """Return pairs of a batch and its labels (None where there are none), and how many there are (0: unknown).

    Parameters
    ----------
    model : OpenModel or torch.nn.Module
        The first knows how texts and images become batches.
    data : array, tensor, sequence of texts or images, or iterable of batches
    batch_size : int
    labels : array (n,), optional
        For data that hold none.
    """
    if batch_size < 1:
        raise BadInput(f"a batch has one input at least, not {batch_size}")
    y = None if labels is None else _labels(labels)
    if hasattr(model, "batches") and (_opens(model, data)):
        made = model.batches(data, batch_size=batch_size)
        return _beside(made, y), len(made)
    if isinstance(data, np.ndarray | Tensor):
        x = torch.as_tensor(data)
        if not len(x):
            raise BadInput("there are no inputs; give at least one")
        if x.dtype in (torch.uint8, torch.float64):
            x = x.float()
        return _beside(x.split(batch_size), y), -(-len(x) // batch_size)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise BadInput(
            f"inputs are an array (n, ...), a list of texts or images, or a loader of batches, and not "
            f"{type(data).__name__}"
        )
    return (_split(batch) for batch in data) if y is None else _beside((_split(b)[0] for b in data), y), _length(data)


def moved(batch: Any, model: nn.Module) -> Any:
    """Return a batch on the device of a model, in its precision."""
    weight = next(model.parameters(), None)
    if weight is None:
        return batch

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)

    if isinstance(batch, Mapping):
        return {name: one(value) for name, value in batch.items()}
    return type(batch)(map(one, batch)) if isinstance(batch, list | tuple) else one(batch)


def lead(batch: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors of a batch by name."""
    if isinstance(batch, Mapping):
        return [(name, value) for name, value in batch.items() if isinstance(value, Tensor)]
    parts = batch if isinstance(batch, list | tuple) else [batch]
    return [(str(place), value) for place, value in enumerate(parts) if isinstance(value, Tensor)]


def _opens(model: Any, data: Any) -> bool:
    """Whether data are texts or images, which an opened model turns into batches itself."""
    if isinstance(data, np.ndarray):
        return data.dtype == np.uint8 and data.ndim in (3, 4) and model.takes == "pixels"
    first = data[0] if isinstance(data, list | tuple) and data else None
    return isinstance(first, str) or (isinstance(first, np.ndarray) and first.dtype == np.uint8)


def _split(batch: Any) -> tuple[Any, Any]:
    """Take a loader's batch apart: (x, y) is a pair with labels, and a mapping may hold them."""
    if isinstance(batch, Mapping):
        named = next((name for name in LABELS if name in batch), None)
        return {k: v for k, v in batch.items() if k not in LABELS}, None if named is None else batch[named]
    if isinstance(batch, list | tuple) and len(batch) == 2 and _is_labels(batch[1], batch[0]):
        return batch[0], torch.as_tensor(batch[1])
    return batch, None


def _is_labels(y: Any, x: Any) -> bool:
    return isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point() and len(y) == len(x)


def _beside(batches: Iterable[Any], y: Tensor | None) -> Iterator[tuple[Any, Any]]:
    """Put labels beside batches, in order."""
    place = 0
    for batch in batches:
        if y is None:
            yield batch, None
            continue
        count = len(lead(batch)[0][1])
        yield batch, y[place : place + count]
        place += count
    if y is not None and place != len(y):
        raise BadInput(f"there are {place} inputs and {len(y)} labels; give one label for each input")


def _labels(labels: Any) -> Tensor:
    y = torch.tensor(np.asarray(labels))
    if y.ndim != 1 or y.is_floating_point():
        raise BadInput(f"labels are whole numbers (n,), and not {y.dtype} of shape {tuple(y.shape)}")
    return y.long()


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError:
        return 0
