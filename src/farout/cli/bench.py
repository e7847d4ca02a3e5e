"""``farout bench``: methods over many sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farout.cli._common import progress

SUITES = ("adbench", "macrodata", "mad_bench")


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(bench)


def bench(
    suite: Annotated[str, typer.Argument(help="adbench, macrodata or mad_bench")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="mad_bench: result files and folders of them.  [default: graded tables]"),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Separated by commas.  [default: all table methods]")] = None,
    sets: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas; macrodata also takes oddbench, ovrbench, synbench, synbench/gmm-local-7, npz "
            "files of its format and folders of them.  [default: those of the budget]"
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="adbench: unsupervised, one-class or both; macrodata: split.  [default: all]")
    ] = None,
    budget: Annotated[str, typer.Option(help="small (a dozen small sets) or full.")] = "small",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for table and page.")] = Path("out"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes, of one thread each; -1 for all cores.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Run methods over the sets of a suite; a run that was stopped goes on where it was."""
    from importlib import import_module

    from farout.errors import BadInput, UnknownName

    if suite not in SUITES:
        raise UnknownName("suite", suite, SUITES)
    if files and suite != "mad_bench":
        raise BadInput(f"'{suite}' takes no files, and '{files[0]}' was given; name sets with --sets")
    if protocol and suite == "mad_bench":
        raise BadInput(f"'mad_bench' has one protocol, and '{protocol}' was given; leave --protocol out")
    output.mkdir(parents=True, exist_ok=True)
    with progress(quiet) as report:
        import_module(f"farout.bench.{suite}").main(
            methods=methods.split(",") if methods else None,
            sets=sets.split(",") if sets else None,
            budget=budget,
            out=output,
            n_jobs=jobs,
            progress=report,
            **({"protocol": protocol} if protocol else {}),
            **({"files": files} if files else {}),
        )
