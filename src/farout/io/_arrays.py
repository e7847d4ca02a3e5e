"""Tables in binary formats, whose number of rows is known before reading. Offsets count rows."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.errors import BadInput
from farout.io._frames import distinct, from_array, from_records, plain

SLICE = 1 << 26  # bytes of a slice as float64
LABELS = ("y", "label", "labels", "anomaly")


class Rows:
    """What the binary formats share."""

    names: list[str]
    n_rows: int
    schema = None

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @property
    def size(self) -> int:
        """Bytes as float64."""
        return 8 * self.n_rows * len(self.names)

    @property
    def step(self) -> int:
        """Rows of a slice."""
        return max(1, SLICE // (8 * max(len(self.names), 1)))

    def cuts(self, n: int) -> list[int]:
        """Row numbers that split the table into at most ``n`` equal runs."""
        return sorted({self.n_rows * k // n for k in range(n + 1)})

    def read(self) -> list[pl.DataFrame]:
        """Read everything."""
        return list(self.frames())

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield slices of the rows from ``start`` to ``stop``."""
        raise NotImplementedError


class Parquet(Rows):
    """Apache Parquet, in slices that are bounded even where one row group holds the whole table."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        with self._open() as file:
            self.n_rows = file.metadata.num_rows
            self.names = _without_index(file.schema_arrow.names, name)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield slices; row groups before ``start`` and after ``stop`` are not touched."""
        stop = self.n_rows if stop is None else stop
        with self._open() as file:
            first = 0
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if first < stop and start < end:
                    at = first
                    for batch in file.iter_batches(self.step, row_groups=[group], columns=self.names):
                        piece = _between(batch, at, start, stop)
                        at += len(batch)
                        if len(piece):
                            yield _frame(piece, self.names)
                first = end

    def _open(self) -> Any:
        from pyarrow import parquet

        # Without pre-buffering, pages are read as they are decoded, so that a large row group never lies in memory.
        return parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)


class Feather(Rows):
    """Arrow IPC files (Feather version 2), memory-mapped."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        from pyarrow import dataset, ipc

        with ipc.open_file(str(path)) as file:
            self.names = _without_index(file.schema.names, name)
        self.n_rows = dataset.dataset(path, format="ipc").count_rows()

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield the record batches, cut to the rows asked for."""
        import pyarrow as pa
        from pyarrow import ipc

        stop = self.n_rows if stop is None else stop
        with pa.memory_map(str(self.path)) as source, ipc.open_file(source) as file:
            at = 0
            for index in range(file.num_record_batches):
                batch = file.get_batch(index)
                piece = _between(batch, at, start, stop)
                at += len(batch)
                if len(piece):
                    yield _frame(piece, self.names)
                if at >= stop:
                    break


class Npy(Rows):
    """One numpy array of shape (n, d) or (n,), memory-mapped."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        with open(path, "rb") as file:
            shape, dtype = _header(file)
        self.n_rows, n_columns = _table_shape(shape, dtype, f"'{name}'")
        self.names = [f"x{j}" for j in range(n_columns)]

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield slices; only their part of the file is read."""
        array = self._load().reshape(self.n_rows, -1)
        stop = self.n_rows if stop is None else stop
        for at in range(start, stop, self.step):
            yield from_array(np.array(array[at : min(at + self.step, stop)]), f"'{self.name}'")

    def _load(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class Npz(Npy):
    """Numpy arrays in an archive: 'X' (or the only one of two dimensions), and labels beside it where there are any."""

    def __init__(self, path: Path, name: str) -> None:
        Rows.__init__(self, path, name)
        shapes = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    shapes[member.removesuffix(".npy")] = _header(file)
        tables = [key for key, (shape, _) in shapes.items() if key == "X" or (len(shape) == 2 and "X" not in shapes)]
        if len(tables) != 1:
            seen = ", ".join(f"'{key}' {shape}" for key, (shape, _) in shapes.items()) or "nothing"
            raise BadInput(
                f"'{name}' has no array 'X' and not just one of two dimensions: {seen}; save the table as 'X'"
            )
        self._key = tables[0]
        self.n_rows, n_columns = _table_shape(*shapes[self._key], f"array '{self._key}' of '{name}'")
        self.names = [f"x{j}" for j in range(n_columns)]
        self._labels = next(
            (
                key
                for key, (shape, dtype) in shapes.items()
                if key.lower() in LABELS and shape in ((self.n_rows,), (self.n_rows, 1)) and dtype.kind != "O"
            ),
            None,
        )

    @property
    def labels(self) -> np.ndarray | None:
        """The array of labels, shape (n,)."""
        return self._member(self._labels).ravel() if self._labels else None

    def _load(self) -> np.ndarray:
        return self._member(self._key)

    def _member(self, key: str) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as archive:
            return archive[key]


class Json(Rows):
    """A JSON array of records, read whole."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        import json

        try:
            records = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadInput(f"'{name}' is not JSON: {error}; for one object a line say as_='jsonl'") from error
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise BadInput(f'\'{name}\' is no array of records; a table looks like [{{"a": 1}}, {{"a": 2}}]')
        self._table = from_records(records)
        self.n_rows, self.names = self._table.height, self._table.columns

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows from ``start`` to ``stop`` as one frame."""
        stop = self.n_rows if stop is None else stop
        yield self._table.slice(start, stop - start)


def _between(batch: Any, at: int, start: int, stop: int) -> Any:
    """Cut a batch whose first row is row ``at`` of the table to the rows from ``start`` to ``stop``."""
    first, last = max(start - at, 0), min(stop - at, len(batch))
    return batch.slice(first, max(last - first, 0))


def _frame(batch: Any, names: list[str]) -> pl.DataFrame:
    """Convert an arrow batch."""
    import pyarrow as pa

    return plain(pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]).select(names))))


def _without_index(names: list[str], name: str) -> list[str]:
    """Drop the unnamed index that pandas stores as a column."""
    return [column for column in distinct(names, f"'{name}'") if not re.fullmatch(r"__index_level_\d+__", column)]


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read shape and type of a stored array without its values."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _table_shape(shape: tuple[int, ...], dtype: np.dtype, where: str) -> tuple[int, int]:
    """Rows and columns of an array, or why it is no table."""
    if dtype.hasobject:
        raise BadInput(f"{where} holds Python objects, which are never unpickled; save numbers or strings")
    if len(shape) not in (1, 2):
        raise BadInput(f"{where} has shape {shape}; a table needs 2 dimensions: (rows, columns)")
    return shape[0], shape[1] if len(shape) == 2 else 1
