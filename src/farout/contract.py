"""The contracts that every room keeps. Read this first.

A :class:`Detector` takes samples and gives each a score; a LARGER score is FARTHER OUT, everywhere, always. It is a
scikit-learn estimator, so clone, pipelines and searches work, and scikit-learn's own faces (``score_samples``,
``decision_function``, ``predict``) follow from the score with scikit-learn's signs.

Scores are pointwise: the score of a row does not depend on the other rows of the call. No ``contamination`` guess
decides labels; :class:`farout.Alarm` turns scores into calibrated p-values and alarms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from farout.cards import find
from farout.errors import BadInput, NotFitted
from farout.io.state import read_state, write_state

LABEL_RATE = 0.01  # share of the training rows that `predict` marks; a convention, and no estimate of anything


class Detector(OutlierMixin, BaseEstimator):
    """Samples in, a score each out.

    A subclass writes ``fit_score`` and ``outlier_score``, and where its method can: ``reasons(X) -> (n, d)`` (per
    feature, adding up to the score or ranking it), ``words(X)`` (each row's reasons in words, where a number a
    feature cannot say them), ``score_maps(X)`` (where in the sample), ``partial_fit(X)`` and ``merge(other)`` (pieces
    equal the whole).

    Attributes
    ----------
    offset_ : float
        ``predict`` marks rows with ``score_samples`` below it: the farthest 1 % of the training rows.
    """

    offset_: float

    def fit(self, X: Any, y: Any = None) -> Detector:
        """Learn what is usual.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : ignored
        """
        self.fit_score(X, y)
        return self

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return the score of each training row as the method's paper gives it.

        Methods that look at neighbours leave the row itself out, so this can differ from ``fit(X).outlier_score(X)``,
        which treats the same rows as new.

        Returns
        -------
        float64 array (n,)
        """
        raise NotImplementedError(f"'{type(self).__name__}' must write fit_score")

    def outlier_score(self, X: Any) -> np.ndarray:
        """Score new rows, each by itself; larger is farther out.

        Returns
        -------
        float64 array (n,)
        """
        raise NotImplementedError(f"'{type(self).__name__}' must write outlier_score")

    def score_samples(self, X: Any) -> np.ndarray:
        """Return ``-outlier_score(X)``: scikit-learn's sign, larger is more usual."""
        return -self.outlier_score(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return ``score_samples(X) - offset_``; negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return -1 for rows farther out than 99 % of the training rows, 1 for the others.

        For a rate that holds on new data, wrap the detector in :class:`farout.Alarm`.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def save(self, path: str | Path) -> None:
        """Write the fitted detector to a file that :func:`farout.load` reads; no pickle."""
        self._check_fitted()
        write_state(path, {"detector": state_of(self)})

    def _state(self) -> dict[str, Any]:
        """Parameters and all that was learned, by name."""
        return {**self.get_params(deep=False), **vars(self)}

    def _restore(self, values: dict[str, Any]) -> None:
        """Take back what ``_state`` gave, as plain data."""
        for name, value in values.items():
            setattr(self, name, value)

    def _check_fitted(self) -> None:
        try:
            check_is_fitted(self)
        except Exception as error:
            raise NotFitted(f"this '{type(self).__name__}' is not fitted yet: call fit(X) first") from error

    def _set_offset(self, training_scores: np.ndarray) -> None:
        self.offset_ = -float(np.quantile(training_scores, 1 - LABEL_RATE))


def state_of(detector: Detector) -> dict[str, Any]:
    """Return a detector as plain data: its name in the catalogue, its parameters and its fitted state."""
    return {"name": _word(detector), "values": {name: _plain(value) for name, value in detector._state().items()}}


def from_state(state: dict[str, Any]) -> Detector:
    """Rebuild a detector from :func:`state_of`'s data."""
    cls = _class(state["name"])
    detector = cls.__new__(cls)
    nested = {k: v for k, v in state["values"].items() if isinstance(v, dict) and set(v) == {"nested"}}
    detector._restore({**state["values"], **{name: from_state(value["nested"]) for name, value in nested.items()}})
    return detector


def load(path: str | Path) -> Detector:
    """Read a detector that ``save`` wrote; nothing in the file is run.

    Raises
    ------
    BadInput
        When the file is missing, damaged, of a newer format or not a saved detector.
    """
    tree = read_state(path)
    try:
        return from_state(tree["detector"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"'{path}' holds no detector ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    """Turn nested detectors into data, a path into text; a generator, whose state means nothing any more, into None."""
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return None
    if isinstance(value, Path):
        return str(value)
    return {"nested": state_of(value)} if isinstance(value, Detector) else value


def _word(detector: Detector) -> str:
    """Name of a detector's class in files: the catalogue's name, or 'Alarm'."""
    return getattr(type(detector), "__paper__", type(detector).__name__)


def _class(word: str) -> type[Detector]:
    """Find the class of a word in a file: a method of the catalogue, or what farout itself offers (``Alarm``)."""
    import farout

    return getattr(farout, word) if word in farout.__all__ else find(word).load()
