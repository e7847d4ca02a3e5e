"""``farout inspect``: what is far out inside a model, what it costs at few bits, and what to do about it."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farout.cli._common import beside, check_outputs, progress, talk
from farout.cli.score import Quiet, Seed

if TYPE_CHECKING:
    from rich.table import Table

    from farout.inspecting import Inspection

Model = Annotated[
    str,
    typer.Argument(
        help="A folder of transformers, a .gguf, .safetensors or .onnx file, timm:NAME, py:EXPRESSION, or the name of "
        "a packaged model such as smollm2-135m."
    ),
]


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(inspect)


def inspect(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(help="Texts (.txt, .jsonl, .csv, .tsv), a folder of images, or features (.npy, .npz)."),
    ] = None,
    compare: Annotated[str | None, typer.Option(help="Another model, such as this one after a change.")] = None,
    output: Annotated[
        list[Path], typer.Option("--output", "-o", help="Where to write: .html, .json, .csv ...; may be repeated.")
    ] = [],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each text.")] = 256,
    samples: Annotated[int, typer.Option(min=1, help="Texts or images to read.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="How many of them at once.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    tokenizer: Annotated[str | None, typer.Option(help="Where the model brings none.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Look inside a model: its outliers, what they cost at few bits, and what to do about them."""
    from farout.inspecting import inspect as look_inside

    check_outputs([path.with_suffix(".html") if path.suffix.lower() == ".json" else path for path in output])
    with progress(quiet) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is among the notes
        found = look_inside(
            model,
            data,
            compare=compare,
            length=tokens,
            samples=samples,
            batch_size=batch_size,
            device=device,
            tokenizer=tokenizer,
            seed=seed,
            progress=report,
        )
    for one in (found, *([found.other] if found.other else [])):
        one.settings["command"] = ["farout", *sys.argv[1:]]
        talk(_described(one), quiet)
    paths = [path for path in output if str(path) != "-"]
    if not output:
        paths = [Path(f"{_file_name(found.name)}.farout.html")]
    if paths and not any(path.suffix.lower() == ".json" for path in paths):
        paths.append(beside(paths[0], ".farout.json"))
    for path in paths:  # before anything is printed, since whoever reads that may go early
        found.save(path)
    if paths:
        talk("wrote " + ", ".join(map(str, paths)), quiet)
    if any(str(path) == "-" for path in output):
        sys.stdout.write(json.dumps(found.as_dict(), allow_nan=False) + "\n")
    else:
        _print_findings(found)


def _described(found: Inspection) -> str:
    """Say what was opened and read, and what a reader should know."""
    facts = ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
                      for name, value in found.facts.items() if value not in (None, ""))  # fmt: skip
    seconds = found.settings["seconds"]["in all"]
    lines = [f"{found.name}: {facts}", f"read {found.settings['read']} in {seconds:.0f} s"]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _file_name(name: str) -> str:
    """Make a name fit for a file.

    Examples
    --------
    >>> _file_name("timm:resnet18"), _file_name("py:nn.Linear(2, 3)")
    ('timm-resnet18', 'py-nn.Linear-2-3')
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _print_findings(found: Inspection) -> None:
    """Print the verdict and the findings, the gravest first; when two models are compared, also what changed."""
    from rich.console import Console
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=160)
    if found.other is not None:
        console.print(found.change(), markup=False, highlight=False)
        rows = _table(("", "left"), ("size", "right"), ("then", "right"), ("finding", "left"), ("what", "left"))
        for change in found.finding_changes():
            sizes = ("–" if size is None else f"{size:.3g}" for size in (change.size, change.other_size))
            rows.add_row(Text(change.what), *sizes, Text(change.kind), Text(change.says))
    else:
        for sentence in found.verdict():
            console.print(sentence, markup=False, highlight=False)
        rows = _table(("size", "right"), ("finding", "left"), ("what, and what to do", "left"))
        for finding in found.grave:
            says = Text(finding.says.rstrip(".") + ".")
            if finding.remedy:
                says.append(f" {finding.remedy}", "dim")
            rows.add_row(f"{finding.size:.3g}", Text(finding.kind), says)
    if rows.row_count:
        console.print(rows)


def _table(*columns: tuple[str, str]) -> Table:
    from rich.table import Table

    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name, side in columns:
        rows.add_column(name, justify=side, overflow="fold", no_wrap=side == "right")  # type: ignore[arg-type]
    return rows
