"""Rounding what the products of attention multiply: queries and keys as they meet, and values.

The products are seen where :mod:`farout.inside._attention` sees them, in calls to torch: the fused one, or a product, a
softmax over its last axis, and a product with what that gives. Which of a block's products are the first and the last
of these is learned whenever the block runs in full precision.

The rounding stands around the block's forward pass, and ends with it however it ends: hooks of torch are left out
where a user interrupts. It is on as long as a map of the block rounds what it reads, so a block that is still in full
precision computes what it always did.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from farout.inside._attention import _FUSED, _PRODUCT, _SOFTMAX
from farout.quantize._linear import QuantLinear
from farout.quantize.grid import Grid

__all__ = ["Operands"]


class Operands:
    """Round the operands of a block's attention to a grid, with a step for each head and token.

    Parameters
    ----------
    block : torch.nn.Module
    grid : Grid
        Per token.
    """

    def __init__(self, block: nn.Module, grid: Grid) -> None:
        self.grid = grid
        self.places: dict[int, str] = {}  # of the products that are no fused call: first or last, by number
        forward: Any = _Forward(block, self)
        block.forward = forward

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """Round along the last axis."""
        return self.grid.rounded(x, through=x.requires_grad)


class _Forward:
    """A block's own forward pass, seen; a copy of the block has a copy of this, for itself."""

    def __init__(self, block: nn.Module, operands: Operands) -> None:
        self.block, self.operands = block, operands
        self.__signature__ = inspect.signature(block.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        modules = self.block.modules()
        on = any(isinstance(module, QuantLinear) and module.rounding is not None for module in modules)
        if not on:
            self.operands.places = {}
        with _Calls(self.operands, on):
            return type(self.block).forward(self.block, *args, **kwargs)


class _Calls(TorchFunctionMode):
    """Round operands in the calls of one pass; or, where rounding is off, find which they are."""

    def __init__(self, operands: Operands, on: bool) -> None:
        super().__init__()
        self.operands, self.on = operands, on
        self.count = 0
        self.scores: tuple[int, torch.Size] | None = None  # number and shape of the last product that may be scores
        self.probs: torch.Size | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call, on rounded operands where they are attention's."""
        kwargs = dict(kwargs or {})
        if func is _FUSED and self.on:
            args = tuple(self.operands.rounded(x) if i < 3 else x for i, x in enumerate(args))
            kwargs |= {
                name: self.operands.rounded(kwargs[name]) for name in ("query", "key", "value") if name in kwargs
            }
        elif func in _PRODUCT and len(args) == 2:
            self.count += 1
            if self.on:
                args = self._rounded(*args)
        out = func(*args, **kwargs)
        if not self.on:
            self._look(func, args, kwargs, out)
        return out

    def _rounded(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = self.operands.rounded
        place = self.operands.places.get(self.count)
        if place == "first":
            return rounded(left), rounded(right.transpose(-1, -2)).transpose(-1, -2)
        return left, rounded(right) if place == "last" else right

    def _look(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note which products of the block are those before and after a softmax."""
        places = self.operands.places
        if func in _PRODUCT and len(args) == 2 and out.ndim in (3, 4):
            if args[0].shape == self.probs:
                places[self.count], self.probs = "last", None
            elif args[0].ndim == args[1].ndim:
                self.scores = self.count, out.shape
        elif func in _SOFTMAX and self.scores is not None and out.shape == self.scores[1]:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, out.ndim - 1):
                places[self.scores[0]] = "first"
                self.scores, self.probs = None, out.shape
