"""The tables of the table benchmark as finished words, for its text and its page."""

from __future__ import annotations

import numpy as np
import polars as pl

from farout.bench._parts import failures, short
from farout.bench._published import PUBLISHED, SOURCES, beside, numbers_of_others
from farout.bench._tables import as_text
from farout.bench.suites import matrix

VERDICT = {True: "yes", False: "no", None: "-"}


def as_words(table: pl.DataFrame, agreed: pl.DataFrame, tolerance: float) -> str:
    """Write the tables for the terminal, in percent: ours, then the published number where there is one."""
    parts = []
    for (protocol,), part in table.group_by("protocol", maintain_order=True):
        pairs = beside(part, numbers_of_others(PUBLISHED))
        for measure in ("auroc", "ap"):
            parts.append(f"{measure.upper()} in percent, {protocol}: ours/published")
            parts.append(as_text(*score_rows(part, pairs, measure)))
    parts += [
        f"not found, and left out: '{source}', {words}"
        for source, words in SOURCES.items()
        if numbers_of_others(source) is None
    ]
    if len(agreed):
        parts.append(
            f"absolute difference in AUROC points, sets used whole; tolerance {100 * tolerance:g} in the median"
        )
        parts.append(as_text(*agreement_rows(agreed)))
    parts += [f"failed: {line}" for line in failures(table)]
    return "\n\n".join(parts)


def score_rows(table: pl.DataFrame, pairs: pl.DataFrame, measure: str) -> tuple[list[str], list[list[str]]]:
    """Arrange one measure of one protocol, sets down and methods across, with the mean at the end."""
    sets, methods, ours = matrix(table, measure)
    theirs = np.full_like(ours, np.nan)
    for name, method, number in pairs.select("set", "method", f"their_{measure}").drop_nulls().iter_rows():
        theirs[sets.index(name), methods.index(method)] = number
    both = np.where(np.isnan(theirs), np.nan, ours)
    rows = [[short(name), *map(_cell, ours[i], theirs[i])] for i, name in enumerate(sets)]
    complete = ~np.isnan(ours).any(axis=1)
    rows.append([f"mean of {complete.sum()} where all ran", *(_cell(mean, np.nan) for mean in _means(ours[complete]))])
    rows.append(["mean where published", *map(_cell, _means(both), _means(theirs))])
    return ["set", *methods], rows


def agreement_rows(agreed: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Arrange the agreement in points of AUROC."""
    rows = []
    for source, protocol, method, sets, median, largest, where, within in agreed.iter_rows():
        words = [f"{method} ({protocol})", source.split()[0], str(sets), f"{100 * median:.2f}", f"{100 * largest:.1f}"]
        rows.append([*words, short(where), VERDICT[within]])
    return ["method", "against", "sets", "median", "largest", "where", "within"], rows


def _means(values: np.ndarray) -> np.ndarray:
    """Means of the columns over what is there, NaN where nothing is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=0) / there.sum(axis=0)


def _cell(ours: float, theirs: float) -> str:
    """Two numbers in percent, a dash for what is missing."""
    words = ["-" if np.isnan(value) else f"{100 * value:.1f}" for value in (ours, theirs)]
    return words[0] if np.isnan(theirs) else "/".join(words)
