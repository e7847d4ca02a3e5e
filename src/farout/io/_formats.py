"""Which format a table has: from the ending of its name, or from its first bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from farout.errors import BadInput

ENDINGS = {
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "txt": "txt",
    "log": "log",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "parquet": "parquet",
    "pq": "parquet",
    "feather": "feather",
    "arrow": "feather",
    "ipc": "feather",
    "npy": "npy",
    "npz": "npz",
}
TEXT = ("csv", "tsv", "txt", "jsonl", "log")
PACKED = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}

_PACKED_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "feather", b"\x93NUMPY": "npy", b"PK": "npz", b"{": "jsonl", b"[": "json"}


def format_of(path: Path) -> str:
    """Tell the format from the ending."""
    endings = path.name.lower().split(".")[1:]
    packed = bool(endings) and endings[-1] in PACKED
    ending = (endings[:-1] if packed else endings)[-1:]
    found = ENDINGS.get(ending[0]) if ending else None
    if found is None or (packed and found not in TEXT):
        raise BadInput(
            f"cannot tell the format of '{path.name}' from its ending; known: {', '.join(ENDINGS)}, and "
            f"{', '.join(TEXT)} followed by {', '.join(PACKED)}; say as_='csv' for one that is named otherwise"
        )
    return found


def compression(path: Path) -> str | None:
    """Tell from its first bytes how a file is compressed; its ending may lie."""
    with open(path, "rb") as file:
        head = file.read(4)
    return next((kind for magic, kind in _PACKED_MAGIC.items() if head.startswith(magic)), None)


def sniffed(path: Path) -> str:
    """Tell the format from the first bytes; delimited text is what nothing else claims."""
    import pyarrow as pa

    with pa.input_stream(str(path), compression=compression(path)) as stream:
        head = stream.read(64).lstrip()
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "txt")


def spooled(stream: Any) -> Any:
    """Copy a stream into a temporary file, which is removed when the returned object goes."""
    import shutil

    spool = tempfile.NamedTemporaryFile(prefix="farout-stdin-")  # noqa: SIM115
    shutil.copyfileobj(stream, spool)
    spool.flush()
    return spool
