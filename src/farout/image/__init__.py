"""Images: a score each, and where in them; detectors of defects, and what they stand on.

>>> from farout.image import Backbone, PatchCore
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from farout.cards import list_cards

if TYPE_CHECKING:
    from farout.image._detector import ImageDetector, map_like
    from farout.image.backbones import Backbone

_HOME = {"Backbone": "backbones", "ImageDetector": "_detector", "map_like": "_detector"}

__all__ = ["Backbone", "ImageDetector", "map_like"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"farout.image.{_HOME[name]}"), name)
    for card in list_cards("image"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.image' has no attribute '{name}'")
