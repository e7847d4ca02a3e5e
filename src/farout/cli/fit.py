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
    Size,
    SkipBroken,
    described,
)


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(fit)


def fit(
    data: Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the detector; needed without --export.")
    ] = None,
    method: Method = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Share of normal rows that may ring.  [default: 0.01; of images, what their number allows]"),
    ] = None,
    set_: Set = [],  # noqa: B006
    kind: Kind = [],  # noqa: B006
    leave_out: LeaveOut = [],  # noqa: B006
    seed: Seed = 0,
    engine: Engine = "auto",
    scheduler: Scheduler = None,
    as_: As = None,
    encoding: Encoding = "utf-8",
    size: Size = None,
    skip_broken: SkipBroken = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Where to write a detector of images as an ONNX graph.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Learn from normal rows or images and save; 'farout score DATA --with SAVED' scores by it."""
    from farout.cards import find
    from farout.cli import _images
    from farout.errors import BadInput
    from farout.scoring import fit as fit_table
    from farout.scoring import versions

    if output is None and export is None:
        raise typer.BadParameter("say where to write the detector", param_hint="'--output' / '-o'")
    if _images.about_images(data, method):
        _images.none_of(
            {
                "--kind": kind,
                "--leave-out": leave_out,
                "--engine": engine != "auto",
                "--scheduler": scheduler,
                "--as": as_,
            }
        )
        _images.fit(
            data, output, export, method, quiet, size=size, set_=set_, rate=rate, skip_broken=skip_broken, seed=seed
        )
        return
    if size or skip_broken or export or output is None:
        raise BadInput("--size, --skip-broken and --export belong to images; write a detector of tables with --output")
    rate = 0.01 if rate is None else rate
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
