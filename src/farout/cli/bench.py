"""``farout bench``: methods over many sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farout.cli._common import progress

SUITES = ("adbench",)


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(bench)


def bench(
    suite: Annotated[str, typer.Argument(help="adbench")],
    methods: Annotated[str | None, typer.Option(help="Separated by commas.  [default: all table methods]")] = None,
    sets: Annotated[str | None, typer.Option(help="Separated by commas.  [default: those of the budget]")] = None,
    protocol: Annotated[str, typer.Option(help="unsupervised, one-class or both.")] = "both",
    budget: Annotated[str, typer.Option(help="small (a dozen small sets) or full.")] = "small",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for table and page.")] = Path("out"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Run methods over the sets of a suite; a run that was stopped goes on where it was."""
    from importlib import import_module

    from farout.errors import UnknownName

    if suite not in SUITES:
        raise UnknownName("suite", suite, SUITES)
    output.mkdir(parents=True, exist_ok=True)
    with progress(quiet) as report:
        import_module(f"farout.bench.{suite}").main(
            methods=methods.split(",") if methods else None,
            sets=sets.split(",") if sets else None,
            protocol=protocol,
            budget=budget,
            out=output,
            progress=report,
        )
