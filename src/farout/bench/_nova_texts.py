"""Texts about images against a reference: n-grams, words, terms of a dictionary, and whether they call it normal."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

ORDER = 4  # of the longest n-grams of BLEU

# Names with the ways to write them, in lower case; a term is found as whole words.
MODALITY: dict[str, tuple[str, ...]] = {
    "t1": ("t1", "t1w", "t1 weighted"),
    "t2": ("t2", "t2w", "t2 weighted"),
    "flair": ("flair",),
    "dwi": ("dwi", "diffusion weighted", "diffusion weighted imaging"),
    "adc": ("adc", "apparent diffusion coefficient"),
    "swi": ("swi", "susceptibility weighted", "susceptibility weighted imaging"),
    "gre": ("gre", "gradient echo", "t2*"),
    "contrast": ("post contrast", "postcontrast", "contrast enhanced", "gadolinium", "t1 c", "t1ce"),
    "angiography": ("mra", "mr angiography", "tof"),
    "spectroscopy": ("mrs", "mr spectroscopy", "spectroscopy"),
    "perfusion": ("perfusion", "rcbv"),
    "ct": ("ct", "computed tomography"),
    "pet": ("pet",),
}
FINDINGS: dict[str, tuple[str, ...]] = {
    "hyperintense": ("hyperintense", "hyperintensity", "hyperintensities", "high signal", "bright signal"),
    "hypointense": ("hypointense", "hypointensity", "hypointensities", "low signal", "dark signal"),
    "isointense": ("isointense",),
    "enhancement": ("enhancement", "enhancing", "enhances"),
    "ring enhancement": ("ring enhancing", "ring enhancement", "rim enhancing", "rim enhancement"),
    "restricted diffusion": ("restricted diffusion", "diffusion restriction"),
    "mass": ("mass", "masses", "tumor", "tumors", "tumour", "tumours", "neoplasm"),
    "lesion": ("lesion", "lesions"),
    "cyst": ("cyst", "cysts", "cystic"),
    "edema": ("edema", "oedema"),
    "mass effect": ("mass effect",),
    "midline shift": ("midline shift",),
    "hemorrhage": ("hemorrhage", "haemorrhage", "hemorrhagic", "haemorrhagic", "bleeding", "hematoma", "haematoma"),
    "infarct": ("infarct", "infarcts", "infarction", "stroke"),
    "atrophy": ("atrophy", "atrophic", "volume loss"),
    "hydrocephalus": ("hydrocephalus", "ventriculomegaly"),
    "calcification": ("calcification", "calcifications", "calcified"),
    "necrosis": ("necrosis", "necrotic"),
    "demyelination": ("demyelination", "demyelinating"),
    "herniation": ("herniation", "herniated"),
    "malformation": ("malformation", "dysplasia", "heterotopia", "agenesis", "dysgenesis"),
}
_TOKEN = re.compile(r"[a-z0-9]+(?:[.'*][a-z0-9]+)*\*?")
_CLAUSE = re.compile(r"[.;:!?](?:\s|$)|\b(?:but|however|although|except)\b")
_NOT = re.compile(r"\b(?:no|without|not|absence of|negative for|free of|rather than)\b")
_NORMAL = re.compile(
    r"\b(?<!not )(?:normal|unremarkable)\b"
    r"|\bno (?:\w+ ){0,2}(?:abnormality|abnormalities|lesions?|findings?|pathology)\b"
)


def plain(text: str) -> str:
    """Lower case without accents, hyphens as spaces."""
    bare = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[-_/]", " ", bare)


def tokens(text: str) -> list[str]:
    """Cut a text into words and numbers.

    Examples
    --------
    >>> tokens("T2-hyperintense, 1.5 cm.")
    ['t2', 'hyperintense', '1.5', 'cm']
    """
    return _TOKEN.findall(plain(text))


def bleu_counts(answer: str, reference: str) -> NDArray[np.int64]:
    """Count what BLEU is made of: n-grams of the answer, those of them that the reference has, and both lengths.

    Returns
    -------
    int64 array (2 * 4 + 2,)

    Examples
    --------
    >>> bleu_counts("a mass on the left", "a mass on the right").tolist()
    [4, 3, 2, 1, 5, 4, 3, 2, 5, 5]
    """
    ours, theirs = tokens(answer), tokens(reference)
    right, given = [], []
    for n in range(1, ORDER + 1):
        mine, other = _grams(ours, n), _grams(theirs, n)
        right.append(sum((mine & other).values()))
        given.append(sum(mine.values()))
    return np.array([*right, *given, len(ours), len(theirs)])


def bleu(counts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return BLEU-4 of summed counts: the geometric mean of the precisions times the penalty for being short.

    Parameters
    ----------
    counts : array (..., 10)
        Sums of :func:`bleu_counts`.

    Returns
    -------
    float64 array (...)
        0 where some n-gram order has no match; nothing is smoothed.
    """
    right, given = counts[..., :ORDER], counts[..., ORDER : 2 * ORDER]
    ours, theirs = counts[..., 2 * ORDER], counts[..., 2 * ORDER + 1]
    some = np.asarray((right > 0).all(-1))
    precision = np.where(some[..., None], right, 1) / np.maximum(given, 1e-300)
    short = np.minimum(0.0, 1 - theirs / np.maximum(ours, 1e-300))
    return np.where(some, np.exp(short + np.log(np.maximum(precision, 1e-300)).mean(-1)), 0.0)


