"""What a claim is, and how it is run.

A file ``farout/claims/<slug>.py`` holds ``THRESHOLD``, a sentence that was written before the run and says what must be
true for the claim to hold, and ``claim(budget, progress) -> Claim``. A claim that does not hold is a result like any
other: its note says so, and why as far as it was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from farout.bench import _tables
from farout.cards import find, list_cards
from farout.errors import UnknownName

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
