"""Logs as tables: a line is an event, with its template, its parameters, and what its head says.

The head is what stands around the time stamp: which form it has is told from the first lines. The message after it goes
through Drain (He, Zhu, Zheng, Lyu, ICWS 2017; the package drain3), which finds the templates of messages and so their
parameters. Templates are known when all lines have been read, so a log is read whole.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from farout.errors import BadInput, MissingExtra
from farout.io._arrays import Rows
from farout.io._formats import compression
from farout.io._lines import BLOCK, Lines

SAMPLE = 500  # lines from which the form of the head is told
NUMBERS = ("NUM", "HEX")  # parameters that are left out: a number means another thing in every template
PARAMETERS = 8  # columns of parameters at most; the last one holds all further ones of a line

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_NAMED = "|".join(_MONTHS)
_CLOCK = r"(?P<hour>[01]\d|2[0-3])[:.](?P<minute>[0-5]\d)[:.][0-5]\d(?:[.,]\d{1,9})?(?:Z|\s?[+-]\d\d:?\d\d)?"
TIMES = [
    re.compile(form)
    for form in (
        rf"(?<!\d)(?P<year>\d{{4}})[-/.](?P<month>\d\d)[-/.](?P<day>\d\d)[T -]{_CLOCK}",
        rf"(?P<day>\d\d)/(?P<month>{_NAMED})/(?P<year>\d{{4}}):{_CLOCK}",
        rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (?P<month>{_NAMED}) +(?P<day>\d\d?) {_CLOCK} (?P<year>\d{{4}})",
        rf"(?P<month>{_NAMED}) +(?P<day>\d\d?) {_CLOCK}",
        r"^(?P<short>\d\d)(?P<month>\d\d)(?P<day>\d\d) (?P<hour>[01]\d|2[0-3])[0-5]\d[0-5]\d(?!\d)",
        rf"^\[?{_CLOCK}",
    )
]
_LEVELS = "trace|debug|info|notice|warn|warning|error|err|severe|crit|critical|fatal|alert|emerg|failure|panic"
_LEVEL = re.compile(rf"(?<![\w./-])(?:(?i:\[({_LEVELS})\])|({_LEVELS.upper()}|{_LEVELS.title()}))(?![\w./-])")
_COMPONENT = re.compile(r"[\s:|,-]*(?:\[[^\]]*\]\s*)?([\w.$/()@-]+?)(?:\[\d+\])?(?::\s|\s{2,}|\s(?=\[)|\s-\s)")
_HOST = re.compile(r"\s*([\w.@/-]+)(?=\s+[\w.$/()@-]+(?:\[\d+\])?:)")
_EDGES = ' \t-|,:;[]()<>"'
_MASKS = (  # what is never part of a template
    (r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.])", "IP"),
    (r"(?<!\w)[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?!\w)", "ID"),
    (r"(?<!\w)0x[0-9a-fA-F]+(?!\w)", "HEX"),
    (r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w.])", "NUM"),
)


def is_log(path: Path) -> bool:
    """Tell whether text without a telling name is a log: its first line begins with a time stamp."""
    import pyarrow as pa

    with pa.input_stream(str(path), compression=compression(path)) as stream:
        head = stream.read(1 << 12).lstrip()
    return begins_like_a_log(head.split(b"\n", 1)[0].decode("latin-1"))


def begins_like_a_log(line: str) -> bool:
    """Tell whether a line begins with a time stamp, as the header of a table never does.

    Examples
    --------
    >>> begins_like_a_log("Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user"), begins_like_a_log("time,user,host")
    (True, False)
    """
    return any((found := form.search(line)) and not line[: found.start()].strip(_EDGES) for form in TIMES)


class Log(Rows):
    """A log, one event a line that is not blank.

    Columns, as far as the lines have them: ``weekday`` and ``hour``; ``level``; ``component``; ``field1`` ... for the
    other words of the head; ``template``; ``param1`` ... in the order of the message. Plain numbers are left out.
    """

    def __init__(self, path: Path, name: str, encoding: str) -> None:
        super().__init__(path, name)
        try:
            import drain3  # noqa: F401
        except ImportError as error:
            raise MissingExtra(f"reading the log '{name}'", "logs") from error
        numbers, lines = [], []
        for number, line in _lines(Lines(path, name, encoding)):
            if line.strip():
                numbers.append(number)
                lines.append(line)
        if not lines:
            raise BadInput(f"'{name}' holds blank lines only; there is nothing to read")
        heads, messages = self._heads(lines, numbers)
        self._table = pl.DataFrame([*heads, *_templates(messages)])
        self.n_rows, self.names = self._table.height, self._table.columns

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows from ``start`` to ``stop`` as one frame."""
        stop = self.n_rows if stop is None else stop
        yield self._table.slice(start, stop - start)

    def _heads(self, lines: list[str], numbers: list[int]) -> tuple[list[pl.Series], list[str]]:
        """Split lines into columns of their heads, and messages."""
        hits = [sum(form.search(line) is not None for line in lines[:SAMPLE]) for form in TIMES]
        if max(hits) * 2 < len(lines[:SAMPLE]):
            return [], lines
        form = TIMES[hits.index(max(hits))]
        times = [form.search(line) for line in lines]
        before = [line[: found.start()] if found else None for line, found in zip(lines, times)]
        rest = [line[found.end() :] if found else line for line, found in zip(lines, times)]
        self._report([number for number, found in zip(numbers, times) if not found], lines, numbers)

        levels: list[str | None] = []
        between: list[str | None] = []
        found = [_LEVEL.search(text, 0, 100) if at else None for text, at in zip(rest, times)]
        leveled = sum(level is not None for level in found) * 2 >= len(lines)
        hosts = [_HOST.match(text) for text in rest] if not leveled else []
        for i, level in enumerate(found if leveled else hosts):
            levels.append((level.group(1) or level.group(2)).upper() if leveled and level else None)
            between.append((rest[i][: level.start()] if leveled else level.group(1)) if level else None)
            rest[i] = rest[i][level.end() :] if level else rest[i]
        named = [_COMPONENT.match(text) if at else None for text, at in zip(rest, times)]
        if sum(one is not None for one in named) * 2 < len(lines):
            named = [None] * len(lines)
        messages = [text[one.end() :] if one else text for text, one in zip(rest, named)]
        columns = [*_moments(times), _column("level", levels)]
        columns.append(_column("component", [one.group(1) if one else None for one in named]))
        fields = [*_fields(before), *_fields(between)]
        columns += [field.rename(f"field{k}") for k, field in enumerate(fields, start=1)]
        messages = [message.lstrip(" -:,]").rstrip() for message in messages]
        return [column for column in columns if column.null_count() < len(column)], messages

    def _report(self, strange: list[int], lines: list[str], numbers: list[int]) -> None:
        """Say which lines have no time stamp where the others have one; they stay, as events of a template alone."""
        if strange:
            first = lines[numbers.index(strange[0])].strip()
            warnings.warn(
                f"'{self.name}': {len(strange):,} of {len(lines):,} lines have no time stamp, the first is line "
                f"{strange[0]:,} ('{first:.60}'); each is kept as an event without time, level and component",
                stacklevel=2,
            )


