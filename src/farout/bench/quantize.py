"""Recipes against each other on one model: every recipe, in every scheme, with several draws of calibration text.

A language model is judged by its perplexity on texts, an encoder by how far its pooled embeddings turn (1 - cosine).
The model in full precision and plain rounding stand in the table too. Recipes that need no data are run once. A cell
that was done is kept, so that a run that was stopped goes on; one that fails, or that a recipe cannot do, says why in
its row.
"""

from __future__ import annotations

import copy
import gc
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench._tables import as_text
from farout.bench.divergence import divergence
from farout.bench.perplexity import perplexity
from farout.bench.suites import Progress
from farout.cards import list_cards
from farout.data.calibration import calibration
from farout.errors import BadInput, FaroutError
from farout.io.files import writing
from farout.kit.training import device_named, torch_or_say
from farout.scoring import versions

__all__ = ["SCHEMES", "compare", "main", "recipe_named", "summary"]

SCHEMES = ("w8a8", "w4a16g128", "w3a16g128", "w4a8", "w4a4")
PLAIN = "full precision"


def recipe_named(text: str) -> dict[str, Any]:
    """Read a recipe with parameters from words.

    Examples
    --------
    >>> recipe_named("smoothquant:alpha=0.8")
    {'recipe': 'smoothquant', 'alpha': 0.8}
    """
    name, *pairs = text.split(":")
    said: dict[str, Any] = {"recipe": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"a parameter of '{name}' is name=value, not '{pair}'")
        try:
            said[key] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            said[key] = value
    return said


