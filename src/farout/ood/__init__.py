"""Out of distribution: a model and its inputs in, a score for each input out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from farout.cards import list_cards

if TYPE_CHECKING:
    from farout.ood._score import Score
    from farout.ood.views import Viewer, Views, extract
    from farout.ood.watch import Watch

_HOME = {"Score": "_score", "Viewer": "views", "Views": "views", "Watch": "watch", "extract": "views"}

__all__ = ["Score", "Viewer", "Views", "Watch", "extract"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"farout.ood.{_HOME[name]}"), name)
    for card in list_cards("ood"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.ood' has no attribute '{name}'")
