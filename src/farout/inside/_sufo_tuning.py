"""Fine-tuning with the first layers frozen, by the recipe of SUFO's official code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput
from farout.inside._sites import mapped
from farout.inside._sufo_features import blocks_of, call
from farout.kit.training import seeded, torch_or_say

if TYPE_CHECKING:
    import torch
    from torch import nn

BatchOf = Callable[[np.ndarray], Any]


@contextmanager
def frozen_to(model: nn.Module, layers: int | None) -> Iterator[list[str]]:
    """Freeze the first layers of a model, and on leaving make trainable what was.

    Frozen is every parameter that the model registers before its block number ``layers``: those blocks, and the
    embedding before them, which is frozen even where ``layers`` is 0. None freezes nothing.

    Parameters
    ----------
    model : torch.nn.Module
    layers : int or None

    Yields
    ------
    list of str
        The parameters that are frozen.

    Raises
    ------
    BadInput
        The model has fewer blocks, or nothing is left to train.
    """
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    frozen: list[str] = []
    if layers is not None:
        blocks = blocks_of(model)
        if not 0 <= layers <= len(blocks):
            raise BadInput(f"the model has {len(blocks)} layers, so 0 to {len(blocks)} can be frozen, not {layers}")
        names = [name for name, _ in model.named_parameters()]
        last = blocks[layers - 1] if layers else blocks[0]
        inside = [place for place, name in enumerate(names) if name.startswith(f"{last}.")]
        frozen = names[: inside[-1] + 1 if layers else inside[0]]
    left = set(trainable) - set(frozen)
    if not left:
        raise BadInput("nothing is left to train: all parameters are frozen, and the model has none after its blocks")
    try:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in left)
        yield frozen
    finally:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trainable)


def fine_tune(
    model: nn.Module,
    batch_of: BatchOf,
    y: Any,
    train: Any,
    validation: Any,
    *,
    frozen: int | None = None,
    epochs: int = 25,
    batch_size: int = 8,
    learning_rate: float = 7.6e-6,
    seed: int = 0,
    after_epoch: Callable[[int], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Fine-tune a classifier by the recipe of the official code, and keep the weights of the best epoch.

    AdamW with a weight decay of 0.01 (none for biases and norms); the rate rises over the first fifth of the steps and
    falls linearly to 0; gradients are clipped to length 1. Each epoch draws as many rows as there are, with replacement
    and the classes equally often. The best epoch is that of the highest macro-F1 on the validation rows, the first of
    equals.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits (b, classes), or an object with ``logits``; it is changed.
    batch_of : callable
        From row numbers (b,) to a batch: a mapping, a tuple or list, or a tensor. Called for validation too.
    y : int array (n,)
        Classes 0, 1, ... of all rows.
    train, validation : int arrays
        Row numbers.
    frozen : int, optional
        How many of the first layers, and the embedding before them, are not trained; all of them leaves the head.
        By default everything is trained.
    epochs, batch_size, seed : int
    learning_rate : float
        The peak.
    after_epoch : callable, optional
        Called with the number of epochs done, the model in evaluation mode.
    progress : callable, optional
        Called with the share of epochs done.

    Returns
    -------
    list of float
        Macro-F1 on the validation rows after each epoch.

    Raises
    ------
    BadInput
        More layers are to be frozen than there are, nothing is left to train, or the loss is not finite.
    """
    torch = torch_or_say("fine-tuning")
    from sklearn.metrics import f1_score

    y, train, validation = (np.asarray(values) for values in (y, train, validation))
    device = next(model.parameters()).device
    weights = 1.0 / np.bincount(y[train])[y[train]]
    rng = np.random.default_rng(seed)
    steps = epochs * math.ceil(len(train) / batch_size)
    history: list[float] = []
    best: dict[str, Any] = {}
    with frozen_to(model, frozen), seeded(seed):
        optimizer = torch.optim.AdamW(_groups(model), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        for epoch in range(epochs):
            model.train()
            drawn = rng.choice(train, len(train), p=weights / weights.sum())
            for rows in np.array_split(drawn, math.ceil(len(drawn) / batch_size)):
                optimizer.zero_grad()
                logits = logits_of(model, batch_of(rows), device)
                loss = torch.nn.functional.cross_entropy(logits, torch.as_tensor(y[rows], device=device))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            model.eval()
            if not bool(loss.isfinite()):
                raise BadInput(
                    f"the loss is {float(loss)} after epoch {epoch + 1}; lower the rate of {learning_rate:g}"
                )
            predicted = predictions(model, batch_of, validation).argmax(1)
            history.append(float(f1_score(y[validation], predicted, average="macro", zero_division=0.0)))
            if history[-1] > max(history[:-1], default=-1.0):
                best = {name: value.clone() for name, value in model.state_dict().items()}
            if after_epoch is not None:
                after_epoch(epoch + 1)
            if progress is not None:
                progress((epoch + 1) / epochs)
    model.load_state_dict(best)
    return history


def predictions(model: nn.Module, batch_of: BatchOf, rows: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """Return the logits (rows, classes) of a model in evaluation mode."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    pieces = np.array_split(np.asarray(rows), math.ceil(len(rows) / batch_size))
    with torch.no_grad():
        return np.concatenate([logits_of(model, batch_of(piece), device).float().cpu().numpy() for piece in pieces])


def logits_of(model: nn.Module, batch: Any, device: torch.device) -> torch.Tensor:
    """Run a batch and return its logits."""
    output = call(model, mapped(batch, lambda tensor: tensor.to(device)))
    return getattr(output, "logits", output)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Split what is trained into weights that decay, and biases and norms, which do not."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    decays = [weight for name, weight in trained if weight.ndim > 1]
    stays = [weight for name, weight in trained if weight.ndim < 2]
    return [{"params": decays, "weight_decay": 0.01}, {"params": stays, "weight_decay": 0.0}]


def _rate(step: int, steps: int) -> float:
    """Share of the peak rate at a step: up over the first fifth, then down to 0."""
    rising = 0.2 * steps
    return step / rising if step < rising else max(0.0, (steps - step) / max(1.0, steps - rising))
