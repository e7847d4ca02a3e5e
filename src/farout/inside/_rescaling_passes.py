"""Passes of batches through a model, with hooks on its norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput
from farout.inside._rescaling import Lever, Sums
from farout.inside._sites import mapped, rows_of, sites_of, tokens_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Passes:
    """Passes of all batches through a model, with hooks on its norms."""

    def __init__(self, model: nn.Module, batches: list[Any], loss: Callable[[Any, Any], torch.Tensor]) -> None:
        if not batches:
            raise BadInput("there are no batches, and what a norm does is seen in them only")
        norms = [(n, s.module, s.width) for n, s in sites_of(model).items() if s.kind == "norm" and not s.first]
        widths = [width for *_, width in norms if width]
        if not widths:
            raise BadInput("the model has no norm with a gain for each channel of the last axis")
        self.width = max(set(widths), key=widths.count)  # norms of single heads have another
        self.norms = {name: module for name, module, width in norms if width == self.width}
        self.model, self.loss = model, loss
        device = next(model.parameters()).device
        self.batches = [mapped(batch, lambda tensor: tensor.to(device)) for batch in batches]

    def run(self, before: Any = None, after: Any = None) -> float:
        """Pass all batches and return their mean loss.

        ``before(name, x)`` and ``after(name, x, y)`` see every norm; what they return takes the place of x or of y.
        """
        import torch

        hooks = []
        for name, module in self.norms.items():
            if before is not None:

                def enter(module: Any, args: Any, name: str = name) -> Any:
                    return (before(name, args[0]), *args[1:])

                hooks.append(module.register_forward_pre_hook(enter))
            if after is not None:

                def leave(module: Any, args: Any, output: Any, name: str = name) -> Any:
                    return after(name, args[0], output)

                hooks.append(module.register_forward_hook(leave))
        try:
            with torch.no_grad():
                losses = []
                for batch in self.batches:
                    self.batch = batch
                    output = self.model(**self.batch) if hasattr(self.batch, "keys") else self.model(self.batch)
                    losses.append(float(self.loss(output, self.batch)))
        finally:
            for hook in hooks:
                hook.remove()
        return sum(losses) / len(losses)

    def rows(self, x: Tensor) -> Tensor:
        """Return the tokens that count (N, C), in float64."""
        rows, _, keep = rows_of(x, self.width, False, *tokens_of(self.batch))
        return (rows if keep is None else rows[keep]).double()

    def sizes(self) -> tuple[dict[str, Tensor], float]:
        """Return the mean absolute value of each channel (C,) that enters each norm, and the loss."""
        total: dict[str, Tensor] = {}

        def look(name: str, x: Tensor, y: Tensor) -> None:
            rows = self.rows(x)
            total[name] = total.get(name, 0) + rows.abs().sum(0)
            count[name] = count.get(name, 0) + len(rows)

        count: dict[str, int] = {}
        loss = self.run(after=look)
        return {name: size / count[name] for name, size in total.items()}, loss

    def levers(self, sinks: dict[str, Tensor], sizes: dict[str, Tensor]) -> list[Lever]:
        """Measure what the sinks do to the other channels."""
        import torch

        sums = {name: Sums() for name in sinks}

        def look(name: str, x: Tensor, y: Tensor) -> None:
            centred = isinstance(self.norms[name], torch.nn.LayerNorm)
            sums[name].add(self.rows(x), self.rows(y), sinks[name], centred)

        self.run(after=look)
        return [
            sums[name].lever(name, sink, float(sizes[name][sink].amax() / sizes[name].median()))
            for name, sink in sinks.items()
        ]

    def changed(self, channels: dict[str, Tensor], change: Callable[[Tensor, Tensor], Tensor], before: bool) -> float:
        """Return the loss where channels are changed before, or after, every norm."""
        if before:
            return self.run(before=lambda name, x: change(x, channels[name]) if name in channels else x)
        return self.run(after=lambda name, x, y: change(y, channels[name]) if name in channels else y)
