"""Language models of bytes: text as an array, windows drawn from it, one training loop; the same on CPU and GPU.

Which windows a step sees is drawn on the CPU whatever the device, so that arms of an experiment that share a seed see
the same text in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["bytes_of", "cross_entropy", "evaluate", "evaluation_windows", "train_language_model"]


def bytes_of(text: str | bytes) -> np.ndarray:
    """Return the bytes of a text (in UTF-8) as a uint8 array.

    Examples
    --------
    >>> bytes_of("héy")
    array([104, 195, 169, 121], dtype=uint8)
    """
    return np.frombuffer(text.encode() if isinstance(text, str) else text, dtype=np.uint8)


def train_language_model(
    model: nn.Module,
    data: np.ndarray,
    *,
    context: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 0.1,
    warm_up: float = 0.02,
    clip: float = 1.0,
    after_step: Callable[[int], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Fit a language model to random windows of a text, on the device where it is.

    AdamW with betas 0.9 and 0.95, decay on matrices only; the rate rises over the warm-up and falls as a cosine to a
    tenth of itself. On a GPU products are taken in bfloat16 (autocast), weights and their moments stay float32.

    Parameters
    ----------
    model : torch.nn.Module
        Takes tokens (B, T) and returns logits (B, T, V); left in evaluation mode.
    data : uint8 array (n,)
        The text, as :func:`bytes_of` gives it.
    context : int
        Length T of a window.
    steps, batch_size : int
    learning_rate : float
        The highest.
    seed : int
        For the windows.
    weight_decay, clip : float
        ``clip`` is the largest norm of all gradients together.
    warm_up : float
        Share of the steps.
    after_step : callable, optional
        Called with the number of steps done.
    progress : callable, optional
        Called with the share of steps done.

    Returns
    -------
    list of float
        The loss of each step, in nats for each byte.

    Raises
    ------
    BadInput
        The text is no longer than a window, or the loss is not finite.
    """
    import torch

    if len(data) <= context:
        raise BadInput(f"a text of {len(data):,} bytes is too short for windows of {context} and their next byte")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - context, (steps, batch_size), generator=generator).to(device)
    text, reach = torch.from_numpy(np.array(data)).to(device), torch.arange(context + 1, device=device)
    groups = [
        {"params": [w for w in model.parameters() if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in model.parameters() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")
    losses = torch.zeros(steps, device=device)
    every = max(1, steps // 100)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps, warm_up)
        windows = text[starts[step, :, None] + reach].long()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = cross_entropy(model(windows[:, :-1]), windows[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses[step] = loss.detach()
        if after_step is not None:
            after_step(step + 1)
            model.train()
        if (step + 1) % every == 0 or step + 1 == steps:
            if not bool(loss.isfinite()):
                raise BadInput(
                    f"the loss is {loss.item()} after step {step + 1}: lower the learning rate of {learning_rate:g}"
                )
            if progress is not None:
                progress((step + 1) / steps)
    model.eval()
    return losses.tolist()


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return ``-log p`` of each target (B, T), in nats and float32, from logits (B, T, V)."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


def evaluation_windows(data: np.ndarray, context: int, count: int) -> np.ndarray:
    """Return ``count`` windows (count, context + 1) of a text, evenly spread over it and the same every time.

    Raises
    ------
    BadInput
        The text is too short for one.
    """
    if len(data) <= context:
        raise BadInput(f"a text of {len(data):,} bytes is too short for windows of {context} and their next byte")
    starts = np.linspace(0, len(data) - context - 1, count).astype(np.int64)
    return data[starts[:, None] + np.arange(context + 1)]


def evaluate(model: nn.Module, windows: np.ndarray | Sequence[Any], batch_size: int = 32) -> float:
    """Return the mean loss of a model over windows (n, T + 1), in nats for each token and in float32.

    Examples
    --------
    A model that knows nothing needs 8 bits for a byte:

    >>> import torch
    >>> clueless = torch.nn.Embedding.from_pretrained(torch.zeros(256, 256), freeze=False)
    >>> round(evaluate(clueless, evaluation_windows(bytes_of("to be or not to be"), 4, 3)) / math.log(2), 6)
    8.0
    """
    import torch

    device = next(model.parameters()).device
    total, training = 0.0, model.training
    model.eval()
    with torch.no_grad():
        for part in torch.from_numpy(np.asarray(windows)).split(batch_size):
            tokens = part.to(device).long()
            total += float(cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).double().sum())
    model.train(training)
    return total / (len(windows) * (np.shape(windows)[1] - 1))


def _schedule(step: int, steps: int, warm_up: float) -> float:
    """Return the share of the highest rate: up in a line, down in a cosine to a tenth."""
    rising = max(1, round(warm_up * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
