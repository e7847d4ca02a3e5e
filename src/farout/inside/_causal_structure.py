"""Layers of units and the paths between them, read from what ran.

A layer is a value that is linear in what other layers send it: the output of a convolution or linear map, with what of
batch normalisation follows at once, or the sum of such outputs and skip connections. Its units are the channels. What
follows up to the next layer (non-linearities, pooling, flattening) must treat each channel by itself; then a unit of
one layer reaches a unit of the next along one path, and what it sends can be taken away without touching the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from farout.errors import BadInput
from farout.inside._causal_trace import Op, Trace

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Layer", "Path", "layers_of"]

LINEAR = ("conv1d", "conv2d", "conv3d", "linear")
SHAPES = ("flatten", "view", "reshape", "squeeze", "contiguous")
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
BENDS = (
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "softsign", "threshold", "clamp"),
    *("clip", "abs", "exp", "square", "sqrt"),
)
BY_CHANNEL = (
    *BENDS,
    *("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d", "batch_norm"),
    *("pad", "interpolate", "clone", "detach", "to", "float", "view_as"),
)
ADD, SCALE = ("add", "iadd", "radd"), ("add", "iadd", "radd", "sub", "mul", "imul", "rmul", "div", "truediv", "neg")


@dataclass(frozen=True)
class Path:
    """How a layer reads one value.

    Attributes
    ----------
    source : int
        The value that is read.
    parent : int or None
        The layer whose units it carries; None for the input.
    width : int
        How many features of the value each unit has: more than 1 behind a flattening.
    op : Op or None
        The convolution or linear map; None for a skip connection.
    then : tuple of Op
        Batch normalisations before the sum.
    """

    source: int
    parent: int | None
    width: int
    op: Op | None
    then: tuple[Op, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A layer of units.

    Attributes
    ----------
    name : str
        The module of its convolution or linear map.
    value : int
        What enters its non-linearity.
    seen : int
        What it shows to its first reader, behind the non-linearity, and before pooling where that comes later.
    units : int
    paths : tuple of Path
        What it reads.
    """

    name: str
    value: int
    seen: int
    units: int
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class _Origin:
    """Whose units a value carries, and how many features a unit has."""

    layer: int | None
    units: int
    width: int = 1


def layers_of(model: nn.Module, run: Trace) -> list[Layer]:
    """Return the layers that lead to the output, in running order; the last one holds the classes.

    Raises
    ------
    BadInput
        There are fewer than two layers, or something between layers mixes channels.
    """
    named = {id(weight): name.removesuffix(".weight") for name, weight in model.named_parameters()}
    shape = {number: tuple(value.shape) for number, value in run.values.items()}
    readers: dict[int, list[Op]] = {}
    for op in run.ops:
        for number in dict.fromkeys(op.reads):
            readers.setdefault(number, []).append(op)

    def single(number: int) -> bool:
        return len(readers.get(number, ())) == 1 and number != run.output

    sums: dict[int, tuple[tuple[int, Op | None, tuple[Op, ...]], ...]] = {}  # values that are linear in what they read
    absorbed: set[int] = set()
    for op in run.ops:
        reads = list(op.reads)
        if op.name in LINEAR and reads == [_first(op)] and (op.name != "linear" or len(shape[op.out]) == 2):
            sums[op.out] = ((reads[0], op, ()),)
        elif op.name == "batch_norm" and reads and reads[0] in sums and single(reads[0]):
            sums[op.out] = tuple((source, linear, (*then, op)) for source, linear, then in sums[reads[0]])
            absorbed.add(reads[0])
        elif op.name in ADD and len(reads) == 2 and shape[reads[0]] == shape[reads[1]] and "alpha" not in op.kwargs:
            parts: list[tuple[int, Op | None, tuple[Op, ...]]] = []
            for number in reads:
                if number in sums and single(number):
                    parts += sums[number]
                    absorbed.add(number)
                else:
                    parts.append((number, None, ()))
            sums[op.out] = tuple(parts)
    values = [op.out for op in run.ops if op.out in sums and op.out not in absorbed]
    place = {number: i for i, number in enumerate(values)}

    origins: dict[int, _Origin] = {0: _Origin(None, shape[0][1] if len(shape[0]) > 1 else 1)}
    mixes: dict[int, str] = {}
    for op in run.ops:
        if op.out in place:
            origins[op.out] = _Origin(place[op.out], shape[op.out][1] if len(shape[op.out]) > 1 else 1)
        elif op.reads:
            came = origins.get(op.reads[0])
            width = _width(op, came, shape) if came is not None and len(op.reads) == 1 else None
            if came is not None and width is not None:
                origins[op.out] = _Origin(came.layer, came.units, width)
            else:
                mixes[op.out] = next((mixes[number] for number in op.reads if number in mixes), op.name)

    last = _last(run, place, mixes)
    layers: list[Layer] = []
    for i, number in enumerate(values[: last + 1]):
        for source, linear, _ in sums[number]:
            if source not in origins:
                raise BadInput(
                    f"'{mixes[source]}' stands between layers and mixes channels, so that units have no paths of "
                    "their own: hand over the part of the model behind it, or one without it"
                )
            if linear is None and origins[source].width > 1:
                raise BadInput("a skip connection adds what was flattened; flatten after it")
        paths = tuple(
            Path(source, origins[source].layer, origins[source].width, linear, then)
            for source, linear, then in sums[number]
        )
        linear = next((path.op for path in paths if path.op is not None), None)
        name = named.get(_weight(linear), f"{linear.name} {i}") if linear is not None else f"sum {i}"
        if name in (layer.name for layer in layers):
            name = f"{name}, again at {i}"  # a module that runs twice
        layers.append(Layer(name, number, _seen(number, readers, origins), origins[number].units, paths))
    used = _reached(layers)
    renumbered = {None: None} | {old: new for new, old in enumerate(used)}
    found = [
        replace(layers[i], paths=tuple(replace(path, parent=renumbered[path.parent]) for path in layers[i].paths))
        for i in used
    ]
    if len(found) < 2:
        raise BadInput("the model has no hidden layer: paths need at least two convolutions or linear maps in a row")
    return found


