"""Neighbours of a text: copies that differ in a few words."""

from __future__ import annotations

import zlib

import numpy as np

CHANGED = 0.1  # share of the words that are exchanged or left out


def perturbed(text: str, n: int, seed: int = 0) -> list[str]:
    """Return n neighbours of a text: a tenth of its words left out, or exchanged with the word before.

    What is drawn depends on the text and the seed alone. A text of one word is changed letter by letter.

    Examples
    --------
    >>> perturbed("the cat sat on the mat", 3)
    ['cat the sat on the mat', 'the cat on the mat', 'the sat on the mat']
    """
    mark = " " if " " in text.strip() else ""
    words = text.split(mark) if mark else list(text)
    rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
    made = []
    for _ in range(n):
        changed = list(words)
        for _ in range(max(1, round(CHANGED * len(words)))):
            if len(changed) < 2:
                break
            place = int(rng.integers(1, len(changed)))
            if rng.random() < 0.5:
                changed[place - 1], changed[place] = changed[place], changed[place - 1]
            else:
                del changed[place]
        made.append(mark.join(changed))
    return made
