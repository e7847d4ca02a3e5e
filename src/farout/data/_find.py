"""Where the file of a data set lies: the user's folder, the cache, or a checksummed download into the cache."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path, PurePosixPath

from farout.data import _adbench
from farout.errors import BadInput

# File name -> address and SHA-256, for the files that may be downloaded.
REMOTE = {f"tabular/adbench/{stem}.npz": (f"{_adbench.URL}{stem}.npz", sha) for stem, sha in _adbench.SHA256.items()}


class DataMissing(BadInput):
    """The file of a data set is neither here nor could it be downloaded."""


def find(name: str) -> Path:
    """Return the path of a data file, downloading it where that is possible.

    Parameters
    ----------
    name : str
        Path of the file below a data folder, such as ``"tabular/adbench/6_cardio.npz"``. It is looked up in the folder
        that the environment variable ``FAROUT_DATA`` names, then in the cache (``$XDG_CACHE_HOME/farout``, else
        ``~/.cache/farout``); at last it is downloaded into the cache, where its address is known.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    DataMissing
        The file is in none of these places.
    BadInput
        A downloaded file has another checksum than the one on record (nothing is kept of it), or ``name`` leads out
        of the data folder.

    Examples
    --------
    >>> find("tabular/no_such_set.npz")
    Traceback (most recent call last):
        ...
    farout.data._find.DataMissing: there is no data file 'tabular/no_such_set.npz'; looked in ...
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise BadInput(f"'{name}' leads out of the data folder; give a path below it")
    local = os.environ.get("FAROUT_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farout"
    folders = [Path(local), cache] if local else [cache]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = f"looked in {' and '.join(repr(str(folder)) for folder in folders)}"
    if name not in REMOTE:
        raise DataMissing(f"there is no data file '{name}'; {looked}; set FAROUT_DATA to the folder that holds it")
    url, sha256 = REMOTE[name]
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            contents = response.read()
    except OSError as error:
        raise DataMissing(
            f"there is no data file '{name}'; {looked}, and the download from {url} failed ({error}); "
            "set FAROUT_DATA to a folder that holds it, or try again with a network"
        ) from error
    return _keep(contents, sha256, cache / name)


def _keep(contents: bytes, sha256: str, path: Path) -> Path:
    """Store a download whose checksum is right; a half-written file never bears the name."""
    seen = hashlib.sha256(contents).hexdigest()
    if seen != sha256:
        raise BadInput(
            f"the download of '{path.name}' has SHA-256 {seen} where {sha256} is on record; "
            "nothing was kept; the file at the source has changed, or the network alters it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(contents)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
