"""Texts: a text in, a score out."""

from __future__ import annotations

from typing import Any

from farout.cards import list_cards


def __getattr__(name: str) -> Any:
    for card in list_cards("text"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.text' has no attribute '{name}'")
