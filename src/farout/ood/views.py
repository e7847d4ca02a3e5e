"""What a score sees of a model: logits, features, stages and the head's weights, found in the model as it runs.

The head is the linear layer whose output is the model's answer, and the features are what it reads; where there is
none, any module that makes the answer from rows will do for features. Stages are what the parts of the trunk give on
the way: of a convolutional network the last output at each size of the picture, of a transformer the outputs of its
blocks, of a plain network what each linear layer but the first reads. Nothing is found by the names of classes: one
batch is run, and what each module was given and gave is looked at.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farout.errors import BadInput, UnknownName
from farout.ood._inputs import batches_of, lead, moved

__all__ = ["NEEDS", "POOLS", "Viewer", "Views", "extract"]

NEEDS = ("logits", "features", "stages", "head")
POOLS = ("mean", "first")


@dataclass(frozen=True)
class Views:
    """What a model shows of n inputs; parts that nobody asked for are empty.

    Attributes
    ----------
    logits : tensor (n, C)
    features : tensor (n, d) or None
        What the head reads.
    stages : dict of str to tensor (n, d_l)
        By the name of the module, pooled over the picture or the tokens.
    weight, bias : tensor (C, d), tensor (C,) or None
        Of the head.
    """

    logits: Tensor
    features: Tensor | None = None
    stages: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: Any) -> Views:
        """Return the views of some of the inputs: a slice, places or a mask."""
        return self._each(lambda part: part[rows])

    def to(self, device: Any) -> Views:
        """Return the views on a device."""
        moved = self._each(lambda part: part.to(device))
        if self.weight is None or self.bias is None:
            return moved
        return replace(moved, weight=self.weight.to(device), bias=self.bias.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Views:
        return replace(
            self,
            logits=change(self.logits),
            features=None if self.features is None else change(self.features),
            stages={name: change(stage) for name, stage in self.stages.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Views]) -> Views:
        """Return the views of all inputs of several views, in order."""
        first = parts[0]
        return replace(
            first,
            logits=torch.cat([part.logits for part in parts]),
            features=None if first.features is None else torch.cat([_there(part.features) for part in parts]),
            stages={name: torch.cat([part.stages[name] for part in parts]) for name in first.stages},
        )


class Viewer:
    """Run a model and take views of what passes; gradients flow where they are on.

    Parameters
    ----------
    model : torch.nn.Module
    example : tensor, mapping or tuple
        A batch of at least one input, as the model is called with it: what is where is found by running it.
    needs : sequence of {"logits", "features", "stages", "head"}
    features : str, optional
        The module whose output are the features, where no linear head is to be found, or other ones are wanted. There
        is no head then.
    layers : sequence of str, optional
        The modules whose outputs are the stages.
    pool : {"mean", "first"}
        What stands for all tokens of a sequence: their mean, or the first (CLS). Pictures are always averaged.

    Raises
    ------
    BadInput
        There is no such view in the model; the message says what can be done.
    UnknownName
        The model has no module of that name.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> viewer = Viewer(net, torch.zeros(1, 4), needs=("features", "head", "stages"))
    >>> viewer.head, viewer.layers
    ('2', ('1',))
    >>> views = viewer(torch.randn(5, 4))
    >>> bool(torch.allclose(views.features @ views.weight.T + views.bias, views.logits))
    True
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        needs: Sequence[str] = NEEDS,
        features: str | None = None,
        layers: Sequence[str] | None = None,
        pool: str = "mean",
    ) -> None:
        for need in needs:
            if need not in NEEDS:
                raise UnknownName("view", need, NEEDS)
        if pool not in POOLS:
            raise UnknownName("way to pool tokens", pool, POOLS)
        self.model, self.pool = model, pool
        self._modules = dict(model.named_modules())
        for name in [*(layers or ()), *([] if features is None else [features])]:
            if name not in self._modules or not name:
                raise UnknownName("module of the model", name, [known for known in self._modules if known])
        with evaluating(model), torch.no_grad():
            seen = _look(model, _first(example))
        self.head, self._features = None, features
        if features is None:
            self.head = _head(model, seen, "head" in needs) if {"features", "head"} & set(needs) else None
        elif "head" in needs:
            raise BadInput(
                f"a head was asked for, and the features are the output of '{features}', which no head reads; leave "
                "'features' out, or take a score that needs none, such as 'deep_knn' or 'mahalanobis'"
            )
        self.layers = tuple(layers) if layers is not None else _stages(seen) if "stages" in needs else ()

    def __call__(self, batch: Any) -> Views:
        """Take the views of a batch, which lies on the device of the model."""
        caught: dict[str, Tensor] = {}

        def keep(name: str, value: Any, what: str) -> None:
            if what in caught:
                raise BadInput(
                    f"'{name}' runs more than once for a batch, so that it is not clear which output is meant; name "
                    "another module"
                )
            caught[what] = _pooled(_tensor(value), self.pool)

        with ExitStack() as stack:
            if self.head is not None:
                stack.callback(
                    self._modules[self.head]
                    .register_forward_pre_hook(lambda _, args: keep(str(self.head), args[0], "features"))
                    .remove
                )
            elif self._features is not None:
                stack.callback(self._hook(self._features, "features", keep))
            for name in self.layers:
                stack.callback(self._hook(name, f"stage {name}", keep))
            logits = logits_of(_call(self.model, batch))
        head = self._modules[self.head] if self.head is not None else None
        weight = bias = None
        if isinstance(head, nn.Linear):
            weight = head.weight.detach()
            bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()
        stages = {name: caught[f"stage {name}"] for name in self.layers}
        return Views(logits, caught.get("features"), stages, weight, bias)

    def _hook(self, name: str, what: str, keep: Callable[[str, Any, str], None]) -> Callable[[], None]:
        return self._modules[name].register_forward_hook(lambda _, args, output: keep(name, output, what)).remove


