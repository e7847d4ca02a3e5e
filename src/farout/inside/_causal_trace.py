"""One pass through a model as a list of operations, which can be run again with some results replaced.

A pass is watched while it runs, so that whatever Python the model's ``forward`` holds is of no concern: what counts is
which torch operations ran on what came from the input. Operations are numbered in running order and their results are
called values; value 0 is the input. Operations that write into their argument are run on a copy, so that every value
stays what it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Op", "Trace", "Value", "editing", "trace"]

Edit = Callable[[int, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Value:
    """Stands among an operation's arguments for the result of an earlier one."""

    number: int


@dataclass(frozen=True)
class Op:
    """An operation: a torch function, its arguments, and the number of its result."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int

    @property
    def name(self) -> str:
        """As torch calls it, such as ``"conv2d"``."""
        return str(getattr(self.function, "__name__", self.function)).strip("_")

    @property
    def reads(self) -> list[int]:
        """The values among its arguments."""
        return [leaf.number for leaf in _leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    def bound(self, *names: str) -> dict[str, Any]:
        """Return arguments by the names that a built-in, which has no signature, gives them in this order."""
        return dict(zip(names, self.args)) | self.kwargs


@dataclass
class Trace:
    """What ran.

    Attributes
    ----------
    ops : list of Op
    values : dict of int to tensor
        The input and all results.
    output : int
        The value that the model returned.
    """

    ops: list[Op] = field(default_factory=list)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    output: int = -1

    def replay(self, given: Mapping[int, torch.Tensor], wanted: Sequence[int]) -> list[torch.Tensor]:
        """Run again what follows from the given values and leads to the wanted ones.

        Parameters
        ----------
        given : mapping of int to tensor
            Values to replace; they may have more rows than before where nothing on the way names the number of rows.
        wanted : sequence of int

        Returns
        -------
        list of tensor
            The wanted values; those that nothing given touches are as they were.
        """
        import torch

        changed = dict(given)
        with torch.no_grad():
            for op in self._between(frozenset(given), frozenset(wanted)):
                args, kwargs = _swapped(op.args, op.kwargs, lambda v: changed.get(v, self.values[v]))
                changed[op.out] = op.function(*args, **kwargs)
        return [changed.get(number, self.values[number]) for number in wanted]

    def _between(self, given: frozenset[int], wanted: frozenset[int]) -> list[Op]:
        """Return the operations that stand between values, in running order."""
        touched = set(given)
        after = []
        for op in self.ops:
            if op.out not in touched and touched.intersection(op.reads):
                touched.add(op.out)
                after.append(op)
        needed = set(wanted)
        chosen = []
        for op in reversed(after):
            if op.out in needed:
                needed.update(op.reads)
                chosen.append(op)
        return chosen[::-1]


def trace(model: nn.Module, x: torch.Tensor) -> Trace:
    """Run a model once and note down what ran.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; called with one tensor.
    x : tensor (n, ...)

    Returns
    -------
    Trace

    Raises
    ------
    BadInput
        The model returns no single tensor that was computed from its input.
    """
    import torch

    made = Trace()

    def note(number: int, result: torch.Tensor) -> torch.Tensor:
        made.values[number] = result
        return result

    with torch.no_grad(), editing(model, note, made.ops) as known:
        output = model(x)
        made.output = known.get(id(output), (None, -1))[1]
    if made.output < 0:
        raise BadInput(
            f"the model returned '{type(output).__name__}', which is no tensor computed from its input by torch "
            "operations: wrap it so that it returns the logits of its classes alone"
        )
    return made


@contextmanager
def editing(model: nn.Module, edit: Edit, ops: list[Op] | None = None) -> Iterator[dict[int, tuple[Any, int]]]:
    """Within the context, let every value of the model's passes go through a function; outside, all is as before.

    Parameters
    ----------
    model : torch.nn.Module
        Called with one tensor.
    edit : callable
        ``edit(number, value)`` returns what takes the value's place.
    ops : list, optional
        To which the operations are appended.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    known: dict[int, tuple[Any, int]] = {}  # by id: the tensor, held so that no other gets its id, and its value

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if not any(id(tensor) in known for tensor in tensors):
                return func(*args, **kwargs)
            kept_args, kept_kwargs = _swapped(args, kwargs, lambda t: Value(known[id(t)][1]), known)
            func, args, kwargs, kept_args, kept_kwargs = _pure(func, args, kwargs, kept_args, kept_kwargs)
            result = func(*args, **kwargs)
            if not isinstance(result, torch.Tensor) or not result.is_floating_point():
                return result  # a shape, or what splits a value: nothing that can be replaced
            number = len(state) + 1
            state.append(number)
            if any(result is tensor for tensor in tensors):  # dropout that drops nothing gives back what it got
                result = result.view_as(result)
            with torch._C.DisableTorchFunction():
                result = edit(number, result)
            known[id(result)] = result, number
            if ops is not None:
                ops.append(Op(func, kept_args, kept_kwargs, number))
            return result

    state: list[int] = []

    def begin(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        known.clear()
        state.clear()
        x = inputs[0].view_as(inputs[0])
        with torch._C.DisableTorchFunction():
            x = edit(0, x)
        known[id(x)] = x, 0
        return (x, *inputs[1:])

    hook = model.register_forward_pre_hook(begin)
    try:
        with Watch():
            yield known
    finally:
        hook.remove()
        known.clear()


def _pure(func: Any, args: Any, kwargs: Any, kept_args: Any, kept_kwargs: Any) -> tuple[Any, ...]:
    """Turn a call that may write into its first argument into one that does not."""
    name = getattr(func, "__name__", "")
    place = _inplace_at(func)
    if place is not None and (kwargs.get("inplace") or (len(args) > place and args[place])):
        args, kept_args = (
            tuple(False if i == place else a for i, a in enumerate(these)) for these in (args, kept_args)
        )
        kwargs, kept_kwargs = ({k: v for k, v in these.items() if k != "inplace"} for these in (kwargs, kept_kwargs))
    elif name.endswith("_") and not name.endswith("__"):
        func = _on_a_copy(func)
    return func, args, kwargs, kept_args, kept_kwargs


@cache
def _inplace_at(func: Any) -> int | None:
    """Return where a function takes ``inplace``; None where it does not."""
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # a built-in
        return None
    return names.index("inplace") if "inplace" in names else None


@cache
def _on_a_copy(func: Any) -> Any:
    """Return a function that runs another on a copy of its first argument."""

    def copied(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return func(first.clone(), *args, **kwargs)

    copied.__name__ = func.__name__
    return copied


def _leaves(tree: Any) -> list[Any]:
    """Lay the tensors, values and constants of arguments out in a row."""
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _leaves(part)]
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _swapped(args: Any, kwargs: Any, put: Callable[[Any], Any], known: Mapping[int, Any] | None = None) -> Any:
    """Replace tensors that are known by values or, without ``known``, values by tensors."""

    def swap(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: swap(part) for key, part in tree.items()}
        if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
            return type(tree)(swap(part) for part in tree)
        if known is None:
            return put(tree.number) if isinstance(tree, Value) else tree
        return put(tree) if id(tree) in known else tree

    return swap(args), swap(kwargs)
