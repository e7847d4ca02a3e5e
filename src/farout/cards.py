"""The catalogue: one card a paper, read from the source text without importing the method.

A card is the literal inside ``@paper(...)`` above a class or function in a room's file. Reading it takes no import, so
listing the catalogue loads neither torch nor scikit-learn. Other packages join through the entry point
``farout.papers``, whose values name a class (``"their_package.module:Class"``).
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, TypeVar

from farout.errors import BadInput, UnknownName

ROOMS = {
    "table": "tables: a row in, a score out",
    "events": "categorical events: an event in, a score out",
    "series": "time series: windows or points in, a score out",
    "image": "images in, a score and a map out",
    "video": "video in, a score a frame out",
    "audio": "sound in, a score out",
    "text": "text in, a score out",
    "ood": "a model and its inputs in, a score out",
    "inside": "a model in, facts about its numbers out",
    "quantize": "a model in, the same model in fewer bits out",
    "train": "data in, a trained model out",
    "bench": "methods in, numbers about methods out",
}

Method = TypeVar("Method")


@dataclass(frozen=True)
class Card:
    """What the catalogue knows of one method.

    Attributes
    ----------
    name : str
        The literature's name, such as ``"ECOD"``.
    room, slug : str
        Folder and file: the method lives in ``farout.<room>.<slug>``.
    attribute : str
        The class or function in that file.
    title, authors, arxiv, url, year
        The paper.
    claim : str
        What the paper says of itself, with its number.
    differs : str
        Where this code departs from the paper or from the official code.
    takes : tuple of str
        What the input may hold beyond plain numbers: ``"numeric"``, ``"missing"``, ``"category"``, ``"date"``,
        ``"infinite"``.
    inductive : bool
        Whether new rows can be scored one at a time.
    streams : bool
        Whether the method learns by ``partial_fit`` and its states merge.
    explains : bool
        Whether it gives ``reasons``.
    kind : str
        ``"detector"`` (samples in, a score each out), ``"ranker"`` (a table and a label in, a score a column out),
        ``"selector"`` (a table and an outcome in, the columns worth keeping out), ``"regressor"`` (a table and an
        outcome in, the predicted outcome out; a classifier may stand beside it), ``"measure"`` (data in, numbers about
        it out), ``"recipe"`` (a model in, the same model in fewer bits out), ``"score"`` (views of a model in, a score
        an input out), ``"training"`` (batches in, a loss out) or ``"benchmark"`` (methods in, numbers about them out:
        a function).
    extra : str
        The optional dependency it needs, empty for none.
    module : str
        Where it is imported from.
    """

    name: str
    room: str
    slug: str
    attribute: str
    module: str
    title: str = ""
    authors: str = ""
    year: int = 0
    arxiv: str = ""
    url: str = ""
    claim: str = ""
    differs: str = ""
    takes: tuple[str, ...] = ("numeric",)
    inductive: bool = True
    streams: bool = False
    explains: bool = False
    kind: str = "detector"
    extra: str = ""

    @property
    def link(self) -> str:
        """Where the paper can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url

    def load(self) -> Any:
        """Import the method and return its class or function."""
        return getattr(import_module(self.module), self.attribute)

    def as_dict(self) -> dict[str, Any]:
        """Return the card as plain data."""
        return asdict(self)


_PLACE = {"name", "room", "slug", "attribute", "module"}
_WORDS = set(Card.__dataclass_fields__) - _PLACE


def paper(name: str, **facts: Any) -> Callable[[Method], Method]:
    """Put a class or function into the catalogue under ``name``.

    Parameters
    ----------
    name : str
        The literature's name of the method.
    **facts
        Fields of :class:`Card`, written as literals, because the catalogue reads them from the source text.

    Examples
    --------
    >>> @paper("Toy", year=2026, claim="none")
    ... class Toy: ...
    >>> Toy.__paper__
    'Toy'
    """
    unknown = sorted(set(facts) - _WORDS)
    if unknown:
        raise UnknownName("field of a card", unknown[0], _WORDS)

    def mark(method: Method) -> Method:
        method.__paper__ = name  # type: ignore[attr-defined]
        return method

    return mark


def _cards_in(path: Path, module: str, room: str) -> list[Card]:
    """Read the cards from one source file."""
    text = path.read_text(encoding="utf-8")
    if "@paper(" not in text:
        return []
    found = []
    for node in ast.parse(text, filename=str(path)).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "paper":
                try:
                    name = ast.literal_eval(mark.args[0])
                    facts = {word.arg: ast.literal_eval(word.value) for word in mark.keywords if word.arg}
                    card = Card(name, room, path.stem, node.name, module, **facts)
                except (ValueError, TypeError, IndexError) as error:
                    raise BadInput(f"the card of '{node.name}' in '{module}' must be a literal: {error}") from error
                found.append(card)
    return found


@cache
def _catalogue() -> dict[str, Card]:
    """Every card, by slug; a file with several methods lists each under its lower-case name."""
    here = Path(__file__).parent
    cards = []
    for room in ROOMS:
        for path in sorted((here / room).rglob("[!_]*.py")):
            dotted = ".".join(path.relative_to(here).with_suffix("").parts)
            cards += _cards_in(path, f"farout.{dotted}", room)
    for entry in metadata.entry_points(group="farout.papers"):
        spec = util.find_spec(entry.module)
        if spec and spec.origin:
            mine = [c for c in _cards_in(Path(spec.origin), entry.module, "") if c.attribute == entry.attr]
            cards += [Card(**{**asdict(c), "room": _room_of(c)}) for c in mine]
    by_slug: dict[str, Card] = {}
    for card in cards:
        by_slug[card.slug if card.slug not in by_slug else card.name.lower()] = card
    return by_slug


def _room_of(card: Card) -> str:
    """Name the room of a method from another package: the last part of its module that is one, else 'table'."""
    rooms = [part for part in card.module.split(".") if part in ROOMS]
    return rooms[-1] if rooms else "table"


def list_cards(room: str | None = None, kind: str | None = None) -> list[Card]:
    """Return the cards of a room and kind, or all of them, in the catalogue's order.

    Examples
    --------
    >>> "ECOD" in [card.name for card in list_cards("table")]
    True
    """
    if room is not None and room not in ROOMS:
        raise UnknownName("room", room, ROOMS)
    return [card for card in _catalogue().values() if room in (None, card.room) and kind in (None, card.kind)]


def find(name: str) -> Card:
    """Return the card called ``name``: its slug, or the literature's name in any case.

    Raises
    ------
    UnknownName
        When no method has that name; the nearest are offered.

    Examples
    --------
    >>> find("ecod").name
    'ECOD'
    """
    cards = _catalogue()
    by_word = {slug.lower(): card for slug, card in cards.items()} | {c.name.lower(): c for c in cards.values()}
    if name.lower() not in by_word:
        raise UnknownName("method", name, cards)
    return by_word[name.lower()]
