"""``farout score``: rows of a table, or texts, that are far out, with reasons, as a list, a file and a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farout.cli._common import (
    assignments,
    beside,
    check_outputs,
    material_or_format,
    parameters,
    present,
    progress,
    table,
    talk,
    write_json,
)

if TYPE_CHECKING:
    from farout.kit.columns import Columns
    from farout.scoring import Result
    from farout.scoring.texts import TextResult

Data = Annotated[
    str,
    typer.Argument(help="A table (csv, tsv, jsonl, parquet, feather, npy, npz), '-' for stdin, or a data set's name."),
]
Method = Annotated[
    str | None, typer.Option("--method", "-m", help="See 'farout list'.  [default: by what the rows are]")
]
Set = Annotated[list[str], typer.Option("--set", help="A parameter of the method: name=value.")]
Kind = Annotated[list[str], typer.Option("--kind", help="How to read a column: name=numeric|category|date.")]
LeaveOut = Annotated[list[str], typer.Option("--leave-out", help="A column that is not to be read.")]
Rate = Annotated[
    float | None, typer.Option(help="Share of rows that may ring.  [default: 0.01, or that of the saved detector]")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="For everything that is drawn.")]
Engine = Annotated[str, typer.Option(help="auto, memory, stream or dask.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler; a local cluster without it.")]
As = Annotated[
    str | None,
    typer.Option("--as", help="Format of the data, where its ending does not say it; or 'events', or 'table'."),
]
Encoding = Annotated[str, typer.Option(help="Of text tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr.")]


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(score)


def score(
    data: Data,
    method: Method = None,
    fit_on: Annotated[str | None, typer.Option(help="Normal rows to learn from; p-values are then tests.")] = None,
    saved: Annotated[str | None, typer.Option("--with", help="A detector saved by 'farout fit'.")] = None,
    rate: Rate = None,
    top: Annotated[int, typer.Option(help="Rows to print.")] = 20,
    output: Annotated[
        list[Path], typer.Option("--output", "-o", help="Where to write: .parquet, .csv, .html ...; may be repeated.")
    ] = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    kind: Kind = [],  # noqa: B006
    leave_out: LeaveOut = [],  # noqa: B006
    seed: Seed = 0,
    engine: Engine = "auto",
    scheduler: Scheduler = None,
    as_: As = None,
    encoding: Encoding = "utf-8",
    model: Annotated[
        str | None,
        typer.Option(
            help="A causal language model that reads texts: a folder, a .gguf file, or a packaged one's name."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score the rows of a table, or texts with a model: the farthest out on stdout, all in a file, and a page."""
    from farout.cards import find
    from farout.errors import BadInput
    from farout.scoring import score as score_table

    if model is not None:
        if saved or leave_out or engine != "auto" or scheduler:
            raise BadInput(
                "--model reads texts, so --with, --leave-out, --engine and --scheduler have no place beside it"
            )
        _score_texts(data, model, method, fit_on, rate, top, output, set_, kind, seed, as_, encoding, quiet)
        return
    if method is not None and find(method).room == "text":
        raise BadInput(f"'{find(method).slug}' reads texts with a language model: say which one with --model")
    if saved and (method or fit_on or set_ or kind or leave_out):
        raise BadInput(
            "--with scores by a saved detector, so --method, --fit-on, --set, --kind and --leave-out have no place "
            "beside it"
        )
    check_outputs(output)
    material, as_ = material_or_format(as_)
    source = table(data, as_, encoding)
    name = getattr(source, "name", data)
    with progress(quiet) as report:
        result = score_table(
            source,
            method,
            material=material,
            fit_on=table(fit_on, None, encoding) if fit_on else None,
            saved=saved,
            rate=rate,
            parameters=parameters(set_),
            kinds=assignments(kind, "--kind") | dict.fromkeys(leave_out, "left out"),
            seed=seed,
            engine=engine,
            scheduler=scheduler,
            name=name,
            progress=report,
        )
    talk(described(result.columns, present(source)), quiet)
    _deliver(result, name, output, top, quiet)


