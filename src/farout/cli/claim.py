"""``farout claim``: run a paper's claim again, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farout.cli._common import progress, talk


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(claim)


def claim(
    paper: Annotated[str, typer.Argument(help="A method of 'farout list', or 'all'.")],
    budget: Annotated[str, typer.Option(help="small (seconds) or full (minutes).")] = "small",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Processes for several claims, of one thread each; -1 for all cores.")
    ] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the JSON and the figure.")] = Path("out"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Run a claim, print what was published and what is measured, and save both.

    Whether a claim holds is part of the answer, not an error: the exit code is 0 either way.
    """
    from farout.cards import find, list_cards
    from farout.claims import as_text, run, save

    output.mkdir(parents=True, exist_ok=True)
    slugs = [card.slug for card in list_cards()] if paper == "all" else [find(paper).slug]
    if jobs == 1 or len(slugs) == 1:
        for slug in slugs:
            with progress(quiet) as report:
                measured = run(slug, budget, report)
            print(as_text(measured))
            talk(f"wrote {save(measured, output)}", quiet)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1), progress(quiet) as report:
        done = Parallel(return_as="generator")(delayed(run)(slug, budget) for slug in slugs)
        for place, measured in enumerate(done, 1):
            report(measured.paper, place / len(slugs))
            print(as_text(measured))
            save(measured, output)
    talk(f"wrote {len(slugs)} claims to {output}", quiet)
