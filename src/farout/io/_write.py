"""Tables out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl

from farout.errors import BadInput
from farout.io._formats import PACKED, format_of
from farout.io._frames import to_polars
from farout.io.files import writing


def write_table(frame: Any, path: str | os.PathLike[str]) -> None:
    """Write a table, whole or not at all, in the format of the path's ending.

    Parameters
    ----------
    frame : frame, array or list
        Whatever :func:`to_polars` takes.
    path : str or path
        Ends in csv, tsv, jsonl, parquet or feather; csv, tsv and jsonl may be compressed (gz, zst, bz2).

    Raises
    ------
    BadInput
        The ending is another, the format cannot hold a column (lists in csv), or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> from farout.io.tables import TableFile
    >>> path = Path(tempfile.mkdtemp()) / "scores.parquet"
    >>> write_table([{"row": 0, "score": 1.5}, {"row": 1, "score": 0.5}], path)
    >>> TableFile(path).read()["score"].to_list()
    [1.5, 0.5]
    """
    import pyarrow as pa

    path = Path(path)
    format_ = written_format(path)
    table = to_polars(frame)
    try:
        with writing(path) as temporary:
            packing = PACKED.get(path.suffix[1:].lower())
            with pa.output_stream(str(temporary), compression=packing) as stream:
                if format_ == "jsonl":
                    table.write_ndjson(stream)
                elif format_ == "parquet":
                    table.write_parquet(stream)
                elif format_ == "feather":
                    table.write_ipc(stream)
                else:
                    table.write_csv(stream, separator="\t" if format_ == "tsv" else ",")
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"cannot write '{path}' as {format_}: {first_line(error)}") from error


def written_format(path: Path) -> str:
    """Tell the format in which a path is written; an ending that is not written raises BadInput."""
    format_ = format_of(path)
    if format_ not in ("csv", "tsv", "jsonl", "parquet", "feather"):
        raise BadInput(f"cannot write '{path.name}'; give an ending of csv, tsv, jsonl, parquet or feather")
    return format_


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".;")
