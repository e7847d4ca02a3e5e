"""A quantized model as a folder that transformers loads as it is: the layout of compressed-tensors.

Weights lie in their few bits, with scales, beside a ``config.json`` that says how. What that layout cannot hold is
stored as plain numbers, in the model's own dtype, and reported. The folder appears whole or not at all.

In transformers, a loaded map takes one step for all tokens, and not one each, where it is called without an axis for
the batch, with (tokens, inputs), as OPT's ``fc1`` and BERT's pooler are.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from farout.errors import BadInput, MissingExtra, NothingMatched
from farout.quantize._linear import QuantLinear, Rounding
from farout.quantize._packing import Packed, packed, unheld, unheld_inputs
from farout.quantize.grid import Grid, Steps
from farout.quantize.round._common import Rounded
from farout.quantize.scheme import Scheme

__all__ = ["Saved", "save_checkpoint"]

SHARD = "5GB"
BFLOAT16 = ("mxfp4-pack-quantized", "nvfp4-pack-quantized")  # loaders unpack them to bfloat16, whatever the rest is in
BIASES = ("attention_bias", "mlp_bias")  # what configs call biases of maps that have none by default


@dataclass
class Saved:
    """What was written.

    Attributes
    ----------
    folder : Path
    bytes : int
        Of all files.
    stored : dict of str to str
        By map, how its weight is stored, such as "pack-quantized", and how the loaded map will differ if it does:
        inputs that the format has no words for are not rounded.
    dequantized : dict of str to str
        By map that is stored as plain numbers, why.
    """

    folder: Path
    bytes: int = 0
    stored: dict[str, str] = field(default_factory=dict)
    dequantized: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    maps: Mapping[str, tuple[Rounded, Grid | None, Steps | None]],
    ignore: Sequence[str] = (),
    *,
    scheme: Scheme | None = None,
    tokenizer: Any = None,
    recipe: Mapping[str, Any] | None = None,
) -> Saved:
    """Write a quantized model as a checkpoint of compressed-tensors.

    Parameters
    ----------
    folder : str or path
        Must not exist, or be empty.
    model : transformers.PreTrainedModel
        Left as it is. Its linear maps may be :class:`QuantLinear`; transforms before them are multiplied into the
        weight, which is then stored as plain numbers.
    maps : mapping of str to (Rounded, Grid or None, Steps or None)
        By the path of a linear map: its weight, the grid of its inputs, and their steps where these are static.
    ignore : list of str
        More names (or patterns after "re:") for the list of what is not quantized; maps that are not in ``maps`` are
        in it anyway.
    scheme : Scheme, optional
        Told in ``recipe.json``.
    tokenizer : transformers tokenizer, optional
        Saved beside.
    recipe : mapping, optional
        Plain data, saved as ``recipe.json``.

    Returns
    -------
    Saved

    Raises
    ------
    BadInput
        The folder is not empty or cannot be written, a weight is off its grid, or the model has become something that
        its class cannot load.
    NothingMatched
        The model has no linear map of that name.
    MissingExtra
        compressed-tensors or transformers is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from farout.quantize.round.rtn import rtn
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    ...                                      num_attention_heads=2))
    >>> grid = Grid(4, "group", 32)
    >>> maps = {name: (rtn(part.weight, grid), None, None) for name, part in model.named_modules()
    ...         if isinstance(part, torch.nn.Linear) and name != "lm_head"}
    >>> saved = save_checkpoint(tempfile.mkdtemp(), model, maps)
    >>> saved.stored["model.layers.0.mlp.up_proj"]
    'pack-quantized'
    """
    _check_packages(model)
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"'{folder}' is there already and not empty; name another folder, or remove it")
    plain = _plain(model)
    names = [name for name, part in plain.named_modules() if type(part) is nn.Linear]
    for name in maps:
        if name not in names:
            raise NothingMatched("linear map", name, names)
    saved = Saved(folder)
    parts: dict[str, Packed] = {}
    state = _state(model, maps, saved, parts)
    untied = _tie(plain, state, parts)
    plain, said = _with_biases(model, plain, state)
    _check_state(plain, state, parts)
    state |= {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.tensors.items()}
    with _whole(folder) as temporary:
        one: Any = model
        one.save_pretrained(temporary, state_dict=state, max_shard_size=SHARD)
        small = any(part.scheme["format"] in BFLOAT16 for part in parts.values())
        _configure(temporary / "config.json", _quantization(names, parts, ignore), untied, small, said)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if recipe is not None or scheme is not None:
            told = {**(recipe or {}), **({"scheme": str(scheme)} if scheme is not None else {})}
            (temporary / "recipe.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    saved.bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return saved


def _check_packages(model: nn.Module) -> None:
    try:
        import compressed_tensors  # noqa: F401
        from transformers import PreTrainedModel
    except ImportError as error:
        raise MissingExtra("saving a quantized model", "llm") from error
    if not isinstance(model, PreTrainedModel):
        raise BadInput(
            f"a '{type(model).__name__}' is no model of transformers, and checkpoints are; save its state_dict instead"
        )


def _plain(model: nn.Module, said: Mapping[str, bool] | None = None) -> nn.Module:
    """Return what transformers will make of the config before it loads the weights, without memory for them."""
    config: Any = deepcopy(model.config)
    for name, value in (said or {}).items():
        setattr(config, name, value)
    with torch.device("meta"):
        return type(model)(config)


def _state(
    model: nn.Module,
    maps: Mapping[str, tuple[Rounded, Grid | None, Steps | None]],
    saved: Saved,
    parts: dict[str, Packed],
) -> dict[str, torch.Tensor]:
    """Return the tensors that stay plain; put those that do not into ``parts``, and tell what became of each map."""
    own = {name: part for name, part in model.named_modules() if isinstance(part, QuantLinear)}
    prefixes = tuple(f"{name}." for name in {*own, *maps})
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(prefixes)}
    for name in {**own, **maps}:
        module: Any = model.get_submodule(name)
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        why = ""
        if name in maps:
            rounded, inputs, static = maps[name]
            weight = rounded.weight.detach()
            lost = _unlike(module) or unheld_inputs(inputs, static)
            why = _transformed(module) or unheld(rounded, module.weight.dtype)
            if not why:
                parts[name] = packed(
                    name, rounded, None if lost else inputs, None if lost else static, module.weight.dtype
                )
                saved.stored[name] = parts[name].how + (f"; inputs are not rounded: {lost}" if lost else "")
            elif inputs is not None or lost:
                why += "; inputs are not rounded"
        if name in own and own[name].before:
            why = why or _transformed(own[name])
            weight, bias = _folded(name, own[name], weight)
        if why:
            saved.dequantized[name] = why
        if name not in parts:
            state[f"{name}.weight"] = weight.to(module.weight)
        if bias is not None:
            state[f"{name}.bias"] = bias.to(module.weight)
    return state


def _transformed(module: nn.Module) -> str:
    """Say what transforms inputs before a product; empty where nothing does."""
    if not isinstance(module, QuantLinear) or not module.before:
        return ""
    return f"its input is transformed ({', '.join(type(one).__name__ for one in module.before)})"


def _unlike(module: nn.Module) -> str:
    """Say what rounds inputs where that is not a grid alone; empty where it is, or nothing does."""
    rounding = module.rounding if isinstance(module, QuantLinear) else None
    return "" if rounding is None or type(rounding) is Rounding else f"no format tells of '{type(rounding).__name__}'"


def _folded(name: str, module: QuantLinear, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Multiply the transform ``x T + t`` before a map into its weight and bias: ``W T'`` and ``b + t W'``."""
    dtype, width = torch.float64, module.in_features
    before = deepcopy(nn.Sequential(*module.before)).to(dtype)
    wide = weight.to(dtype)
    with torch.no_grad():
        t = before(torch.zeros_like(wide[:1, :1]).expand(1, width))
        T = before(torch.eye(width, dtype=dtype, device=weight.device)) - t
        x = torch.linspace(-3, 3, 4 * width, dtype=dtype, device=weight.device).sin().view(4, width)
        off = (before(x) - (x @ T + t)).norm() / before(x).norm()
    if float(off) > 1e-4:
        raise BadInput(
            f"what stands before '{name}' is no fixed linear transform (off by {float(off):.2g}), so it cannot be "
            "multiplied into the weight; save the model's state_dict instead"
        )
    change = (t @ wide.T).flatten()
    bias = None if module.bias is None else module.bias.detach().to(dtype)
    if bias is not None or bool(change.any()):
        bias = change + (0 if bias is None else bias)
    return wide @ T.T, bias


