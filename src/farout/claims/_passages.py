"""What claims about a pretrained language model share: SmolLM2-135M, and passages for it to read."""

from __future__ import annotations

import lzma
from typing import Any

import numpy as np

from farout.data import find
from farout.data.pretrained import pretrained
from farout.errors import BadInput
from farout.io.models import OpenModel, open_model

CHARACTERS = 12  # for a token, at most on average, so that a passage fills its length


def smollm2() -> OpenModel:
    """Open SmolLM2-135M with weights of float32.

    Raises
    ------
    DataMissing
        The package that carries it is not installed.
    """
    return open_model(pretrained("smollm2-135m"))


def passages(opened: OpenModel, text: str, count: int, length: int, seed: int, headings: bool = False) -> list[Any]:
    """Return batches of four passages, all of the same length, drawn from a text.

    Parameters
    ----------
    opened : OpenModel
    text : str
        Name of the data file, such as ``"text/wikitext2/test.txt.xz"``.
    count, length : int
        Passages, and tokens of each.
    seed : int
        For their beginnings, each at a line of text.
    headings : bool
        Whether they may begin at headings, ``= = ... = =``, too. There the tokens after the first equal it, and are
        treated by the model as first ones.
    """
    with lzma.open(find(text), "rt", encoding="utf-8") as file:
        whole = file.read()
    begins = [0, *(i + 1 for i, mark in enumerate(whole[: -CHARACTERS * length]) if mark == "\n")]
    begins = [i for i in begins if whole[i : i + 2].strip() not in ("", *(() if headings else "="))]
    drawn = np.random.default_rng(seed).choice(begins, count, replace=False)
    batches = opened.batches([whole[i : i + CHARACTERS * length] for i in drawn], length=length, batch_size=4)
    if any(not bool(batch["attention_mask"].all()) for batch in batches):
        raise BadInput(f"a passage of '{text}' has fewer than {length} tokens in {CHARACTERS * length} characters")
    return batches
