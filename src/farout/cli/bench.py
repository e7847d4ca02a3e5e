"""``farout bench``: methods over many sets, models over many texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farout.cli._common import progress

# What each suite takes beside --output; the options of a suite are the arguments of its main().
TABLES = ("methods", "sets", "budget", "jobs")
SUITES = {
    "adbench": (*TABLES, "protocol"),
    "macrodata": (*TABLES, "protocol"),
    "mad_bench": (*TABLES, "files", "images", "device"),
    "perplexity": ("model", "texts", "length", "windows"),
    "quantize": ("model", "texts", "length", "windows", "recipes", "schemes", "data", "samples"),
    "defects": ("methods", "sets", "budget", "device"),
    "nova": ("files",),
    "openood": ("model", "methods", "sets", "train", "usual", "rows", "recode"),
}
NEEDED = ("perplexity", "quantize")  # suites without a model of their own
LISTS = ("methods", "sets", "images", "texts", "recipes", "schemes")  # separated by commas
OF_TABLES, OF_MODELS = "Options of adbench, macrodata and mad_bench", "Options of perplexity and quantize"
OF_QUANTIZE, OF_OPENOOD = "Options of quantize", "Options of openood (which also takes --methods, --sets, --model)"
OF_IMAGES = "Options of defects and of mad_bench for images (with --methods, --budget)"


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(bench)


def bench(
    suite: Annotated[str, typer.Argument(help=f"{', '.join(list(SUITES)[:-1])} or {list(SUITES)[-1]}")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="mad_bench: result files and folders of them (default: graded tables). nova: folders with cases.csv "
            "and answers.jsonl."
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas (default: all table methods); of defects with parameters after colons, as in "
            "patchcore:size=224 (default: all detectors of images).",
            rich_help_panel=OF_TABLES,
        ),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas; macrodata also takes oddbench, ovrbench, synbench, synbench/gmm-local-7, npz "
            "files of its format and folders of them (default: those of the budget); openood takes setting=name, such "
            "as near=tin-near_animal, of a named set or a folder of images; defects takes magnetic_tile, "
            "cookie, deep_pcb, solar_mono, brain_mri and folders as MVTec AD has them.",
            rich_help_panel=OF_TABLES,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="adbench: unsupervised, one-class or both; macrodata: split (default: all).",
            rich_help_panel=OF_TABLES,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="small (a dozen small sets) or full (default: small).", rich_help_panel=OF_TABLES),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            help="Processes, of one thread each; -1 for all cores (default: 1).",
            rich_help_panel=OF_TABLES,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A packaged model such as smollm2-135m, a folder of transformers, or a .gguf or .safetensors file.",
            rich_help_panel=OF_MODELS,
        ),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: names such as wikitext2 and new-authors, and text files (default: wikitext2).",
            rich_help_panel=OF_MODELS,
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a window (default: 2048).", rich_help_panel=OF_MODELS)
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(help="So many, spread over each text (default: all).", rich_help_panel=OF_MODELS),
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas, with parameters after colons, as in smoothquant:alpha=0.8 (default: all).",
            rich_help_panel=OF_QUANTIZE,
        ),
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas (default: w8a8,w4a16g128,w3a16g128,w4a8,w4a4).", rich_help_panel=OF_QUANTIZE
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Text to calibrate with (default: classics-valid).", rich_help_panel=OF_QUANTIZE),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Windows of it (default: 128).", rich_help_panel=OF_QUANTIZE)
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="What scores are fitted to: a named set of images, or a folder (default: cifar10-train).",
            rich_help_panel=OF_OPENOOD,
        ),
    ] = None,
    usual: Annotated[
        str | None,
        typer.Option(
            help="Images of the same kind that were not trained on (default: cifar10-test).",
            rich_help_panel=OF_OPENOOD,
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Usual images at most (default: 4000).", rich_help_panel=OF_OPENOOD)
    ] = None,
    recode: Annotated[
        bool | None,
        typer.Option(help="Store all images as CIFAR-10 is stored (default).", rich_help_panel=OF_OPENOOD),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="mad_bench: graded images, separated by commas: folders of level_0, level_1 and so on, solar_mono, or "
            "painted/magnetic_tile.",
            rich_help_panel=OF_IMAGES,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or auto (default: auto).", rich_help_panel=OF_IMAGES),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for table and page.")] = Path("out"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Run methods over the sets of a suite, or a model over texts; sets that were done are not done again."""
    from importlib import import_module

    from farout.errors import BadInput, UnknownName

    if suite not in SUITES:
        raise UnknownName("suite", suite, SUITES)
    every: dict[str, Any] = {
        "files": files,
        "methods": methods,
        "sets": sets,
        "protocol": protocol,
        "budget": budget,
        "jobs": jobs,
        "model": model,
        "texts": texts,
        "length": length,
        "windows": windows,
        "recipes": recipes,
        "schemes": schemes,
        "data": data,
        "samples": samples,
        "train": train,
        "usual": usual,
        "rows": rows,
        "recode": recode,
        "device": device,
        "images": images,
    }
    given = {name: value for name, value in every.items() if value is not None and value != []}
    for name in given:
        if name not in SUITES[suite]:
            raise BadInput(f"'{suite}' takes no {_option(name)}; it takes {', '.join(map(_option, SUITES[suite]))}")
    if suite == "nova" and not files:
        raise BadInput("'nova' needs a folder with cases.csv and answers.jsonl")
    if suite in NEEDED and model is None:
        raise BadInput(f"'{suite}' needs --model, such as --model smollm2-135m")
    for name in LISTS:
        if name in given:
            given[name] = given[name].split(",")
    if "jobs" in given:
        given["n_jobs"] = given.pop("jobs")
    output.mkdir(parents=True, exist_ok=True)
    with progress(quiet) as report:
        import_module(f"farout.bench.{suite}").main(**given, out=output, progress=report)


def _option(name: str) -> str:
    return name if name == "files" else f"--{name}"
