"""Files that are written whole or not at all, and files that must not change while they are read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from farout.errors import BadInput

Fingerprint = tuple[int, int, int]


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the place of ``path`` when all went well.

    The temporary file lies in the folder of ``path``, so that the last step is one atomic rename. If the block raises
    anything, ``KeyboardInterrupt`` included, the temporary file is removed and the old file stays as it was.
    A link is followed; a device such as ``/dev/null`` is written to directly.

    Parameters
    ----------
    path : str or path
        The file to write; it may exist or not.

    Yields
    ------
    pathlib.Path
        Where the block shall write the new contents.

    Raises
    ------
    BadInput
        The folder does not exist, ``path`` is a folder, or the operating system refused to write (disk full, no
        permission).

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "scores.txt"
    >>> with writing(target) as temporary:
    ...     _ = temporary.write_text("0.5")
    >>> target.read_text()
    '0.5'
    """
    asked = Path(path)
    if asked.is_dir():
        raise BadInput(f"cannot write '{asked}': it is a folder; give the name of a file in it")
    if asked.exists() and not asked.is_file():
        yield asked
        return
    target = asked.resolve()
    if not target.parent.is_dir():
        raise BadInput(f"cannot write '{asked}': there is no folder '{target.parent}'; make it first")
    # The block creates the file itself, so that it gets the permissions any new file of this user gets.
    temporary = target.with_name(f".farout-{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"cannot write '{asked}': {reason}; the old file, if there was one, is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Tell one state of a file from another without reading it.

    Parameters
    ----------
    path : str or path
        An existing file.

    Returns
    -------
    tuple of int
        Size in bytes, time of the last change in nanoseconds, and inode.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = path.write_text("four")
    >>> fingerprint(path)[0]
    4
    """
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@contextmanager
def unchanged(path: str | os.PathLike[str], since: Fingerprint | None = None) -> Iterator[None]:
    """Make sure that a file stays the same from ``since`` (or from the start of the block) to the end of the block.

    Parameters
    ----------
    path : str or path
        An existing file.
    since : tuple, optional
        An earlier :func:`fingerprint` to compare with.

    Raises
    ------
    BadInput
        The file was changed, replaced or removed meanwhile. An error of the block itself is replaced by this one,
        since a file that changes underneath explains it.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = path.write_text("1")
    >>> with unchanged(path):
    ...     _ = path.write_text("23")
    Traceback (most recent call last):
        ...
    farout.errors.BadInput: 'a.txt' changed while it was being read (1 bytes before, 2 bytes now); ...
    """
    before = since or fingerprint(path)
    try:
        yield
    except Exception as error:
        _same(path, before, error)
        raise
    _same(path, before, None)


def _same(path: str | os.PathLike[str], before: Fingerprint, cause: Exception | None) -> None:
    """Raise if the file at ``path`` is not in the state ``before`` any more."""
    name = Path(path).name
    if not os.path.exists(path):
        raise BadInput(f"'{name}' was removed while it was being read; read it again when it is back") from cause
    now = fingerprint(path)
    if now != before:
        raise BadInput(
            f"'{name}' changed while it was being read ({before[0]} bytes before, {now[0]} bytes now); "
            "wait until nothing writes to it, or read a copy"
        ) from cause


def _sync(path: Path) -> None:
    """Force the contents of ``path`` onto the disk, so that the rename never outruns them."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
