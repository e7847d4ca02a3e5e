"""What a confounder costs a classifier that was trained where class and confounder go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from farout.errors import BadInput

DEGREES = (0.0, 0.25, 0.5, 0.75, 1.0)
TESTED = 0.5  # share of each cell


def performance_drop(
    X: Any,
    wanted: Any,
    confounder: Any,
    degrees: Sequence[float] = DEGREES,
    repeats: int = 5,
    random_state: int = 0,
) -> tuple[float, np.ndarray]:
    """Average performance drop of a linear classifier as class and confounder go together in training.

    Half of each class and confounder, equally many, is the test. Of the other half as many rows are drawn for each
    degree: a class comes from its own confounder with weight ``degree``, from all alike with the rest; the confounders
    are dealt out to the classes anew for each repeat. So the degree is Cramer's V of the training rows, and neither
    their number nor the share of a class or confounder changes with it. The average performance drop is the mean over
    the degrees above 0 of ``accuracy / accuracy at 0 - 1``, as in PathoROB (arXiv 2507.17845).

    Parameters
    ----------
    X : array (n, d)
    wanted, confounder : array (n,)
        The number of classes is a multiple of that of the confounders, and all pairs occur, in rows enough for both
        halves.
    degrees : sequence of float
        Cramer's V between class and confounder, from 0 to 1; the first is 0.
    repeats : int
    random_state : int

    Returns
    -------
    float
        At most a little above 0; -0.3 is a loss of 30 % of the accuracy.
    float64 array (degrees,)
        Accuracy on the balanced test, mean over the repeats.

    Raises
    ------
    BadInput
        Degrees do not begin with 0 or leave 0 to 1, or classes and confounders do not fit.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kind, place = np.arange(400) % 2, np.arange(400) // 2 % 2
    >>> X = np.c_[kind + rng.normal(size=400), 9.0 * place]
    >>> drop, accuracies = performance_drop(X, kind, place)
    >>> bool(accuracies[0] > 0.6), bool(accuracies[-1] < 0.55), drop < -0.05
    (True, True, True)
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X = np.asarray(X, dtype=np.float64)
    label, confound = (np.unique(np.asarray(y), return_inverse=True)[1] for y in (wanted, confounder))
    classes, confounds = int(label.max()) + 1, int(confound.max()) + 1
    if confounds < 2 or classes % confounds:
        raise BadInput(f"{classes} classes are no multiple of {confounds} confounders, two or more; leave some out")
    if not degrees or degrees[0] != 0 or min(degrees) < 0 or max(degrees) > 1 or len(degrees) < 2:
        raise BadInput(f"degrees begin with 0 and go up to 1 at most, not {tuple(degrees)}")
    rng = np.random.default_rng(random_state)
    right = np.zeros((repeats, len(degrees)))
    for repeat in range(repeats):
        train, test = _halves(label, confound, rng)
        own = rng.permutation(np.arange(classes) % confounds)
        for place, degree in enumerate(degrees):
            rows = correlated(train, own, degree)
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
            right[repeat, place] = model.fit(X[rows], label[rows]).score(X[test], label[test])
    return float((right[:, 1:] / right[:, :1] - 1).mean()), right.mean(axis=0)


def correlated(cells: np.ndarray, own: np.ndarray, degree: float) -> np.ndarray:
    """Choose training rows with Cramer's V of ``degree``, and as many of each class whatever it is.

    Counts are whole numbers, so that V is off by at most ``confounders / (2 m)``.

    Parameters
    ----------
    cells : int array (classes, confounders, m)
        Rows of each cell, in drawn order.
    own : int array (classes,)
        The confounder of each class.
    degree : float

    Returns
    -------
    int array (classes * m,)
    """
    classes, confounds, size = cells.shape
    others = int(np.rint((1 - degree) / confounds * size))
    count = np.full((classes, confounds), others)
    count[np.arange(classes), own] = size - (confounds - 1) * others
    return np.concatenate([cells[cell][: count[cell]] for cell in np.ndindex(classes, confounds)])


def _halves(label: np.ndarray, confound: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw training rows (classes, confounders, m) and balanced test rows."""
    shape = (int(label.max()) + 1, int(confound.max()) + 1)
    drawn = [rng.permutation(np.flatnonzero((label == b) & (confound == c))) for b, c in np.ndindex(*shape)]
    size = min(map(len, drawn))
    tested = int(TESTED * size)
    # a multiple, so that classes and confounders can be independent to the row
    trained = (size - tested) // shape[1] * shape[1]
    if trained == 0 or tested == 0:
        raise BadInput(
            f"some class and confounder occur together in {size} rows; of those that are not in the test, each "
            f"of the {shape[1]} confounders needs one"
        )
    table = np.array([rows[: tested + trained] for rows in drawn]).reshape(*shape, tested + trained)
    return table[:, :, tested:], table[:, :, :tested].ravel()
