"""Where to look in a model, found by its structure: what modules hold and are called with, never lists of classes.

Shape legend: B sequences, T tokens, H heads, Q queries, K keys, D channels of a head, N rows, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Site:
    """A module whose input and output are worth recording.

    ``width`` is the number of channels that its weight says, None where it has none; ``first`` says that channels stand
    behind the batch, as in images, and not at the end.
    """

    kind: str
    module: nn.Module
    width: int | None
    first: bool


def sites_of(model: nn.Module) -> dict[str, Site]:
    """Return norms, linear maps and residual blocks by the first name of their module."""
    names = {id(module): name for name, module in model.named_modules()}
    sites = {}
    for name, module in model.named_modules():
        site = _leaf_site(module)
        if site is not None:
            sites[name] = site
        for child in _repeated(module):
            inner = [site for site in map(_leaf_site, child.modules()) if site is not None]
            if inner:  # a block carries channels where the maps inside it look for them
                sites[names[id(child)]] = Site("residual", child, None, inner[0].first)
    return sites


def _leaf_site(module: nn.Module) -> Site | None:
    """Tell a norm or a linear map by its parameters; None for anything else."""
    from torch import nn

    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    if any(next(child.parameters(), None) is not None for child in module.children()):
        return None  # what is inside does the work; a convolution that pads by a module of its own is still one
    weight = getattr(module, "weight", None)
    shape: tuple[int, ...] = tuple(getattr(weight, "shape", ()))
    if len(shape) >= 2:
        first = len(shape) > 2
        if first:
            width = getattr(module, "in_channels", None)
        else:  # a few libraries keep (in, out); theirs say so by a name of their own, and the input decides
            width = getattr(module, "in_features", None)
        return Site("linear", module, width, first)
    parameters = list(module.parameters())
    named = "norm" in type(module).__name__.lower()
    if named or (parameters and any(hasattr(module, word) for word in ("eps", "variance_epsilon"))):
        first = hasattr(module, "num_features") or hasattr(module, "num_channels")  # batch, instance and group norms
        return Site("norm", module, shape[0] if shape else None, first)
    return None


def _repeated(module: nn.Module) -> list[nn.Module]:
    """Return the children that are blocks: those with parts of their own whose class occurs again among them."""
    children = [child for child in module.children() if next(child.children(), None) is not None]
    kinds = [type(child) for child in children]
    return [child for child in children if kinds.count(type(child)) > 1]


def first_tensor(value: Any) -> torch.Tensor | None:
    """Find the first floating tensor in a tensor, tuple, mapping or dataclass."""
    import torch

    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() and value.layout == torch.strided else None
    found = (first_tensor(item) for item in _items(value))
    return next((tensor for tensor in found if tensor is not None), None)


def _items(value: Any) -> Iterator[Any]:
    """Iterate over what a container holds; nothing for anything else."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name) for field in fields(value))


def mapped(value: Any, change: Any) -> Any:
    """Apply a function to every tensor of a batch; what is not a tensor stays."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def length_of(batch: Any) -> int:
    """Return the size of the first axis that the tensors of a batch have in common; 1 where they differ."""
    sizes: set[int] = set()
    mapped(batch, lambda tensor: sizes.add(len(tensor)) if tensor.ndim else None)
    return sizes.pop() if len(sizes) == 1 else 1


def tokens_of(batch: Any) -> tuple[tuple[int, int] | None, torch.Tensor | None]:
    """Return (B, T) of a batch of token numbers, and which of them are no padding (B, T)."""
    import torch

    shapes: list[tuple[int, int]] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 2 and not tensor.is_floating_point():
            shapes.append((tensor.shape[0], tensor.shape[1]))
        return tensor

    mapped(batch, look)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return (shapes[0] if shapes else None), None
    return (mask.shape[0], mask.shape[1]), (None if bool((mask != 0).all()) else mask != 0)


def rows_of(
    x: torch.Tensor,
    width: int | None,
    first: bool,
    tokens: tuple[int, int] | None,
    mask_BT: torch.Tensor | None,
) -> tuple[torch.Tensor, int, torch.Tensor | None]:
    """Lay a tensor out as rows.

    Parameters
    ----------
    x : tensor (..., C) or (B, C, ...)
    width, first : see :class:`Site`
    tokens : (B, T), optional
        So that rows (B * T, C), which mixtures of experts see, find their positions.
    mask_BT : bool tensor, optional
        Tokens that count.

    Returns
    -------
    x_NC : tensor
    period : int
        Row i stands at position i % period.
    keep_N : bool tensor or None
    """
    behind = x.ndim > 2 and (first if width is None else (first or x.shape[-1] != width) and x.shape[1] == width)
    x = x.movedim(1, -1) if behind else x
    rows = x.reshape(-1, x.shape[-1])
    period = max(1, rows.shape[0] // x.shape[0]) if x.ndim > 2 else 1
    if tokens is not None and len(rows) == tokens[0] * tokens[1]:
        period = tokens[1]
        if mask_BT is not None:
            return rows, period, mask_BT.reshape(-1).to(rows.device)
    return rows, period, None


def weight_rows(weight: torch.Tensor) -> torch.Tensor:
    """Lay a parameter out as (outputs, inputs): kernels are flattened into inputs, a vector is one row."""
    if weight.ndim < 2:
        return weight.reshape(1, -1)
    return weight.flatten(1)


def merged_heads(x: torch.Tensor) -> torch.Tensor:
    """Turn (B, H, T, D) into (B, T, H * D); three axes are one head for each sequence."""
    return x.movedim(1, 2).flatten(2) if x.ndim == 4 else x
