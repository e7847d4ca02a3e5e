"""Quantization: a model in, the same model in fewer bits out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from farout.cards import list_cards

if TYPE_CHECKING:
    from farout.quantize.grid import Grid
    from farout.quantize.recipe import QuantizedModel, Recipe, quantize
    from farout.quantize.scheme import Scheme

_HOME = {
    "Grid": "grid",
    "Scheme": "scheme",
    "QuantizedModel": "recipe",
    "Recipe": "recipe",
    "quantize": "recipe",
}

__all__ = ["Grid", "QuantizedModel", "Recipe", "Scheme", "quantize"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"farout.quantize.{_HOME[name]}"), name)
    for card in list_cards("quantize"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.quantize' has no attribute '{name}'")