def _lines(text: Lines) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text with their numbers, from 1."""
    number = 0
    for block, offset in text._blocks(0, None, BLOCK):
        if not block.isascii():
            text._check_utf8(block, offset)
        for line in block.decode().removesuffix("\n").split("\n"):
            number += 1
            yield number, line.rstrip("\r")


def _moments(times: list[re.Match[str] | None]) -> list[pl.Series]:
    """The hour, and of a log of two weeks or more the weekday: in a shorter one that is a date by another name."""
    parts = [found.groupdict() if found else {} for found in times]
    hours = _column("hour", [f"{part['hour']} h" if part else None for part in parts])
    if not any(part.get("year") or part.get("short") for part in parts):
        return [hours]
    days = [_day(part) if part else None for part in parts]
    dates = pl.Series("weekday", days, dtype=pl.String).str.to_date("%Y-%m-%d", strict=False)
    span = (dates.max() - dates.min()).days if dates.count() else 0  # type: ignore[operator, union-attr]
    return [dates.dt.strftime("%A"), hours] if span >= 14 else [hours]


def _day(part: dict[str, str]) -> str:
    year = part.get("year") or f"20{part['short']}"
    month = part["month"]
    return f"{year}-{_MONTHS.index(month) + 1 if month in _MONTHS else int(month):02d}-{int(part['day']):02d}"


def _fields(texts: list[str | None]) -> list[pl.Series]:
    """Words of a part of the head, a column each where nearly all lines have as many; numbers and dates say nothing."""
    words = [[word.strip(_EDGES) for word in text.split()] if text is not None else [] for text in texts]
    words = [[word for word in line if word] for line in words]
    lengths = [len(line) for line, text in zip(words, texts) if text is not None]
    usual = max(set(lengths), key=lengths.count) if lengths else 0
    if lengths.count(usual) < 0.9 * len(texts):
        return []
    columns = [_column("", [line[k] if len(line) == usual else None for line in words]) for k in range(usual)]
    return [c for c in columns if c.drop_nulls().str.contains(r"^[\d.:/_-]+$").mean() < 0.9]  # type: ignore[operator]


def _templates(messages: list[str]) -> list[pl.Series]:
    """Find the template of each message, and its parameters."""
    from drain3 import TemplateMiner
    from drain3.masking import MaskingInstruction
    from drain3.template_miner_config import TemplateMinerConfig

    logging.getLogger("drain3").setLevel(logging.WARNING)
    config = TemplateMinerConfig()
    config.masking_instructions = [MaskingInstruction(form, mask) for form, mask in _MASKS]
    miner = TemplateMiner(config=config)
    clusters = [miner.add_log_message(message)["cluster_id"] for message in messages]
    final = {cluster.cluster_id: cluster.get_template() for cluster in miner.drain.clusters}
    templates = [final[cluster] for cluster in clusters]
    found = [miner.extract_parameters(t, m, exact_matching=False) or [] for t, m in zip(templates, messages)]
    values: list[list[Any]] = [[one.value for one in line if one.mask_name not in NUMBERS] for line in found]
    width = min(max(map(len, values), default=0), PARAMETERS)
    for line in values:
        line[PARAMETERS - 1 :] = [" ".join(line[PARAMETERS - 1 :])] if len(line) >= PARAMETERS else []
        line += [None] * (width - len(line))
    return [
        _column("template", templates),
        *(_column(f"param{k + 1}", [line[k] for line in values]) for k in range(width)),
    ]


def _column(name: str, values: list[Any]) -> pl.Series:
    return pl.Series(name, values, dtype=pl.String)
