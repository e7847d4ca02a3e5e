"""``farout card``: what the catalogue knows of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from farout.cards import Card


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command()(card)


def card(name: Annotated[str, typer.Argument(help="See 'farout list'.")]) -> None:
    """Show a method: its paper, its claim, where it departs from it, and its parameters."""
    import inspect
    import textwrap

    from farout.cards import ROOMS, find

    known = find(name)
    facts = {
        "paper": f"{known.authors}, {known.year}" if known.authors else str(known.year),
        "link": known.link,
        "room": f"{known.room}: {ROOMS[known.room]}",
        "import": f"from {known.module} import {known.attribute}",
        "claim": known.claim,
        "differs": known.differs,
        "takes": ", ".join(known.takes) if known.kind != "benchmark" else "",
        **(_scoring(known) if known.kind == "detector" else {"kind": f"{known.kind}, no detector"}),
        "needs": f"pip install 'farout[{known.extra}]'" if known.extra else "",
        "parameters": ", ".join(f"{p.name}={p.default!r}" for p in inspect.signature(known.load()).parameters.values()),
    }
    print(f"{known.name} - {known.title}" if known.title else known.name)
    for word, text in facts.items():
        if text:
            print(textwrap.fill(text, 100, initial_indent=f"{word:>11}  ", subsequent_indent=" " * 13))


def _scoring(known: Card) -> dict[str, str]:
    """Say how a detector scores."""
    return {
        "new rows": "scored one by one" if known.inductive else "not scored: only the rows it was fitted on",
        "streams": "yes: partial_fit and merge" if known.streams else "no",
        "reasons": "yes" if known.explains else "by leaving columns out",
    }
