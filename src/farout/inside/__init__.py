"""The inside of a model: a model (and data) in, facts about its numbers out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from farout.cards import list_cards

if TYPE_CHECKING:
    from farout.inside._onnx import record_onnx
    from farout.inside.diagnosis import Finding, diagnose
    from farout.inside.quantization_cost import Cost, quantization_costs
    from farout.inside.recorder import Recording, record

_HOME = {
    "Recording": "recorder",
    "record": "recorder",
    "record_onnx": "_onnx",
    "Cost": "quantization_cost",
    "quantization_costs": "quantization_cost",
    "Finding": "diagnosis",
    "diagnose": "diagnosis",
}

__all__ = ["Cost", "Finding", "Recording", "diagnose", "quantization_costs", "record", "record_onnx"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"farout.inside.{_HOME[name]}"), name)
    for card in list_cards("inside"):
        if card.attribute == name:
            return card.load()
    raise AttributeError(f"module 'farout.inside' has no attribute '{name}'")
