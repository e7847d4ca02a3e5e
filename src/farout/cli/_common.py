"""What several verbs share: parsing of ``name=value``, the progress bar, and files beside an output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from farout.errors import BadInput


def assignments(words: list[str], option: str) -> dict[str, str]:
    """Parse ``name=value`` words.

    Examples
    --------
    >>> assignments(["a=1", "b=x=y"], "--set")
    {'a': '1', 'b': 'x=y'}
    """
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"{option} takes name=value, not '{word}'")
        pairs[name] = value
    return pairs


def parameters(words: list[str]) -> dict[str, Any]:
    """Parse hyper-parameters: numbers, true, false, none; anything else is text.

    Examples
    --------
    >>> parameters(["n_neighbors=7", "rule=paper", "standardize=false", "n_jobs=none"])
    {'n_neighbors': 7, 'rule': 'paper', 'standardize': False, 'n_jobs': None}
    """
    return {name: _value(text) for name, text in assignments(words, "--set").items()}


def _value(text: str) -> Any:
    try:
        return json.loads({"none": "null", "None": "null", "True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return text


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Show a bar with time left on stderr while work goes on; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    off = quiet or not sys.stderr.isatty()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=off) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=done)

        yield report


def table(data: str, as_: str | None, encoding: str) -> Any:
    """Open a table: a file, standard input, or one of farout's data sets by its name (as a data frame)."""
    from farout.io.tables import TableFile

    if as_ is None and data != "-" and not Path(data).exists():
        from farout.data import load, names

        if data in names():
            return load(data).X
    return TableFile(data, as_, encoding)


def material_or_format(as_: str | None) -> tuple[str | None, str | None]:
    """Tell what ``--as`` says: what the rows are, or the format of the file.

    Examples
    --------
    >>> material_or_format("events"), material_or_format("csv")
    (('events', None), (None, 'csv'))
    """
    return (as_, None) if as_ in ("table", "events") else (None, as_)


def present(source: Any) -> list[str]:
    """Return the names of all columns of an opened table."""
    columns = getattr(source, "columns", [])  # arrays have no names
    return columns() if callable(columns) else list(columns)


def talk(text: str, quiet: bool = False) -> None:
    """Say something on stderr."""
    if not quiet:
        print(text, file=sys.stderr)


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file that belongs to another one: the same name with another ending.

    Examples
    --------
    >>> beside(Path("out/scores.parquet"), ".run.json").as_posix()
    'out/scores.run.json'
    """
    return path.with_name(path.name.split(".")[0] + ending)


def check_outputs(paths: list[Path]) -> None:
    """Refuse before the work what could not be written after it."""
    from farout.io._write import written_format

    for path in paths:
        if str(path) != "-" and path.suffix.lower() not in (".html", ".htm"):
            written_format(path)
        if not path.parent.is_dir():
            raise BadInput(f"cannot write '{path}': there is no folder '{path.parent}'; make it first")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all."""
    from farout.io.files import writing

    with writing(path) as part:
        part.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