def _score_texts(
    data: str,
    model: str,
    method: str | None,
    fit_on: str | None,
    rate: float | None,
    top: int,
    output: list[Path],
    set_: list[str],
    kind: list[str],
    seed: int,
    as_: str | None,
    encoding: str,
    quiet: bool,
) -> None:
    """Score texts with a language model."""
    from farout.errors import BadInput
    from farout.scoring.texts import DEFAULT, score_texts

    kinds = assignments(kind, "--kind")
    if len(kinds) > 1 or set(kinds.values()) - {"text"}:
        raise BadInput("beside --model, --kind names the column that holds the texts: --kind NAME=text")
    check_outputs(output)
    source, normal = (_texts(one, as_, encoding) if one else None for one in (data, fit_on))
    name = getattr(source, "name", Path(data).stem)
    with progress(quiet) as report:
        result = score_texts(
            source,
            model,
            method or DEFAULT,
            column=next(iter(kinds), None),
            fit_on=normal,
            rate=rate,
            parameters=parameters(set_),
            seed=seed,
            name=name,
            progress=report,
        )
    _deliver(result, name, output, top, quiet)


def _texts(data: str, as_: str | None, encoding: str) -> Any:
    """Open texts: a text a line, or a table with a column of them."""
    return data if as_ is None and Path(data).suffix.lower() == ".txt" else table(data, as_, encoding)


def _deliver(result: Result | TextResult, name: str, output: list[Path], top: int, quiet: bool) -> None:
    """Write what was asked for, then print."""
    result.settings["command"] = ["farout", *sys.argv[1:]]
    paths = [path for path in output if str(path) != "-"]
    if not output:
        paths = [Path(f"{name}.farout.html"), Path(f"{name}.farout.parquet")]
    for path in paths:  # before anything is printed, since whoever reads that may go early
        result.save(path)
    if paths:
        settings = beside(paths[0], ".farout.json")
        write_json(settings, result.settings)
        talk("wrote " + ", ".join(str(path) for path in [*paths, settings]), quiet)
    if len(paths) < len(output):
        sys.stdout.write(result.frame().write_csv())
    else:
        _print_top(result, top)


def described(columns: Columns, names: list[str]) -> str:
    """Say how the columns were read."""
    lines = []
    for kind in ("numeric", "category", "date"):
        read = [f"{c.name} ({c.why})" if "no numbers" in c.why else c.name for c in columns.columns if c.kind == kind]
        if read:
            shown = ", ".join(read[:8]) + (f" and {len(read) - 8} more" if len(read) > 8 else "")
            lines.append(f"{kind:>10}: {len(read):,}  {shown}")
    for column in columns.left_out[:20]:
        lines.append(f"{'left out':>10}: {column.name}  ({column.why})")
    if len(columns.left_out) > 20:
        lines.append(f"{'left out':>10}: and {len(columns.left_out) - 20} more")
    known = {c.name for c in columns.columns}
    new = [name for name in names if name not in known]
    if new:
        lines.append(f"{'not read':>10}: {', '.join(new[:8])}{' ...' if len(new) > 8 else ''}  (unknown when fitted)")
    return "\n".join(lines)


def _print_top(result: Result | TextResult, most: int) -> None:
    """Print the rows farthest out; one line each where stdout is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rang = int(result.alarms.sum())
    what, whole = ("texts", "file") if hasattr(result, "texts") else ("rows", "table")
    meaning = (
        f"p-values against held-out normal {what}: at most {100 * result.rate:.3g} % of normal {what} ring"
        if result.calibrated
        else f"ranks within the {whole}: {100 * result.rate:.3g} % of the {what} are above the line by construction; "
        "give --fit-on NORMAL for a test"
    )
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (("row", "right"), ("score", "right"), ("p", "right"), ("", "left"), ("why", "left")):
        rows.add_column(name, justify=side, no_wrap=name != "why", overflow="fold")  # type: ignore[arg-type]
    for row, value, p, alarm, why in result.top(most).iter_rows():
        # Text, not markup: values may hold brackets
        rows.add_row(f"{row:,}", f"{value:.3f}", f"{p:.2g}", Text("*" if alarm else "", "red"), Text(why))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(f"{result.card.name}: {len(result.scores):,} {what}, {rang:,} above the line (*). {meaning}")
    console.print(rows)
