"""``farout quantize``: a model in, the same model in fewer bits out."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from farout.cli._common import parameters, progress, talk
from farout.cli.inspect import Model
from farout.cli.score import Quiet, Seed


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(quantize)


def quantize(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; a page and its numbers go beside it.")
    ],
    recipe: Annotated[str, typer.Option(help="See farout list quantize.")] = "gptq",
    scheme: Annotated[str, typer.Option(help="Such as w4a16g128, w8a8, w8a8-tensor, w4a4, fp8.")] = "w4a16g128",
    data: Annotated[str, typer.Option(help="Text to calibrate with: a file, or a name such as classics.")] = "built-in",
    test: Annotated[str, typer.Option(help="Text to measure the loss on; none measures none.")] = "built-in",
    set_: Annotated[
        list[str], typer.Option("--set", help="A parameter of the recipe, as name=value; may be repeated.")
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(min=1, help="Windows of text to calibrate with.")] = 128,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="How many of them at once.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.  [default: float32]")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Where the model brings none.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Quantize a model; what is written loads in transformers. A run that was stopped goes on where it was."""
    from farout.quantizing import quantize_to

    with progress(quiet) as report, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is among the notes
        found = quantize_to(
            output,
            model,
            {"recipe": recipe, **parameters(set_)},
            scheme,
            data,
            samples=samples,
            length=tokens,
            batch_size=batch_size,
            test=None if test == "none" else test,
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            seed=seed,
            progress=report,
            talk=lambda sentence: talk(sentence, quiet),
        )
    found.settings["command"] = ["farout", *sys.argv[1:]]
    for note in found.notes:
        talk(f"note: {note}", quiet)
    pages = [output.with_name(output.name + ending) for ending in (".farout.html", ".farout.json")]
    for path in pages:
        found.save(path)
    talk(f"wrote {output}, " + ", ".join(map(str, pages)), quiet)
    for sentence in found.verdict():
        print(sentence)
