"""All scores as dots in lanes, with the alarm line through them: HTML that needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from farout.report._page import render

if TYPE_CHECKING:
    from markupsafe import Markup

DOTS = 4000  # of all lanes; where there are more, those below the line are thinned out
ROWS = 5  # that dots of a lane are spread over, so that fewer cover each other
FAR = 30  # times the median, from which the axis steps in logarithms


def lanes(
    groups: Sequence[tuple[str, np.ndarray]],
    scores: np.ndarray,
    alarms: np.ndarray,
    names: Sequence[str],
    line: float | None,
    held: np.ndarray | None,
    shown: set[int],
) -> Markup:
    """Draw a lane for each group of images.

    Parameters
    ----------
    groups : sequence of (str, int array)
        Names, and rows.
    scores, alarms : arrays (n,)
    names : sequence of str
        Of the images.
    line : float or None
    held : float array (m,) or None
        Scores of the normal images that set the line, a lane of their own.
    shown : set of int
        Rows that a click can lead to.
    """
    every = scores if held is None else np.concatenate([scores, held])
    low, high = float(every.min()), float(max(every.max(), every.max() if line is None else line))
    logarithmic = low > 0 and high > FAR * float(np.median(every))
    bent = np.log if logarithmic else np.asarray
    start, span = float(bent(low)), float(bent(high) - bent(low)) or 1.0

    def at(value: float) -> float:
        return round(2 + 96 * (float(bent(value)) - start) / span, 2)

    step = max(1, -(-len(scores) // DOTS))
    drawn = []
    if held is not None:
        dots = [_dot(at(value), place, f"score {value:.4g}", False, "") for place, value in enumerate(held.tolist())]
        drawn.append({"name": "set the line", "count": len(held), "dots": dots[:: max(1, len(dots) // 1000)]})
    for name, rows in groups:
        ordered = rows[np.argsort(scores[rows], kind="stable")]
        kept = [row for place, row in enumerate(ordered.tolist()) if alarms[row] or row in shown or place % step == 0]
        dots = [
            _dot(
                at(scores[row]),
                place,
                f"{names[row]}: score {scores[row]:.4g}",
                bool(alarms[row]),
                f"#image-{row}" if row in shown else "",
            )
            for place, row in enumerate(kept)
        ]
        drawn.append({"name": name, "count": len(rows), "dots": dots})
    ticks = np.exp(np.linspace(start, start + span, 5)) if logarithmic else np.linspace(low, low + span, 5)
    return render(
        "images_lanes.html",
        lanes=drawn,
        line=None if line is None else {"x": at(line), "text": f"alarm line {line:.4g}"},
        ticks=[{"x": at(value), "text": f"{value:.3g}"} for value in ticks.tolist()],
        logarithmic=logarithmic,
    )


def _dot(x: float, place: int, title: str, alarm: bool, link: str) -> dict[str, object]:
    y = 14 + 72 * (place * 2 % ROWS) / (ROWS - 1)
    return {"x": x, "y": round(y), "title": title, "alarm": alarm, "link": link}
