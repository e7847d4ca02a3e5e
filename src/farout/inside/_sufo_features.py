"""One vector a sample and layer: what a pass through a model leaves for SUFO, in memory that does not hold tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput
from farout.inside._layers import layers_of
from farout.inside._recording import Recording
from farout.inside._sites import first_tensor, mapped, rows_of, sites_of, tokens_of
from farout.kit.training import torch_or_say

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Features:
    """Vectors of n samples at each layer of a model.

    Attributes
    ----------
    layers : tuple of str
        Names, in the order in which layers run.
    pooled : dict of str to list of array (n, d)
        By how a sample's tokens became a vector (``"first"``, ``"mean"``): an array a layer, whose widths may differ.
    """

    layers: tuple[str, ...]
    pooled: dict[str, list[np.ndarray]]

    @classmethod
    def read(cls, given: Features | Sequence[Any], stage: str) -> Features:
        """Take features, or an array (n, d) a layer in their place, and look at them.

        Raises
        ------
        BadInput
        """
        if not isinstance(given, Features):
            arrays = list(given)
            given = cls(tuple(f"layer {i}" for i in range(len(arrays))), {"given": arrays})
        pooled = {how: [np.asarray(x) for x in arrays] for how, arrays in given.pooled.items()}
        sizes = set()
        for how, arrays in pooled.items():
            if not arrays or len(arrays) != len(given.layers):
                raise BadInput(
                    f"stage '{stage}' has {len(arrays)} arrays of '{how}' vectors for {len(given.layers)} layers"
                )
            for name, x in zip(given.layers, arrays):
                if x.ndim != 2 or x.dtype.kind not in "fiu":
                    raise BadInput(
                        f"'{name}' of stage '{stage}' has the type '{x.dtype}' and shape {x.shape}; give numbers (n, d)"
                    )
                if not np.isfinite(x).all():
                    row = int((~np.isfinite(x).all(axis=1)).argmax())
                    raise BadInput(f"row {row} of '{name}' of stage '{stage}' is not finite; leave the sample out")
                sizes.add(len(x))
        if len(sizes) > 1:
            raise BadInput(f"the layers of stage '{stage}' have {' and '.join(map(str, sorted(sizes)))} rows")
        return cls(given.layers, pooled)

    def __len__(self) -> int:
        """Count the samples."""
        return len(next(iter(self.pooled.values()))[0])


def blocks_of(model: nn.Module) -> list[str]:
    """Return the names of the longest row of like blocks in a model.

    Raises
    ------
    BadInput
        It has no such row.
    """
    kinds = {f"{name}.out": site.kind for name, site in sites_of(model).items() if site.kind == "residual"}
    found = [layer.name for layer in layers_of(Recording(kinds=kinds))]
    if not found:
        raise BadInput(
            f"'{type(model).__name__}' has no row of like blocks to take features from; give arrays (n, d) of layers"
        )
    return found


def features_of(model: nn.Module, batches: Iterable[Any], forward: Callable[[Any, Any], Any] | None = None) -> Features:
    """Run samples through a model and keep two vectors of each at every layer.

    Layers are what enters the first of the model's blocks (its embedding), and what each block gives. The vectors are
    that of the first token that is no padding, such as [CLS], and the mean over the tokens that are none. Where
    channels stand before the places, as in convolutions, there is no first token, and only means are kept. A norm
    behind the last block is no layer: it belongs to the head.

    One pass in evaluation mode, without gradients; the model is left as it was. ``2 n d`` numbers a layer are held, and
    the activations of one batch.

    Parameters
    ----------
    model : torch.nn.Module
        Any with a row of like blocks, such as an encoder of transformers.
    batches : iterable
        Mappings (``model(**batch)``), tuples or lists (``model(*batch)``), or tensors (``model(batch)``). Padding is
        known from a mapping's ``attention_mask``.
    forward : callable, optional
        ``forward(model, batch)`` in place of these calls.

    Returns
    -------
    Features

    Raises
    ------
    BadInput
        The model has no row of like blocks, a block runs more or less than once in a pass, or there are no batches.

    Examples
    --------
    >>> import torch
    >>> block = lambda: torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Sequential(block(), block()))
    >>> found = features_of(model, [torch.randint(50, (3, 6)), torch.randint(50, (2, 4))])
    >>> found.layers, [x.shape for x in found.pooled["first"]]
    (('embedding', '1.0', '1.1'), [(5, 8), (5, 8), (5, 8)])
    """
    torch = torch_or_say("taking features from a model")

    blocks, sites, modules = blocks_of(model), sites_of(model), dict(model.named_modules())
    run = forward or call
    device = next((weight.device for weight in model.parameters()), None)
    seen: dict[str, list[Any]] = {}
    kept: list[list[tuple[np.ndarray | None, np.ndarray]]] = [[] for _ in range(len(blocks) + 1)]

    def watch(layer: int, x: Any) -> None:
        seen.setdefault(("embedding", *blocks)[layer], []).append(first_tensor(x))

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        watch(0, args if first_tensor(args) is not None else kwargs)

    training = model.training
    with ExitStack() as stack, torch.no_grad():
        stack.callback(model.train, training)
        model.eval()
        stack.callback(modules[blocks[0]].register_forward_pre_hook(enter, with_kwargs=True).remove)
        for place, name in enumerate(blocks, start=1):
            hook = modules[name].register_forward_hook(lambda module, args, out, place=place: watch(place, out))
            stack.callback(hook.remove)
        for batch in batches:
            batch = batch if device is None else mapped(batch, lambda tensor: tensor.to(device))
            seen.clear()
            run(model, batch)
            tokens, mask = tokens_of(batch)
            for layer, name in enumerate(("embedding", *blocks)):
                found = seen.get(name, [])
                if len(found) != 1 or found[0] is None:
                    raise BadInput(
                        f"'{name}' ran {len(found)} times in one pass; give arrays (n, d) of the layers instead"
                    )
                kept[layer].append(_pooled(found[0], sites[blocks[0]].first, tokens, mask))
    if not kept[0]:
        raise BadInput("there are no batches, so no features")
    pooled = {"mean": [np.concatenate([mean for _, mean in layer]) for layer in kept]}
    if all(first is not None for layer in kept for first, _ in layer):
        firsts = [[first for first, _ in layer if first is not None] for layer in kept]
        pooled = {"first": [np.concatenate(layer) for layer in firsts]} | pooled
    return Features(("embedding", *blocks), pooled)


def call(model: Any, batch: Any) -> Any:
    """Hand a batch to a model in the way its type suggests."""
    if hasattr(batch, "keys"):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _pooled(
    x: torch.Tensor, channels_first: bool, tokens: tuple[int, int] | None, mask_BT: torch.Tensor | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the vectors (B, C) of the first kept token, None where there is none, and the means over tokens."""
    rows, period, keep = rows_of(x, None, channels_first, tokens, mask_BT)
    x_BTC = rows.reshape(-1, period, rows.shape[-1]).float()
    if keep is None:
        return (None if channels_first and period > 1 else x_BTC[:, 0].cpu().numpy()), x_BTC.mean(1).cpu().numpy()
    keep_BT = keep.reshape(-1, period)
    first = x_BTC[range(len(x_BTC)), keep_BT.int().argmax(1)]
    mean = (x_BTC * keep_BT[..., None]).sum(1) / keep_BT.sum(1, keepdim=True).clamp(min=1)
    return first.cpu().numpy(), mean.cpu().numpy()
