"""What a model is calibrated with: windows of a text, drawn at random, alike in number, length and special tokens.

Calibration sets can only be compared where they are matched in these three, since the first tokens of a sequence are
often the largest inside a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from farout.data.texts import text
from farout.errors import BadInput, MissingExtra

__all__ = ["RANDOM_TOKENS", "calibration", "token_windows", "windows_of"]

RANDOM_TOKENS = "random-tokens"
LONGEST_TOKEN = 32  # characters of a token, at most on average: so many hold a window whatever the tokenizer
STRETCH = 4  # windows' worth of text that is taken from one place of a long text


def calibration(
    texts: str | Path | Sequence[str],
    reader: Any,
    *,
    samples: int = 128,
    length: int = 512,
    seed: int = 0,
    batch_size: int = 4,
) -> list[Any]:
    """Draw windows of exactly ``length`` tokens from a text, no two of which overlap.

    Parameters
    ----------
    texts : str, path or list of str
        What :func:`farout.data.texts.text` takes, or texts, which are joined by blank lines. ``"random-tokens"`` draws
        tokens in place of a text, all of the vocabulary equally often.
    reader : OpenModel or Tokenizer
        What was opened by :func:`farout.io.models.open_model`, or its tokenizer. Special tokens that it puts around a
        text stand around every window, and count.
    samples, length : int
        Windows, and tokens of each.
    seed : int
        For the places. A text of more than 32 characters for each token that is asked for is first thinned out to as
        many, by stretches that are drawn as well.
    batch_size : int

    Returns
    -------
    list
        Of dicts with ``input_ids`` and ``attention_mask`` (B, length), or of bare tensors where the model takes these.

    Raises
    ------
    BadInput
        The text holds fewer windows, or the model sees fewer tokens at once.
    UnknownName, DataMissing
        There is no such text.

    Examples
    --------
    >>> from farout.io._tokens import PieceTokenizer
    >>> letters = PieceTokenizer(["<s>", *map(chr, range(32, 127))], [0.0] * 96, [], {0}, 0)
    >>> batches = calibration("ascii", letters, samples=6, length=16)
    >>> [tuple(batch["input_ids"].shape) for batch in batches], batches[0]["input_ids"][:, 0].tolist()
    ([(4, 16), (2, 16)], [0, 0, 0, 0])
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("calibrating a model", "torch") from error
    if samples < 1 or batch_size < 1:
        raise BadInput(f"samples and batch size are 1 at least, not {samples} and {batch_size}")
    rng = np.random.default_rng(seed)
    if isinstance(texts, str) and texts == RANDOM_TOKENS:
        known = _fact(reader, "vocabulary")
        if not known:
            raise BadInput("random tokens are drawn from the vocabulary of a model: give what open_model returned")
        ids_SL = _framed(rng.integers(known, size=(samples, _room(reader, length))), *_frame(reader))
    else:
        ids_SL = _cut(_thinned(_joined(texts), samples, length, rng), reader, length)
        if len(ids_SL) < samples:
            raise BadInput(
                f"the text holds {len(ids_SL)} windows of {length} tokens, and {samples} are asked for: give more "
                "text, or ask for fewer or shorter ones"
            )
        ids_SL = rng.permutation(ids_SL)[:samples]
    parts = torch.from_numpy(ids_SL).split(batch_size)
    if not getattr(reader, "keywords", True):
        return list(parts)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in parts]


def token_windows(texts: str | Path | Sequence[str], reader: Any, length: int, stride: int | None = None) -> np.ndarray:
    """Tokenise a text once, and cut it into windows side by side; what is left at its end is dropped.

    Parameters
    ----------
    texts : str, path or list of str
        Name or file of a text; or texts, which are joined by blank lines.
    reader : OpenModel or Tokenizer
        Special tokens that it puts around a text stand around every window.
    length : int
        Tokens of a window, special ones included.
    stride : int, optional
        Tokens of text from the beginning of a window to that of the next; by default they stand side by side.

    Returns
    -------
    int64 array (windows, length)

    Raises
    ------
    BadInput
        The model has no tokenizer, or not this one, or sees fewer tokens at once.
    UnknownName, DataMissing
        There is no such text.
    """
    return _cut(_joined(texts), reader, length, stride)


def windows_of(ids: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Return the whole windows (n, length) of a row of tokens that begin every ``stride`` tokens.

    Examples
    --------
    >>> windows_of(np.arange(7), 3, 3).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    starts = np.arange(0, len(ids) - length + 1, stride)
    return ids[starts[:, None] + np.arange(length)]


def _joined(texts: str | Path | Sequence[str]) -> str:
    return text(texts) if isinstance(texts, str | Path) else "\n\n".join(texts)


def _cut(whole: str, reader: Any, length: int, stride: int | None = None) -> np.ndarray:
    """Tokenise a text and cut it."""
    room = _room(reader, length)
    tokenizer = _tokenizer(reader)
    if tokenizer is None:
        raise BadInput(f"'{reader.name}' has no tokenizer: name one when it is opened")
    ids = np.asarray(tokenizer.encode(whole), dtype=np.int64)
    known = _fact(reader, "vocabulary")
    if known and ids.max(initial=0) >= known:
        raise BadInput(
            f"the tokenizer gives the id {ids.max()}, and the model knows {known} tokens: they do not belong together"
        )
    return _framed(windows_of(ids, room, stride or room), *_frame(reader))


def _thinned(whole: str, samples: int, length: int, rng: np.random.Generator) -> str:
    """Keep stretches of a long text that are drawn at random, in their order: tokenising all of it would take long."""
    most = LONGEST_TOKEN * samples * length
    if len(whole) <= most:
        return whole
    wide = STRETCH * LONGEST_TOKEN * length
    starts = np.sort(rng.permutation(len(whole) // wide)[: -(-most // wide)]) * wide
    return "".join(whole[start : start + wide] for start in starts.tolist())


def _tokenizer(reader: Any) -> Any:
    return reader if hasattr(reader, "encode") else reader.tokenizer


def _fact(reader: Any, name: str) -> int | None:
    """Return what an opened model says of itself."""
    return (getattr(reader, "facts", None) or {}).get(name)


def _frame(reader: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that stand before and after a text."""
    tokenizer = _tokenizer(reader)
    if tokenizer is None:
        return [], []
    framed, bare = tokenizer.framed("a"), tokenizer.encode("a")
    at = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:at], framed[at + len(bare) :]


def _room(reader: Any, length: int) -> int:
    """Return how many tokens of text a window holds."""
    positions = _fact(reader, "positions")
    if positions and length > positions:
        raise BadInput(f"'{reader.name}' sees {positions} tokens at once, and windows of {length} are asked for")
    room = length - sum(map(len, _frame(reader)))
    if room < 1:
        raise BadInput(f"a window of {length} tokens has no room for text beside the special ones")
    return room


def _framed(body_SR: np.ndarray, before: list[int], after: list[int]) -> np.ndarray:
    """Put special tokens around rows of tokens."""
    rows = len(body_SR)
    return np.concatenate([np.tile(before, (rows, 1)), body_SR, np.tile(after, (rows, 1))], axis=1).astype(np.int64)
