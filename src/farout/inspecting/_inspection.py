"""What looking into a model gives back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.inside._finding import Finding
from farout.inside._recording import Recording
from farout.inspecting import _changes, _costs, _layers
from farout.io.files import writing
from farout.io.tables import write_table

PAGES, TWIN = (".html", ".htm"), ".json"


@dataclass
class Inspection:
    """What was seen inside a model, what it means, and all that a reader needs to judge it.

    Attributes
    ----------
    name : str
        Of the model.
    facts : dict of str to Any
        What the model is: parameters, layers, width, stored format.
    recording : Recording
    findings : list of Finding
        The gravest first.
    costs : list of Cost
        What rounding each linear map costs, one for each.
    takes : str
        ``"tokens"``, ``"pixels"`` or ``"features"``.
    causal : bool
        Whether a token sees only those before it.
    tokens : list of list of str
        The pieces of each sequence of the sample by position; empty where there is no tokenizer.
    notes : list of str
        What a reader should know, in sentences.
    settings : dict
        What would repeat the run: data, sizes, seed, versions; and timings.
    other : Inspection, optional
        That of the model this one is compared with, such as the same one after a change.

    Examples
    --------
    >>> import torch
    >>> from farout.inspecting import inspect
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    >>> found = inspect(model, [torch.tensor([[1.0, 1.0, 1.0, -3.0]])], name="tiny")
    >>> found.name, found.recording["1.in"].absmax.round(2).tolist()
    ('tiny', [0.58, 0.58, 0.58, 1.73])
    """

    name: str
    facts: dict[str, Any]
    recording: Recording
    findings: list[Finding] = field(default_factory=list)
    costs: list[Any] = field(default_factory=list)
    takes: str = "features"
    causal: bool = False
    tokens: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    other: Inspection | None = None

    def frame(self) -> pl.DataFrame:
        """Return one row for each recorded site, as :meth:`farout.inside.Recording.table` does."""
        return self.recording.table()

    @cached_property
    def stream(self) -> list[str]:
        """Sites of the residual stream in their order; the inputs of linear maps in a model without a row of blocks."""
        return _layers.stream_of(self.recording)

    @cached_property
    def layers(self) -> pl.DataFrame:
        """One row for each site of the stream: extremes, quantiles, kurtosis, the first position beside the rest."""
        return _layers.layer_table(self.recording, self.stream, self.pieces)

    @cached_property
    def sinks(self) -> pl.DataFrame:
        """One row for each attention: how much goes to the first position, and where most of it goes."""
        return _layers.sink_table(self.recording, self.pieces)

    @cached_property
    def rounding(self) -> pl.DataFrame:
        """One row for each linear map, scheme and recipe (``"plain"`` or a remedy), with the error that is left."""
        return _costs.rounding_table(self.costs)

    @cached_property
    def recipes(self) -> pl.DataFrame:
        """One row for each scheme and recipe: its errors over all linear maps, and the loss they predict."""
        return _costs.recipe_table(self.rounding)

    @property
    def loss_unit(self) -> str:
        """The unit of the rise of the loss that costs predict, such as ``"nats a token"``; empty without prediction."""
        if not any(cost.loss for cost in self.costs):
            return ""
        if not any(cost.nats for cost in self.costs):
            return _costs.ENERGY
        return "nats a token" if self.takes == "tokens" else "nats a sample"

    @property
    def grave(self) -> list[Finding]:
        """The findings beyond their bounds; the others say that something is as it should be."""
        return [finding for finding in self.findings if finding.size >= 1]

    def best(self, scheme: str) -> str:
        """Return the recipe that leaves the least of the cost of a scheme; empty where none beats plain rounding."""
        found = _costs.best_recipe(self.recipes, scheme)
        return found["recipe"] if found else ""

    def pieces(self, position: int, most: int = 3) -> list[str]:
        """Return the pieces of text at a position, the most frequent first; none where there is no tokenizer."""
        seen = Counter(row[position] for row in self.tokens if position < len(row))
        return [piece for piece, _ in seen.most_common(most)]

    def verdict(self) -> list[str]:
        """Say in a few sentences what is wrong with the model, what that costs, and what to do first."""
        return _costs.verdict(self.name, self.grave, self.recipes, self.loss_unit)

    def compared(self, other: Inspection) -> Inspection:
        """Return this inspection beside that of another model, such as the same one after a change."""
        return dataclasses.replace(self, other=other)

    def changes(self) -> pl.DataFrame:
        """Return one row for each site that both models have, the most changed first; empty without another model."""
        return _changes.site_changes(self.recording, self.other.recording if self.other else Recording())

    def finding_changes(self) -> list[_changes.Change]:
        """Return the findings that appear, vanish or stay in the other model."""
        return _changes.finding_changes(self.findings, self.other.findings) if self.other else []

    def change(self) -> str:
        """Say in a sentence what the other model has changed."""
        return _changes.sentence(self, self.other) if self.other else ""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain numbers, words, lists and dictionaries; what is no finite number is None."""
        found = {
            "name": self.name,
            "facts": self.facts,
            "verdict": self.verdict(),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "layers": self.layers.to_dicts(),
            "sinks": self.sinks.to_dicts(),
            "costs": [dataclasses.asdict(cost) for cost in self.costs],
            "recipes": self.recipes.to_dicts(),
            "sites": self.frame().to_dicts(),
            "notes": self.notes,
            "settings": self.settings,
        }
        if self.other is not None:
            found["compared"] = {
                "says": self.change(),
                "findings": [dataclasses.asdict(change) for change in self.finding_changes()],
                "sites": self.changes().to_dicts(),
                "other": self.other.as_dict(),
            }
        return _finite(found)

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``), all numbers (``.json``) or the table of sites (parquet, feather, csv, jsonl).

        The file is written whole or not at all.
        """
        ending = Path(path).suffix.lower()
        if ending in PAGES:
            from farout.report.inspection import write_page

            write_page(self, path)
        elif ending == TWIN:
            with writing(path) as part:
                part.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        else:
            write_table(self.frame(), path)

    def __repr__(self) -> str:
        said = (f"  {finding.size:9.3g} x  {finding.says}" for finding in self.grave)
        return "\n".join([f"<inspection of '{self.name}': {len(self.grave)} findings>", *said])


def _finite(value: Any) -> Any:
    """Turn arrays, tuples and numbers of numpy into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    if isinstance(value, list | tuple | set):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
