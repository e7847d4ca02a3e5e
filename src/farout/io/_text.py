"""Tables as text: delimited values under a header, or one JSON object a line."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from farout.errors import BadInput
from farout.io._frames import distinct, from_records, plain
from farout.io._lines import LONGEST, Lines

NULLS = ["", "NA", "N/A", "nan", "NaN", "null", "None", "?"]
SEPARATORS = {"csv": ",;\t|", "tsv": "\t", "txt": "\t,;| "}


class Delimited(Lines):
    """Comma, semicolon, tab, bar or (in txt files) space separated values under a header line."""

    def __init__(self, path: Path, name: str, encoding: str, schema: Any = None, kind: str = "csv") -> None:
        super().__init__(path, name, encoding, schema)
        head, _ = next(self._blocks(0, None, 1 << 16), (b"", 0))
        begin = len(head) - len(head.lstrip(b"\r\n"))
        end = head.find(b"\n", begin) + 1
        while end and head.count(b'"', begin, end) % 2:
            end = head.find(b"\n", end) + 1
        self.start = end or len(head)
        header = head[begin : self.start]
        self._check_utf8(header, begin)
        unquoted = re.sub(rb'"[^"]*"', b"", header.strip(b"\r\n"))
        self.separator = max(SEPARATORS[kind], key=lambda mark: unquoted.count(mark.encode()))
        cells = next(csv.reader(io.StringIO(header.decode("utf-8-sig"), newline=""), delimiter=self.separator), [])
        named = (cell.strip() or f"column_{j}" for j, cell in enumerate(cells, start=1))
        self.names = distinct(named, f"'{name}'")
        self.n_columns = len(self.names)

    def _holds_records(self, block: bytes) -> bool:
        """In a single column a blank line is a missing value."""
        return self.n_columns == 1 or super()._holds_records(block)

    def _end_of_records(self, text: bytes) -> int:
        """Offset after the last line end outside of quotes."""
        cut = text.rfind(b"\n") + 1
        inside = text.count(b'"', 0, cut) % 2
        while cut and inside:
            before = text.rfind(b"\n", 0, cut - 1) + 1
            inside = (inside - text.count(b'"', before, cut)) % 2
            cut = before
        return cut or (text.rfind(b"\n") + 1 if len(text) > LONGEST else 0)

    def _parse(self, block: bytes, schema: Any, offset: int) -> Any:
        """Parse with pyarrow, in its quick chunks of 1 MiB or, where a record is longer than that, in one chunk."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        if not block.endswith(b"\n"):
            block += b"\n"
        types = dict(zip(schema.names, schema.types)) if schema else None
        parsing = arrow_csv.ParseOptions(
            delimiter=self.separator, newlines_in_values=b'"' in block, ignore_empty_lines=self.n_columns > 1
        )
        converting = arrow_csv.ConvertOptions(null_values=NULLS, strings_can_be_null=True, column_types=types)

        def parsed(chunk: int) -> Any:
            reading = arrow_csv.ReadOptions(column_names=self.names, block_size=chunk)
            return arrow_csv.read_csv(pa.BufferReader(block), reading, parsing, converting)

        try:
            table = parsed(1 << 20)
        except pa.ArrowInvalid:
            try:
                table = parsed(len(block) + 1)
            except pa.ArrowInvalid as error:
                raise self._explained(block, offset, error) from error
        if block.count(b'"') % 2 and self._is_quote_open(table):
            raise BadInput(
                f"'{self.name}' has a quote that is opened and never closed; close it, or double it if meant"
            )
        return table

    def _is_quote_open(self, table: Any) -> bool:
        """Whether a quote is open to the end: pyarrow lets it swallow the rest, down to the last line end."""
        last_row = table.slice(len(table) - 1).to_pylist()[0]
        return any(isinstance(cell, str) and cell.endswith("\n") for cell in last_row.values())

    def _explained(self, block: bytes, offset: int, error: Exception) -> BadInput:
        """Say which line has too many or too few cells."""
        rows = csv.reader(io.StringIO(block.decode(), newline=""), delimiter=self.separator)
        with suppress(csv.Error):
            for row in rows:
                if row and len(row) != self.n_columns:
                    line = self._line_at(offset) + rows.line_num - 1
                    return BadInput(
                        f"'{self.name}' line {line} has {len(row)} cells where the header has {self.n_columns}; "
                        "mend that line, or quote cells that hold the separator"
                    )
        return BadInput(f"'{self.name}' cannot be parsed: {error}")

    def _place(self, block: bytes, at: int) -> str:
        """Name the column of an offset, or the header before the columns are known."""
        if not hasattr(self, "names"):
            return " (the header)"
        record = block[block.rfind(b"\n", 0, at) + 1 : at].decode("latin-1")
        cells = next(csv.reader([record + "."], delimiter=self.separator))
        return f", column '{self.names[min(len(cells), self.n_columns) - 1]}'"

    def _frame(self, table: Any) -> pl.DataFrame:
        return plain(pl.DataFrame(pl.from_arrow(table)))

    def _wider(self, a: Any, b: Any) -> Any:
        """Per column the type that holds both: integers in floats, dates in times, strings for whatever disagrees."""
        import pyarrow as pa

        return pa.schema([(name, _wider_arrow(x, y)) for name, x, y in zip(a.names, a.types, b.types)])


