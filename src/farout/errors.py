"""The error family: each says what is wrong, what was seen and what to do, with names in quotes and numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn.exceptions import NotFittedError

    class NotFitted(NotFittedError):
        """A detector was asked for scores before ``fit``."""


class FaroutError(Exception):
    """Base of every error that farout raises on purpose; the command line prints its one line and exits with 1."""


class BadInput(FaroutError, ValueError):
    """The data, a file or an option cannot be used as it is."""


class NotIdentity(FaroutError, ValueError):
    """A rewrite that must leave the model's output unchanged changed it."""


class MissingExtra(FaroutError, ImportError):
    """A part of farout needs a package that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed: pip install 'farout[{extra}]'")


class UnknownName(FaroutError, LookupError):
    """A name that is in no list; the nearest known names are offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} is called '{name}'; {nearest(name, known)}")


class NothingMatched(FaroutError, LookupError):
    """A pattern that matches nothing; the nearest names are offered."""

    def __init__(self, kind: str, pattern: str, known: Iterable[str]) -> None:
        super().__init__(f"no {kind} matches '{pattern}'; {nearest(pattern, known)}")


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """Say which known names are nearest to ``name``, or the first few where none is near.

    Examples
    --------
    >>> nearest("ecodd", ["ecod", "copod", "lof"])
    "nearest: 'ecod', 'copod'"
    """
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.5)
    words = [by_lower[word] for word in near] or sorted(by_lower.values())[:12]
    label = "nearest" if near else "known"
    return f"{label}: " + (", ".join(f"'{word}'" for word in words) or "none")


def __getattr__(name: str) -> Any:
    # NotFitted is also scikit-learn's NotFittedError, so that either can be caught. scikit-learn takes a second to
    # import, so the class is made when it is first asked for.
    if name != "NotFitted":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sklearn.exceptions import NotFittedError

    made = type(
        "NotFitted",
        (FaroutError, NotFittedError),
        {"__doc__": "A detector was asked for scores before fit.", "__module__": __name__},
    )
    globals()[name] = made
    return made
