"""What the texts and pages of several suites share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from farout.bench import _figures as figures
from farout.bench._published import AS_PYOD
from farout.bench._tables import as_html
from farout.bench.stats import complete_sets, groups, mean_ranks, nemenyi_cd
from farout.bench.suites import matrix
from farout.cards import find
from farout.contract import Detector
from farout.report._page import Section, figure

if TYPE_CHECKING:
    from markupsafe import Markup

SUITES = ("adbench/", "macrodata/")


def short(name: str) -> str:
    """Drop the suite from a set's name, and the folder and the ending from a file's.

    Examples
    --------
    >>> short("adbench/glass"), short("macrodata/oddbench/SurveyError"), short("mine/boilers.npz")
    ('glass', 'oddbench/SurveyError', 'boilers')
    """
    if name.endswith(".npz"):
        return Path(name).stem
    return name.removeprefix(next((suite for suite in SUITES if name.startswith(suite)), ""))


def detectors(methods: Iterable[str]) -> dict[str, Detector]:
    """Methods with their defaults, and as PyOD computes them where that is something else."""
    made: dict[str, Detector] = {}
    for card in map(find, methods):
        made[card.attribute] = card.load()()
        if card.name in AS_PYOD:
            variant, parameters = AS_PYOD[card.name]
            made[variant] = card.load()(**parameters)
    return made


def compared(table: pl.DataFrame, measure: str = "auroc") -> tuple[list[str], list[str], np.ndarray]:
    """Arrange a measure by set and method, as ``matrix`` does, without the methods that ran nowhere."""
    sets, methods, values = matrix(table, measure)
    ran = ~np.isnan(values).all(axis=0)
    return sets, [method for method, there in zip(methods, ran) if there], values[:, ran]


def ranks(table: pl.DataFrame, title: str) -> list[Section]:
    """Mean ranks with Nemenyi's critical difference; nothing where fewer than two methods share a set."""
    _, names, values = compared(table)
    n = int((~np.isnan(values)).all(axis=1).sum())
    if len(names) < 2 or n == 0:
        return []
    places, cd = mean_ranks(values), nemenyi_cd(len(names), n)
    fig = figures.critical_difference(names, places, groups(names, places, cd=cd), cd)
    best = names[int(np.argmin(places))]
    alt = f"Mean ranks of {len(names)} methods; {best} ranks best with {places.min():.2f}."
    means = complete_sets(values).mean(axis=0)
    intro = (
        f"Mean rank by AUROC over the {n} sets on which every method ran; {best} ranks best ({places.min():.2f}), "
        f"{names[int(np.argmax(means))]} has the best mean AUROC ({means.max():.3f}). Methods that share a bar are not "
        "told apart (Nemenyi, 5 %)."
    )
    return [Section(title, figure(fig, alt), intro)]


def failures(table: pl.DataFrame) -> list[str]:
    """Name the cells that failed, and why."""
    failed = table.filter(pl.col("error").is_not_null())
    alike = failed.group_by("method", "protocol", "error", maintain_order=True).agg(pl.col("set").unique())
    return [
        f"{method} on {', '.join(sorted(map(short, sets)))}, {protocol}: {error}"
        for method, protocol, error, sets in alike.iter_rows()
    ]


def ending(table: pl.DataFrame, settings: dict[str, Any]) -> list[Section]:
    """The last sections of a page: what failed, if anything, and the settings."""
    failed = failures(table)
    sections = [Section("What failed", as_html(["cell"], [[line] for line in failed]))] if failed else []
    return [*sections, Section("Settings", _settings(settings))]


def _settings(settings: dict[str, Any]) -> Markup:
    from markupsafe import Markup

    return Markup("<pre>{}</pre>").format(json.dumps(settings, indent=2, default=repr))
