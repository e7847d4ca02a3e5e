"""One small training loop for the networks inside detectors: seeded, early stopping, the same on CPU and GPU.

Weights are drawn and rows are shuffled on the CPU whatever the device, so that a seed means the same batches from the
same start everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    import torch

__all__ = ["arrays_of", "device_named", "fill", "seeded", "torch_or_say", "train"]


def torch_or_say(what: str) -> Any:
    """Return the module ``torch``, or say how to get it.

    Parameters
    ----------
    what : str
        Who needs it, for the message.

    Raises
    ------
    MissingExtra
        When torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(what, "torch") from error
    return torch


def device_named(name: str) -> torch.device:
    """Return a device; ``"auto"`` is the first GPU where there is one.

    Raises
    ------
    BadInput
        When torch knows no such device or it is not there.

    Examples
    --------
    >>> device_named("cpu")
    device(type='cpu')
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"torch cannot use the device '{name}' here: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator with a seed of its own; what the caller draws afterwards is not disturbed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(
    module: torch.nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    held_out: float = 0.0,
    patience: int | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Fit a module to rows with Adam; with ``patience``, keep the weights of the epoch that did best on held-out rows.

    Parameters
    ----------
    module : torch.nn.Module
        On the device of ``rows``; left in evaluation mode.
    loss : callable
        Takes a batch (b, ...) and returns the loss of each of its rows (b,).
    rows : tensor (n, ...)
    epochs : int
        At most so many passes over the rows.
    batch_size : int
    learning_rate : float
    seed : int
        For the held-out rows and the order of the others.
    held_out : float
        Share of the rows that are not trained on and decide when to stop; 0 looks at the training loss instead.
    patience : int, optional
        Epochs without a lower loss after which training stops; None runs them all and keeps the last weights.
    after_step : callable, optional
        Called after every step, such as to project weights.
    progress : callable, optional
        Called with the share of epochs done.

    Returns
    -------
    list of float
        The loss of each epoch that was run: of the held-out rows, or of the training rows as they were met.

    Raises
    ------
    BadInput
        The loss is not finite.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    kept = min(round(held_out * len(rows)), len(rows) - 1)
    judged, learned = rows[order[:kept].to(rows.device)], order[kept:]
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    history: list[float] = []
    best: tuple[int, dict[str, torch.Tensor]] = (-1, {})
    for epoch in range(epochs):
        module.train()
        total = torch.zeros((), device=rows.device)
        shuffled = learned[torch.randperm(len(learned), generator=generator)].to(rows.device)
        for places in shuffled.split(batch_size):
            optimizer.zero_grad()
            each = loss(rows[places])
            each.mean().backward()
            optimizer.step()
            if after_step is not None:
                after_step()
            total += each.detach().sum()
        module.eval()
        with torch.no_grad():
            value = float(loss(judged).mean()) if kept else float(total / len(learned))
        if not np.isfinite(value):
            raise BadInput(
                f"the loss of '{type(module).__name__}' is {value} after epoch {epoch + 1}: scale the columns, or "
                f"lower the learning rate of {learning_rate:g}"
            )
        history.append(value)
        if progress is not None:
            progress((epoch + 1) / epochs)
        if patience is not None:
            if value < min(history[:-1], default=np.inf):
                best = epoch, {name: weight.clone() for name, weight in module.state_dict().items()}
            elif epoch - best[0] >= patience:
                break
    if patience is not None and best[1]:
        module.load_state_dict(best[1])
    return history


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the weights of a module as arrays, as saved states hold them."""
    return {name: weight.detach().cpu().numpy().copy() for name, weight in module.state_dict().items()}


def fill(module: torch.nn.Module, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    """Give a module the weights that :func:`arrays_of` took; in evaluation mode."""
    import torch

    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return module.eval()