def unigram_f(answer: str, reference: str) -> float:
    """Mean of precision and recall of equal words, recall nine times as heavy: METEOR's, without stems and order.

    Examples
    --------
    >>> round(unigram_f("a mass", "a large mass"), 4)  # precision 1, recall 2/3
    0.6897
    """
    mine, other = Counter(tokens(answer)), Counter(tokens(reference))
    right = sum((mine & other).values())
    if not right:
        return 0.0
    precision, recall = right / sum(mine.values()), right / sum(other.values())
    return 10 * precision * recall / (recall + 9 * precision)


def terms_in(text: str, dictionary: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the terms that a text affirms; what stands behind a "no" or "without" in its clause is denied.

    Examples
    --------
    >>> sorted(terms_in("Ring-enhancing mass without midline shift.", FINDINGS))
    ['enhancement', 'mass', 'ring enhancement']
    """
    found: set[str] = set()
    patterns = _patterns(tuple((name, tuple(ways)) for name, ways in dictionary.items()))
    for clause in _CLAUSE.split(plain(text)):
        denied = _NOT.search(clause)
        affirmed = clause[: denied.start()] if denied else clause
        found |= {name for name, pattern in patterns if pattern.search(affirmed)}
    return found


def set_f1(answer: set[str], reference: set[str]) -> float:
    """F1 of two sets; 1 where both are empty.

    Examples
    --------
    >>> set_f1({"mass", "edema"}, {"edema"}), set_f1(set(), set()), set_f1(set(), {"edema"})
    (0.6666666666666666, 1.0, 0.0)
    """
    total = len(answer) + len(reference)
    return 2 * len(answer & reference) / total if total else 1.0


def says_normal(text: str) -> bool:
    """Tell whether a text calls an image normal: it says so, and affirms no finding.

    Examples
    --------
    >>> says_normal("Normal MRI, no mass."), says_normal("Normal ventricles; a mass on the left."), says_normal("")
    (True, False, False)
    """
    return bool(_NORMAL.search(plain(text))) and not terms_in(text, FINDINGS)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@cache
def _patterns(dictionary: tuple[tuple[str, tuple[str, ...]], ...]) -> list[tuple[str, re.Pattern[str]]]:
    """One expression a term."""
    return [
        (name, re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(plain(way)) for way in ways)})(?!\w)"))
        for name, ways in dictionary
    ]
