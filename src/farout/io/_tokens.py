"""Text to token ids and back: tokenizers of folders through transformers, those of GGUF files from their metadata."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from farout.errors import BadInput

_SPACE = "▁"
_CONTROL, _USER_DEFINED = 3, 4  # of the kinds of token in GGUF metadata: these stand in a text as they are
# How vocabularies of bytes cut text before they merge, by their name in GGUF metadata, for the commonest.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "gpt-2": None,
    "smollm": r"\p{N}",
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}


class Tokenizer(Protocol):
    """What is needed of a tokenizer.

    Attributes
    ----------
    bos : int or None
        The token that the model wants at the beginning of a text; None where it wants none.
    """

    bos: int | None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, and nothing around them."""

    def framed(self, text: str, most: int | None = None) -> list[int]:
        """Return the ids of a text with the special tokens that the model wants around it, ``most`` at most."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens."""

    def piece(self, id: int) -> str:
        """Return what one token looks like in a text; the name of a special one."""


class TransformersTokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.bos: int | None = tokenizer.bos_token_id if begins else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, and nothing around them."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def framed(self, text: str, most: int | None = None) -> list[int]:
        """Return the ids of a text as the model wants it; where it is cut, the special tokens at its end stay."""
        return list(self.tokenizer(text, truncation=most is not None, max_length=most, verbose=False)["input_ids"])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def piece(self, id: int) -> str:
        """Return what one token looks like."""
        text = str(self.tokenizer.decode([id], clean_up_tokenization_spaces=False))
        return text if text and "\ufffd" not in text else str(self.tokenizer.convert_ids_to_tokens(id))


