"""What the parts of an inspected model's page share: names of layers, colours, numbers and pieces of text in words."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from farout.report._page import plain

# From nothing to far out; on dark paper the colours run from dark to light.
GRAVE = [[0.0, "var(--wash)"], [0.45, "var(--accent-soft)"], [0.8, "var(--accent)"], [1.0, "var(--ink)"]]
BARE = {"showgrid": False, "zeroline": False}
_LISTED = 12  # items of a list that are written out


def layer_names(found: Any) -> list[str]:
    """Name the rows of a picture: "in" for what enters the first block, then numbers."""
    return ["in" if layer < 0 else str(layer) for layer in found.layers["layer"].to_list()]


def layer_ticks(names: list[str]) -> dict[str, Any]:
    """Return the labels of an axis of layers: every few of them, so that they do not touch."""
    every = max(1, len(names) // 12)
    places = [place for place, name in enumerate(names) if name == "in" or int(name) % every == 0]
    if names and names[0] == "in" and len(places) > 1 and every > 1 and places[1] - places[0] < every:
        places = [0, *places[2:]]
    return {"tickvals": places, "ticktext": [names[place] for place in places]}


def has_positions(found: Any) -> bool:
    """Whether positions mean tokens (or patches), so that the first is a place of its own."""
    return found.takes == "tokens" or bool(found.sinks.height)


def number(value: Any) -> str:
    """Write a number, a word or a list of them as a reader wants to see it.

    Examples
    --------
    >>> number(134515008), number(0.0123456), number([1, ["a", 2.5]]), number("float16"), number(None)
    ('134,515,008', '0.0123', '1, a 2.5', 'float16', '–')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            return "–" if np.isnan(value) else "∞"
        return f"{value:,.0f}" if 1000 <= abs(float(value)) < 1e7 else f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(part)}" for key, part in list(value.items())[:_LISTED])
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _LISTED:,} more" if len(value) > _LISTED else ""
        parts = (" ".join(map(number, part)) if isinstance(part, list | tuple) else number(part) for part in value)
        return (", ".join(islice(parts, _LISTED)) + more) or "none"
    return "–" if value is None else str(value)


def log_axis(values: np.ndarray) -> dict[str, Any]:
    """Return a logarithmic axis; where it spans little, not only the powers of ten have labels."""
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (np.log10(known.min()), np.log10(known.max())) if known.size else (0.0, 1.0)
    axis = {"type": "log", "exponentformat": "power"}
    if high - low > 1.5:
        return axis | {"dtick": 1}
    marks = (1, 2, 5) if high - low > 0.6 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    steps = [k * 10.0**power for power in range(int(np.floor(low)), int(np.ceil(high)) + 1) for k in marks]
    return axis | {"tickvals": steps, "ticktext": [number(step) for step in steps]}


def pieces_in_words(pieces: list[str]) -> str:
    """Quote the pieces of text at a position."""
    return f" ({', '.join(repr(piece) for piece in pieces)})" if pieces else ""


def quoted(pieces: list[str]) -> str:
    """Quote pieces of text for the labels of a figure."""
    return plain(", ".join(repr(piece) for piece in pieces), 40)