def _tie(plain: nn.Module, state: dict[str, torch.Tensor], parts: Mapping[str, Packed]) -> bool:
    """Keep weights tied that are one and the same; return whether some that the config ties are not any more."""
    groups: dict[int, list[str]] = {}
    for name, weight in plain.named_parameters(remove_duplicate=False):
        groups.setdefault(id(weight), []).append(name)
    tied = [names for names in groups.values() if len(names) > 1]
    apart = [names for names in tied if not all(_same(state.get(names[0]), state.get(name)) for name in names)]
    for names in tied:
        for name in names[1:]:
            if name in state and names[0] in state:
                # One storage is written once and tied again; where ties are given up, all are written.
                state[name] = state[name].clone() if apart else state[names[0]]
    return bool(apart)


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and (one is other or torch.equal(one, other))


def _with_biases(
    model: nn.Module, plain: nn.Module, state: dict[str, torch.Tensor]
) -> tuple[nn.Module, dict[str, bool]]:
    """Make room for biases that rewrites gave to maps, where the config can say that maps have some.

    Maps that the config then gives one too, and that have none, get zeros.

    Returns
    -------
    torch.nn.Module
        What transformers will make of the config.
    dict of str to bool
        What the config must say.
    """
    before: Any = plain.state_dict()
    new = {name for name in state if name.endswith(".bias")} - set(before)
    flags = [name for name in BIASES if getattr(model.config, name, None) is False]
    for chosen in (*([name] for name in flags), flags) if new else ():
        said = dict.fromkeys(chosen, True)
        roomy = _plain(model, said)
        added = {name: meta for name, meta in roomy.state_dict().items() if name not in before}
        if new <= set(added) and all(name.endswith(".bias") for name in added):
            dtype = next(model.parameters()).dtype
            state |= {name: torch.zeros(meta.shape, dtype=dtype) for name, meta in added.items() if name not in new}
            return roomy, said
    return plain, {}


