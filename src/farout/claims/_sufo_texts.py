"""Questions of three classes at 80, 15 and 5 %, some of them spoilt, for the claim of SUFO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farout.data import find

CLASSES = ("ENTY", "HUM", "DESC")  # the three most frequent of TREC, in this order: things, people, descriptions
SHARES = (0.80, 0.15, 0.05)
KINDS = ("truncated", "mixed", "wrong label")
PLANTED = 0.03  # of the rows, a third of each kind
VALIDATION = 0.2


@dataclass(frozen=True)
class Texts:
    """Questions, in drawn order: those to learn from, those that choose the epoch, and those of the test.

    Attributes
    ----------
    texts : list of str
    y : int array (n,)
        Class as it is given, which for a wrong label is not that of the text.
    spoilt : array (n,) of str
        The kind of outlier that was planted; empty for none. The test has none.
    train, validation, test : int arrays
        Rows.
    """

    texts: list[str]
    y: np.ndarray
    spoilt: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def drawn(size: int, seed: int) -> Texts:
    """Draw questions of TREC's training part and spoil some; the test is what its test part has of the three classes.

    A truncated question keeps its first two words. A mixed one is followed by one of another class. Outliers have the
    same share in the rows to learn from and in those that choose the epoch, and lie on rows drawn from all classes.
    """
    rng = np.random.default_rng(seed)
    pool, judged = _questions("train"), _questions("test")
    texts, y, validates = [], [], []
    for place, (name, share) in enumerate(zip(CLASSES, SHARES)):
        questions = [text for coarse, text in pool if coarse == name]
        count = round(size * share)
        texts += [questions[row] for row in rng.choice(len(questions), count, replace=False)]
        y += [place] * count
        validates += [i < round(VALIDATION * count) for i in range(count)]
    order = rng.permutation(size)
    texts, given, validates_ = [texts[i] for i in order], np.array(y)[order], np.array(validates)[order]
    train, validation = np.flatnonzero(~validates_), np.flatnonzero(validates_)
    spoilt = np.full(size, "", dtype="<U11")
    for part in (train, validation):
        each = round(PLANTED * len(part) / len(KINDS))
        spoilt[rng.choice(part, each * len(KINDS), replace=False)] = np.repeat(KINDS, each)
    whole, right = list(texts), given.copy()
    for row in np.flatnonzero(spoilt != ""):
        others = np.flatnonzero((right != right[row]) & (spoilt == ""))
        if spoilt[row] == "truncated":
            texts[row] = " ".join(whole[row].split()[:2])
        elif spoilt[row] == "mixed":
            texts[row] = f"{whole[row]} {whole[rng.choice(others)]}"
        else:
            given[row] = rng.choice([c for c in range(len(CLASSES)) if c != right[row]])
    judged = [(coarse, text) for coarse, text in judged if coarse in CLASSES]
    test_y = np.array([CLASSES.index(coarse) for coarse, _ in judged])
    return Texts(
        texts + [text for _, text in judged],
        np.concatenate([given, test_y]),
        np.concatenate([spoilt, np.full(len(test_y), "", dtype="<U11")]),
        train,
        validation,
        np.arange(size, size + len(test_y)),
    )


def _questions(part: str) -> list[tuple[str, str]]:
    """Read (coarse class, question) of a part of TREC: tab-separated, a header, no quoting."""
    lines = find(f"text/sentences/trec_questions_{part}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return [(coarse, text) for coarse, _, text in rows]
