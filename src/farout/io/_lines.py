"""Text that is read in blocks of whole records: what delimited text and JSON lines share.

A block ends where a record ends, so that each block parses alone: memory stays bounded, a part of the file can be read
from its offset, and the type of a column is one that fits every block.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import polars as pl

from farout.errors import BadInput
from farout.io._formats import compression

UNPACKED = 4  # how many times larger than its compressed form a text table is taken to be
BLOCK = 1 << 24  # bytes
LONGEST = 1 << 26  # bytes; in a longer record a stray quote is assumed, and the block ends at a line end


class Lines:
    """What both kinds of text share. Offsets count the bytes of the decompressed text in UTF-8."""

    n_rows = None
    n_columns: int
    start = 0

    def __init__(self, path: Path, name: str, encoding: str, schema: Any = None) -> None:
        self.path, self.name, self.schema = path, name, schema
        self.compression = compression(path)
        try:
            self.encoding = codecs.lookup(encoding).name
        except LookupError as error:
            raise BadInput(f"no encoding is called '{encoding}'; give one such as 'utf-8' or 'latin-1'") from error

    @property
    def size(self) -> int:
        """Bytes as float64: rows from the mean length of the first records, times columns."""
        length = self.path.stat().st_size * (UNPACKED if self.compression else 1)
        sample = next(self._chunks(1 << 16, self.start), b"\n")
        rows = length * max(sample.count(b"\n"), 1) / len(sample)
        return 8 * self.n_columns * max(round(rows), 1)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield the blocks between two offsets, in the types that fit the whole file."""
        self._learn_schema()
        for table in self._tables(self.schema, start, stop):
            yield self._frame(table)

    def read(self) -> list[pl.DataFrame]:
        """Read everything; the text is parsed once where every block showed the same types."""
        if self.schema is None:
            tables = list(self._tables(None))
            self.schema = self._widest(tables)
            if all(table.schema == self.schema for table in tables):
                return [self._frame(table) for table in tables]
        return list(self.frames())

    def cuts(self, n: int) -> list[int]:
        """Offsets that split the records into at most ``n`` runs of about equal length."""
        self._learn_schema()
        if self.schema is None:  # no rows
            return []
        step = max(1, min(BLOCK, self.path.stat().st_size // (4 * n)))
        blocks = self._blocks(self.start, None, step)
        ends = [offset + len(block) for block, offset in blocks if self._holds_records(block)]
        wanted = [self.start + (ends[-1] - self.start) * k // n for k in range(1, n)]
        return sorted({self.start, ends[-1], *(min(ends, key=lambda end: abs(end - want)) for want in wanted)})

    def _learn_schema(self) -> None:
        """Read the file once for the types, block by block, unless they are known."""
        if self.schema is None:
            self.schema = self._widest(self._tables(None))

    def _widest(self, tables: Any) -> Any:
        """Return the schema that fits every table."""
        schemas = (table.schema for table in tables)
        return reduce(self._wider, schemas, next(schemas, None))

    def _tables(self, schema: Any, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Parse block after block; without ``schema`` each block has the types it shows."""
        for block, offset in self._blocks(max(start, self.start), stop, BLOCK):
            if not block.isascii():
                self._check_utf8(block, offset)
            if self._holds_records(block):
                yield self._parse(block, schema, offset)

    def _blocks(self, start: int, stop: int | None, size: int) -> Iterator[tuple[bytes, int]]:
        """Cut the text at ends of records; yield each block and its offset."""
        rest, offset = b"", start
        for chunk in self._chunks(size, start):
            rest = rest + chunk if stop is None else (rest + chunk)[: stop - offset]
            if cut := self._end_of_records(rest):
                yield rest[:cut], offset
                rest, offset = rest[cut:], offset + cut
            if stop is not None and offset + len(rest) >= stop:
                break
        if rest:
            yield rest, offset

    def _holds_records(self, block: bytes) -> bool:
        """Whether a block is more than blank lines."""
        return bool(block.strip())

    def _end_of_records(self, text: bytes) -> int:
        """Offset after the last record that ends in ``text``; 0 where none does."""
        return text.rfind(b"\n") + 1

    def _chunks(self, size: int, start: int) -> Iterator[bytes]:
        """Yield the decompressed text from ``start`` on as UTF-8; only plain text can be sought, else it is skipped."""
        import pyarrow as pa

        decoder = None if self.encoding == "utf-8" else codecs.getincrementaldecoder(self.encoding)()
        skip = start
        with pa.input_stream(str(self.path), compression=self.compression) as stream:
            if decoder is None and self.compression is None:
                stream.seek(start)
                skip = 0
            raw = b"more"
            while raw:
                raw = stream.read(size)
                text = raw if decoder is None else self._decode(decoder, raw)
                if len(text) > skip:
                    yield text[skip:]
                skip = max(0, skip - len(text))

    def _decode(self, decoder: codecs.IncrementalDecoder, raw: bytes) -> bytes:
        """Turn bytes of another encoding into UTF-8."""
        try:
            return decoder.decode(raw, final=not raw).encode()
        except UnicodeError as error:
            raise BadInput(f"'{self.name}' is not '{self.encoding}' text: {error}; give its encoding") from error

    def _check_utf8(self, block: bytes, offset: int) -> None:
        """Say where the first byte stands that is not UTF-8."""
        try:
            block.decode()
        except UnicodeDecodeError as error:
            at = offset + error.start
            raise BadInput(
                f"'{self.name}' is not UTF-8 text: byte 0x{block[error.start]:02x} at offset {at}, "
                f"line {self._line_at(at)}{self._place(block, error.start)}; "
                "save it again as UTF-8, or give its encoding, such as encoding='latin-1'"
            ) from error

    def _place(self, block: bytes, at: int) -> str:
        """Say in which column an offset into a block falls, where that is known."""
        return ""

    def _line_at(self, offset: int) -> int:
        """Number of the line, from 1, that holds an offset."""
        lines, left = 1, offset
        for chunk in self._chunks(BLOCK, 0):
            lines, left = lines + chunk[:left].count(b"\n"), left - len(chunk)
            if left <= 0:
                break
        return lines

    def _wider(self, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def _parse(self, block: bytes, schema: Any, offset: int) -> Any:
        raise NotImplementedError

    def _frame(self, table: Any) -> pl.DataFrame:
        raise NotImplementedError