def _last(run: Trace, place: dict[int, int], mixes: dict[int, str]) -> int:
    """Return the layer that gives the classes: the output itself, or what a log-softmax makes it of."""
    number = run.output
    ended = {op.out: op for op in run.ops}.get(number)
    if ended is not None and ended.name == "log_softmax":
        number = ended.reads[0]
    if number not in place or run.values[number].ndim != 2:
        end = mixes.get(number, ended.name if ended is not None else "nothing")
        raise BadInput(
            f"the model ends in '{end}' and returns {tuple(run.values[run.output].shape)}; what is needed is a row of "
            "logits a sample, from a linear layer"
        )
    return place[number]


def _reached(layers: list[Layer]) -> list[int]:
    """Return the layers from which the last one is reached, in running order."""
    reached = {len(layers) - 1}
    for i in reversed(range(len(layers))):
        if i in reached:
            reached.update(path.parent for path in layers[i].paths if path.parent is not None)
    return sorted(reached)


def _seen(number: int, readers: dict[int, list[Op]], origins: dict[int, _Origin]) -> int:
    """Follow a layer's value on the way to its first reader, to the last non-linearity."""
    seen = number
    while number in readers:
        op = readers[number][0]
        if op.name in SHAPES or op.name in LINEAR or origins.get(op.out) != origins[number]:
            break
        number = op.out
        if op.name in BENDS or op.name == "batch_norm":
            seen = number
    return seen


def _width(op: Op, came: _Origin, shape: dict[int, tuple[int, ...]]) -> int | None:
    """Return how many features a unit has after an operation on one value; None where it mixes channels."""
    before, after = shape[op.reads[0]], shape[op.out]
    kept = len(before) > 1 and after[:2] == before[:2]
    if op.name in SHAPES:
        if kept:
            return came.width
        flat = len(before) > 1 and after == (before[0], prod(before[1:]))
        return came.width * prod(before[2:]) if flat else None
    if op.name in ("mean", "amax", "sum"):  # over places
        dims = op.bound("x", "dim").get("dim")
        dims = (dims,) if isinstance(dims, int) else dims
        return came.width if kept and dims and all(d % len(before) > 1 for d in dims) else None
    if op.name == "batch_norm" and op.bound("x", "mean", "var", "weight", "bias", "training").get("training"):
        return None
    pooled = any(op.name.startswith(pool) for pool in POOLS)
    return came.width if kept and (op.name in BY_CHANNEL or op.name in SCALE or pooled) else None


def _first(op: Op) -> int | None:
    """Return the value that is an operation's first argument."""
    first = op.args[0] if op.args else op.kwargs.get("input")
    return getattr(first, "number", None)


def _weight(op: Op) -> int:
    """Return the id of the weight of a convolution or linear map."""
    return id(op.bound("input", "weight")["weight"])
