"""``farout rank``: the columns of a table that tell about one of them, beside columns whose worth is known."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farout.cli._common import beside, check_outputs, parameters, progress, table, talk, write_json
from farout.cli.score import As, Data, Encoding, Quiet, Seed, Set

if TYPE_CHECKING:
    from farout.scoring.ranking import Ranking


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(rank)


def rank(
    data: Data,
    target: Annotated[str, typer.Option(help="The column to rank the others against; 'y' for a data set's name.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Columns to print.")] = 20,
    output: Annotated[
        list[Path], typer.Option("--output", "-o", help="Where to write: .parquet, .csv, .html ...; may be repeated.")
    ] = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    seed: Seed = 0,
    as_: As = None,
    encoding: Encoding = "utf-8",
    quiet: Quiet = False,
) -> None:
    """Rank the columns of a table by what they tell about a target, corrected for the number of their values."""
    from farout.scoring.ranking import rank as rank_table

    check_outputs(output)
    source = table(data, as_, encoding)
    name = getattr(source, "name", data)
    if not hasattr(source, "path"):
        source = _with_labels(data, source)
    with progress(quiet) as report, warnings.catch_warnings(record=True):
        found = rank_table(source, target, parameters=parameters(set_), seed=seed, name=name, progress=report)
    for warning in found.warnings:
        talk(f"warning: {warning}", quiet)
    found.settings["command"] = ["farout", *sys.argv[1:]]
    paths = [path for path in output if str(path) != "-"]
    for path in paths:
        found.save(path)
    if paths:
        settings = beside(paths[0], ".farout.json")
        write_json(settings, found.settings)
        talk("wrote " + ", ".join(str(path) for path in [*paths, settings]), quiet)
    if len(paths) < len(output):
        sys.stdout.write(found.table.write_csv())
    else:
        _print_top(found, k)


def _with_labels(name: str, X: Any) -> Any:
    """Put the labels of one of farout's data sets beside its features."""
    import polars as pl

    from farout.data import load
    from farout.io.tables import to_polars

    return to_polars(X).with_columns(pl.Series("y", load(name).y))


def _print_top(found: Ranking, most: int) -> None:
    """Print the best columns, and the line below which columns are as good as noise."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("column", "corrected", "plain", "values", "coverage", "remark"):
        rows.add_column(name, justify="left" if name in ("column", "remark") else "right", overflow="fold")
    shown = found.table.head(most)
    line = False
    for row in shown.iter_rows(named=True):
        if row["score"] <= found.noise and not line:
            rows.add_row(Text("(best of noise)", "dim"), f"{found.noise:.4f}")
            line = True
        coverage = f"{100 * row['coverage']:.4g} %"
        facts = (f"{row['score']:.4f}", f"{row['plain']:.4f}", f"{row['cardinality']:,}", coverage)
        rows.add_row(Text(row["feature"]), *facts, Text(row["remark"]))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    noise = int((found.table["score"] <= found.noise).sum())
    console.print(
        f"OutRank: {found.table.height:,} columns against '{found.target}', {found.rows:,} rows; mutual information in "
        f"nats, of {found.entropy:.4f} at most. {noise:,} columns score no more than noise.",
        markup=False,
        highlight=False,
    )
    console.print(rows)
    if found.table.height > most:
        console.print(f"and {found.table.height - most:,} more; --k shows them", markup=False, highlight=False)
