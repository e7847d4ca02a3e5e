"""A causal language model together with what turns texts into its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farout.errors import BadInput

LINE_END = 10  # the byte before a text, where tokens are bytes


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
    tokenizer : object or "bytes", optional
        Of a module.

    Raises
    ------
    BadInput
        There is no tokenizer, or what was opened is no causal language model.
    """
    if isinstance(model, str | Path):
        from farout.io.models import open_model

        model = open_model(model)
    name = getattr(model, "name", type(model).__name__)
    if not callable(getattr(model, "forward", None)):  # an OpenModel
        if not model.causal:
            raise BadInput(f"'{name}' is no causal language model (it takes {model.takes}), and gives no likelihood")
        model, tokenizer = model.model, model.tokenizer
    if tokenizer is None:
        raise BadInput(
            f"'{name}' has no tokenizer, so it cannot read texts: give one, or tokenizer='bytes' where tokens are bytes"
        )
    if isinstance(tokenizer, str):
        if tokenizer != "bytes":
            raise BadInput(f"a tokenizer is an object, or 'bytes', not '{tokenizer}'")
        tokenizer = Bytes()
    if hasattr(tokenizer, "bos_token_id"):  # of transformers, which says by what it does whether texts get a beginning
        begin = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
        bos = tokenizer.bos_token_id if begin else None
        encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))  # noqa: E731
    else:
        bos, encode = getattr(tokenizer, "bos", None), tokenizer.encode
    piece = getattr(tokenizer, "piece", None) or (lambda one: tokenizer.decode([one]))
    return Language(model, name, encode, piece, bos)