def extract(
    model: Any,
    data: Any,
    *,
    needs: Sequence[str] = ("logits", "features", "head"),
    features: str | None = None,
    layers: Sequence[str] | None = None,
    pool: str = "mean",
    batch_size: int = 256,
    device: str | None = None,
    cache: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Views:
    """Take the views of all inputs once, for any number of scores.

    Parameters
    ----------
    model : torch.nn.Module, OpenModel, str or Path
        What :func:`farout.io.models.open_model` takes.
    data : array, tensor, list of texts or images, or iterable of batches
        Batches of a loader may be pairs with labels, which are passed over.
    needs, features, layers, pool
        As for :class:`Viewer`.
    batch_size : int
    device : str, optional
        Where the model runs; by default where it is.
    cache : str or Path, optional
        A folder: views of the same inputs and the same weights are read from it.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    Views
        On the CPU.

    Raises
    ------
    BadInput
        A logit or feature is not finite (its row is named), or a view is not to be had.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> extract(net, torch.randn(10, 4)).features.shape
    torch.Size([10, 8])
    """
    how: dict[str, Any] = {"needs": tuple(needs), "features": features, "layers": layers, "pool": pool}
    return taken(model, data, how, batch_size=batch_size, device=device, cache=cache, progress=progress)[0]


def taken(
    model: Any,
    data: Any,
    how: Mapping[str, Any],
    *,
    labels: Any = None,
    batch_size: int = 256,
    device: str | None = None,
    cache: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Views, Tensor | None]:
    """Do what :func:`extract` does, and return the labels too, where the data or the caller have some."""
    model = with_module(model)
    batches, total = batches_of(model, data, batch_size, labels)
    module = module_of(model)
    key = None
    if cache is not None:
        batches = list(batches)
        key = Path(cache) / f"{_digest(module, batches, sorted(how.items()))}.safetensors"
        if key.is_file():
            return _read(key), _joined_labels([y for _, y in batches])
    parts: list[Views] = []
    answers: list[Any] = []
    with evaluating(module), torch.no_grad():
        if device is not None:
            module.to(device)
        viewer: Viewer | None = None
        for batch, y in batches:
            batch = moved(batch, module)
            viewer = viewer or Viewer(module, batch, **how)
            parts.append(viewer(batch).to("cpu"))
            answers.append(y)
            if progress is not None and total:
                progress(len(parts) / total)
    if not parts:
        raise BadInput("there are no inputs; give at least one")
    views = Views.joined(parts)
    _refuse_strange(views)
    if key is not None:
        _write(key, views)
    return views, _joined_labels(answers)


def _joined_labels(answers: Sequence[Any]) -> Tensor | None:
    return None if any(y is None for y in answers) else torch.cat([torch.as_tensor(y) for y in answers]).long()


def logits_of(output: Any) -> Tensor:
    """Return the logits (n, C) in what a model returned: itself, or its ``logits``, or the first of several.

    Raises
    ------
    BadInput
        There is no table of numbers in it.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif not isinstance(output, Tensor) and getattr(output, "logits", None) is not None:
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        seen = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise BadInput(f"a classifier returns logits (n, classes), and this model returned {seen}")
    return output


@dataclass(frozen=True)
class _Seen:
    """What a module was given and gave, the first time it ran: shapes, and whether the output is the model's."""

    name: str
    module: nn.Module
    reads: Tensor | None
    output: Tensor | None
    answers: bool

    @property
    def weighs(self) -> bool:
        """Whether the module has weights of its own, not only in its parts."""
        return any(weight is not None for weight in self.module._parameters.values())


def _look(model: nn.Module, example: Any) -> list[_Seen]:
    """Run a model on an example and tell what its modules gave, in the order in which they ended."""
    found: list[tuple[str, nn.Module, Any, Any]] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                hook = module.register_forward_hook(
                    lambda one, args, output, name=name: found.append((name, one, args, output))
                )
                stack.callback(hook.remove)
        logits = logits_of(_call(model, example))
    seen = []
    for name, module, args, output in found:
        gave = output if isinstance(output, Tensor) else _tensor_or_none(output)
        reads = args[0] if args and isinstance(args[0], Tensor) else None
        same = gave is not None and gave.numel() == logits.numel() and torch.equal(gave.reshape(logits.shape), logits)
        seen.append(_Seen(name, module, reads, gave, same))
    return seen


def _head(model: nn.Module, seen: Sequence[_Seen], linear: bool) -> str:
    """Return the name of the layer whose output is the model's answer: a linear one, or any that reads rows."""
    found = [one.name for one in seen if isinstance(one.module, nn.Linear) and one.answers]
    if not found and not linear:  # such as a head of cosines: what it reads are features all the same
        found = [
            one.name for one in seen if one.answers and one.weighs and one.reads is not None and one.reads.ndim == 2
        ]
    if not found:
        last = next((one for one in reversed(seen) if one.answers), None)
        told = f"'{last.name}', a {type(last.module).__name__}" if last is not None else "no module, but are computed"
        raise BadInput(
            f"the logits of '{type(model).__name__}' come from no linear layer (they come from {told}); name the "
            "module whose output are the features (features='NAME'), or take a score of logits: 'msp', 'max_logit', "
            "'energy'"
        )
    return found[-1]


def _stages(seen: Sequence[_Seen]) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are the stages."""
    blocks: dict[str, list[str]] = {}
    for one in seen:
        if one.output is not None and one.output.ndim == 3 and one.name.rpartition(".")[2].isdigit():
            blocks.setdefault(f"{one.name.rpartition('.')[0]} {tuple(one.output.shape[1:])}", []).append(one.name)
    longest: list[str] = max(blocks.values(), key=len, default=[])
    if len(longest) > 1:
        return tuple(longest)
    pictures = [one for one in seen if one.output is not None and one.output.ndim == 4]
    if pictures:  # the last module to end at a size is the outermost, behind its activation
        return tuple({tuple(_there(one.output).shape[1:]): one.name for one in pictures}.values())
    found = []
    linear = [one for one in seen if isinstance(one.module, nn.Linear)]
    for one in linear[1:]:
        source = [other.name for other in seen if other.output is one.reads]
        found += source[-1:]
    if not found:
        raise BadInput(
            "the stages of the model were not found: it gives neither pictures nor sequences, and no linear layer "
            "reads what another module gave; name the modules (layers=[...])"
        )
    return tuple(found)


def _pooled(x: Tensor, pool: str) -> Tensor:
    """Return one row for each input."""
    if x.ndim == 4:
        return x.mean((2, 3))
    if x.ndim == 3:
        return x.mean(1) if pool == "mean" else x[:, 0]
    if x.ndim == 2:
        # a copy, since what runs next may write into it
        return x.clone()
    raise BadInput(
        f"a view is a row, a sequence or a picture for each input, and not {x.ndim} axes; name another module"
    )


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _first(batch: Any) -> Any:
    """Return the first two inputs of a batch, enough to see what is where: of one alone, axes are mistaken."""
    if isinstance(batch, Mapping):
        return {name: value[:2] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return type(batch)(value[:2] for value in batch) if isinstance(batch, list | tuple) else batch[:2]


def _tensor(value: Any) -> Tensor:
    found = _tensor_or_none(value)
    if found is None:
        raise BadInput(f"a module whose output is a view returns a tensor, and not {type(value).__name__}")
    return found


def _tensor_or_none(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return value[0]
    return getattr(value, "last_hidden_state", None)


def _there(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def with_module(model: Any) -> Any:
    """Return a module, or a model that was opened with a module in it: an ONNX graph is wrapped into one."""
    from farout.io._onnx_model import OnnxModel

    if isinstance(getattr(model, "model", None), OnnxModel):
        from farout.ood._onnx import OnnxClassifier

        return replace(model, model=OnnxClassifier(model.model).eval())
    return model


def module_of(model: Any) -> nn.Module:
    """Return the module of a model that was opened, or a module as it is."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(getattr(model, "model", None), nn.Module):
        return model.model
    raise BadInput(
        f"views are taken of a torch module, and not of {type(getattr(model, 'model', model)).__name__}; open the "
        "model with farout.io.models.open_model first"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its parts back into its own."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _refuse_strange(views: Views) -> None:
    """Refuse numbers that are not finite, by the first row that has one."""
    for what, part in (("logit", views.logits), ("feature", views.features), *views.stages.items()):
        if part is None:
            continue
        wrong = ~torch.isfinite(part).all(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise BadInput(
                f"{int(wrong.sum())} of {len(part)} inputs have a {what} that is not finite, the first is input {row}; "
                "look at that input, or run the model in float32"
            )


def _digest(model: nn.Module, batches: Iterable[Any], settings: Any) -> str:
    """Return a word for weights, inputs and settings that is another one if any of them changes."""
    found = hashlib.blake2b(repr((type(model).__qualname__, settings)).encode(), digest_size=16)
    tensors = itertools.chain(model.state_dict().items(), (pair for batch, _ in batches for pair in lead(batch)))
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
        )
    return found.hexdigest()


def _write(path: Path, views: Views) -> None:
    from safetensors.torch import save_file

    from farout.io.files import writing

    tensors = {"logits": views.logits, "features": views.features, "weight": views.weight, "bias": views.bias}
    tensors |= {f"stage {place} {name}": stage for place, (name, stage) in enumerate(views.stages.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items() if t is not None}, str(temporary))


def _read(path: Path) -> Views:
    from safetensors.torch import load_file

    tensors = load_file(path)
    names = sorted((n for n in tensors if n.startswith("stage ")), key=lambda name: int(name.split(" ")[1]))
    return Views(
        tensors["logits"],
        tensors.get("features"),
        {name.split(" ", 2)[2]: tensors[name] for name in names},
        tensors.get("weight"),
        tensors.get("bias"),
    )
