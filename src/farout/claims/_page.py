"""The page of a claim: the verdict, three bars, and every number behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from farout.bench._tables import as_html
from farout.cards import find
from farout.claims._claim import Claim, compared, number, table
from farout.report._page import Section, page, write

if TYPE_CHECKING:
    from markupsafe import Markup


def write_page(claim: Claim, circumstances: dict[str, Any], path: Path) -> None:
    """Write the page, whole or not at all; it has no script and weighs a few kilobytes."""
    from markupsafe import Markup

    card = find(claim.paper)
    machine = circumstances["machine"]
    verdict = "holds" if claim.holds else "does not hold"
    lead = Markup("The claim <strong>{}</strong>. {}").format(verdict, claim.note)
    words = {"published": claim.published, "threshold, written before the run": claim.threshold}
    terms = Markup('<dl class="terms">{}</dl>').format(
        Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(*item) for item in words.items())
    )
    sections = [Section("Claim", terms), Section("Measured", _bars(claim), claim.measure)]
    sections += [Section(title, as_html(*table(rows))) for title, rows in claim.numbers.items() if rows]
    facts = [
        ("budget", claim.budget),
        ("seeds", ", ".join(map(str, claim.seeds)) or "nothing drawn"),
        ("seconds", number(claim.seconds)),
        ("date", circumstances["date"][:10]),
        ("commit", circumstances["commit"] or "unknown"),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
    ]
    write(path, page(card.title or card.name, sections, kind=f"claim of {card.name}", lead=lead, facts=facts))


def _bars(claim: Claim) -> Markup:
    """Ours, the baseline and the peer as bars on one scale from 0."""
    from markupsafe import Markup

    most = max(value for _, value in compared(claim)) or 1.0
    bar = Markup(
        '<dt>{}</dt><dd><span style="display:inline-block;height:0.7em;margin-right:8px;width:{:.1f}%;'
        'background:var({})"></span>{}</dd>'
    )
    colours = ("--accent", "--data", "--data")
    return Markup('<dl class="terms">{}</dl>').format(
        Markup("").join(
            bar.format(name, 70 * max(value, 0) / most, colour, number(value))
            for (name, value), colour in zip(compared(claim), colours)
        )
    )
