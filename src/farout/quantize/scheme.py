"""Schemes: a grid for weights with one for inputs, and the names that they go by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from farout.errors import BadInput, UnknownName
from farout.quantize.grid import BLOCKS, Grid, listed

__all__ = ["Scheme"]


@dataclass(frozen=True)
class Scheme:
    """A grid for weights and one for inputs.

    Attributes
    ----------
    weights : Grid
    inputs : Grid or None
        None leaves inputs as they are.

    Examples
    --------
    >>> scheme = Scheme.parse("w4a8g64-asym")
    >>> scheme.weights.group, scheme.weights.rule, scheme.inputs.bits, scheme.inputs.per
    (64, 'asymmetric', 8, 'token')
    >>> str(scheme)
    'w4a8g64-asym'
    """

    weights: Grid
    inputs: Grid | None = None

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """Make the scheme of a name.

        Parameters
        ----------
        name : str
            ``w4a16``: weights of 4 bits with a step a row, inputs as they are; ``w4a16g128``: a step a 128 inputs;
            ``w8a8``: inputs of 8 bits with a step a token, from the token itself. ``-asym`` (or ``-narrow``,
            ``-clamped``, ``-free``) names the rule of the weights, and ``-tensor`` gives the inputs one step from
            calibration. ``fp8`` (a step a row and a token), ``fp8-tensor`` (one step each), ``mxfp4``, ``nvfp4``, and
            ``fp8a16``, ``mxfp4a16``, ``nvfp4a16`` for weights alone. What ``str`` gives for any other scheme is read
            too.

        Returns
        -------
        Scheme

        Raises
        ------
        UnknownName
            No scheme is so called.
        BadInput
            The name has a form that is known, and numbers that are not.
        """
        text = name.strip().lower()
        if text.startswith("{"):
            return cls.from_dict(_json(name))
        if text in _NAMED:
            return _NAMED[text]
        found = re.fullmatch(r"w(\d+)a(\d+)(?:g(\d+))?(?:-(asym|narrow|clamped|free))?(-tensor)?", text)
        if found is None:
            raise UnknownName("scheme", name, _KNOWN)
        bits, of_inputs, group, rule, whole = found.groups()
        if int(of_inputs) == 16 and whole:
            raise BadInput(f"'{name}' leaves inputs at 16 bits, so '-tensor' says nothing; leave it out")
        if not 2 <= int(bits) <= 8 or int(of_inputs) not in (*range(2, 9), 16):
            raise BadInput(f"'{name}': weights have 2 to 8 bits, inputs 2 to 8, or 16 to stay as they are")
        if group is not None and int(group) == 0:
            raise BadInput(f"'{name}': a group has at least one value; leave 'g0' out for a step a row")
        size = int(group or 0)
        weights = Grid(int(bits), "group" if size else "channel", size, _RULES.get(rule, rule or "full"))
        if int(of_inputs) == 16:
            return cls(weights)
        return cls(weights, Grid(int(of_inputs), "tensor" if whole else "token", dynamic=not whole))

    def __str__(self) -> str:
        """Return the name that :meth:`parse` reads; plain data in JSON where there is none."""
        for name, scheme in _NAMED.items():
            if scheme == self:
                return name
        w, x = self.weights, self.inputs
        name = f"w{w.bits}a{x.bits if x else 16}" + (f"g{w.group}" if w.group else "")
        name += "" if w.rule == "full" else f"-{'asym' if w.rule == 'asymmetric' else w.rule}"
        name += "-tensor" if x and x.per == "tensor" else ""
        return name if Scheme.parse(name) == self else json.dumps(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the scheme as plain data."""
        return {"weights": self.weights.as_dict(), "inputs": self.inputs.as_dict() if self.inputs else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scheme:
        """Make a scheme of what :meth:`as_dict` returned.

        Raises
        ------
        BadInput
            The data are not a scheme's.
        """
        if "weights" not in data or not set(data) <= {"weights", "inputs"}:
            raise BadInput(f"a scheme has 'weights' and 'inputs', not {listed(data) or 'nothing'}")
        inputs = data.get("inputs")
        return cls(Grid.from_dict(data["weights"]), Grid.from_dict(inputs) if inputs else None)


def _json(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise BadInput(f"a scheme that starts with a brace is read as JSON, and this is none: {error}") from error


def _floating(name: str) -> Scheme:
    """Return a scheme of floats by its name."""
    if name in BLOCKS:
        grid = Grid(4, "group", BLOCKS[name], kind=name)
        # nvfp4 inputs have a global scale from calibration
        return Scheme(grid, replace(grid, dynamic=name == "mxfp4"))
    per = {"fp8": ("channel", "token"), "fp8-tensor": ("tensor", "tensor")}[name]
    return Scheme(Grid(8, per[0], kind="float"), Grid(8, per[1], kind="float", dynamic=per[1] == "token"))


_RULES = {"asym": "asymmetric"}
_NAMED = {name: _floating(name) for name in ("fp8", "fp8-tensor", "mxfp4", "nvfp4")}
_NAMED |= {f"{name}a16": replace(_NAMED[name], inputs=None) for name in ("fp8", "mxfp4", "nvfp4")}
_KNOWN = ["w4a16g128", "w4a16", "w3a16g128-asym", "w8a16", "w8a8", "w8a8-tensor", "w4a8g128", "w4a4", *_NAMED]
