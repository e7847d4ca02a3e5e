"""NOVA: A Benchmark for Anomaly Localization and Clinical Reasoning in Brain MRI.

Cosmin I. Bercea, Jun Li, Philipp Raffler, ..., Julia A. Schnabel, Benedikt Wiestler, NeurIPS Datasets and Benchmarks
2025 (arXiv 2505.14064).

About 900 brain scans with 281 rare pathologies are for evaluation alone. Models mark what is abnormal, describe it, and
name the disease from image and history; all three are far outside of what a model has learned from. The paper claims
that GPT-4o, Gemini 2.0 Flash and Qwen2.5-VL-72B drop strongly: about 65 % in localisation against natural images.

This holds the protocol and not the images, which may not be passed on: a folder with ``cases.csv`` and
``answers.jsonl`` in, the numbers of all three tasks out. Detectors of images take part in localisation through their
maps (:func:`detector_answers`).

- ``cases.csv``, a row an image: ``case``, ``image``, ``boxes`` (on which the readers agreed, a JSON list of
  [left, top, right, bottom] in pixels), ``boxes_<reader>`` (each reader's own), ``caption``, ``history``,
  ``diagnosis``, and ``width`` and ``height`` where the image file is not there. Other columns are facts, such as
  ``sequence``.
- ``answers.jsonl``, an object a line: ``model``, ``task`` (``localisation``, ``captioning``, ``diagnosis``), ``image``
  (for diagnosis ``case``), ``answer``; see :class:`Frame` for ``coordinates``, ``order``, ``seen``, ``letterbox``.
- ``synonyms.csv`` (may be absent): ``diagnosis``, ``synonym``.

Differences from the paper:

- The card of the paper that this follows does not fix overlaps, weights or dictionaries. Here: average precision at
  0.3, at 0.5, and the mean from 0.5 to 0.95; the images of a case share its weight; terms come from a short dictionary
  of our own, and what a text denies is no term of it.
- No model judges texts: diagnoses are compared after rules of spelling and a table of synonyms, which is written out;
  the exact match stands beside it as the lower bound. Word overlap is BLEU-4 and F of single words (METEOR's weights,
  without stems and order); BERTScore is left out.
- An answer that cannot be read, or is missing, is wrong; the share of these stands beside.
- The mean overlap between readers, and each reader's numbers as an entrant, are shown as the ceiling.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from farout.bench._nova_answers import Boxes, Frame, boxes_in, diagnoses_in
from farout.bench._nova_files import Answer, Slice, read_answers, read_cases, read_synonyms
from farout.bench._nova_groups import agreement, readers, strata
from farout.bench._nova_judges import BIASED, Boxed, Captioned, Diagnosed, Judge, intervals
from farout.bench._tables import as_text
from farout.bench.boxes import map_boxes
from farout.bench.suites import Progress
from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.io.files import writing
from farout.io.tables import write_table
from farout.scoring import versions

__all__ = [
    "BIASED", "Answer", "Boxes", "Frame", "Slice", "agreement", "boxes_in", "detector_answers", "diagnoses_in", "judge",
    "main", "prompt", "read_answers", "read_cases",
]  # fmt: skip

PROMPTS = {
    "localisation": "Find all abnormal areas in this brain MRI, {width} pixels wide and {height} high. Answer with a "
    'JSON list of {{"bbox": [left, top, right, bottom], "confidence": from 0 to 1}} in pixels, and nothing else; [] if '
    "there is none.",
    "captioning": "Describe the findings in this brain MRI, and its sequence, as a radiologist would, in a few "
    "sentences.",
    "diagnosis": "History: {history}\nFindings: {caption}\nName the five most likely diagnoses, the likeliest first, "
    "as a JSON list of texts.",
}


@paper(
    "NOVA",
    title="NOVA: A Benchmark for Anomaly Localization and Clinical Reasoning in Brain MRI",
    authors="Bercea, Li, Raffler, Riedel, Schmitzer, Kurz, Bitzer, et al.",
    arxiv="2505.14064",
    year=2025,
    claim="On rare pathologies GPT-4o, Gemini 2.0 Flash and Qwen2.5-VL-72B lose about 65 % of their localisation on "
    "natural images, and drop in captioning and diagnosis.",
    differs="The protocol without the images; no model judges texts; overlaps, weights and dictionaries are ours; "
    "detectors of images take part through their maps.",
    kind="benchmark",
)
def main(
    files: Iterable[str | Path],
    out: str | Path = "out/nova",
    *,
    draws: int = 1000,
    seed: int = 0,
    split_by: Sequence[str] = ("sequence",),
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Judge answers of models, print the tables, and write them with a page.

    Parameters
    ----------
    files : iterable of path
        Folders with ``cases.csv``, ``answers.jsonl`` and perhaps ``synonyms.csv``; what they hold is judged together.
    out : path
        A folder: ``nova.parquet`` and ``nova.csv``, ``normalised.csv`` (what each diagnosis was compared as),
        ``settings.json`` and ``nova.html``.
    draws : int
        How often cases are drawn again for the intervals.
    seed : int
        Of these draws.
    split_by : sequence of str
        Columns of ``cases.csv`` by which numbers are also split; by size of lesion and frequency of the diagnosis they
        always are.
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        A row for each model, task, stratum and measure: ``value``, ``low`` and ``high`` (95 %, over cases) and
        ``cases``.

    Raises
    ------
    BadInput
        A file cannot be read, or a model answers for an image or a case that is not listed.
    """
    from farout.bench._nova_page import task_rows, write_page

    folders = [Path(one) for one in files]
    if not folders:
        raise BadInput("give a folder with cases.csv and answers.jsonl")
    slices: list[Slice] = []
    answers: dict[str, dict[str, dict[str, Answer]]] = {}
    synonyms: dict[str, str] = {}
    for folder in folders:
        slices += read_cases(folder / "cases.csv")
        synonyms |= read_synonyms(folder / "synonyms.csv")
        if (folder / "answers.jsonl").is_file():
            for model, tasks in read_answers(folder / "answers.jsonl").items():
                for task, said in tasks.items():
                    answers.setdefault(model, {}).setdefault(task, {}).update(said)
    table, compared = judge(slices, answers, synonyms, draws=draws, seed=seed, split_by=split_by, progress=progress)
    agreed = agreement(slices)
    settings = {
        "draws": draws,
        "seed": seed,
        "split by": list(split_by),
        "synonyms": len(synonyms),
        "cases": len({one.case for one in slices}),
        "images": len(slices),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for task in table["task"].unique(maintain_order=True):
        print(f"{task}\n{as_text(*task_rows(table, task))}\n")
    print("\n".join(f"readers {a} and {b}: mean overlap {value:.3f}" for a, b, value in agreed))
    write_table(table, folder / "nova.parquet")
    write_table(table, folder / "nova.csv")
    write_table(compared, folder / "normalised.csv")
    with writing(folder / "settings.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_page(table, compared, agreed, settings, folder / "nova.html")
    return table


def judge(
    slices: Sequence[Slice],
    answers: Mapping[str, Mapping[str, Mapping[str, Answer]]],
    synonyms: Mapping[str, str] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    split_by: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Judge answers of models, and each reader's boxes as if they were answers.

    Parameters
    ----------
    slices : sequence of Slice
    answers : mapping
        By model, task, and image or case, as :func:`read_answers` gives them.
    synonyms : mapping of str to str, optional
    draws, seed, split_by, progress
        As in :func:`main`.

    Returns
    -------
    table, compared : polars.DataFrame
        What :func:`main` returns; and how diagnoses were compared.
    """
    listed, cases = {one.image for one in slices}, {one.case for one in slices}
    if not slices or len(listed) < len(slices):
        raise BadInput(f"give at least one image, each once; here are {len(slices)}, of them {len(listed)} different")
    entrants = {**answers, **readers(slices)}
    groups = strata(slices, synonyms or {}, split_by)
    rows: list[dict[str, Any]] = []
    compared: list[dict[str, str]] = []
    for turn, (model, tasks) in enumerate(entrants.items()):
        if progress is not None:
            progress(model, turn / len(entrants))
        for task, said in tasks.items():
            strange = sorted(set(said) - (cases if task == "diagnosis" else listed))
            if strange:
                raise BadInput(
                    f"'{model}' answers for '{strange[0]}', which is not listed ({len(strange)} such answers)"
                )
            for stratum, places in groups.items():
                made = _judge(task, [slices[i] for i in places], said, synonyms or {})
                if made is None:
                    continue
                known = {"model": model, "task": task, "stratum": stratum}
                for measure, (value, low, high) in intervals(made, draws, seed).items():
                    rows.append(known | {"measure": measure, "value": value, "low": low, "high": high})
                    rows[-1]["cases"] = len(made.cases)
                if isinstance(made, Diagnosed) and stratum == "all":
                    compared += [{"model": model, "case": c, "said": s, "compared as": n} for c, s, n in made.table]
    numbers = {name: pl.Float64 for name in ("value", "low", "high")}
    words = {name: pl.String for name in ("model", "task", "stratum", "measure")}
    table = pl.DataFrame(rows, schema={**words, **numbers, "cases": pl.Int64})
    table = table.with_columns(pl.col("low", "high").fill_nan(None))
    return table, pl.DataFrame(compared, schema=dict.fromkeys(("model", "case", "said", "compared as"), pl.String))


def prompt(task: str, one: Slice) -> str:
    """Return the question to a model, which comes with the image.

    Examples
    --------
    >>> prompt("localisation", Slice("1", "a.png", (64, 48), np.zeros((0, 4))))[:62]
    'Find all abnormal areas in this brain MRI, 64 pixels wide and '
    """
    if task not in PROMPTS:
        raise UnknownName("task", task, PROMPTS)
    width, height = one.size
    return PROMPTS[task].format(width=width, height=height, history=one.history, caption=one.caption)


def detector_answers(
    names: Sequence[str],
    maps: Sequence[ArrayLike],
    normal_maps: Sequence[ArrayLike],
    *,
    quantile: float = 0.999,
    least: int = 4,
    model: str = "detector",
) -> list[dict[str, Any]]:
    """Turn a detector's maps into lines of ``answers.jsonl``: a box around each part that normal images hardly have.

    Parameters
    ----------
    names : sequence of str
        Of the images.
    maps : sequence of arrays (H, W)
        Of the images' sizes.
    normal_maps : sequence of arrays
        Of normal images that the detector was not fitted to.
    quantile : float
        Of the values of normal maps; what lies above is marked.
    least : int
        Pixels of a marked part.
    model : str

    Returns
    -------
    list of dict

    Examples
    --------
    >>> x = np.zeros((8, 8))
    >>> x[2:5, 3:6] = 2
    >>> detector_answers(["a.png"], [x], [np.ones((8, 8))], model="toy")[0]["answer"]
    '[{"bbox": [3.0, 2.0, 6.0, 5.0], "confidence": 2.0}]'
    """
    if not 0 < quantile < 1:
        raise BadInput(f"'quantile' is between 0 and 1, not {quantile}")
    threshold = float(np.quantile(np.concatenate([np.ravel(one) for one in normal_maps]), quantile))
    lines = []
    for name, drawn in zip(names, maps, strict=True):
        boxes, scores = map_boxes(drawn, threshold, least)
        said = [{"bbox": b, "confidence": s} for b, s in zip(boxes.tolist(), scores.tolist())]
        lines.append({"model": model, "task": "localisation", "image": name, "answer": json.dumps(said)})
    return lines


def _judge(task: str, slices: Sequence[Slice], said: Mapping[str, Answer], synonyms: Mapping[str, str]) -> Judge | None:
    """Make the judge of a task; None where no image takes part."""
    if task == "captioning":
        slices = [one for one in slices if one.caption]
        return Captioned(slices, said) if slices else None
    if task == "diagnosis":
        truth = {one.case: one.diagnosis for one in slices if one.diagnosis}
        return Diagnosed(truth, said, synonyms) if truth else None
    return Boxed(slices, said) if slices else None