class JsonLines(Lines):
    """One JSON object a line; a key that a line lacks is a missing value."""

    def __init__(self, path: Path, name: str, encoding: str, schema: Any = None) -> None:
        super().__init__(path, name, encoding, schema)
        first, _ = next(self._blocks(0, None, 1 << 16), (b"", 0))
        if not first.strip():
            raise BadInput(f"'{name}' is empty; there is nothing to read")
        self.n_columns = len(self._records(first.lstrip().split(b"\n", 1)[0], 0)[0])

    @property
    def names(self) -> list[str]:
        """Every key that occurs; keys may come late, so the file is read once."""
        self._learn_schema()
        return list(self.schema)

    def _parse(self, block: bytes, schema: Any, offset: int) -> pl.DataFrame:
        """Parse with polars; lines whose values have no type in common go through Python, one by one."""
        try:
            return pl.read_ndjson(io.BytesIO(block), schema=schema, infer_schema_length=None)
        except pl.exceptions.PolarsError:
            frame = from_records(self._records(block, offset))
            if schema is None:
                return frame
            missing = [pl.lit(None).alias(name) for name in schema if name not in frame.columns]
            return frame.with_columns(missing).select(pl.col(name).cast(kind) for name, kind in schema.items())

    def _records(self, block: bytes, offset: int) -> list[dict[str, Any]]:
        """Parse line by line, and say which line is no JSON object."""
        records = []
        for number, line in enumerate(block.split(b"\n")):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise BadInput(
                    f"'{self.name}' line {self._line_at(offset) + number} is no JSON object; "
                    'every line must be one, such as {"a": 1, "b": "x"}'
                )
            records.append(record)
        return records

    def _frame(self, table: pl.DataFrame) -> pl.DataFrame:
        return plain(table)

    def _wider(self, a: Any, b: Any) -> Any:
        """Per key the type that holds both, strings for whatever disagrees."""
        return {name: _wider_polars(a.get(name, pl.Null()), b.get(name, pl.Null())) for name in dict(a) | dict(b)}


def _wider_arrow(a: Any, b: Any) -> Any:
    """Return the narrowest arrow type for the values of both."""
    import pyarrow as pa

    if {str(a).split("[")[0], str(b).split("[")[0]} == {"date32", "timestamp"}:
        return a if pa.types.is_timestamp(a) else b
    try:
        pair = [pa.schema([("column", kind)]) for kind in (a, b)]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return pa.string()


def _wider_polars(a: Any, b: Any) -> Any:
    """Return the narrowest polars type for the values of both; truth values and numbers share none."""
    if a == b or pl.Null in (a, b):
        return b if a == pl.Null else a
    if pl.Boolean in (a, b):
        return pl.String()
    try:
        return pl.concat([pl.DataFrame(schema={"column": kind}) for kind in (a, b)], how="vertical_relaxed").dtypes[0]
    except pl.exceptions.PolarsError:
        return pl.String()
