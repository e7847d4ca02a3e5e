"""Tables: rows in, a score each out."""

from __future__ import annotations

from typing import Any

from farout.cards import list_cards


def __getattr__(name: str) -> Any:
    for card in list_cards("table"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.table' has no attribute '{name}'")
