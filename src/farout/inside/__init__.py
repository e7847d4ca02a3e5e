"""The inside of a model: a model (and data) in, facts about its numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farout.cards import list_cards

if TYPE_CHECKING:
    from farout.inside.recorder import Recording, record

__all__ = ["Recording", "record"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from farout.inside import recorder

        return getattr(recorder, name)
    for card in list_cards("inside"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.inside' has no attribute '{name}'")
