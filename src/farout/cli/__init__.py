"""The command line: one file a verb. Here stand the program, its errors and its exit codes.

stdout is data, stderr is talk. Exit 0: fine; 1: an error, in one line; 2: wrong usage; 130: interrupted.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Annotated, NoReturn

import typer

VERBS = ("score", "fit", "rank", "inspect", "quantize", "bench", "claim", "list", "card", "doctor")

app = typer.Typer(
    name="farout",
    help="Find what is far out in data, in a model's inputs and inside a model.",
    epilog="Start with: farout score DATA.csv",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from farout import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show where an error came from.")] = False,
) -> None:
    """Find what is far out in data, in a model's inputs and inside a model."""


for verb in VERBS:
    import_module(f"farout.cli.{verb}").add(app)


def main() -> NoReturn:
    """Run the program; every error ends in one line and an exit code."""
    from farout.errors import FaroutError

    # a polite end, so that half-written files are removed
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    trace = "--trace" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--trace"]
    try:
        app(arguments, standalone_mode=True)
    except SystemExit as end:
        if end.code == 130:  # typer's answer to Ctrl-C
            _end("interrupted; files that were being written are as they were", 130)
        raise
    except FaroutError as error:
        if trace:
            raise
        _end(str(error), 1)
    except Exception as error:
        if trace:
            raise
        _end(f"{type(error).__name__}: {error} (run again with --trace for the rest)", 1)
    sys.exit(0)


def _end(line: str, code: int) -> NoReturn:
    print("farout: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(code)
