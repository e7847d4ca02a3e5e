"""The shell of every page: one HTML file that needs no network, light or dark as the reader's system is.

A page is a title, a lead, a few facts and sections. What comes from data is escaped: jinja2 escapes it in HTML,
:func:`figure` in JSON and in plotly's own small markup, and a content security policy lets a browser run only the two
scripts whose hashes it names, so that text which slipped through would still be dead.

Figures are plain plotly dictionaries. Instead of a colour they may name one of the page's (``"var(--accent)"``, and
``--ink``, ``--muted``, ``--rule``, ``--data``), which then follows the theme.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.io.files import writing

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

DIGITS = 5  # of the numbers in a figure, counted against the span of their array: finer than any screen


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    title : str
    body : Markup
        From :func:`render`, :func:`figure` or a sum of them.
    intro : str or Markup
        A sentence or two on how to read it.
    """

    title: str
    body: Markup
    intro: str | Markup = ""

    @property
    def anchor(self) -> str:
        """Its address in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(
    title: str,
    sections: Sequence[Section],
    *,
    kind: str = "",
    lead: str | Markup = "",
    facts: Iterable[tuple[str, str]] = (),
    script: str = "",
) -> str:
    """Return a whole page.

    Parameters
    ----------
    title : str
    sections : sequence of Section
    kind : str
        What sort of page it is, in a few words above the title.
    lead : str or Markup
        The result in a few sentences.
    facts : iterable of (str, str)
        Short labels and values under the lead.
    script : str
        A file in ``report/templates`` that the page needs beside its figures.

    Returns
    -------
    str
        HTML, about 5 MB when it holds a figure, since plotly.js is in it.

    Examples
    --------
    >>> from markupsafe import Markup
    >>> html = page("<b>", [Section("First", Markup("<p>1 &lt; 2</p>"))])
    >>> "<title>&lt;b&gt;" in html, "<p>1 &lt; 2</p>" in html
    (True, True)
    """
    from markupsafe import Markup

    scripts = []
    if any('class="plot"' in section.body for section in sections):
        scripts = [_plotly(), _text("page.js")]
    if script:
        scripts.append(_text(script))
    return render(
        "page.html",
        title=title,
        kind=kind,
        lead=lead,
        facts=list(facts),
        sections=sections,
        style=Markup(_text("page.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
    )


def write(path: str | PathLike[str], html: str) -> None:
    """Write a page, whole or not at all.

    Parameters
    ----------
    path : str or path
    html : str

    Raises
    ------
    BadInput
        When it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> target = Path(tempfile.mkdtemp()) / "page.html"
    >>> write(target, page("Nothing yet", []))
    >>> target.read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """
    with writing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(template: str, /, **values: Any) -> Markup:
    """Fill a template of this room; values that are not :class:`markupsafe.Markup` are escaped.

    Parameters
    ----------
    template : str
        File in ``report/templates``.
    **values
        What it names.
    """
    from markupsafe import Markup

    return Markup(_templates().get_template(template).render(values))


def figure(fig: Mapping[str, Any], alt: str, caption: str | Markup = "") -> Markup:
    """Return a plotly figure for the body of a section.

    Parameters
    ----------
    fig : mapping
        ``data`` and ``layout``; arrays are shortened, NaN and infinity become gaps.
    alt : str
        What it shows, for readers who do not see it.
    caption : str or Markup
        How it was made.

    Examples
    --------
    >>> fig = {"data": [{"y": np.array([1 / 3, np.nan]), "text": ["a", plain("</script>")]}], "layout": {}}
    >>> "0.33333,null" in figure(fig, "two points"), "</script>]" in figure(fig, "two points")
    (True, False)
    """
    from markupsafe import Markup

    height = int(fig["layout"].get("height", 400))
    return render("figure.html", json=Markup(as_json(fig)), alt=alt, caption=caption, height=height)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, numbers: Sequence[str] = ()) -> Markup:
    """Return a table that scrolls inside its own box.

    Parameters
    ----------
    head : sequence of str
    rows : iterable of sequences of str
        The first cell of each names the row.
    label : str
        What it holds, for readers who do not see it.
    numbers : sequence of str
        Which of ``head`` are set flush right.

    Examples
    --------
    >>> "<td>&lt;1</td>" in table(["set", "p"], [("wine", "<1")], label="p-values")
    True
    """
    return render("table.html", head=head, rows=rows, label=label, numbers=numbers)


def as_json(value: Any) -> str:
    """Write a figure as JSON that can stand in a script element: no ``<``, ``>`` or ``&`` is left."""
    text = json.dumps(_shortened(value), separators=(",", ":"), allow_nan=False)  # ASCII only
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def plain(text: str, most: int = 80) -> str:
    """Make text from data safe for plotly, which reads tags and entities in labels, and cut it where it is long.

    Examples
    --------
    >>> plain("<b>A&B</b>"), plain("a" * 9, most=5)
    ('&lt;b&gt;A&amp;B&lt;/b&gt;', 'aaaa…')
    """
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _shortened(value: Any) -> Any:
    """Turn arrays into lists, numbers into short ones, and what JSON cannot hold into None."""
    if isinstance(value, Mapping):
        return {key: _shortened(part) for key, part in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return _short_floats(value)
    if isinstance(value, np.ndarray | np.generic):
        return _shortened(value.tolist())
    if isinstance(value, list | tuple):
        return [_shortened(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if np.isfinite(value) else None
    return value


def _short_floats(array: np.ndarray) -> list[Any]:
    """Keep as many digits of each number as tell ``10 ** DIGITS`` places in the span of the array apart."""
    if array.ndim > 1:
        return [_short_floats(row) for row in array]
    finite = np.isfinite(array)
    largest, span = np.abs(array[finite]).max(initial=0), np.ptp(array[finite]) if finite.any() else 0.0
    digits = DIGITS + (min(11, int(np.log10(largest / span))) if 0 < span < largest else 0)
    return [float(f"{x:.{digits}g}") if known else None for x, known in zip(array.tolist(), finite.tolist())]


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("farout.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["grouped"] = "{:,}".format
    return made


@cache
def _text(name: str) -> str:
    return files("farout.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Read plotly.js from the installed package."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Hash a script the way a content security policy names it."""
    return f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}"