def _check_state(plain: nn.Module, state: Mapping[str, torch.Tensor], parts: Mapping[str, Packed]) -> None:
    """Refuse to write what the model's class would not find, or would find and drop."""
    have = {*state, *(f"{name}.weight" for name in parts)}
    want = set(plain.state_dict())
    for names, what in ((have - want, "has no place for"), (want - have, "would miss")):
        if names:
            some = ", ".join(f"'{name}'" for name in sorted(names)[:3]) + (" and others" if len(names) > 3 else "")
            raise BadInput(
                f"a '{type(plain).__name__}' {what} {some}, so this model would not load as it is; "
                "choose a recipe without rewrites that add or remove parts"
            )


def _quantization(names: Sequence[str], parts: Mapping[str, Packed], ignore: Sequence[str]) -> dict[str, Any] | None:
    """Return the ``quantization_config``: a group for all maps that are stored alike; None where none is."""
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationConfig

    alike: dict[str, list[str]] = {}
    for name, part in parts.items():
        alike.setdefault(json.dumps(part.scheme, sort_keys=True), []).append(name)
    if not alike:
        return None
    formats = {json.loads(scheme)["format"] for scheme in alike}
    groups = {
        f"group_{i}": {**json.loads(scheme), "targets": ["Linear"] if len(alike) == 1 else members}
        for i, (scheme, members) in enumerate(alike.items())
    }
    config = QuantizationConfig(
        config_groups=groups,
        format=formats.pop() if len(formats) == 1 else "mixed-precision",
        quantization_status="compressed",
        ignore=list(dict.fromkeys([*(name for name in names if name not in parts), *ignore])),
    )
    return {**config.model_dump(mode="json"), "version": __version__}


def _configure(
    path: Path, quantization: dict[str, Any] | None, untied: bool, bfloat16: bool, said: Mapping[str, bool]
) -> None:
    """Write into ``config.json`` how weights are stored, whether the head still is the embeddings, dtype and biases."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if quantization is not None:
        config["quantization_config"] = quantization
    for part in (config, config.get("text_config")):
        if part is not None and untied:
            part["tie_word_embeddings"] = False
        if part is not None and bfloat16:
            part["dtype"] = "bfloat16"
        if part is not None:
            part.update(said)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Give a folder beside to write to, which takes the place of ``folder`` when all went well."""
    from safetensors import SafetensorError

    temporary = folder.with_name(f".farout-{secrets.token_hex(6)}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())  # so that the rename never outruns the contents
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"cannot write '{folder}': {reason}; nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
