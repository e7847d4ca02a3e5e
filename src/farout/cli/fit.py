"""``farout fit``: learn from normal rows, calibrate, and save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farout.cli._common import (
    assignments,
    beside,
    material_or_format,
    parameters,
    present,
    progress,
    table,
    talk,
    write_json,
)
from farout.cli.score import (
    As,
    Data,
    Encoding,
    Engine,
    Kind,
    LeaveOut,
    Method,
    Quiet,
    Scheduler,
    Seed,
    Set,
    described,
)


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(fit)


def fit(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the detector.")],
    method: Method = None,
    rate: Annotated[float, typer.Option(help="Share of normal rows that may ring.")] = 0.01,
    set_: Set = [],  # noqa: B006
    kind: Kind = [],  # noqa: B006
    leave_out: LeaveOut = [],  # noqa: B006
    seed: Seed = 0,
    engine: Engine = "auto",
    scheduler: Scheduler = None,
    as_: As = None,
    encoding: Encoding = "utf-8",
    quiet: Quiet = False,
) -> None:
    """Learn from normal rows and save; 'farout score DATA --with SAVED' scores by it."""
    from farout.cards import find
    from farout.scoring import fit as fit_table
    from farout.scoring import versions

    material, as_ = material_or_format(as_)
    source = table(data, as_, encoding)
    with progress(quiet) as report:
        alarm = fit_table(
            source,
            method,
            material=material,
            rate=rate,
            parameters=parameters(set_),
            kinds=assignments(kind, "--kind") | dict.fromkeys(leave_out, "left out"),
            seed=seed,
            engine=engine,
            scheduler=scheduler,
            progress=report,
        )
    alarm.save(output)
    settings = beside(output, ".farout.json")
    fitted = alarm.detector_
    chosen = {"data": data, "method": find(fitted.__paper__).slug, "parameters": fitted.get_params(deep=False)}
    write_json(settings, chosen | {"rate": rate, "seed": seed, "engine": engine, "versions": versions()})
    talk(described(alarm.columns_, present(source)), quiet)
    held_out = len(alarm.calibration_scores_)
    talk(f"fitted {alarm.detector_!r}, calibrated on {held_out:,} held-out rows; wrote {output}, {settings}", quiet)
