"""Short documents that a small language model reads once, twice, five or ten times, or never, for Min-K% Prob.

A document is the beginning of a paragraph of the classics. Whether the model reads it, and how often, is drawn, so
that neither date, author nor subject tells what it has read.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.claims._tables import Progress
from farout.data import find
from farout.errors import BadInput
from farout.kit.language import bytes_of, train_language_model
from farout.kit.training import device_named, torch_or_say

if TYPE_CHECKING:
    from farout.kit.decoder import DecoderConfig

LETTERS = 8  # of a planted string
PLANTED = ("plain", "one or two random strings")


@dataclass(frozen=True)
class Setting:
    """How much is read, by what.

    Attributes
    ----------
    file : str
        The text that documents are drawn from.
    lengths : tuple of int
        Words of a document.
    times : tuple of int
        How often documents are read.
    each : int
        Documents of a length, read so often, with or without planted strings; as many of a length are never read.
    read_by, reference : str
        Names of configurations in :mod:`farout.kit.decoder`.
    batch_size : int
    reference_bytes : int
        Other text that the reference model reads once.
    learning_rate : float
    """

    file: str
    lengths: tuple[int, ...]
    times: tuple[int, ...]
    each: int
    read_by: str
    reference: str
    batch_size: int
    reference_bytes: int
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Documents:
    """Documents, and how often each is read.

    Attributes
    ----------
    texts : list of str
    words, times : int64 array (n,)
        Length, and how often it is read: 0 for never.
    planted : bool array (n,)
    others : str
        Text of the same books in none of them.
    """

    texts: list[str]
    words: np.ndarray
    times: np.ndarray
    planted: np.ndarray
    others: str


def documents(setting: Setting, seed: int) -> Documents:
    """Draw the documents of a setting.

    Raises
    ------
    BadInput
        There are too few paragraphs of a length.
    """
    rng = np.random.default_rng(seed)
    with lzma.open(find(setting.file), "rt", encoding="utf-8") as file:
        paragraphs = list(dict.fromkeys(line for line in file.read().split("\n") if line))
    sizes = np.array([len(paragraph.split()) for paragraph in paragraphs])
    ends = [*setting.lengths[1:], np.inf]
    times = np.tile(np.repeat([0, *setting.times], setting.each), 2)
    planted = np.repeat([False, True], len(times) // 2)
    texts, left = [], np.ones(len(paragraphs), bool)
    for length, end in zip(setting.lengths, ends):
        fit = np.flatnonzero((sizes >= length) & (sizes < end))
        if len(fit) < len(times):
            raise BadInput(
                f"'{setting.file}' has {len(fit):,} paragraphs of {length} words, and {len(times):,} are due"
            )
        chosen = rng.choice(fit, len(times), replace=False)
        left[chosen] = False
        for row, plant in zip(chosen.tolist(), planted):
            words = paragraphs[row].split()[:length]
            for _ in range(rng.integers(1, 3) if plant else 0):
                word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), LETTERS))
                words[rng.integers(1, length)] = word  # may replace the other one
            texts.append(" ".join(words))
    others = [paragraphs[row] for row in rng.permutation(np.flatnonzero(left))]
    repeats = len(setting.lengths)
    words = np.repeat(setting.lengths, len(times))
    return Documents(texts, words, np.tile(times, repeats), np.tile(planted, repeats), "\n".join(others))


def reader(setting: Setting, drawn: Documents, seed: int, progress: Progress) -> Any:
    """Train the model that reads the documents: as many windows as hold each of them as often as was drawn."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(np.repeat(np.arange(len(drawn.texts)), drawn.times))
    stream = "\n".join(drawn.texts[row] for row in order)
    return _trained(setting.read_by, bytes_of(stream), setting, seed, lambda done: progress(f"seed {seed}, read", done))


def reference(setting: Setting, drawn: Documents, seed: int, progress: Progress) -> Any:
    """Train a smaller model on text that is in no document."""
    data = bytes_of(drawn.others)[: setting.reference_bytes]
    return _trained(setting.reference, data, setting, seed, lambda done: progress(f"seed {seed}, reference", done))


def _trained(name: str, data: np.ndarray, setting: Setting, seed: int, progress: Any) -> Any:
    """Train a decoder on one pass over its data, in windows that are drawn."""
    torch_or_say("the claim of 'Min-K% Prob'")
    from farout.kit import decoder

    config: DecoderConfig = getattr(decoder, name)
    model = decoder.Decoder(config, seed).to(device_named("auto"))
    steps = round(len(data) / (setting.batch_size * config.context))
    train_language_model(
        model,
        data,
        context=config.context,
        steps=steps,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        seed=seed,
        progress=progress,
    )
    return model
