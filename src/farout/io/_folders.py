"""Models of transformers: config.json with a folder of weights, or with one safetensors file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

_NEWER = "a newer transformers may know it (code that a folder brings is not run)"


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises
    ------
    BadInput
        There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(
            f"'{folder}' has no config.json, which says how the model is built; put the one that belongs to the "
            "weights beside them, or give a module: 'py:package.make()'"
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"'{path}' is no JSON: {error}; fetch it again") from error
    if not isinstance(config, dict):
        raise BadInput(f"'{path}' holds a {type(config).__name__} where an object is expected; fetch it again")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights, safetensors where there are some, else pickled ones.

    Raises
    ------
    BadInput
        There are none, or one of several parts is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            lost = [part for part in parts if not (folder / part).is_file()]
            if lost:
                raise BadInput(
                    f"'{folder}' lacks {len(lost)} of {len(parts)} parts of the weights, first '{lost[0]}'; "
                    "fetch them as well"
                )
            return [folder / part for part in parts]
    raise BadInput(
        f"'{folder}' holds no weights: neither model.safetensors nor pytorch_model.bin, whole or in parts; "
        "fetch the whole folder, large files included"
    )


def stored_as(files: list[Path]) -> str:
    """Say in which format and precision weights are stored; reads headers only.

    Raises
    ------
    BadInput
        A safetensors file is cut off or damaged.
    """
    if files[0].suffix != ".safetensors":
        return "pickled state dict"
    from safetensors import SafetensorError, safe_open

    kinds: Counter[str] = Counter()
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                kinds.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"'{path.name}' ({path.stat().st_size} bytes) is cut off or damaged: {error}; fetch it again"
            ) from error
    return "safetensors " + ", ".join(kind for kind, _ in kinds.most_common())


def model_class(config: Any, folder: Path) -> Any:
    """Return the class that a configuration names, or the one without a head where it names none."""
    import transformers

    named = list(config.architectures or [])
    found = getattr(transformers, named[0], None) if named else transformers.AutoModel
    if found is not transformers.AutoModel and not (
        isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    ):
        known = [name for name in dir(transformers) if "For" in name or name.endswith("Model")]
        raise BadInput(
            f"'{folder}' holds a model of architecture '{named[0]}', which transformers {transformers.__version__} "
            f"does not have; {nearest(named[0], known)}; {_NEWER}"
        )
    return found


def open_folder(folder: Path, file: Path | None, dtype: torch.dtype) -> tuple[nn.Module, str, list[str]]:
    """Load a transformers model.

    Parameters
    ----------
    folder : Path
        Holds config.json.
    file : Path, optional
        The weights, where they are not to be looked for in the folder.
    dtype : torch.dtype

    Returns
    -------
    model : torch.nn.Module
    stored : str
    notes : list of str

    Raises
    ------
    BadInput
    """
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    raw = read_config(folder)
    files = [file] if file is not None else weight_files(folder)
    stored = stored_as(files)
    kind = str(raw.get("model_type", ""))
    if kind not in CONFIG_MAPPING_NAMES:
        raise BadInput(
            f"'{folder / 'config.json'}' names the model type '{kind}', which transformers does not know; "
            f"{nearest(kind, CONFIG_MAPPING_NAMES)}; {_NEWER}"
        )
    how: dict[str, Any] = {"local_files_only": True, "weights_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        cls = model_class(config, folder)
        if file is None:
            model, info = cls.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True, **how)
        else:
            from safetensors.torch import load_file

            cls = cls if cls.__name__ != "AutoModel" else type(cls.from_config(config))
            model, info = cls.from_pretrained(
                None, config=config, state_dict=load_file(file), dtype=dtype, output_loading_info=True
            )
    except BadInput:
        raise
    except Exception as error:
        if "weights_only" in str(error).lower() or "unpickl" in f"{type(error).__name__} {error}".lower():
            raise BadInput(
                f"'{files[0].name}' would run code when it is unpickled, so that it was not loaded; "
                "get the weights as safetensors from a source that you trust"
            ) from error
        raise BadInput(f"transformers cannot load '{folder}': {' '.join(str(error).split())[:400]}") from error
    notes = []
    if info["missing_keys"] and cls.__name__ != "AutoModel" and file is None:
        bare, rest = AutoModel.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True, **how)
        if not rest["missing_keys"]:
            notes.append(f"the head of '{cls.__name__}' is not in the file: the model is opened without it")
            model, info = bare, rest
    lost, odd = sorted(info["missing_keys"]), sorted(info["mismatched_keys"], key=str)
    if lost or odd:
        first = lost[0] if lost else odd[0][0]
        notes.append(
            f"{len(lost) + len(odd)} weights that the model needs are not in the file, first '{first}': they are random"
        )
    return model, stored, notes


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing progress and advice to the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
