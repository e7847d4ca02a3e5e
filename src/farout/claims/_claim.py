"""What a claim is, and how it is run, written and read.

A file ``farout/claims/<slug>.py`` holds ``THRESHOLD``, a sentence that was written before the run and says what must be
true for the claim to hold, and ``claim(budget, progress) -> Claim``. A claim that does not hold is a result like any
other: its note says so, and why as far as it was found.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from farout.bench import _tables
from farout.cards import find, list_cards
from farout.errors import BadInput, UnknownName
from farout.io.files import writing
from farout.scoring import versions

BUDGETS = ("small", "full")
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Claim:
    """A paper's claim and what was measured.

    Attributes
    ----------
    paper : str
        The method's name in the catalogue.
    published : str
        What the paper says, with its number.
    measure : str
        What ``ours``, ``baseline`` and ``peer`` count, such as ``"mean AUROC over 39 sets"``.
    ours : float
    baseline, peer : (str, float)
        The paper's own baseline and a strong method of today: name and number.
    ratio : float
        ``ours`` over the number of the baseline.
    threshold : str
        What must be true for the claim to hold, written before the run.
    holds : bool
    note : str
        The result in plain words and, where the claim does not hold, the reason as far as it was found.
    numbers : dict of str to list of dict
        Tables with everything that was measured, by title: a list of rows.
    seeds : tuple of int
        Empty where nothing was drawn.
    budget : {"small", "full"}
    seconds : float
        How long the run took.

    Examples
    --------
    >>> one = Claim("Toy", "best of two", "AUROC", 0.9, ("LOF", 0.6), ("KNN", 0.8), "ours is the best", True, "It is.")
    >>> one.ratio
    1.5
    """

    paper: str
    published: str
    measure: str
    ours: float
    baseline: tuple[str, float]
    peer: tuple[str, float]
    threshold: str
    holds: bool
    note: str
    numbers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    budget: str = "small"
    seconds: float = 0.0

    @property
    def ratio(self) -> float:
        """``ours`` over the number of the baseline."""
        return self.ours / self.baseline[1]


def run(slug: str, budget: str = "small", progress: Progress | None = None) -> Claim:
    """Run the claim of a paper.

    Parameters
    ----------
    slug : str
        A method of the catalogue.
    budget : {"small", "full"}
        ``"small"`` takes seconds; ``"full"`` is what ``claims/results`` holds and may take minutes.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    Claim

    Raises
    ------
    UnknownName
        No method has that name, it has no claim yet, or the budget is another.
    """
    card = find(slug)
    if budget not in BUDGETS:
        raise UnknownName("budget", budget, BUDGETS)
    name = f"farout.claims.{card.slug}"
    if find_spec(name) is None:
        with_claim = [one.slug for one in list_cards() if find_spec(f"farout.claims.{one.slug}")]
        raise UnknownName("claim", card.slug, with_claim)
    started = time.perf_counter()
    claim = import_module(name).claim(budget, progress or (lambda what, done: None))
    return replace(claim, seconds=round(time.perf_counter() - started, 2))


def save(claim: Claim, folder: str | Path = "claims/results") -> Path:
    """Write a claim as JSON, with the machine, versions, commit and date, and a page beside it.

    Parameters
    ----------
    claim : Claim
    folder : path
        Made where it is missing.

    Returns
    -------
    pathlib.Path
        The JSON, ``<slug>.json``; the page is ``<slug>.html``. Each is written whole or not at all.
    """
    from farout.claims._page import write_page

    path = Path(folder) / f"{find(claim.paper).slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    circumstances = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count()},
        "versions": versions(),
    }
    values = asdict(claim) | {"ratio": claim.ratio}
    with writing(path) as temporary:
        temporary.write_text(json.dumps(values | circumstances, indent=1) + "\n", encoding="utf-8")
    write_page(claim, circumstances, path.with_suffix(".html"))
    return path


def read(path: str | Path) -> Claim:
    """Read a claim that :func:`save` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Claim

    Raises
    ------
    BadInput
        The file is missing or holds no claim.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {one.name: values[one.name] for one in fields(Claim)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"'{path}' holds no claim ({type(error).__name__}: {error}); write one with save") from error
    pairs = {name: tuple(known[name]) for name in ("baseline", "peer", "seeds")}
    return Claim(**known | pairs)


def as_text(claim: Claim) -> str:
    """Write a claim for the terminal."""
    verdict = "HOLDS" if claim.holds else "DOES NOT HOLD"
    lines = [
        f"{claim.paper}: {verdict} ({claim.budget} budget, {claim.seconds:.1f} s)",
        f"  published  {claim.published}",
        f"  threshold  {claim.threshold}",
        f"  measured   {claim.note}",
        "",
        _tables.as_text([claim.measure, ""], [[name, number(value)] for name, value in compared(claim)]),
    ]
    for title, rows in claim.numbers.items():
        lines += ["", title, _tables.as_text(*table(rows))]
    return "\n".join(lines)


def compared(claim: Claim) -> list[tuple[str, float]]:
    """Return the three numbers that stand against each other, with their names."""
    return [
        (claim.paper, claim.ours),
        (f"{claim.baseline[0]} (baseline)", claim.baseline[1]),
        (f"{claim.peer[0]} (peer)", claim.peer[1]),
    ]


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Turn the rows of a table of numbers into finished words."""
    head = list(rows[0])
    return head, [[number(row[name]) for name in head] for row in rows]


def number(value: Any) -> str:
    """Write a fraction with four digits, and anything else as it is."""
    return f"{value:#.4g}".rstrip(".") if isinstance(value, float) else "-" if value is None else str(value)


def _commit() -> str | None:
    """Return the commit of the work tree that farout is run from, marked where files were changed since."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        done = subprocess.run([*here, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    """Return the model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
