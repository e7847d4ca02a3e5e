"""A causal language model together with what turns texts into its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from farout.errors import BadInput
from farout.kit.training import device_named, torch_or_say

LINE_END = 10  # the byte before a text, where tokens are bytes
_OPENED: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()  # not in detectors, which hold plain state only


@dataclass(frozen=True)
class Language:
    """What reads texts.

    Attributes
    ----------
    model : torch.nn.Module
    name : str
    encode : callable
        A text's tokens, as ids, without a token to begin with.
    piece : callable
        What one token stands for.
    bos : int or None
        The token that begins texts, where the tokenizer puts one there.
    """

    model: Any
    name: str
    encode: Callable[[str], list[int]]
    piece: Callable[[int], str]
    bos: int | None


@dataclass(frozen=True)
class Tokens:
    """A text as its model reads it.

    Attributes
    ----------
    pieces : list of str
        What each token stands for in the text.
    log_p : float64 array (tokens,)
        The log-probability of each, in nats; NaN where nothing predicts it.
    """

    pieces: list[str]
    log_p: np.ndarray

    def least(self, most: int) -> list[str]:
        """Name the least likely tokens, with what stands before them.

        Examples
        --------
        >>> Tokens(["It", " was", " Tuesday"], np.array([np.nan, -0.5, -9.0])).least(1)
        ["' Tuesday' after 'It was' (9.0 nats)"]
        """
        told = []
        for place in np.argsort(self.log_p, kind="stable")[: min(most, (~np.isnan(self.log_p)).sum())].tolist():
            before = "".join(self.pieces[:place])
            after = f" after '{'…' if len(before) > 20 else ''}{before[-20:]}'" if before else ""
            told.append(f"'{self.pieces[place]}'{after} ({-self.log_p[place]:.1f} nats)")
        return told


class Bytes:
    """Tokens are bytes; a text begins after a line end."""

    bos = LINE_END

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Return the text of bytes."""
        return bytes(ids).decode(errors="replace")


def language_of(model: Any, tokenizer: Any = None) -> Language:
    """Open a model, or pair a module with its tokenizer.

    Parameters
    ----------
    model : str, Path, OpenModel or torch.nn.Module
    tokenizer : str, Path, object or "bytes", optional
        The model's own where it is not given.

    Raises
    ------
    BadInput
        There is no tokenizer, or what was opened is no causal language model.
    """
    torch_or_say("reading texts with a language model")
    if isinstance(model, str) and model.startswith("py:"):
        raise BadInput(
            f"'{model}' is code, which a detector, that may come from a file, does not run: open it with "
            "farout.io.models.open_model, and give what that returns"
        )
    if isinstance(model, str | Path):
        from farout.data.pretrained import pretrained, pretrained_names
        from farout.io.models import open_model

        source = pretrained(str(model)) if str(model) in pretrained_names() else model
        elsewhere = tokenizer if isinstance(tokenizer, Path) or tokenizer not in (None, "bytes") else None
        model = open_model(source, tokenizer=elsewhere, device=str(device_named("auto")))
        tokenizer = tokenizer if elsewhere is None else None
    name = getattr(model, "name", type(model).__name__)
    if not callable(getattr(model, "forward", None)):  # an OpenModel
        if not model.causal:
            kind = model.facts.get("architecture")
            raise BadInput(
                f"'{name}' is no causal language model ({kind}, takes {model.takes}), and only these say how likely a "
                "text is"
            )
        tokenizer = model.tokenizer if tokenizer is None else tokenizer
        model = model.model
    if isinstance(tokenizer, str | Path):
        if tokenizer != "bytes":
            raise BadInput(f"the tokenizer of a module is an object, or 'bytes', not '{tokenizer}'")
        tokenizer = Bytes()
    if tokenizer is None:
        raise BadInput(
            f"'{name}' has no tokenizer, so it cannot read texts: name one (--set tokenizer=FOLDER), or 'bytes' where "
            "its tokens are bytes"
        )
    if hasattr(tokenizer, "bos_token_id"):  # one of transformers itself
        from farout.io._tokens import TransformersTokenizer

        tokenizer = TransformersTokenizer(tokenizer)
    piece = getattr(tokenizer, "piece", None) or (lambda one: tokenizer.decode([one]))
    return Language(model, name, tokenizer.encode, piece, getattr(tokenizer, "bos", None))


def kept_open(detector: Any, model: Any, tokenizer: Any) -> Language:
    """Open a model of a detector once, for as long as the detector is there."""
    opened, given = _OPENED.setdefault(detector, {}), (model, tokenizer)
    asked = tuple(str(one) if isinstance(one, str | Path) else id(one) for one in given)
    if asked not in opened:
        opened[asked] = (language_of(*given), given)  # held, so that an id stays theirs
    return opened[asked][0]
