"""A model that was opened, and how data become what it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.io._pixels import Pixels
from farout.io._tokens import Tokenizer

_SEED = 0
_BYTES = 256  # ids that are drawn where it is not known how many tokens there are


@dataclass
class OpenModel:
    """A model that is ready to run, and what is known about it.

    Attributes
    ----------
    name : str
        Short, for titles.
    model : torch.nn.Module
        In evaluation mode; float32 unless asked for otherwise. For an ONNX file an object with ``path`` and ``inputs``
        that is called with arrays (``model(input_ids=...)``) and returns arrays by name; it is no module of torch.
    takes : str
        ``"tokens"``, ``"pixels"`` or ``"features"``.
    causal : bool
        Whether it gives logits for the next token.
    tokenizer : Tokenizer or None
        With ``encode(text)``, ``framed(text, most)``, ``decode(ids)``, ``piece(id)`` and ``bos``.
    facts : dict of str to Any
        ``parameters``, ``layers``, ``width``, ``architecture``, ``stored``, ``vocabulary`` and ``positions`` (the
        longest text, in tokens); None where it is not known.
    notes : list of str
        What a user must know, in sentences.
    pixels : Pixels or None
        How images are prepared.
    keywords : bool
        Tokens go in by name, with an attention mask; else as one tensor.
    fixed : (int or None, int or None)
        Batch size and number of tokens that the model insists on, as ONNX files may.
    """

    name: str
    model: Any
    takes: str
    causal: bool
    tokenizer: Tokenizer | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pixels: Pixels | None = None
    keywords: bool = True
    fixed: tuple[int | None, int | None] = (None, None)

    def batches(self, data: Any, *, length: int = 256, batch_size: int = 4) -> list[Any]:
        """Turn data into what the model is called with.

        Parameters
        ----------
        data : list of str, list of uint8 array, or array
            Texts for a model of tokens: each is cut at ``length``, and shorter ones are padded at the end; for a model
            without an attention mask they are joined and cut into rows of one length. Images (H, W, 3) for a model of
            pixels; they are scaled as the model wants them. Rows (n, ...) for any other model, handed over as they are.
        length : int
            Tokens of a text at most; the model's own limit may be lower.
        batch_size : int

        Returns
        -------
        list
            Of dicts with ``input_ids`` and ``attention_mask`` (B, T), ``pixel_values`` (B, channels, height, width), or
            bare tensors where the model takes these. Without a tokenizer the token ids are drawn at random, equal for
            equal sizes, and ``length`` of them for each text.

        Raises
        ------
        BadInput
            There are no data, or they are not what the model takes.
        """
        if len(data) == 0:
            raise BadInput("there are no data; give at least one text, image or row")
        if length < 1 or batch_size < 1:
            raise BadInput(f"length and batch size are 1 at least, not {length} and {batch_size}")
        if isinstance(data, str):
            raise BadInput("one text was given where a list of texts is expected; put it in a list")
        words = isinstance(data[0], str)
        if words != (self.takes == "tokens"):
            raise BadInput(
                f"'{self.name}' takes {self.takes}, and the data are {'texts' if words else 'no texts'}; give "
                f"{ {'tokens': 'texts', 'pixels': 'images', 'features': 'an array of rows'}[self.takes] }"
            )
        batch_size = self.fixed[0] or batch_size
        rows = self._ids(data, length) if self.takes == "tokens" else data
        make = {"tokens": self._tokens, "pixels": self._images, "features": self._rows}[self.takes]
        full = len(rows) if self.fixed[0] is None else len(rows) // batch_size * batch_size
        if not full:
            raise BadInput(f"'{self.name}' takes {batch_size} samples at a time, and there are {len(rows)}; give more")
        return [make(rows[start : start + batch_size]) for start in range(0, full, batch_size)]

    def _ids(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Return rows of token ids."""
        known = int(self.facts.get("vocabulary") or 0)
        length = self.fixed[1] or min(length, self.facts.get("positions") or length)
        if self.tokenizer is None:
            rng = np.random.default_rng(_SEED)
            return rng.integers(known or _BYTES, size=(len(texts), length)).tolist()
        masked = self.keywords and self.fixed[1] is None
        rows = [self.tokenizer.framed(text, length if masked else None) for text in texts]
        largest = max((max(row, default=0) for row in rows), default=0)
        if known and largest >= known:
            raise BadInput(
                f"the tokenizer gives the id {largest}, and '{self.name}' knows {known} tokens: they do not belong "
                "together; name the tokenizer of this model"
            )
        if not any(rows):
            raise BadInput("the texts are empty: the tokenizer makes no token of them")
        if masked:
            return [row for row in rows if row]
        line = [id for row in rows for id in row]
        if self.fixed[1] is not None and len(line) < length:
            raise BadInput(
                f"'{self.name}' takes rows of {length} tokens, and all texts have {len(line)}; give more text"
            )
        length = min(length, len(line))
        return [line[start : start + length] for start in range(0, len(line) - length + 1, length)]

    def _tokens(self, rows: list[list[int]]) -> Any:
        """Pad token ids to one length."""
        import torch

        longest, config = max(map(len, rows)), getattr(self.model, "config", None)
        pad = getattr(config, "pad_token_id", None) or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        if not self.keywords:
            return ids
        batch = {"input_ids": ids, "attention_mask": mask}
        return batch | ({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})

    def _images(self, images: Sequence[Any]) -> Any:
        """Stack images."""
        x = (self.pixels or Pixels()).batch(images)
        return {"pixel_values": x} if self.keywords else x

    def _rows(self, rows: Any) -> Any:
        """Take rows as they are; doubles become floats, as the weights are."""
        import torch

        x = torch.as_tensor(np.asarray(rows))
        weight = next(self.model.parameters(), None) if hasattr(self.model, "parameters") else None
        return x.to(weight.dtype) if x.is_floating_point() and weight is not None else x
