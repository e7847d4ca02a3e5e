"""Detectors of images on sets of defects: how well images, and pixels, are told apart.

Each seed fits on its own share of the training images; the others set the threshold of F1 and nothing else, and no
number is chosen on test images. Maps are scaled to the masks. Numbers are those of :mod:`farout.bench.metrics` and
:mod:`farout.bench.pixels`. A set is a name, such as ``magnetic_tile``, or a folder as MVTec AD has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from farout.bench._defect_cells import RATE, Images, keep, kept, measured
from farout.bench._tables import as_text
from farout.bench.quantize import recipe_named
from farout.bench.suites import Progress
from farout.cards import find, list_cards
from farout.data.defects import DefectSet, defect_set, defect_set_names
from farout.errors import BadInput, UnknownName
from farout.io.files import writing
from farout.io.tables import write_table
from farout.kit.training import torch_or_say
from farout.scoring import versions

if TYPE_CHECKING:
    from farout.image._detector import ImageDetector

__all__ = ["BUDGETS", "MEASURES", "default_methods", "defects", "detectors", "main", "summary"]

MEASURES = ("auroc", "ap", "f1", "pixel_auroc", "pixel_ap", "aupro")
SCHEMA = {
    "set": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    **dict.fromkeys(MEASURES, pl.Float64),
    "fit_seconds": pl.Float64,
    "images_per_second": pl.Float64,
    "fitted": pl.Int64,
    "tested": pl.Int64,
    "defective": pl.Int64,
    "error": pl.String,
}
# Sets, most images of each kind, and seeds.
BUDGETS: dict[str, tuple[tuple[str, ...], int | None, tuple[int, ...]]] = {
    "small": (("magnetic_tile", "cookie"), 40, (0,)),
    "full": (tuple(defect_set_names()), None, (0, 1, 2)),
}
# Trainings are cut to this in the small budget, which is there to see that all runs.
SHORT = {"steps": 100, "distil_steps": 100, "epochs": 2}
NO_DEFAULT = ("unicon_ha",)  # tells near anomalies from a class of its own, and is judged on classes


def defects(
    methods: Mapping[str, Callable[[int], ImageDetector]],
    sets: Sequence[str | DefectSet],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    most: int | None = None,
    share: float = 0.8,
    out: str | Path | None = None,
    go_on: bool = False,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Measure detectors of images on sets of defects.

    Parameters
    ----------
    methods : mapping of str to callable
        By the name in the table; ``methods[name](seed)`` makes an unfitted detector.
    sets : sequence of str, path or DefectSet
        What :func:`farout.data.defects.defect_set` takes.
    seeds : sequence of int
        For what is drawn: the images to fit to, and by a detector with a ``random_state``.
    most : int, optional
        At most so many training images, drawn by the seed, and so many test images, the same for all seeds: half of
        them normal, the kinds of defects in equal shares as far as they go.
    share : float
        Of the training images, to fit to. The threshold of F1 is set on the others, at a rate of 5 %, or at their
        largest score where they are too few for that.
    out : path, optional
        A folder that keeps finished cells, for a later run. Empty it after a change of the code.
    go_on : bool
        Name a cell that fails in its row and go on, instead of raising.
    progress : callable, optional
        Called with a text and the share done.

    Returns
    -------
    polars.DataFrame
        A row for each set, method and seed: ``auroc``, ``ap``, ``f1`` of images; ``pixel_auroc``, ``pixel_ap``,
        ``aupro`` (limit 0.3) over the images whose defects are marked, null where there are no masks or no maps;
        ``fit_seconds``, ``images_per_second`` (both with decoding); ``fitted``, ``tested`` and ``defective`` images;
        ``error``.

    Raises
    ------
    BadInput
        There is no method or no set, two sets have one name, ``share`` is not between 0 and 1, or a cell fails and
        ``go_on`` is false.
    """
    torch_or_say("detectors of images")
    if not 0 < share < 1:
        raise BadInput(f"'share' is the part of the training images to fit to, between 0 and 1; it is {share}")
    found = [Images(one if isinstance(one, DefectSet) else defect_set(one), most, share) for one in sets]
    names = [images.found.name for images in found]
    if not methods or not names or len(set(names)) < len(names):
        raise BadInput(f"give one method and one set at least, each set once; methods {list(methods)}, sets {names}")
    report, folder = progress or (lambda text, done: None), None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    cells = list(product(found, methods, seeds))
    rows = []
    for turn, (images, method, seed) in enumerate(cells):

        def share_done(done: float, turn: int = turn, text: str = f"{method} on {images.found.name}") -> None:
            report(text, (turn + done) / len(cells))

        share_done(0.0)
        row: dict[str, Any] = {"set": images.found.name, "method": method, "seed": seed}
        try:
            detector = methods[method](seed)
            file = images.file(method, detector, seed)
            numbers = kept(folder, file)
            if numbers is None:
                numbers = measured(detector, images, seed, share_done)
                keep(folder, file, numbers)
            row |= numbers
        except Exception as error:  # whatever a method raises, the other cells can go on
            if not go_on:
                raise BadInput(f"'{method}' failed on '{images.found.name}', seed {seed}: {error}") from error
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        rows.append(row)
    report("done", 1.0)
    return pl.DataFrame(rows, schema=SCHEMA)


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """Return means over the seeds of each set and then over the sets, a row a method, best image AUROC first.

    A number of a method that is missing on some sets is the mean over the others; ``sets`` and ``sets with masks``
    tell over how many.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`defects`.
    """
    numbers = [*MEASURES, "fit_seconds", "images_per_second"]
    own = table.group_by("set", "method", maintain_order=True).agg(pl.col(numbers).mean())
    means = own.group_by("method", maintain_order=True).agg(
        pl.col("auroc").count().alias("sets"), pl.col("aupro").count().alias("sets with masks"), pl.col(numbers).mean()
    )
    return means.sort("auroc", descending=True, nulls_last=True, maintain_order=True)


