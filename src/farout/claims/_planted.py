"""Small language models with outliers that are planted exactly: what rounding then loses, the outliers have cost it.

Some channels are made large where they are written and small where they are read, which leaves the model's function as
it is to the last few bits:

- of a norm: ``gamma k`` and ``beta k + m``; in the maps that read it, columns ``w / k``, and ``b - (w / k) m``;
- of the feed-forward middle: rows of ``up`` times k, columns of ``down`` over k;
- of the values: rows of ``v`` times k, columns of ``o`` over k, for all heads that share them.

A method that divides channels can undo the planting exactly, so that these models show that a mechanism works, and not
how much it gains in a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from farout.bench.perplexity import perplexity
from farout.errors import BadInput, UnknownName
from farout.io.models import OpenModel


@dataclass(frozen=True)
class _Names:
    """Modules of a block: norms with the maps that read them, and pairs of maps of which the second reads the first."""

    blocks: str
    norms: dict[str, tuple[str, ...]]
    middle: tuple[str, str]
    values: tuple[str, str]


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_STRUCTURES = {
    "llama": _Names(
        "model.layers",
        {"input_layernorm": _QKV, "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")},
        ("mlp.up_proj", "mlp.down_proj"),
        ("self_attn.v_proj", "self_attn.o_proj"),
    ),
    "opt": _Names(
        "model.decoder.layers",
        {"self_attn_layer_norm": _QKV, "final_layer_norm": ("fc1",)},
        ("fc1", "fc2"),
        ("self_attn.v_proj", "self_attn.out_proj"),
    ),
}
PLACES = ("norm", "middle", "values")


def loss_gap(model: Any, reference_loss: float, windows: np.ndarray) -> float:
    """Return by how much the loss of a model is above a reference, in nats for each byte.

    Parameters
    ----------
    model : OpenModel or torch.nn.Module
    reference_loss : float
        Such as ``perplexity(opened, windows).loss`` before rounding.
    windows : int array (n, length)
    """
    return perplexity(model, windows, batch_size=16).loss - reference_loss


def plant(
    opened: OpenModel,
    channels: int | Sequence[int] = 4,
    factor: float = 50.0,
    offset: float = 0.0,
    where: Sequence[str] = ("norm",),
    seed: int = 0,
) -> tuple[OpenModel, dict[str, list[int]]]:
    """Plant outliers in a copy of a small language model, in the same channels of every block.

    Parameters
    ----------
    opened : OpenModel
        From :func:`_small_models.small_language_model`.
    channels : int or list of int
        So many, drawn for each place, or these.
    factor : float
        k: by how much they grow.
    offset : float
        m, of norms with a bias: the first planted channel moves up by it, the second down, and so on.
    where : sequence of {"norm", "middle", "values"}
    seed : int
        For channels that are drawn. A ReLU that never fires stays at 0, planted or not.

    Returns
    -------
    OpenModel
    dict of str to list of int
        The planted channels, by the site at which :func:`farout.inside.record` sees them.

    Raises
    ------
    BadInput
        k is not above 0, the norms have no bias for an offset, or there is no such channel.
    UnknownName
        There is no such place.
    """
    import torch

    for place in where:
        if place not in PLACES:
            raise UnknownName("place of outliers", place, PLACES)
    if not factor > 0:
        raise BadInput(f"a factor is above 0, since a ReLU turns no sign, not {factor}")
    model, config = copy.deepcopy(opened.model), opened.model.config
    names, heads = _STRUCTURES[config.model_type], config.num_attention_heads
    shared = heads // getattr(config, "num_key_value_heads", heads)
    rng = np.random.default_rng(seed)
    planted: dict[str, list[int]] = {}
    blocks = model.get_submodule(names.blocks)
    with torch.no_grad():
        if "norm" in where:
            chosen = _chosen(channels, config.hidden_size, rng)
            for i, block in enumerate(blocks):
                for norm, readers in names.norms.items():
                    _norm(block.get_submodule(norm), [block.get_submodule(r) for r in readers], chosen, factor, offset)
                    planted[f"{names.blocks}.{i}.{norm}.out"] = chosen
        for place, (writer, reader) in (("middle", names.middle), ("values", names.values)):
            if place not in where:
                continue
            rows = _chosen(channels, blocks[0].get_submodule(writer).out_features, rng)
            depth = config.hidden_size // heads
            columns = rows if place == "middle" else _read_at(rows, depth, shared)
            for i, block in enumerate(blocks):
                _pair(block.get_submodule(writer), block.get_submodule(reader), rows, columns, factor)
                planted[f"{names.blocks}.{i}.{reader}.in"] = columns
    return replace(opened, model=model, name=f"{opened.name}, planted"), planted


def _norm(norm: Any, readers: list[Any], channels: list[int], k: float, offset: float) -> None:
    """Let channels of a norm be ``k`` times as large and moved by ``m``, and undo both in the maps that read it."""
    import torch

    bias = getattr(norm, "bias", None)
    if offset and (bias is None or any(reader.bias is None for reader in readers)):
        raise BadInput("a norm without a bias moves no channel: plant with an offset of 0, or in a model of kind 'opt'")
    m = offset * (-1.0) ** torch.arange(len(channels), device=norm.weight.device, dtype=norm.weight.dtype)
    norm.weight[channels] *= k
    if bias is not None:
        bias[channels] = bias[channels] * k + m
    for reader in readers:
        reader.weight[:, channels] /= k
        if offset:
            reader.bias -= reader.weight[:, channels] @ m


def _pair(writer: Any, reader: Any, rows: list[int], columns: list[int], k: float) -> None:
    """Let outputs of a map be ``k`` times as large, and undo it in the map that reads them."""
    writer.weight[rows] *= k
    if writer.bias is not None:
        writer.bias[rows] *= k
    reader.weight[:, columns] /= k


def _chosen(channels: int | Sequence[int], width: int, rng: np.random.Generator) -> list[int]:
    """Return channels of so many, drawn or given."""
    chosen = rng.choice(width, channels, replace=False).tolist() if isinstance(channels, int) else list(channels)
    if not all(0 <= channel < width for channel in chosen):
        raise BadInput(f"channels are from 0 to {width - 1}, not {chosen}")
    return sorted(chosen)


def _read_at(rows: list[int], depth: int, shared: int) -> list[int]:
    """Return the columns of the output map that read channels of the values, which ``shared`` heads have in common."""
    return sorted((row // depth * shared + head) * depth + row % depth for row in rows for head in range(shared))
