"""Linear probes: what can be read from frozen features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from farout.errors import BadInput

FOLDS = 5


def told_by_probe(X: np.ndarray, y: np.ndarray, train: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predict classes by logistic regression on standardised features, the classes weighed alike.

    Parameters
    ----------
    X : array (n, d)
    y : int array (n,)
    train : bool array (n,), optional
        Rows to learn from, the others are told; by default each fifth is told by a probe of the other four.
    seed : int

    Returns
    -------
    int array (m,)
        Rows that were told.
    int array (m,)
        Their predicted classes.
    """
    rows = np.arange(len(y)) if train is None else np.flatnonzero(~train)
    if train is None:
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _unfinished())
            return rows, cross_val_predict(_probe(), X, y, cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _unfinished())
        return rows, _probe().fit(X[train], y[train]).predict(X[rows])


def scores(y: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the F1 of each class (classes,); 0 where a class is neither there nor told."""
    from sklearn.metrics import f1_score

    return f1_score(y, predicted, labels=range(classes), average=None, zero_division=0.0)


def split_of(train: Any, y: np.ndarray) -> np.ndarray | None:
    """Read which rows to learn from, and see that both sides hold every class.

    Raises
    ------
    BadInput
    """
    counts = np.bincount(y)
    if train is None:
        if counts.min() < FOLDS:
            raise BadInput(
                f"a class has {counts.min()} samples; cross-validation needs {FOLDS}, or say with 'train' which to "
                "learn from"
            )
        return None
    train = np.asarray(train)
    if train.shape != y.shape or train.dtype != bool:
        raise BadInput(f"'train' is an array of '{train.dtype}' and shape {train.shape}; give {len(y):,} truth values")
    for side, words in ((train, "learnt from"), (~train, "told")):
        missing = np.setdiff1d(y, y[side])
        if len(missing):
            raise BadInput(f"{len(missing)} of {len(counts)} classes have no samples among those that are {words}")
    return train


def _probe() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=300))


def _unfinished() -> type[Warning]:
    """The warning of a fit that stopped at its last iteration: classes that are far apart have no finite optimum."""
    from sklearn.exceptions import ConvergenceWarning

    return ConvergenceWarning
