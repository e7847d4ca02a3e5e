"""``farout score``: rows, texts or a model's inputs that are far out, as a list, a file and a page."""

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
    from farout.scoring.images import ImageResult
    from farout.scoring.inputs import InputResult
    from farout.scoring.texts import TextResult

    Scored = Result | TextResult | InputResult | ImageResult

PICTURED = (".npy", ".npz", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
Data = Annotated[
    str,
    typer.Argument(
        help="A table (csv, tsv, jsonl, parquet, feather, npy, npz), '-' for stdin, a folder of images, or a data "
        "set's name; with --model texts, a folder of images, or a table of what the model takes."
    ),
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
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels of a side that images are scaled to.  [default: the method's]")
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.")]
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
            help="A causal language model that reads texts, or a classifier whose inputs are watched (a method of the "
            "room 'ood'): a folder, a file, py:EXPRESSION, or a packaged one's name."
        ),
    ] = None,
    calibrate_on: Annotated[
        str | None, typer.Option(help="Usual inputs of a classifier to set the line on.  [default: a part of --fit-on]")
    ] = None,
    ood: Annotated[
        str | None, typer.Option(help="Known outliers among a classifier's inputs, to measure with.")
    ] = None,
    skip_broken: SkipBroken = False,
    size: Size = None,
    maps: Annotated[
        str | None,
        typer.Option(
            help="Images whose heat maps are written beside a page: all, alarms or none.  [default: all, of more than "
            "1,000 images those above the line]"
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Score rows of a table, images, texts or a model's inputs: the farthest out on stdout, all in a file."""
    from farout.cards import find
    from farout.cli import _images
    from farout.contract import load
    from farout.errors import BadInput
    from farout.scoring import score as score_table

    if model is not None and (size or maps):
        raise BadInput("--size and --maps belong to images without a --model; say --set size=... for the model's")
    if model is not None:
        if saved or engine != "auto" or scheduler:
            raise BadInput("--model reads inputs at once, so --with, --engine and --scheduler have no place beside it")
        check_outputs([path.with_suffix(".jsonl") if path.suffix == ".json" else path for path in output])
        words = assignments(kind, "--kind")
        card = find(method) if method is not None else None
        if (card is not None and card.kind == "score") or (_pictured(data) and (card is None or card.room != "text")):
            found = _score_inputs(
                model,
                method,
                [_source(one, as_, encoding) if one else None for one in (data, fit_on, calibrate_on, ood)],
                quiet,
                rate=rate,
                parameters=parameters(set_),
                column=_column(words, "text", ("text", "label")),
                label=_column(words, "label", ("text", "label")),
                leave_out=leave_out,
                skip_broken=skip_broken,
                seed=seed,
            )
            _deliver(found, found.name, output, top, quiet)
            return
        if leave_out or calibrate_on or ood or skip_broken:
            raise BadInput(
                "--leave-out, --calibrate-on, --ood and --skip-broken belong to the inputs of a classifier: name a "
                "method of the room 'ood' with --method"
            )
        _score_texts(data, model, method, fit_on, rate, top, output, set_, words, seed, as_, encoding, quiet)
        return
    if calibrate_on or ood:
        raise BadInput("--calibrate-on and --ood belong to a model's inputs: say which with --model")
    if method is not None and find(method).room == "text":
        raise BadInput(f"'{find(method).slug}' reads texts with a language model: say which one with --model")
    if method is not None and find(method).kind == "score":
        raise BadInput(f"'{find(method).slug}' watches the inputs of a model: say which one with --model")
    fitted = load(saved) if saved else None
    if _images.about_images(data, method, fitted):
        _images.none_of(
            {
                "--kind": kind,
                "--leave-out": leave_out,
                "--engine": engine != "auto",
                "--scheduler": scheduler,
                "--as": as_,
            }
        )
        path = Path(data).resolve()
        name = path.name if path.is_dir() else path.stem
        seen = _images.score(
            data,
            method,
            output,
            maps,
            quiet,
            size=size,
            set_=set_,
            saved=fitted,
            fit_on=fit_on,
            rate=rate,
            skip_broken=skip_broken,
            seed=seed,
            name=name,
        )
        _deliver(seen, name, output, top, quiet)
        return
    if skip_broken or size or maps:
        raise BadInput("--skip-broken, --size and --maps belong to images: give some, or the inputs of a --model")
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
            saved=fitted,
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


def _score_inputs(model: str, method: str | None, sources: list[Any], quiet: bool, **options: Any) -> InputResult:
    """Score the inputs of a classifier, and say what a user must know."""
    from farout.scoring.inputs import score_inputs

    data, train, usual, ood = sources
    with progress(quiet) as report:
        found = score_inputs(data, model, method, fit_on=train, calibrate_on=usual, ood=ood, progress=report, **options)
    for note in found.notes:
        talk(f"note: {note}", quiet)
    return found


def _score_texts(
    data: str,
    model: str,
    method: str | None,
    fit_on: str | None,
    rate: float | None,
    top: int,
    output: list[Path],
    set_: list[str],
    words: dict[str, str],
    seed: int,
    as_: str | None,
    encoding: str,
    quiet: bool,
) -> None:
    """Score texts with a language model."""
    from farout.scoring.texts import DEFAULT, score_texts

    column = _column(words, "text", ("text",))
    check_outputs(output)
    source, normal = (_texts(one, as_, encoding) if one else None for one in (data, fit_on))
    name = getattr(source, "name", Path(data).stem)
    with progress(quiet) as report:
        result = score_texts(
            source,
            model,
            method or DEFAULT,
            column=column,
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


def _source(data: str, as_: str | None, encoding: str) -> Any:
    """Open a table or texts; images and arrays are opened by whoever knows what the model takes."""
    return data if _pictured(data) else _texts(data, as_, encoding)


def _pictured(data: str) -> bool:
    """Whether data are images or arrays, and no texts or table."""
    path = Path(data)
    return path.is_dir() or path.suffix.lower() in PICTURED


def _column(words: dict[str, str], wanted: str, kinds: tuple[str, ...]) -> str | None:
    """Return the column that was said to hold texts, or labels."""
    from farout.errors import BadInput

    if set(words.values()) - set(kinds) or len(set(words.values())) < len(words):
        holds = " or the ".join(f"{kind}s" for kind in kinds)
        said = " or ".join(f"--kind NAME={kind}" for kind in kinds)
        raise BadInput(f"beside --model, --kind names the column that holds the {holds}: {said}")
    return next((name for name, kind in words.items() if kind == wanted), None)


def _deliver(result: Scored, name: str, output: list[Path], top: int, quiet: bool) -> None:
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


def _print_top(result: Scored, most: int) -> None:
    """Print the rows farthest out; one line each where stdout is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rang = int(result.alarms.sum())
    what, whole = ("texts", "file") if hasattr(result, "texts") else ("rows", "table")
    if hasattr(result, "what"):
        what, whole = result.what, "inputs"
    meaning = (
        f"p-values against held-out normal {what}: at most {100 * result.rate:.3g} % of normal {what} ring"
        if result.calibrated
        else f"ranks within the {whole}: {100 * result.rate:.3g} % of the {what} are above the line by construction; "
        "give --fit-on NORMAL for a test"
    )
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in (("row", "right"), ("score", "right"), ("p", "right"), ("", "left"), ("why", "left")):
        rows.add_column(name, justify=side, no_wrap=name != "why", overflow="fold")  # type: ignore[arg-type]
    for row, value, p, alarm, why in result.lines(most) if hasattr(result, "lines") else result.top(most).iter_rows():
        # Text, not markup: values may hold brackets
        rows.add_row(f"{row:,}", f"{value:.3f}", f"{p:.2g}", Text("*" if alarm else "", "red"), Text(why))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(f"{result.card.name}: {len(result.scores):,} {what}, {rang:,} above the line (*). {meaning}")
    console.print(rows)
