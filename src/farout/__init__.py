"""farout: find what is far out in data, in a model's inputs and inside a model, and deal with it.

Names load when they are first used, so that ``import farout`` costs little more than the interpreter.

Examples
--------
>>> import farout
>>> farout.__version__
'0.1.0'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from farout.alarm import Alarm
    from farout.cards import Card, find, list_cards, paper
    from farout.contract import Detector, load
    from farout.inspecting import Inspection, inspect
    from farout.scoring import Result, fit, score
    from farout.scoring.ranking import rank

_HOME = {
    "Alarm": "farout.alarm",
    "Card": "farout.cards",
    "Inspection": "farout.inspecting",
    "inspect": "farout.inspecting",
    "find": "farout.cards",
    "fit": "farout.scoring",
    "list_cards": "farout.cards",
    "paper": "farout.cards",
    "rank": "farout.scoring.ranking",
    "Detector": "farout.contract",
    "load": "farout.contract",
    "Result": "farout.scoring",
    "score": "farout.scoring",
}

__all__ = [
    "Alarm",
    "Card",
    "Detector",
    "Inspection",
    "Result",
    "__version__",
    "find",
    "fit",
    "inspect",
    "list_cards",
    "load",
    "paper",
    "rank",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'farout' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
