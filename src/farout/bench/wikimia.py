"""The protocol of WikiMIA: has a language model seen these texts, judged by AUC and TPR for each length.

Weijia Shi, Anirudh Ajith, Mengzhou Xia, Yangsibo Huang, Daogao Liu, Terra Blevins, Danqi Chen, Luke Zettlemoyer,
Detecting Pretraining Data from Large Language Models, ICLR 2024 (arXiv 2310.16789).

Seen (label 1) are Wikipedia pages on events from before 2017, unseen (label 0) those on events from after 2023, in
texts of 32, 64, 128 and 256 words. The classes differ in date, so words alone may tell them apart. A blind baseline,
which reads the words and no model, therefore stands beside every method: what does not beat it has shown nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from farout.bench.metrics import auroc, bootstrap_ci
from farout.errors import BadInput, UnknownName
from farout.io.tables import TableFile

LENGTHS = (32, 64, 128, 256)  # words
FPR = 0.05
FOLDS = 5
BLIND = "blind (bag of words)"


def read(path: str | Path) -> tuple[list[str], np.ndarray]:
    r"""Read texts and whether they were seen.

    Parameters
    ----------
    path : str or path
        A table, such as a jsonl file, with the fields ``input`` and ``label``: 1 seen, 0 unseen.

    Returns
    -------
    texts : list of str
    seen : bool array (n,)

    Raises
    ------
    BadInput
        The file is missing or damaged, a text is missing, or a label is neither 0 nor 1.
    UnknownName
        A field is missing.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "length32.jsonl"
    >>> _ = path.write_text('{"input": "An old page.", "label": 1}\n{"input": "A new page.", "label": 0}\n')
    >>> read(path)
    (['An old page.', 'A new page.'], array([ True, False]))
    """
    frame = TableFile(path).read()
    for field in ("input", "label"):
        if field not in frame.columns:
            raise UnknownName("field of the file", field, frame.columns)
    texts, labels = frame["input"].to_list(), frame["label"].to_numpy()
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.split():
            raise BadInput(f"'input' of row {row} holds no words but {text!r}")
    foreign = np.flatnonzero(~np.isin(labels, (0, 1)))
    if len(foreign):
        raise BadInput(f"'label' is 1 (seen) or 0 (unseen), and {labels[foreign[0]]} in row {foreign[0]}")
    return texts, labels == 1


def length_of(text: str) -> int:
    """Return the length of WikiMIA that a text is nearest to, in ratio.

    Examples
    --------
    >>> length_of("word " * 40), length_of("word " * 1000)
    (32, 256)
    """
    away = np.abs(np.log(np.array(LENGTHS) / max(1, len(text.split()))))
    return LENGTHS[int(away.argmin())]


def tpr_at_fpr(label: ArrayLike, score: ArrayLike, fpr: float = FPR) -> float:
    """Share of seen texts that are called seen where at most a share ``fpr`` of the unseen ones is.

    Parameters
    ----------
    label : array (n,)
        1 for unseen texts, as outliers have it, and 0 for seen ones.
    score : array (n,)
        Larger is less likely seen.
    fpr : float

    Examples
    --------
    >>> tpr_at_fpr([0, 0, 0, 0, 1, 1], [1, 2, 5, 6, 3, 7])
    0.5
    """
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    unseen = np.sort(score[label == 1])
    most = int(fpr * len(unseen) + 1e-9)  # so many unseen texts may be called seen
    return float(np.mean(score[label == 0] < unseen[most]))


def blind(texts: Sequence[str], seen: ArrayLike, seed: int = 0) -> np.ndarray:
    """Score texts by their words alone: logistic regression on counts, learned on the other folds.

    Parameters
    ----------
    texts : sequence of str (n,)
    seen : bool array (n,)
    seed : int
        For the folds.

    Returns
    -------
    float64 array (n,)
        Larger is less likely seen.

    Raises
    ------
    BadInput
        A class has fewer than 5 texts.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    seen = np.asarray(seen)
    few = min(int(seen.sum()), int((~seen).sum()))
    if few < FOLDS:
        raise BadInput(f"a blind baseline needs at least {FOLDS} texts of each class, and one class has {few}")
    model = make_pipeline(CountVectorizer(binary=True, token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(model, list(texts), ~seen, cv=folds, method="predict_proba")[:, 1]


def evaluate(
    texts: Sequence[str], seen: ArrayLike, scores: Mapping[str, ArrayLike], draws: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Judge methods on the texts of each length; the blind baseline is always among them.

    Parameters
    ----------
    texts : sequence of str (n,)
    seen : bool array (n,)
    scores : mapping of str to float array (n,)
        By method; larger is less likely seen.
    draws : int
        Of texts, for the 95 % intervals.
    seed : int

    Returns
    -------
    list of dict
        A row for each length and method: words, texts, method, AUC, TPR at 5 % FPR, and the ends of their intervals.

    Raises
    ------
    BadInput
        Texts of a length are all seen, or all unseen, or fewer than 5 of a class.
    """
    seen = np.asarray(seen, dtype=bool)
    lengths = np.array([length_of(text) for text in texts])
    rows = []
    for words in sorted(set(lengths.tolist())):
        these = np.flatnonzero(lengths == words).tolist()
        some, label = [texts[i] for i in these], (~seen[these]).astype(int)
        judged = {BLIND: blind(some, seen[these], seed)}
        judged |= {name: np.asarray(score, dtype=np.float64)[these] for name, score in scores.items()}
        for name, score in judged.items():
            row: dict[str, Any] = {"words": words, "texts": len(these), "method": name}
            for what, metric in (("AUC", auroc), ("TPR at 5 % FPR", tpr_at_fpr)):
                low, high = bootstrap_ci(metric, label, score, n=draws, seed=seed)
                row |= {what: metric(label, score), f"{what}, from": low, f"{what}, to": high}
            rows.append(row)
    return rows