def default_methods() -> list[str]:
    """List the detectors of images in the catalogue that learn from normal images alone.

    Examples
    --------
    >>> "unicon_ha" in default_methods()
    False
    """
    cards = list_cards("image", "detector")
    return [card.slug for card in cards if "image" in card.takes and card.slug not in NO_DEFAULT]


def detectors(
    methods: Iterable[str], device: str = "cpu", short: bool = False
) -> dict[str, Callable[[int], ImageDetector]]:
    """Turn words into what :func:`defects` takes.

    Parameters
    ----------
    methods : iterable of str
        Names of the catalogue, with parameters after colons, as in ``patchcore:size=224``.
    device : str
    short : bool
        Cut trainings whose length is not said.

    Raises
    ------
    UnknownName
        A method is in no catalogue, or is no detector of images.
    BadInput
        A parameter is none of the method's.
    """
    made: dict[str, Callable[[int], ImageDetector]] = {}
    for words in methods:
        said = recipe_named(words)
        card = find(said.pop("recipe"))
        if "image" not in card.takes or card.kind != "detector":
            raise UnknownName("detector of images", card.slug, default_methods())
        kind = card.load()
        known = kind().get_params(deep=False)
        unknown = [name for name in said if name not in known]
        if unknown:
            raise BadInput(f"'{card.slug}' has no parameter '{unknown[0]}'; it has {', '.join(known)}")
        cut = {n: v for n, v in SHORT.items() if short and n in known and n not in said and known[n] > v}
        given = {"device": device} | cut | said

        def make(seed: int, kind: Any = kind, given: dict[str, Any] = given, known: Iterable[str] = known) -> Any:
            drawn = {"random_state": seed} if "random_state" in known and "random_state" not in given else {}
            return kind(**given, **drawn)

        made[words] = make
    return made


def main(
    methods: Iterable[str] | None = None,
    sets: Iterable[str] | None = None,
    budget: str = "small",
    out: str | Path = "out/defects",
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Run the benchmark, print the table, and write it with a page; cells that were done are not done again.

    Parameters
    ----------
    methods : iterable of str, optional
        Names of the catalogue, with parameters after colons; by default all detectors of images that learn from normal
        images alone.
    sets : iterable of str, optional
        Names, folders of sets, and folders that hold several such folders.
    budget : {"small", "full"}
        ``"small"``: 40 images to learn from and 40 to test, of two sets, one seed, and short trainings: to see that
        all runs. ``"full"``: all images of all sets, three seeds, and methods with their defaults.
    out : path
        A folder: ``defects.parquet`` and ``defects.csv`` (a row for each set, method and seed), ``summary.csv``,
        ``settings.json``, ``defects.html`` and the folder ``cells``.
    device : str
        ``"auto"`` is the first GPU where there is one.
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        What ``defects.parquet`` holds.

    Raises
    ------
    UnknownName
        A method, a set or the budget does not exist.
    BadInput
        Nothing could be measured; the first reason is named.
    """
    from farout.bench._defects_page import in_words, write_page

    if budget not in BUDGETS:
        raise UnknownName("budget", budget, BUDGETS)
    usual_sets, most, seeds = BUDGETS[budget]
    chosen = [name for word in (usual_sets if sets is None else sets) for name in _sets(word)]
    made = detectors(default_methods() if methods is None else methods, device, short=budget == "small")
    folder = Path(out)
    table = defects(made, chosen, seeds, most=most, out=folder / "cells", go_on=True, progress=progress)
    if not table["auroc"].count():
        raise BadInput(f"nothing could be measured; the first reason is: {table['error'][0]}")
    short = summary(table)
    print(as_text(*in_words(short)))
    failed = table.drop_nulls("error").select("method", "set", "error").unique(maintain_order=True)
    problems = [f"{method} on {name}: {error}" for method, name, error in failed.iter_rows()]
    for line in problems:
        print(line)
    settings = {
        "budget": budget,
        "most images": most,
        "seeds": list(seeds),
        "rate of the threshold of F1": RATE,
        "trainings cut to": SHORT if budget == "small" else None,
        "device": device,
        "problems": problems,
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_table(table, folder / "defects.parquet")
    write_table(table, folder / "defects.csv")
    write_table(short, folder / "summary.csv")
    with writing(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2, default=repr) + "\n", encoding="utf-8")
    write_page(table, short, problems, settings, folder / "defects.html")
    return table


def _sets(word: str) -> list[str]:
    """Return a set, or the sets that a folder holds, as MVTec AD does."""
    folder = Path(word)
    if word in defect_set_names() or not folder.is_dir() or (folder / "train").is_dir():
        return [word]
    return [str(path) for path in sorted(folder.iterdir()) if (path / "train").is_dir()] or [word]
