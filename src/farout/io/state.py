"""Saved states: one zip file with a JSON tree and plain arrays; reading it runs nothing that the file brings.

Layout of the zip: ``farout.json`` (format version, farout's version, the tree), ``arrays/<n>.npy`` (never object
arrays), ``models/<n>.skops`` (fitted scikit-learn estimators, rebuilt by skops from types that it trusts). The tree
names classes by their registered word, never by an import path.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from farout.errors import BadInput, FaroutError
from farout.io.files import writing

FORMAT = 1
_CLASSES: dict[str, type] = {}
T = TypeVar("T")


def saved(word: str) -> Callable[[type[T]], type[T]]:
    """Register a dataclass whose fields make up its state, so that :func:`write_state` can store it.

    Parameters
    ----------
    word : str
        The name under which files know it; it outlives renames of the class.
    """

    def mark(cls: type[T]) -> type[T]:
        if not is_dataclass(cls):
            raise TypeError(f"'{cls.__name__}' must be a dataclass to be saved")
        _CLASSES[word] = cls
        cls.__saved__ = word  # type: ignore[attr-defined]
        return cls

    return mark


def write_state(path: str | Path, tree: Any) -> None:
    """Write a tree of plain values, arrays, registered dataclasses and scikit-learn estimators; whole or not at all.

    Parameters
    ----------
    path : str or Path
        The file to write.
    tree : object
        Nested dicts, lists and tuples of None, bool, int, float, str, ndarray, registered dataclasses and fitted
        scikit-learn estimators.
    """
    from farout import __version__

    with writing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as bundle:
        encoded = _encode(tree, bundle, [0])
        header = {"format": FORMAT, "farout": __version__, "tree": encoded}
        bundle.writestr("farout.json", json.dumps(header))


def read_state(path: str | Path) -> Any:
    """Read what :func:`write_state` wrote.

    Raises
    ------
    BadInput
        When the file is missing, truncated, of a newer format, or holds anything but plain values, arrays and
        trusted estimators.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no saved detector at '{path}'")
    try:
        with zipfile.ZipFile(path) as bundle:
            if "farout.json" not in bundle.namelist():
                raise BadInput(f"'{path}' is a zip file, but not a detector saved by farout")
            header = json.loads(bundle.read("farout.json"))
            if header.get("format", 0) > FORMAT:
                raise BadInput(
                    f"'{path}' was saved by farout {header.get('farout')} in format {header['format']}, and this "
                    f"version reads formats up to {FORMAT}: upgrade farout"
                )
            return _decode(header["tree"], bundle)
    except FaroutError:
        raise
    except Exception as error:  # zip, JSON, numpy and skops each have their own ways to fail on what is damaged
        raise BadInput(
            f"'{path}' cannot be read as a saved detector ({error}): it is truncated, damaged or another kind of file; "
            "nothing in it was run"
        ) from error


def _encode(value: Any, bundle: zipfile.ZipFile, count: list[int]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), bundle, count)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [_encode(item, bundle, count) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, bundle, count) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, bundle, count), _encode(v, bundle, count)] for k, v in value.items()]}
    if isinstance(value, np.ndarray):
        return _encode_array(value, bundle, count)
    if hasattr(value, "__saved__"):
        state = {f.name: _encode(getattr(value, f.name), bundle, count) for f in fields(value) if f.init}
        return {"object": value.__saved__, "state": state}
    if hasattr(value, "get_params"):
        from skops.io import dumps

        count[0] += 1
        bundle.writestr(f"models/{count[0]}.skops", dumps(value))
        return {"model": count[0]}
    raise TypeError(f"a value of type '{type(value).__name__}' cannot be saved")


def _encode_array(value: np.ndarray, bundle: zipfile.ZipFile, count: list[int]) -> Any:
    if value.dtype.kind == "O":  # names, which numpy would pickle
        return {"strings": [str(item) for item in value.ravel()], "shape": list(value.shape)}
    count[0] += 1
    with bundle.open(f"arrays/{count[0]}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, value, allow_pickle=False)
    return {"array": count[0]}


def _decode(value: Any, bundle: zipfile.ZipFile) -> Any:
    if isinstance(value, list):
        return [_decode(item, bundle) for item in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "tuple" in value:
        return tuple(_decode(item, bundle) for item in value["tuple"])
    if "dict" in value:
        return {_decode(k, bundle): _decode(v, bundle) for k, v in value["dict"]}
    if "strings" in value:
        return np.array(value["strings"], dtype=object).reshape(value["shape"])
    if "array" in value:
        return np.load(io.BytesIO(bundle.read(f"arrays/{int(value['array'])}.npy")), allow_pickle=False)
    if "model" in value:
        return _decode_model(bundle.read(f"models/{int(value['model'])}.skops"))
    if "object" in value:
        word = value["object"]
        if word not in _CLASSES and word in _homes():
            import_module(_homes()[word])
        if word not in _CLASSES:
            raise BadInput(f"the file holds an unknown kind of object, '{word}'")
        state = {name: _decode(item, bundle) for name, item in value["state"].items()}
        return _CLASSES[word](**state)
    raise BadInput(f"the file holds an unknown entry with keys {sorted(value)}")


@cache
def _homes() -> dict[str, str]:
    """Return the module of farout that registers each word: a file may be read before its classes were imported."""
    package = Path(__file__).parents[1]
    found = {}
    for path in package.rglob("*.py"):
        for word in re.findall(r'^@saved\("([^"]+)"\)', path.read_text(encoding="utf-8"), re.MULTILINE):
            found[word] = ".".join(("farout", *path.relative_to(package).with_suffix("").parts))
    return found


def _decode_model(data: bytes) -> Any:
    """Rebuild a scikit-learn estimator; skops refuses every type outside its own list of trusted ones."""
    from skops.io import loads
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return loads(data, trusted=[])
    except UntrustedTypesFoundException as error:
        raise BadInput(f"the saved detector names types that farout does not run: {error}") from error
