"""From scores to alarms at a stated rate: conformal p-values.

Scores of two detectors are not comparable, and a score has no unit. Against the scores of m normal rows that the
detector has not seen, a new row gets the p-value ``(1 + #{s_i >= s}) / (m + 1)``. If it is exchangeable with those
rows, then ``P(p <= a) <= a`` for every a, whatever the detector: at most the stated rate of normal rows rings.

Source: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; for Benjamini-Hochberg on such p-values
Bates, Candes, Lei, Romano, Sesia, Testing for outliers with conformal p-values, Annals of Statistics 2023 (arXiv
2104.08279).
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state

from farout.contract import Detector
from farout.errors import BadInput, NotFitted
from farout.io.tables import to_polars
from farout.kit.columns import Reading


class Alarm(Detector):
    """A detector with calibrated p-values and a stated rate of false alarms.

    Parameters
    ----------
    detector : Detector
        Cloned and fitted by ``fit``; used as it is by ``calibrate``.
    rate : float
        Largest share of normal rows that may ring, in (0, 1).
    calibration : float
        Share of the normal rows that ``fit`` holds out to calibrate on.
    random_state : int or RandomState, optional
        Draws the rows that are held out.

    Attributes
    ----------
    detector_ : Detector
        The fitted detector.
    calibration_scores_ : float64 array (m,)
        Scores of the held-out normal rows, sorted.
    offset_ : float
        A row rings when its score is above ``-offset_``.

    Examples
    --------
    >>> import numpy as np
    >>> from farout.table import ECOD
    >>> normal = np.random.default_rng(0).normal(size=(1000, 3))
    >>> alarm = Alarm(ECOD(), rate=0.01, random_state=0).fit(normal)
    >>> alarm.predict([[0.1, 0.2, -0.3], [9.0, 9.0, 9.0]])
    array([ 1, -1])
    >>> alarm.p_values([[9.0, 9.0, 9.0]]).round(4)
    array([0.0033])
    """

    def __init__(
        self, detector: Detector, rate: float = 0.01, calibration: float = 0.3, random_state: Any = None
    ) -> None:
        self.detector = detector
        self.rate = rate
        self.calibration = calibration
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit on one part of normal data and calibrate on the rest.

        Parameters
        ----------
        X : array or data frame (n, d)
            Normal rows, or nearly so: outliers among them make alarms rarer, never more frequent.
        y : ignored

        Raises
        ------
        BadInput
            When too few rows are held out for the rate: ``(m + 1) * rate`` must be at least 1.
        """
        if not 0 < self.calibration < 1:
            raise BadInput(f"calibration is a share of the rows between 0 and 1, not {self.calibration}")
        X = X if isinstance(X, np.ndarray | Reading) else to_polars(X)
        order = check_random_state(self.random_state).permutation(len(X))
        held_out = round(self.calibration * len(X))
        check_rate(self.rate, held_out)
        self.detector_ = clone(self.detector).fit(X[order[held_out:]])
        return self._calibrate(self.detector_.outlier_score(X[order[:held_out]]))

    def calibrate(self, X: Any) -> Self:
        """Calibrate the detector, fitted already, on normal rows that it has not seen.

        Parameters
        ----------
        X : array or data frame (m, d)
        """
        return self.calibrate_scores(self.detector.outlier_score(X))

    def calibrate_scores(self, scores: np.ndarray) -> Self:
        """Calibrate on scores that the detector, fitted already, gave to normal rows that it has not seen."""
        self.detector_ = self.detector
        check_rate(self.rate, len(scores))
        return self._calibrate(scores)

    def outlier_score(self, X: Any) -> np.ndarray:
        """Return the detector's score of new rows, each by itself; larger is farther out."""
        self._check_fitted()
        return self.detector_.outlier_score(X)

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, calibrate, and score the same rows."""
        return self.fit(X).outlier_score(X)

    def p_values(self, X: Any) -> np.ndarray:
        """Return the conformal p-value of each row, between 1 / (m + 1) and 1.

        Returns
        -------
        float64 array (n,)
        """
        return self.p_values_of(self.outlier_score(X))

    def p_values_of(self, scores: np.ndarray) -> np.ndarray:
        """Return the p-values of scores that the detector gave."""
        if not hasattr(self, "calibration_scores_"):
            raise NotFitted("this 'Alarm' is not calibrated yet: call fit(X) or calibrate(X) first")
        m = len(self.calibration_scores_)
        return (1 + m - np.searchsorted(self.calibration_scores_, scores, side="left")) / (m + 1)

    def discoveries(self, X: Any) -> np.ndarray:
        """Mark rows of a batch so that the expected share of normal rows among the marked is at most the rate.

        Benjamini-Hochberg on the p-values; unlike ``predict`` it looks at the whole batch.

        Returns
        -------
        bool array (n,)
        """
        return benjamini_hochberg(self.p_values(X), self.rate)

    def __getattr__(self, name: str) -> Any:
        # what the detector offers beyond the contract (reasons, score_maps, profile_) is offered here too
        if name in ("reasons", "score_maps", "profile_", "feature_names_", "columns_") and "detector_" in vars(self):
            return getattr(self.detector_, name)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def _calibrate(self, scores: np.ndarray) -> Self:
        self.calibration_scores_ = np.sort(scores)
        m = len(scores)
        # p <= rate means that at most `ringing - 1` held-out scores reach the row's score
        ringing = int((np.arange(1, m + 2) / (m + 1) <= self.rate).sum())
        self.offset_ = -float(self.calibration_scores_[m - ringing])
        return self


def check_rate(rate: float, m: int | None = None) -> None:
    """Refuse a rate that is no share, or that m held-out rows are too few for: the least p-value is 1 / (m + 1).

    Raises
    ------
    BadInput
    """
    if not 0 < rate < 1:
        raise BadInput(f"rate is a share of the rows between 0 and 1, not {rate}")
    if m is not None and 1 / (m + 1) > rate:
        need = int(np.ceil(1 / rate)) - 1
        raise BadInput(
            f"a rate of {rate:g} needs at least {need:,} normal rows to calibrate on, and {m:,} are held out: "
            "give more normal rows, a larger rate or a larger share for calibration"
        )


def benjamini_hochberg(p_values: np.ndarray, rate: float) -> np.ndarray:
    """Mark p-values so that the expected share of false ones among the marked is at most ``rate``.

    Parameters
    ----------
    p_values : float array (n,)
    rate : float

    Returns
    -------
    bool array (n,)

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.001, 0.02, 0.6, 0.9]), 0.05)
    array([ True,  True, False, False])
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(p_values, method="bh") <= rate if len(p_values) else np.zeros(0, bool)
