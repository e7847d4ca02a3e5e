"""The numbers of NOVA's three tasks, each a function of how often a case counts, so that cases can be drawn again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.bench._nova_answers import boxes_in, diagnoses_in
from farout.bench._nova_files import Answer, Slice
from farout.bench._nova_texts import (
    FINDINGS,
    MODALITY,
    bleu,
    bleu_counts,
    says_normal,
    set_f1,
    terms_in,
    unigram_f,
)
from farout.bench.boxes import LIMITS, STRICT, Found, Localisation

Numbers = NDArray[np.float64]
TOGETHER = 50  # draws that are judged at once

NORMAL = ("", "normal", "none", "no abnormality")
BIASED = ("coverage", "entropy", "true entropy")  # of cases drawn again they come out too low: no interval


class Judge(Protocol):
    """Numbers of a task.

    Attributes
    ----------
    cases : list of str
    """

    cases: list[str]

    def numbers(self, weights: Numbers) -> dict[str, Numbers]:
        """Return the numbers where each case counts so much.

        Parameters
        ----------
        weights : array (..., n_cases)

        Returns
        -------
        dict of str to array (...)
        """


class Boxed:
    """Localisation: boxes of each image; the images of a case share its weight.

    Parameters
    ----------
    slices : list of Slice
    answers : mapping of str to Answer
        By image. One that is missing, or cannot be read, finds nothing; where nothing is to be found it counts as one
        false box.
    """

    def __init__(self, slices: Sequence[Slice], answers: Mapping[str, Answer]) -> None:
        self.cases, self._case, self._share = _cases([one.case for one in slices])
        read = [_found(one, answers.get(one.image)) for one in slices]
        self._local = Localisation([found for found, _ in read])
        self._unread = np.array([float(not readable) for _, readable in read])

    def numbers(self, weights: Numbers) -> dict[str, Numbers]:
        """Return average precisions, F1, hits and false boxes."""
        each = weights[..., self._case] * self._share
        aps, f1s = self._local.aps(each), self._local.f1s(each)
        loose, half = LIMITS.index(0.3), LIMITS.index(0.5)
        return {
            "AP@0.3": aps[..., loose],
            "AP@0.5": aps[..., half],
            "mAP": aps[..., -len(STRICT) :].mean(-1),
            "F1@0.3": f1s[..., loose],
            "F1@0.5": f1s[..., half],
            "any hit": _mean(self._local.hit, each),
            "false boxes": _mean(self._local.false, each),
            "unread": _mean(self._unread, each),
        }


class Captioned:
    """Captioning: a text of each image; the images of a case share its weight.

    Parameters
    ----------
    slices : list of Slice
        With a caption.
    answers : mapping of str to Answer
    findings : mapping of str to sequence of str, optional
        Terms with the ways to write them.
    """

    def __init__(
        self, slices: Sequence[Slice], answers: Mapping[str, Answer], findings: Mapping[str, Sequence[str]] = FINDINGS
    ) -> None:
        self.cases, self._case, self._share = _cases([one.case for one in slices])
        texts = [answers[one.image].text if one.image in answers else "" for one in slices]
        pairs = [(text, one.caption) for text, one in zip(texts, slices)]
        self._counts = np.array([bleu_counts(*pair) for pair in pairs], float)
        self._means: dict[str, list[float]] = {
            "unigram F": [unigram_f(*pair) for pair in pairs],
            "term F1": [set_f1(terms_in(a, findings), terms_in(b, findings)) for a, b in pairs],
            "modality F1": [set_f1(terms_in(a, MODALITY), terms_in(b, MODALITY)) for a, b in pairs],
            "normal right": [
                float(bool(text.strip()) and says_normal(text) == is_normal(one)) for text, one in zip(texts, slices)
            ],
            "unread": [float(not text.strip()) for text in texts],
        }

    def numbers(self, weights: Numbers) -> dict[str, Numbers]:
        """Return BLEU-4 of all texts, and means of the others."""
        each = weights[..., self._case] * self._share
        means = {name: _mean(values, each) for name, values in self._means.items()}
        return {"BLEU-4": bleu(each @ self._counts)} | means


class Diagnosed:
    """Diagnosis: a ranked list of each case.

    Parameters
    ----------
    truth : mapping of str to str
        By case.
    answers : mapping of str to Answer
        By case.
    synonyms : mapping of str to str
        To the name that stands for both.

    Attributes
    ----------
    table : list of (str, str, str)
        Every answer that was read: case, as said, as compared.
    """

    def __init__(self, truth: Mapping[str, str], answers: Mapping[str, Answer], synonyms: Mapping[str, str]) -> None:
        self.cases = list(truth)
        known = {normalised(word): normalised(name) for word, name in synonyms.items()}

        def named(text: str) -> str:
            return known.get(normalised(text), normalised(text))

        said = [diagnoses_in(answers[case].text) if case in answers else [] for case in self.cases]
        self.table = [(case, one, named(one)) for case, listed in zip(self.cases, said) for one in listed]
        self._true = [named(truth[case]) for case in self.cases]
        self._first = [named(listed[0]) if listed else None for listed in said]
        exact = [[one.strip().casefold() for one in listed] for listed in said]
        self._means = {
            "top-1": [float(first == true) for first, true in zip(self._first, self._true)],
            "top-5": [float(true in map(named, listed)) for listed, true in zip(said, self._true)],
            "top-1 exact": [
                float(listed[:1] == [truth[case].strip().casefold()]) for case, listed in zip(self.cases, exact)
            ],
            "unread": [float(not listed) for listed in said],
        }

    def numbers(self, weights: Numbers) -> dict[str, Numbers]:
        """Return shares of right answers; how many diagnoses are used, of the true ones; and both entropies in bits."""
        means = {name: _mean(values, weights) for name, values in self._means.items()}
        used, true = _spread(self._first, weights), _spread(self._true, weights)
        coverage = (used > 0).sum(-1) / np.maximum((true > 0).sum(-1), 1)
        spread = {"coverage": coverage, "entropy": _bits(used), "true entropy": _bits(true)}
        return {name: means[name] for name in ("top-1", "top-5", "top-1 exact")} | spread | {"unread": means["unread"]}


def is_normal(one: Slice) -> bool:
    """Tell whether nothing is to be found in an image."""
    return not len(one.boxes) and normalised(one.diagnosis) in NORMAL


def normalised(text: str) -> str:
    """Bring a diagnosis to the form in which it is compared: letters and digits, American spelling, no brackets.

    Examples
    --------
    >>> normalised("Sub-acute Haemorrhage (left)"), normalised("the  subacute hemorrhage"), normalised("Tumour")
    ('sub acute hemorrhage', 'subacute hemorrhage', 'tumor')
    """
    bare = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().casefold()
    bare = re.sub(r"\([^)]*\)", " ", bare)
    bare = re.sub(r"['’]s\b", "", bare)
    words = re.sub(r"[^a-z0-9]+", " ", bare).split()
    spelled = (re.sub(r"our(s?)$", r"or\1", re.sub("ae|oe", "e", word)) for word in words)
    return " ".join(word for word in spelled if word not in ("the", "a", "an"))


def intervals(judge: Judge, draws: int, seed: int, level: float = 0.95) -> dict[str, tuple[float, float, float]]:
    """Return each number with the ends of its interval over cases drawn again with replacement.

    An end that would leave the number itself outside is moved to it. Numbers that count distinct answers have none.

    Parameters
    ----------
    judge : Judge
    draws : int
    seed : int
    level : float

    Returns
    -------
    dict of str to (float, float, float)
        Value, low, high; NaN where there is none.
    """
    n = len(judge.cases)
    values = judge.numbers(np.ones(n))
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
    parts = [judge.numbers(weights[start : start + TOGETHER]) for start in range(0, draws, TOGETHER)]
    found = {}
    for name, number in values.items():
        value = float(number)
        drawn = np.concatenate([part[name] for part in parts])
        if name in BIASED or np.isnan(value) or np.isnan(drawn).all():
            found[name] = (value, np.nan, np.nan)
            continue
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        found[name] = (value, min(float(low), value), max(float(high), value))
    return found


def _found(one: Slice, answer: Answer | None) -> tuple[Found, bool]:
    """Boxes of an image, and whether the answer could be read."""
    read = None if answer is None else boxes_in(answer.text)
    if answer is None or read is None:
        wrong = np.zeros((0, 4)) if len(one.boxes) else np.array([[0.0, 0.0, *one.size]])
        return Found(wrong, np.ones(len(wrong)), one.boxes), False
    return Found(answer.on(one.size).to_pixels(read.numbers), read.scores, one.boxes), True


def _cases(names: Sequence[str]) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Distinct cases; the place of each image's case; and the image's share of its case."""
    cases = list(dict.fromkeys(names))
    place = {case: i for i, case in enumerate(cases)}
    of = np.array([place[name] for name in names], np.int64)
    return cases, of, 1 / np.bincount(of, minlength=len(cases))[of]


def _mean(values: ArrayLike, weights: Numbers) -> Numbers:
    """Weighted mean of the values that are there."""
    numbers = np.asarray(values, float)
    there = ~np.isnan(numbers)
    total = weights[..., there].sum(-1)
    return np.where(total > 0, weights[..., there] @ numbers[there] / np.where(total > 0, total, 1), np.nan)


def _spread(names: Sequence[str | None], weights: Numbers) -> Numbers:
    """How much each distinct name weighs, (..., n_names)."""
    known = list(dict.fromkeys(name for name in names if name is not None))
    return weights @ np.array([[float(name == one) for one in known] for name in names]).reshape(len(names), -1)


def _bits(spread: Numbers) -> Numbers:
    """Entropy of shares."""
    total = spread.sum(-1, keepdims=True)
    shares = spread / np.where(total > 0, total, 1)
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(-1) + 0.0
