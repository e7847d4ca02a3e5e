"""Texts by name: for calibrating a model, and for measuring what it has lost."""

from __future__ import annotations

import gettext
import lzma
import string
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from farout.data._find import DataMissing, find
from farout.data.samples import sample_texts
from farout.errors import BadInput, UnknownName

__all__ = ["text", "text_names"]

DRAWN = 1 << 22  # characters of a text that is drawn
LONGEST_NAME = 1000  # characters of a path
SENTENCE = 40  # characters of a message that is more than a label


def text_names() -> list[str]:
    """List the names that :func:`text` knows.

    Examples
    --------
    >>> text_names()[:3]
    ['classics', 'classics-valid', 'wikitext2']
    """
    return list(_KNOWN)


def text(name: str | Path) -> str:
    r"""Return a text.

    Parameters
    ----------
    name : str or path
        A text file in UTF-8, plain or ``.xz``, or one of these names:

        ===================== ==========================================================================
        ``classics``          155 books of before 1929, 61 million characters (of ``FAROUT_DATA``)
        ``classics-valid``    3 other books of their authors
        ``wikitext2``         WikiText-2, test, tokenised as published (``<unk>``, ``@-@``)
        ``wikitext2-valid``   the same, validation
        ``new-authors``       5 books by authors that are not in ``classics``
        ``tinyshakespeare``   Shakespeare's plays, 1.1 million characters
        ``code``              the top modules of Python's standard library
        ``licences``          the licences of the Python packages that are installed
        ``german`` ``russian`` messages of the programs that are installed, translated
        ``ascii``             punctuation marks of ASCII, drawn at random: nonsense
        ``built-in``          :func:`farout.data.sample_texts`
        ===================== ==========================================================================

        ``code``, ``licences`` and the messages are what this machine has, and differ from one to another.

    Raises
    ------
    UnknownName
        There is neither such a name nor such a file.
    DataMissing
        This machine does not have it.
    BadInput
        The file is no text, or ``name`` is one itself.

    Examples
    --------
    >>> text("built-in")[:35], len(text("ascii"))
    ('The ferry left the pier eleven minu', 4194304)
    """
    if str(name) in _KNOWN:
        return _KNOWN[str(name)]()
    if "\n" in str(name) or len(str(name)) > LONGEST_NAME:
        raise BadInput("a text was given where the name of one is expected; put it in a list")
    path = Path(name)
    if not path.is_file():
        raise UnknownName("text or text file", str(name), _KNOWN)
    return _read(path)


def _read(path: Path) -> str:
    """Read a file."""
    try:
        with lzma.open(path) if path.suffix == ".xz" else open(path, "rb") as file:
            return file.read().decode("utf-8-sig")
    except (UnicodeDecodeError, lzma.LZMAError) as error:
        raise BadInput(f"'{path}' cannot be read as text in UTF-8, plain or .xz: {error}") from error


def _found(name: str) -> str:
    """Read a file of the data folder."""
    return _read(find(f"text/{name}.txt.xz"))


def _code() -> str:
    """Join the modules of the standard library that are no packages."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if not paths:
        raise DataMissing("this Python has no sources of its standard library; name another text")
    return "\n\n".join(path.read_text("utf-8", errors="replace") for path in paths)


def _licences() -> str:
    """Join the licences of installed packages, each wording once."""
    files = [file for one in distributions() for file in one.files or () if file.parts[0].endswith(".dist-info")]
    paths = [Path(str(file.locate())) for file in files if file.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))]
    texts = {path.read_text("utf-8", errors="replace"): path.name for path in paths if path.is_file()}
    if not texts:
        raise DataMissing("no package that is installed brings its licence; name another text")
    return "\n\n".join(sorted(texts))


def _messages(language: str) -> str:
    """Join the translated messages of programs that are sentences, each once."""
    found: dict[str, None] = {}  # in the order of the catalogues: sorted, like would stand beside like
    for folder in ("/usr/share/locale", Path(sys.prefix) / "share" / "locale"):
        for path in sorted(Path(folder).glob(f"{language}/LC_MESSAGES/*.mo")):
            try:
                with open(path, "rb") as file:
                    catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            except (OSError, UnicodeError, ValueError):
                continue  # a damaged catalogue, of a program that is none of our business
            found |= dict.fromkeys(s for asked, s in catalogue.items() if asked and len(s) > SENTENCE and " " in s)
    if not found:
        raise DataMissing(f"no program that is installed speaks '{language}'; name another text")
    return "\n\n".join(found)


def _ascii() -> str:
    """Draw punctuation marks, always the same."""
    marks = np.frombuffer(string.punctuation.encode(), np.uint8)
    return np.random.default_rng(0).choice(marks, DRAWN).tobytes().decode()


_KNOWN: dict[str, Callable[[], str]] = {
    "classics": partial(_found, "classics/train"),
    "classics-valid": partial(_found, "classics/valid"),
    "wikitext2": partial(_found, "wikitext2/test"),
    "wikitext2-valid": partial(_found, "wikitext2/valid"),
    "new-authors": partial(_found, "classics/test_newauthors"),
    "tinyshakespeare": partial(_found, "tinyshakespeare"),
    "code": _code,
    "licences": _licences,
    "german": partial(_messages, "de"),
    "russian": partial(_messages, "ru"),
    "ascii": _ascii,
    "built-in": lambda: "\n\n".join(sample_texts()),
}