def compare(
    model: Any,
    recipes: Iterable[str],
    schemes: Iterable[str] = SCHEMES,
    texts: Sequence[str | Path] = ("wikitext2",),
    *,
    data: str | Path = "classics-valid",
    samples: int = 128,
    length: int = 512,
    windows: int | None = 20,
    batch_size: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Quantize a model by recipes in schemes, and measure what is left of it.

    Parameters
    ----------
    model : OpenModel
        Left as it is.
    recipes : iterable of str
        Names, with parameters after colons (``"smoothquant:alpha=0.8"``).
    schemes : iterable of str
    texts : list of str or path
        What the model is judged on.
    data : str or path
        Calibration text.
    samples, length, batch_size : int
        Windows of calibration, tokens of each (of the texts, too), and how many run at once.
    windows : int, optional
        Of each text; all where None.
    seeds : list of int
        Draws of calibration windows.
    keep : path, optional
        A file of JSON lines, to which finished cells are added and from which they are read.
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        A row for each recipe, scheme, seed and text: ``measure`` (``"perplexity"`` or ``"cosine distance"``),
        ``value``, ``bits`` a weight, ``seconds``, ``error``.
    """
    torch_or_say("quantizing")
    recipes, schemes, texts = list(recipes), list(schemes), list(texts)
    done = _read(keep)
    cells: list[tuple[str, str, int]] = [(PLAIN, "", 0)]
    for recipe in recipes:
        for scheme in schemes:
            cells += [(recipe, scheme, seed) for seed in (seeds if _drawn(recipe, scheme) else seeds[:1])]
    reference = model.model
    for i, (recipe, scheme, seed) in enumerate(cells):
        if progress is not None:
            progress("quantizing", i / len(cells))
        if any((row["recipe"], row["scheme"], row["seed"]) == (recipe, scheme, seed) for row in done):
            continue
        rows = _cell(model, reference, recipe, scheme, seed, texts, data, (samples, length, windows, batch_size))
        done += rows
        if keep is not None:
            with open(keep, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    if progress is not None:
        progress("quantizing", 1.0)
    return pl.DataFrame(done, infer_schema_length=None)


def _cell(
    opened: Any, reference: Any, recipe: str, scheme: str, seed: int, texts: Sequence[Any], data: Any, sizes: tuple
) -> list[dict[str, Any]]:
    """Quantize once, and measure on every text."""
    from dataclasses import replace

    from farout.quantize.recipe import quantize

    samples, length, windows, batch_size = sizes
    started, bits, error = time.perf_counter(), 32.0, None
    known = {"recipe": recipe, "scheme": scheme, "seed": seed}
    model = reference
    if recipe != PLAIN:
        try:
            batches = calibration(data, opened, samples=samples, length=length, seed=seed, batch_size=batch_size)
            model = copy.deepcopy(reference)
            bits = quantize(model, recipe_named(recipe), scheme, batches).bits_per_weight
        except FaroutError as failure:
            error = str(failure)
    seconds = round(time.perf_counter() - started, 2)
    rows = []
    for text in texts:
        value = None
        if error is None and opened.causal:
            judge = replace(opened, model=model)
            value = perplexity(judge, text, length=length, windows=windows, batch_size=batch_size).value
        elif error is None:
            judged = calibration(text, opened, samples=windows or samples, length=min(length, 128), seed=10_000)
            value = divergence(reference, model, judged)
        measure = "perplexity" if opened.causal else "cosine distance"
        found = {"text": str(text), "measure": measure, "value": value}
        rows.append({**known, **found, "bits": bits, "seconds": seconds, "error": error})
    del model
    gc.collect()
    return rows


def _drawn(recipe: str, scheme: str) -> bool:
    """Whether calibration data change anything."""
    from farout.quantize.recipe import recipe_of
    from farout.quantize.scheme import Scheme

    try:
        inputs = Scheme.parse(scheme).inputs
        return recipe_of(recipe_named(recipe)).calibrated or (inputs is not None and not inputs.dynamic)
    except FaroutError:
        return False  # said in its row


def _read(keep: str | Path | None) -> list[dict[str, Any]]:
    if keep is None or not Path(keep).exists():
        return []
    return [json.loads(line) for line in Path(keep).read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """Return means and ranges over seeds: a row for each recipe and scheme, a column for each text."""
    rows = []
    for (recipe, scheme), cell in table.group_by(["recipe", "scheme"], maintain_order=True):
        row: dict[str, Any] = {"recipe": recipe, "scheme": scheme, "bits": cell["bits"][0]}
        for (text,), part in cell.group_by(["text"], maintain_order=True):
            values = part["value"].drop_nulls().to_numpy()
            row[str(text)] = float(np.mean(values)) if len(values) else None
            row[f"{text} ±"] = float(np.ptp(values) / 2) if len(values) else None
        row["seconds"] = float(cell["seconds"].mean())  # type: ignore[arg-type]
        row["why not"] = next((e for e in cell["error"] if e), None)
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _word(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(
    model: Any,
    recipes: Iterable[str] | None = None,
    schemes: Iterable[str] = SCHEMES,
    texts: Sequence[str | Path] = ("wikitext2",),
    length: int = 512,
    windows: int | None = 20,
    data: str | Path = "classics-valid",
    samples: int = 128,
    out: str | Path = "out/quantize",
    *,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Compare recipes on a model, print the table and write it: ``quantize.json``, and ``cells.jsonl`` to go on from.

    Parameters
    ----------
    model : str, path or OpenModel
    recipes : iterable of str, optional
        By default all of ``farout list quantize``.
    schemes, texts, length, windows, data, samples
        As in :func:`compare`.
    out : path
        A folder.
    progress : callable, optional
    """
    from farout.bench.perplexity import _opened

    names = list(recipes) if recipes is not None else [card.slug for card in list_cards("quantize", "recipe")]
    opened = _opened(model)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": opened.name, "schemes": list(schemes), "texts": [str(t) for t in texts], "length": length,
                "windows": windows, "data": str(data), "samples": samples, "device": str(device_named("auto")),
                "versions": versions()}  # fmt: skip
    told = folder / "settings.json"
    if told.exists():
        before = json.loads(told.read_text(encoding="utf-8"))
        alike = ("model", "texts", "length", "windows", "data", "samples")
        other = [key for key in alike if before.get(key) != settings[key]]
        if other:
            raise BadInput(f"'{folder}' holds a run with other {' and '.join(other)}; name another folder")
    with writing(told) as path:
        path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    table = compare(
        opened, names, schemes, texts,
        data=data, samples=samples, length=length, windows=windows, keep=folder / "cells.jsonl", progress=progress,
    )  # fmt: skip
    short = summary(table)
    columns = [name for name in short.columns if name != "why not"]
    print(as_text(columns, [[_word(value) for value in row] for row in short.select(columns).iter_rows()]))
    with writing(folder / "quantize.json") as path:
        written = {"settings": settings, "summary": short.to_dicts(), "cells": table.to_dicts()}
        path.write_text(json.dumps(written, indent=2), encoding="utf-8")
    return table
