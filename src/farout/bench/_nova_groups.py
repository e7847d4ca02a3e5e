"""Who else marked the images of NOVA, and how they are split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from farout.bench._nova_files import Answer, Slice
from farout.bench._nova_judges import is_normal, normalised
from farout.bench.boxes import iou

SIZES = (0.02, 0.1)  # shares of the image that a lesion covers: small, medium and large ones


def agreement(slices: Iterable[Slice]) -> list[tuple[str, str, float]]:
    """Return the mean overlap of every two readers: matched so that it is greatest, a box without a partner counts 0.

    Images in which neither marks anything, or that one of them did not read, are left out.

    Returns
    -------
    list of (str, str, float)
    """
    from scipy.optimize import linear_sum_assignment

    slices = list(slices)
    names = sorted({name for one in slices for name in one.readers})
    found = []
    for first, second in combinations(names, 2):
        values = []
        for one in slices:
            if first in one.readers and second in one.readers:
                a, b = one.readers[first], one.readers[second]
                if len(a) or len(b):
                    overlap = iou(a, b)
                    best = linear_sum_assignment(-overlap)
                    values.append(float(overlap[best].sum()) / max(len(a), len(b)))
        if values:
            found.append((first, second, float(np.mean(values))))
    return found


def readers(slices: Sequence[Slice]) -> dict[str, dict[str, dict[str, Answer]]]:
    """Readers' boxes as answers; a reader who read no image of a case would be called wrong, so all must be there."""
    names = sorted({name for one in slices for name in one.readers})
    whole = [name for name in names if all(name in one.readers for one in slices)]
    return {
        f"reader {name}": {
            "localisation": {one.image: Answer(json.dumps(one.readers[name].tolist())) for one in slices}
        }
        for name in whole
    }


def strata(slices: Sequence[Slice], synonyms: Mapping[str, str], columns: Sequence[str]) -> dict[str, list[int]]:
    """Places of the images of each stratum."""
    known = {normalised(word): normalised(name) for word, name in synonyms.items()}
    named = {one.case: known.get(normalised(one.diagnosis), normalised(one.diagnosis)) for one in slices}
    often = {name: list(named.values()).count(name) for name in named.values()}

    def frequency(one: Slice) -> str:
        return "" if not named[one.case] else "once" if often[named[one.case]] == 1 else "more often"

    splits: dict[str, Callable[[Slice], str]] = {"diagnosis seen": frequency, "lesion": _size}
    splits |= {name: lambda one, name=name: one.facts.get(name, "") for name in columns}  # type: ignore[misc]
    groups = {"all": list(range(len(slices)))}
    for split, word in splits.items():
        words = [word(one) for one in slices]
        if len(set(words)) > 1:  # one stratum alone is all
            for value in sorted(set(words) - {""}):
                groups[f"{split}: {value}"] = [i for i, found in enumerate(words) if found == value]
    return groups


def _size(one: Slice) -> str:
    """Say how large the largest lesion is."""
    if is_normal(one) or not len(one.boxes):
        return ""
    sides: NDArray[np.float64] = one.boxes[:, 2:] - one.boxes[:, :2]
    share = float(sides.prod(1).max()) / (one.size[0] * one.size[1])
    return "small" if share < SIZES[0] else "medium" if share < SIZES[1] else "large"
