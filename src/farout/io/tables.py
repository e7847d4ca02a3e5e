"""Tables of any common format in and out, in bounded memory and in parts for many workers."""

from __future__ import annotations

import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from farout.errors import BadInput, FaroutError, nearest
from farout.io._formats import ENDINGS, TEXT, format_of, sniffed, spooled
from farout.io._frames import to_polars
from farout.io._write import first_line, write_table
from farout.io.files import Fingerprint, fingerprint, unchanged

__all__ = ["Part", "TableFile", "to_polars", "write_table"]

# What the libraries below raise for a damaged file; pyarrow's errors are ValueError, OSError or NotImplementedError.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    pl.exceptions.PolarsError,
)


class _Reader(Protocol):
    """What a format must offer; offsets are rows in binary formats and bytes in text."""

    @property
    def names(self) -> list[str]: ...
    @property
    def schema(self) -> Any: ...
    @property
    def n_rows(self) -> int | None: ...
    @property
    def size(self) -> int: ...
    def read(self) -> list[pl.DataFrame]: ...
    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]: ...
    def cuts(self, n: int) -> list[int]: ...


class TableFile:
    r"""A table on disk, opened but not read.

    The format follows from the ending: csv, tsv, txt, jsonl (ndjson), log, json, parquet (pq), feather (arrow, ipc),
    npy and npz; the first five may be compressed (gz, zst, bz2). A txt file whose first line begins with a time stamp
    is a log. Lines of a log become events: hour, level, component, template and parameters. Other text has a header
    line; its separator is found from it. Cells that read ``NA``, ``N/A``, ``nan``, ``NaN``, ``null``, ``None``, ``?``
    or nothing are missing. The type of a column in text is the narrowest that fits all of its cells, and string where
    they have none in common.

    Parameters
    ----------
    path : str or path
        The file; ``"-"`` reads standard input to its end and tells the format from the first bytes.
    as_ : str, optional
        The format, where the ending does not say it.
    encoding : str, default "utf-8"
        The encoding of text formats.

    Attributes
    ----------
    path : pathlib.Path
        Where the file lies.
    name : str
        The file's name without its endings.
    format : str
        The format, such as ``"csv"``.

    Raises
    ------
    BadInput
        The file is missing, empty, a folder, of unknown format, damaged, or its columns have no distinct names. The
        reading methods raise it for what only reading shows: no rows, ragged lines, bytes that are not text, a file
        that is cut short or changes meanwhile.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rooms.csv"
    >>> _ = path.write_text("room,celsius\nA,20.5\nB,?\n")
    >>> table = TableFile(path)
    >>> table.columns()
    ['room', 'celsius']
    >>> table.read()["celsius"].to_list()
    [20.5, None]
    """

    def __init__(self, path: str | os.PathLike[str], as_: str | None = None, encoding: str = "utf-8") -> None:
        if str(path) == "-":
            self._spool = spooled(sys.stdin.buffer)
            self.path, self.name, shown = Path(self._spool.name), "stdin", "standard input"
        else:
            self.path = Path(path)
            self.name, shown = self.path.name.split(".")[0] or self.path.name, self.path.name
            _check_is_file(self.path)
        if not self.path.stat().st_size:
            raise BadInput(f"'{shown}' is empty; there is nothing to read")
        if as_ is None:
            self.format = sniffed(self.path) if str(path) == "-" else format_of(self.path)
            if self.format == "txt":
                from farout.io._logs import is_log

                self.format = "log" if is_log(self.path) else "txt"
        elif as_ in ENDINGS:
            self.format = ENDINGS[as_]
        else:
            raise BadInput(f"no table format is called '{as_}'; {nearest(as_, ENDINGS)}")
        self._shown, self._encoding, self._state = shown, encoding, fingerprint(self.path)
        with self._reading():
            self._reader = _reader(self.path, shown, self.format, encoding)

    @property
    def size(self) -> int:
        """Bytes of the table in memory as float64: exact for binary formats, for text estimated from its first rows.

        Compressed text is taken to unpack to four times its length.
        """
        return self._reader.size

    @property
    def labels(self) -> np.ndarray | None:
        """Labels, shape (n,), that an npz file holds as 'y', 'label', 'labels' or 'anomaly' beside its table."""
        with self._reading():
            return getattr(self._reader, "labels", None)

    def n_rows(self) -> int | None:
        """Return the number of rows where the format tells it without reading; None for text."""
        return self._reader.n_rows

    def columns(self) -> list[str]:
        """Return the names of the columns; for JSON lines, whose keys may come late, this reads the file."""
        with self._reading():
            return list(self._reader.names)

    def read(self) -> pl.DataFrame:
        """Read the whole table."""
        with self._reading():
            return self._some(pl.concat(self._reader.read() or [pl.DataFrame()]))

    def batches(self, rows: int = 131072) -> Iterator[pl.DataFrame]:
        """Read the table piece by piece in bounded memory.

        Text is read twice, the first time for the types of its columns, so that every batch has the same types and
        whatever is wrong with the file shows before the first batch. Only json and npz are held whole.

        Parameters
        ----------
        rows : int
            Rows of a batch; the last one may have fewer.

        Yields
        ------
        polars.DataFrame
            Together, in order, the rows of :meth:`read`.
        """
        with self._reading():
            empty = True
            for batch in _resized(self._reader.frames(), rows):
                empty = False
                yield batch
            if empty:
                self._some(pl.DataFrame())

    def parts(self, n: int) -> list[Part]:
        """Split the table into parts that workers can read on their own, on any machine that sees the same path.

        Parquet, feather, npy and plain text in UTF-8 are read from where the part begins; compressed or other text is
        skipped over, json and npz are read whole.

        Parameters
        ----------
        n : int
            How many parts; a short table gives fewer.

        Returns
        -------
        list of Part
            Together, in order, the rows of :meth:`read`.
        """
        if n < 1:
            raise BadInput(f"cannot split a table into {n} parts; give at least 1")
        with self._reading():
            cuts = self._reader.cuts(n)
            if len(cuts) < 2:
                self._some(pl.DataFrame())
            path, schema = self.path.absolute(), self._reader.schema
            return [
                Part(path, self.format, start, stop, self._encoding, schema, self._state[:2])
                for start, stop in pairwise(cuts)
            ]

    def _reading(self) -> Any:
        return _reading(self.path, self._shown, self.format, self._state)

    def _some(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame if it has rows."""
        if not frame.height:
            raise BadInput(f"'{self._shown}' has a header but no rows; there is nothing to read")
        return frame


@dataclass(frozen=True)
class Part:
    """A run of rows of a table on disk; small and picklable, made by :meth:`TableFile.parts`."""

    path: Path
    format: str
    start: int
    stop: int
    encoding: str
    schema: Any
    state: tuple[int, int]  # size and time of the last change; the inode may differ from machine to machine

    def read(self) -> pl.DataFrame:
        """Read the rows of this part."""
        return pl.concat(list(self._frames()))

    def batches(self, rows: int = 131072) -> Iterator[pl.DataFrame]:
        """Read the rows of this part piece by piece, ``rows`` at a time."""
        return _resized(self._frames(), rows)

    def _frames(self) -> Iterator[pl.DataFrame]:
        name = self.path.name
        _check_is_file(self.path)
        now = fingerprint(self.path)
        if now[:2] != self.state:
            raise BadInput(f"'{name}' is not the file that it was when it was split; split it again")
        with _reading(self.path, name, self.format, now):
            yield from _reader(self.path, name, self.format, self.encoding, self.schema).frames(self.start, self.stop)


def _reader(path: Path, name: str, format_: str, encoding: str, schema: Any = None) -> _Reader:
    """Open a file in a format."""
    from farout.io import _arrays, _logs, _text

    if format_ == "log":
        return _logs.Log(path, name, encoding)
    if format_ == "jsonl":
        return _text.JsonLines(path, name, encoding, schema)
    if format_ in TEXT:
        return _text.Delimited(path, name, encoding, schema, kind=format_)
    binary = {
        "parquet": _arrays.Parquet,
        "feather": _arrays.Feather,
        "npy": _arrays.Npy,
        "npz": _arrays.Npz,
        "json": _arrays.Json,
    }
    return binary[format_](path, name)


@contextmanager
def _reading(path: Path, name: str, format_: str, state: Fingerprint) -> Iterator[None]:
    """Say in one sentence what a library found wrong with a file, or that the file changed meanwhile."""
    with unchanged(path, state):
        try:
            yield
        except FaroutError:
            raise
        except _DAMAGED as error:
            raise BadInput(
                f"'{name}' cannot be read as {format_}: {first_line(error)}; it may be cut short, or of another format"
            ) from error


def _resized(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Pass frames on in pieces of exactly ``rows`` rows; the last one may be shorter."""
    if rows < 1:
        raise BadInput(f"a batch of {rows} rows holds nothing; give at least 1")
    held: list[pl.DataFrame] = []
    height = 0
    for frame in frames:
        held.append(frame)
        height += frame.height
        if height >= rows:
            joined = pl.concat(held)
            whole = height // rows * rows
            for at in range(0, whole, rows):
                yield joined.slice(at, rows)
            held, height = [joined.slice(whole)], height - whole
    if height:
        yield pl.concat(held)


def _check_is_file(path: Path) -> None:
    """Say what is there instead of the file that was asked for."""
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise BadInput(f"'{path}' is a folder; give one file in it ({nearest(path.name, files)})")
    if not path.exists():
        if not path.parent.is_dir():
            raise BadInput(f"there is no file '{path}', nor a folder '{path.parent}'; check the path")
        raise BadInput(f"there is no file '{path}'; {nearest(path.name, os.listdir(path.parent))}")
