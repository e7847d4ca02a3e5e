"""The page of an inspected model: what is wrong inside it, what that costs, and what to do about it."""

from __future__ import annotations

import json
import re
import shlex
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.report._inspection_changes import changes
from farout.report._inspection_common import number
from farout.report._inspection_costs import costs, recipes
from farout.report._inspection_sinks import sinks
from farout.report._inspection_stream import growth, heat_maps, layers
from farout.report._page import Section, page, render, table, write

if TYPE_CHECKING:
    from markupsafe import Markup

Inspection = Any  # farout.inspecting.Inspection, which stands above this room and so is not imported
FACTS = ("architecture", "parameters", "size", "stored", "read")  # above everything else; the rest below it
OPEN = 6  # findings that are not folded away
WEIGHTS = 12  # matrices in the table of weights


def write_page(found: Inspection, path: str | PathLike[str]) -> None:
    """Write the page of an inspected model: one HTML file, whole or not at all.

    Parameters
    ----------
    found : Inspection
        From :func:`farout.inspecting.inspect`.
    path : str or path

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from farout.inspecting import inspect
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> write_page(inspect(model, [torch.eye(4)], name="tiny"), target)
    >>> "<h1>tiny</h1>" in target.read_text(encoding="utf-8")
    True
    """
    sections = [
        *changes(found),
        _findings(found),
        *recipes(found),
        *heat_maps(found),
        *growth(found),
        *sinks(found),
        *costs(found),
        *_weights(found),
        layers(found),
        _settings(found),
    ]
    title = f"{found.name} → {found.other.name}" if found.other else found.name
    write(path, page(title, sections, kind="Inside a model", lead=_lead(found), facts=_facts(found)))


def _lead(found: Inspection) -> Markup:
    count = len(found.grave)
    first, *rest = found.verdict()
    first_of = {change.what: change.says for change in reversed(found.finding_changes())}
    turned = [(what, first_of[what]) for what in ("new", "gone") if what in first_of]
    return render("inspection_lead.html", change=found.change(), turned=turned, count=count, first=first, rest=rest)


def _facts(found: Inspection) -> list[tuple[str, str]]:
    """Collect what a reader wants to know of the model before anything else."""
    known = {**found.facts, "read": found.settings.get("read")}
    if known.get("layers") and known.get("width"):
        known["size"] = f"{known['layers']:,} layers of {known['width']:,}"
    facts = {name: _short(known[name]) for name in FACTS if known.get(name) is not None}
    if "architecture" in facts:
        facts["architecture"] = _breakable(facts["architecture"])
    return [(name.capitalize(), value) for name, value in facts.items()]


def _breakable(name: str) -> Markup:
    """Let a long name of a class break where a new word of it begins."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(word) for word in re.split(r"(?<=[a-z])(?=[A-Z])", name))


def _short(value: Any) -> str:
    """Write a large count as millions."""
    return f"{value / 1e6:,.1f} million" if isinstance(value, int) and value >= 1e6 else number(value)


def _findings(found: Inspection) -> Section:
    """One card for each finding, the gravest first; its numbers unfold."""
    cards = [
        {
            "kind": finding.kind,
            "size": number(finding.size),
            "where": finding.where,
            "says": finding.says,
            "remedy": finding.remedy,
            "evidence": [(str(name).replace("_", " "), number(value)) for name, value in finding.evidence.items()],
        }
        for finding in found.findings
    ]
    intro = (
        "The gravest first. The number says how many times a finding exceeds the bound from which it is worth saying."
        if cards
        else ""
    )
    grave = len(found.grave)
    body = render("inspection_findings.html", cards=cards[:grave], first=OPEN, within=cards[grave:], notes=found.notes)
    return Section(f"What stands out in {found.name}" if found.other else "What stands out", body, intro)


def _weights(found: Inspection) -> list[Section]:
    """The weight matrices whose largest element is farthest from the rest, where findings speak of weights."""
    if not any("weight" in finding.kind or "dead" in finding.kind for finding in found.findings):
        return []
    rows = []
    for name in found.recording.names("weight"):
        stats = found.recording[name]
        spots = stats.peaks(1)
        rms = float(np.sqrt((stats.rms**2 * stats.count).sum() / max(stats.count.sum(), 1)))
        if spots and len(stats.position_count) > 1 and rms > 0 and name not in found.recording.aliases:
            peak, row, channel = spots[0]
            rows.append((peak / rms, name, peak, row, channel, stats.kurtosis))
    rows.sort(key=lambda row: -row[0])
    cells = [
        (name, f"{ratio:,.1f}", f"{peak:,.3g}", f"{row:,}", f"{channel:,}", f"{kurtosis:,.1f}")
        for ratio, name, peak, row, channel, kurtosis in rows[:WEIGHTS]
    ]
    head = ("Matrix", "Largest / rms", "Largest", "Output", "Input", "Kurtosis")
    intro = (
        f"The {len(cells)} of {len(rows):,} matrices whose largest element lies farthest out. Kurtosis is 3 where "
        "weights are Gaussian."
    )
    return [Section("Weights", table(head, cells, label="Weight matrices", numbers=head[1:]), intro)]


def _settings(found: Inspection) -> Section:
    settings = dict(found.settings)
    run = {name: number(value) for name, value in settings.items() if not isinstance(value, dict) and name != "command"}
    body = render(
        "inspection_settings.html",
        command=shlex.join(settings.get("command", [])),
        facts=[(str(name), number(value)) for name, value in found.facts.items()],
        run=run,
        groups={name: value for name, value in settings.items() if isinstance(value, dict) and value},
        json=json.dumps(settings, indent=2, default=str),
    )
    return Section("Settings", body, "All that it takes to run this again.")
