"""``farout list``: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    """Add the verb to the program."""
    app.command("list")(list_methods)


def list_methods(room: Annotated[str | None, typer.Argument(help="table, events, series, image ...")] = None) -> None:
    """List the methods, or those of one room."""
    from rich.console import Console
    from rich.table import Table

    from farout.cards import ROOMS, list_cards

    cards = list_cards(room)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "room", "year", "streams", "reasons", "method"):
        table.add_column(name, no_wrap=name != "method")
    for card in cards:
        marks = ("yes" if card.streams else "", "yes" if card.explains else "")
        table.add_row(card.slug, card.room, str(card.year or ""), *marks, card.title or card.name)
    Console(width=None if cards else 80).print(table)
    if room is not None and not cards:
        print(f"no method in '{room}' yet ({ROOMS[room]})")