class ByteTokenizer:
    """Byte-pair encoding of bytes, as of GPT-2, run by the tokenizers package."""

    def __init__(self, engine: Any, special: set[int], bos: int | None) -> None:
        self.engine, self.special, self.bos = engine, special, bos

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, and nothing before them."""
        return list(self.engine.encode(text, add_special_tokens=False).ids)

    def framed(self, text: str, most: int | None = None) -> list[int]:
        """Return the ids of a text, after the token for its beginning where the model wants one."""
        return _begun(self, text, most)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self.engine.decode([id for id in ids if id not in self.special], skip_special_tokens=False))

    def piece(self, id: int) -> str:
        """Return what one token looks like."""
        text = str(self.engine.decode([id], skip_special_tokens=False))
        return text if text and "\ufffd" not in text else str(self.engine.id_to_token(id))


class PieceTokenizer:
    """SentencePiece's byte-pair encoding: of all neighbours that make a piece, those with the highest score join first.

    Parameters
    ----------
    pieces : list of str
        Spaces are U+2581 in them, and bytes are ``<0xNN>``.
    scores : sequence of float
        Higher scores merge first.
    whole : list of int
        Pieces that stand in a text as they are, such as tags and runs of line ends; they are found before the rest.
    special : set of int
        Pieces that are no text.
    bos : int, optional
        What a text begins with.
    spaced : bool
        A space is put before a text.
    unknown : int
        For bytes that are no piece.

    Examples
    --------
    >>> tokenizer = PieceTokenizer(["<s>", "a", "b", "ab", "▁", "ba", "▁ab"], [0, -9, -9, -2, -9, -1, -3], [], {0}, 0)
    >>> tokenizer.encode("ab ab"), tokenizer.encode("bab")
    ([3, 6], [5, 2])
    >>> tokenizer.framed("ab ab"), tokenizer.decode([0, 3, 6])
    ([0, 3, 6], 'ab ab')
    """

    def __init__(
        self,
        pieces: list[str],
        scores: Sequence[float],
        whole: Sequence[int],
        special: set[int],
        bos: int | None,
        spaced: bool = False,
        unknown: int = 0,
    ) -> None:
        self.pieces, self.special, self.bos, self.spaced, self.unknown = pieces, special, bos, spaced, unknown
        self.ids = {piece: id for id, piece in enumerate(pieces)}
        self.scores = [float(score) for score in scores]
        words = sorted((pieces[id].replace(_SPACE, " ") for id in whole if pieces[id]), key=len, reverse=True)
        self.whole = {pieces[id].replace(_SPACE, " "): id for id in whole}
        self.cut = re.compile("(" + "|".join(map(re.escape, words)) + ")") if words else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, and nothing before them."""
        ids: list[int] = []
        for part in self.cut.split(" " + text if self.spaced else text) if self.cut else [text]:
            ids += [self.whole[part]] if part in self.whole else self._merged(part.replace(" ", _SPACE))
        return ids

    def framed(self, text: str, most: int | None = None) -> list[int]:
        """Return the ids of a text, after the token for its beginning where the model wants one."""
        return _begun(self, text, most)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens."""
        raw = b"".join(self._bytes(id) for id in ids if id not in self.special)
        text = raw.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.spaced else text

    def piece(self, id: int) -> str:
        """Return what one token looks like."""
        return self.pieces[id].replace(_SPACE, " ")

    def _bytes(self, id: int) -> bytes:
        piece = self.pieces[id]
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return self.piece(id).encode("utf-8", "surrogateescape")

    def _merged(self, text: str) -> list[int]:
        """Join neighbours, the pair with the highest score first and the leftmost of equals, until no pair is left."""
        part: list[str] = list(text)
        after = [*range(1, len(part)), -1]
        before = list(range(-1, len(part) - 1))
        heap: list[tuple[float, int, str]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] >= 0:
                both = part[left] + part[after[left]]
                if both in self.ids:
                    heapq.heappush(heap, (-self.scores[self.ids[both]], left, both))

        for left in range(len(part)):
            offer(left)
        while heap:
            _, left, both = heapq.heappop(heap)
            right = after[left]
            if not part[left] or right < 0 or part[left] + part[right] != both:
                continue  # one of the two has found another neighbour meanwhile
            part[left], part[right] = both, ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            offer(before[left])
            offer(left)
        ids: list[int] = []
        for word in filter(None, part):
            raw = [f"<0x{byte:02X}>" for byte in word.encode("utf-8", "surrogateescape")]
            ids += [self.ids[word]] if word in self.ids else [self.ids.get(byte, self.unknown) for byte in raw]
        return ids


def _begun(tokenizer: Tokenizer, text: str, most: int | None) -> list[int]:
    """Put the token for a beginning first."""
    return [*([] if tokenizer.bos is None else [tokenizer.bos]), *tokenizer.encode(text)][:most]


def folder_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a transformers folder; None where there is none.

    Raises
    ------
    BadInput
        There are files of a tokenizer which transformers cannot read.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        return None
    from transformers import AutoTokenizer

    try:
        return TransformersTokenizer(
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
    except Exception as error:
        raise BadInput(
            f"transformers cannot read the tokenizer in '{folder}': {error}; repair it, or name another one"
        ) from error


def file_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json.

    Raises
    ------
    BadInput
        It is damaged, or of a kind that this version does not know.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        return TransformersTokenizer(PreTrainedTokenizerFast(tokenizer_file=str(path)))
    except Exception as error:
        raise BadInput(f"'{path}' cannot be read as a tokenizer: {error}; fetch it again") from error


def gguf_tokenizer(fields: dict[str, Any]) -> Tokenizer | None:
    """Make the tokenizer that GGUF metadata describes; None where its kind is not known here, or there is none."""
    get: Any = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}.get
    pieces, kind = get("tokens"), get("model")
    if not pieces:
        return None
    types = get("token_type")
    types = [1] * len(pieces) if types is None else types.tolist()
    special = {id for id, of in enumerate(types) if of == _CONTROL}
    whole = [id for id, of in enumerate(types) if of in (_CONTROL, _USER_DEFINED)]
    bos = get("bos_token_id")
    if kind == "llama":
        return PieceTokenizer(
            pieces,
            get("scores"),
            whole,
            special,
            bos if get("add_bos_token", True) else None,
            spaced=get("add_space_prefix", True),
            unknown=get("unknown_token_id", 0),
        )
    if kind == "gpt2" and get("pre") in _CUTS:
        engine = _bytes_engine(pieces, get("merges"), _CUTS[get("pre")], whole, special)
        return ByteTokenizer(engine, special, bos if get("add_bos_token", False) else None)
    return None


def converted_tokenizer(path: Path) -> Tokenizer | None:
    """Have transformers make the tokenizer of a GGUF file, which takes long; None where it cannot."""
    from transformers import AutoTokenizer

    try:
        return TransformersTokenizer(
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        )
    except Exception:  # of many kinds: a missing vocabulary, an unknown kind, a damaged one
        return None


def _bytes_engine(pieces: list[str], merges: list[str], cut: str | None, whole: list[int], special: set[int]) -> Any:
    """Set up the tokenizers package for a vocabulary of bytes."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    engine = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        )
    )
    own = cut is not None and cut != _CUTS["smollm"]  # GPT-2's own pattern is what ByteLevel brings
    steps = [] if cut is None else [pre_tokenizers.Split(Regex(cut), behavior="isolated")]
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own)]
    )
    engine.decoder = decoders.ByteLevel()
    added = [AddedToken(pieces[id], special=id in special, normalized=False) for id in whole]
    engine.add_tokens(added)
    return engine
