"""Write what the documents know from the code: the pages of the rooms, the catalogue, and the table in the README.

python docs/generate.py            write
python docs/generate.py --check    write nothing; exit 1 and name what is stale
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from farout.cards import ROOMS, Card, list_cards

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "claims/results"
MARK = "<!-- Written by docs/generate.py; edit the cards in the source, or run a claim in full. -->"
BLOCK = re.compile(r"(<!-- methods: .*? -->\n).*?(<!-- end of methods -->)", re.DOTALL)


def main() -> int:
    """Write all generated files, or say which are stale."""
    stale = [path for path, text in generated().items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"'{path.relative_to(ROOT)}' is stale: run 'python docs/generate.py' and commit it", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(generated()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def generated() -> dict[Path, str]:
    """Return every generated file with its text."""
    readme = ROOT / "README.md"
    table = methods_table(list_cards())
    texts = {readme: BLOCK.sub(lambda found: found[1] + table + found[2], readme.read_text("utf-8"))}
    texts[ROOT / "docs/catalogue.md"] = catalogue(list_cards())
    for room in ROOMS:
        if list_cards(room):
            texts[ROOT / f"docs/rooms/{room}.md"] = room_page(room, list_cards(room))
    return texts


def measured(card: Card) -> dict[str, Any] | None:
    """Read the committed result of a method's claim, or None before its first full run."""
    path = RESULTS / f"{card.slug}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def verdict(card: Card) -> str:
    """Say whether a method's claim holds."""
    result = measured(card)
    return "not run in full yet" if result is None else "holds" if result["holds"] else "does not hold"


def methods_table(cards: list[Card]) -> str:
    """Write a row a method, for the README."""
    rows = [
        [f"`{card.slug}`", paper(card), yes(card.streams), yes(card.explains), verdict(card)]
        for card in sorted(cards, key=lambda card: card.slug)
    ]
    return markdown(["method", "paper", "streams", "reasons", "claim"], rows)


def catalogue(cards: list[Card]) -> str:
    """Write every paper with its claim, published beside measured."""
    rows, notes = [], []
    for card in sorted(cards, key=lambda card: (card.room, card.slug)):
        result = measured(card)
        name = f"[{card.name}](rooms/{card.room}.md#{card.slug})"
        if result is None:
            rows.append([name, card.claim, "not run in full yet", "", "", ""])
            continue
        rivals = [f"{number(result[rival][1])} {result[rival][0]}" for rival in ("baseline", "peer")]
        ours = f"**{number(result['ours'])}** {result['measure']}"
        rows.append([name, result["published"], ours, *rivals, f"**{verdict(card)}**"])
        notes.append(note(card, result))
    head = ["paper", "published", "measured", "baseline", "peer", "verdict"]
    return f"""{MARK}

# Published and measured

Every paper's own claim, run again in small. What must be true for a claim to hold is written down before the run, and a
claim that does not hold stands here like one that does. `farout claim NAME` runs it again.

{markdown(head, rows)}
{"".join(notes)}"""


def note(card: Card, result: dict[str, Any]) -> str:
    """Say in words what was measured."""
    seeds = f"seeds {', '.join(map(str, result['seeds']))}" if result["seeds"] else "nothing is drawn"
    machine = f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
    used = ", ".join(f"{name} {result['versions'][name]}" for name in ("farout", "scikit-learn"))
    return f"""
## {card.name}

{result["note"]}

- to hold: {result["threshold"]}
- run: {result["budget"]} budget, {seeds}, {result["seconds"]:.0f} s on {machine}; {used}; {result["date"][:10]}
"""


def room_page(room: str, cards: list[Card]) -> str:
    """Write the page of a room: a table of its methods, and what each card and docstring say."""
    methods = []
    for card in sorted(cards, key=lambda card: card.slug):
        facts = {
            "paper": f"{paper(card)}. {card.authors}",
            "claim": card.claim,
            "measured": f"[{verdict(card)}](../catalogue.md)",
            "differs": card.differs,
            "takes": ", ".join(card.takes) if card.kind != "benchmark" else "",
            **(_scoring(card) if card.kind == "detector" else {"kind": f"{card.kind}, no detector"}),
            "needs": f"`pip install 'farout[{card.extra}]'`" if card.extra else "",
        }
        lines = "\n".join(f"- *{word}*: {text}" for word, text in facts.items() if text)
        source = f"::: {card.module}.{card.attribute}\n    options:\n      show_root_toc_entry: false"
        methods.append(f"## {card.name} {{#{card.slug}}}\n\n{lines}\n\n{source}\n")
    return f"""{MARK}

# {room.capitalize()}

{ROOMS[room][0].upper()}{ROOMS[room][1:]}. `farout list {room}` prints this table, `farout card NAME` a card.

{methods_table(cards)}
{chr(10).join(methods)}"""


def _scoring(card: Card) -> dict[str, str]:
    """Say how a detector scores."""
    return {
        "new rows": "scored one by one" if card.inductive else "not scored",
        "streams": "yes, by `partial_fit` and `merge`" if card.streams else "no",
    }


def paper(card: Card) -> str:
    """Write title, link and year."""
    title = card.title or card.name
    year = f", {card.year}" if card.year else ""
    return f"[{title}]({card.link}){year}" if card.link else f"{title}{year}"


def yes(whether: bool) -> str:
    """Write a mark for true, nothing for false."""
    return "yes" if whether else ""


def number(value: float) -> str:
    """Write a number with four digits."""
    return f"{value:.4g}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Write a table; bars and line breaks within cells do not break it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
