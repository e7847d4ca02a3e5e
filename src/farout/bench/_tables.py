"""Small tables of finished words, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


def as_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align a table for the terminal: the first column to the left, the others to the right.

    Examples
    --------
    >>> print(as_text(["set", "AUROC"], [["glass", "0.7"], ["cardio", "0.935"]]))
    set     AUROC
    glass     0.7
    cardio  0.935
    """
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if j else word.ljust(width) for j, (word, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (head, *rows)
    )


def as_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Write the same table for a page; every word is escaped.

    Examples
    --------
    >>> "<td>&lt;b&gt;</td>" in as_html(["set"], [["<b>"]])
    True
    """
    from markupsafe import Markup

    def cells(tag: str, row: Sequence[str]) -> Markup:
        marks = (Markup(f"<{tag}>" if j == 0 else f'<{tag} class="number">') for j in range(len(row)))
        return Markup("").join(mark + word + Markup(f"</{tag}>") for mark, word in zip(marks, row))

    lines = Markup("").join(Markup("<tr>{}</tr>").format(cells("td", row)) for row in rows)
    table = Markup('<div class="scroll tall"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>')
    return table.format(cells("th", head), lines)
