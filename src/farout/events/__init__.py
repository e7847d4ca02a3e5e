"""Categorical events: an event in, a score out."""

from __future__ import annotations

from typing import Any

from farout.cards import list_cards


def __getattr__(name: str) -> Any:
    for card in list_cards("events"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.events' has no attribute '{name}'")
