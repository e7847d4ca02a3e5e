"""One training loop for classifiers: SGD with momentum, a method's own losses, the same on CPU and GPU.

What a method does differently is in its ``step``: a function of the model and a batch that returns named losses, which
are added. Rows are shuffled on the CPU whatever the device, so that a seed means the same batches everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from farout.errors import BadInput, UnknownName
from farout.kit.training import seeded

__all__ = ["Cycle", "cross_entropy_step", "fit", "predict", "rate_at"]

Step = Callable[..., dict[str, Tensor]]
Augment = Callable[[Tensor, torch.Generator], Tensor]
SCHEDULES = ("cosine", "constant")


def fit(
    model: nn.Module,
    step: Step,
    data: Sequence[Tensor],
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    nesterov: bool = True,
    schedule: str = "cosine",
    warmup: float = 0,
    augment: Augment | None = None,
    seed: int = 0,
    amp: bool = False,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, float]]:
    """Train a model in place with SGD.

    Parameters
    ----------
    model : torch.nn.Module
        Weights that need no gradient stay as they are. Left in evaluation mode.
    step : callable
        ``step(model, *batch)`` returns named losses, scalars; their sum is differentiated.
    data : sequence of tensors
        Equally long, on the device of the model; a batch is the same rows of each. All rows are met once an epoch, the
        last batch of which may be smaller.
    epochs, batch_size : int
    learning_rate : float
        The highest, see :func:`rate_at`.
    momentum, weight_decay : float
    nesterov : bool
    schedule : {"cosine", "constant"}
    warmup : float
        Epochs, or a part of one, in which the learning rate rises from 0.
    augment : callable, optional
        ``augment(x_BCHW, generator)`` changes the first tensor of each batch; the generator is one of the CPU.
    seed : int
        For the order of the rows, for ``augment``, and for what the step draws from torch's own generator.
    amp : bool
        Run the step in bfloat16 where torch thinks it safe: faster on a GPU.
    progress : callable, optional
        Called with the share of epochs done.

    Returns
    -------
    list of dict of str to float
        For each epoch the mean of each loss over its rows.

    Raises
    ------
    BadInput
        The tensors are not equally long or empty, or a loss is not finite.
    UnknownName
        There is no such schedule.

    Examples
    --------
    >>> from farout.kit.nets import mlp
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> net = mlp([1, 2], seed=0)
    >>> history = fit(net, cross_entropy_step, (x, (x[:, 0] > 0).long()), epochs=20, batch_size=16)
    >>> len(history), history[-1]["loss"] < 0.2 < history[0]["loss"]
    (20, True)
    """
    lengths = [len(tensor) for tensor in data]
    if not lengths or min(lengths) != max(lengths) or not lengths[0]:
        raise BadInput(f"'data' must be tensors of one length, at least 1; their lengths are {lengths}")
    n, device = lengths[0], data[0].device
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(
        weights, learning_rate, momentum, weight_decay=weight_decay, nesterov=nesterov and momentum > 0
    )
    _lay_out(model, torch.channels_last)  # convolutions are faster so
    order, changes = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    each = math.ceil(n / batch_size)  # steps of an epoch
    history: list[dict[str, float]] = []
    with seeded(seed):
        for epoch in range(epochs):
            model.train()
            totals: dict[str, Tensor] = {}
            places = torch.randperm(n, generator=order).to(device)
            for at, rows in enumerate(places.split(batch_size)):
                for group in optimizer.param_groups:
                    rate = rate_at(epoch * each + at, epochs * each, round(warmup * each), schedule)
                    group["lr"] = learning_rate * rate
                first, *others = (tensor[rows] for tensor in data)
                if augment is not None:
                    first = augment(first, changes)
                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    losses = step(model, first, *others)
                sum(losses.values(), torch.zeros((), device=device)).backward()
                optimizer.step()
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0) + loss.detach() * len(rows)
            history.append({name: float(total) / n for name, total in totals.items()})
            _check_finite(history, learning_rate)
            if progress is not None:
                progress((epoch + 1) / epochs)
    _lay_out(model, torch.contiguous_format)  # safetensors saves no other
    model.eval()
    return history


def rate_at(step: int, steps: int, warmup: int = 0, schedule: str = "cosine") -> float:
    """Return the share of the highest learning rate at a step, counted from 0.

    It rises linearly over ``warmup`` steps, of which the last has the whole rate; then it stays, or falls along half a
    cosine, so that it would be 0 one step after the last.

    Raises
    ------
    UnknownName
        There is no such schedule.

    Examples
    --------
    >>> [round(rate_at(step, 4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [rate_at(step, 4, warmup=2, schedule="constant") for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    if schedule not in SCHEDULES:
        raise UnknownName("schedule of learning rates", schedule, SCHEDULES)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def cross_entropy_step(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the loss of plain classification, for :func:`fit`."""
    return {"loss": nn.functional.cross_entropy(model(x), y)}


class Cycle:
    """Batches of rows for ever, all of one size; rows are shuffled anew each round, and each is met once a round.

    Where a round ends within a batch, the next begins there. Take a batch by ``next(cycle)``.

    Parameters
    ----------
    *tensors : tensor (n, ...)
        Equally long. A batch is a tuple of the same rows of each, also where there is only one.
    batch_size : int
    seed : int

    Raises
    ------
    BadInput
        The tensors are not equally long or empty, or the batch size is below 1.

    Examples
    --------
    >>> batches = Cycle(torch.arange(3), batch_size=2, seed=0)
    >>> drawn = torch.cat([rows for rows, in (next(batches) for _ in range(3))])
    >>> sorted(drawn[:3].tolist()), sorted(drawn[3:].tolist())
    ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int = 0) -> None:
        lengths = [len(tensor) for tensor in tensors]
        if not lengths or min(lengths) != max(lengths) or not lengths[0] or batch_size < 1:
            raise BadInput(
                f"a cycle needs tensors of one length and batches of at least 1; the lengths are {lengths}, "
                f"'batch_size' is {batch_size}"
            )
        self.tensors, self.batch_size = tensors, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.waiting = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        while len(self.waiting) < self.batch_size:
            fresh = torch.randperm(len(self.tensors[0]), generator=self.generator)
            self.waiting = torch.cat([self.waiting, fresh])
        rows, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        return tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)


def predict(model: nn.Module, x: Tensor, batch_size: int = 512) -> Tensor:
    """Return a model's output for all rows, in evaluation mode and without gradients.

    Parameters
    ----------
    model : torch.nn.Module
        Its mode is as before afterwards.
    x : tensor (n, ...)
        On any device; batches are brought to that of the model's weights.
    batch_size : int

    Returns
    -------
    tensor (n, ...)
        On the device of ``x``.

    Examples
    --------
    >>> from farout.kit.nets import mlp
    >>> predict(mlp([2, 3]), torch.zeros(5, 2), batch_size=2).shape
    torch.Size([5, 3])
    """
    device = next((weight.device for weight in model.parameters()), x.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(part.to(device)).to(x.device) for part in x.split(batch_size)])
    finally:
        model.train(training)


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Store the weights of convolutions of images in another order; their values stay."""
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)


def _check_finite(history: list[dict[str, float]], learning_rate: float) -> None:
    """Stop as soon as an epoch is lost."""
    for name, value in history[-1].items():
        if not math.isfinite(value):
            raise BadInput(
                f"the loss '{name}' is {value} in epoch {len(history)}: normalise the inputs, or lower the learning "
                f"rate of {learning_rate:g}"
            )
