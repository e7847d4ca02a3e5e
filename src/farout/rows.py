"""Detectors whose samples are rows: any table in, checked and named features out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data

from farout.contract import Detector
from farout.errors import BadInput
from farout.io.tables import to_polars
from farout.kit.columns import ArrayFeatures, Codes, Columns, Features, Reading
from farout.kit.profile import Ladder, Profile, RowSample


class TableDetector(Detector):
    """A detector whose samples are rows of a table.

    Arrays are numbers. In data frames (pandas, polars, pyarrow, anything narwhals reads) text, categories and booleans
    are categories, and dates become elapsed days, weekday and hour. Missing values are taken by every table detector;
    infinities only where order is all that counts.

    Attributes
    ----------
    n_features_in_ : int
    feature_names_in_ : array of str
        Only for data frames.
    columns_ : Columns or None
        How the columns of a data frame are read; None for arrays.
    feature_names_ : list of str
        Names of the features that ``reasons`` speaks of.
    """

    _takes_infinity = False

    def _features(self, X: Any, reset: bool) -> Features:
        """Check a table and read it into features."""
        if not reset:
            self._check_fitted()
        if is_frame(X):
            X = self._reading(X, reset)
        else:
            finite: Any = False if self._takes_infinity else "allow-nan"
            X = validate_data(self, X, dtype=np.float64, ensure_all_finite=finite, reset=reset)
            if not reset and self.columns_ is not None:
                names = dict(zip([f"x{j}" for j in range(X.shape[1])], self.columns_.names))
                X = Reading(to_polars(X).rename(names), self.columns_)
        if isinstance(X, Reading):
            features = X.features()
            if not self._takes_infinity:
                _refuse_infinity(features, type(self).__name__)
        else:
            features = ArrayFeatures(X)
        if not reset and isinstance(X, Reading):
            self._check_like_fitted(features)
        if reset:
            self.columns_: Columns | None = X.columns if isinstance(X, Reading) else None
            self.feature_names_ = features.names
        return features

    def _check_like_fitted(self, features: Features) -> None:
        """Refuse a frame that a detector of plain arrays cannot read."""
        if len(features.names) != len(self.feature_names_):
            raise BadInput(
                f"the table has {len(features.names)} features ({', '.join(features.names[:5])} ...), but "
                f"'{type(self).__name__}' was fitted on {len(self.feature_names_)}"
            )
        words = [name for name, column in features if isinstance(column, Codes)] if self.columns_ is None else []
        if words:
            raise BadInput(f"column '{words[0]}' is no number, but '{type(self).__name__}' was fitted on an array")

    def _reading(self, X: Any, reset: bool) -> Reading:
        """Read a frame as it says itself, as it was read when fitted, or by the types of its columns."""
        if not isinstance(X, Reading):
            # scikit-learn checks the names and their number, in pandas frames and those of the interchange protocol
            frame = to_polars(X)
            validate_data(self, X if hasattr(X, "iloc") else frame, reset=reset, skip_check_array=True)
            known = None if reset else self.columns_
            X = Reading(frame, known or Columns.of(frame))
        elif reset:
            self.n_features_in_ = len(X.columns.names)
            self.feature_names_in_ = np.array(X.columns.names, dtype=object)
        if len(X) == 0:
            raise BadInput("Found array with 0 sample(s): a table needs at least one row")
        return X

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class ProfileDetector(TableDetector):
    """A table detector that scores rows by a profile of what it has seen, and so learns in pieces that merge.

    A subclass takes ``sketch``, writes ``_against_profile``, and in ``fit_score`` sets ``_ladder``, ``_sample`` and the
    offset.

    Attributes
    ----------
    profile_ : Profile
        Rank tables and level counts of all features.
    """

    sketch: float
    _ladder: list[Profile]
    _sample: RowSample
    _offset: float | None

    @abstractmethod
    def _against_profile(self, features: Features) -> np.ndarray:
        """Return the scores (n,) of rows against ``profile_``."""

    def outlier_score(self, X: Any) -> np.ndarray:
        """Score new rows against the profile: float64 (n,)."""
        return self._against_profile(self._features(X, reset=False))

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from more rows; any cut into batches gives the same state, exactly or within the sketch's error.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : ignored
        """
        self._check_parameters()
        first = not hasattr(self, "_ladder")
        features = self._features(X, reset=first)
        seen = 0 if first else sum(piece.n for piece in self._ladder)
        sample = RowSample.of(features, start=seen)
        if first:
            self._ladder, self._sample = [], sample
        else:
            self._sample = self._sample.merge(sample)
        Ladder(self._ladder).push(Profile.of(features, self.sketch))
        self._offset = None
        return self

    def merge(self, other: Self) -> Self:
        """Take in what another detector has learned from other rows.

        Parameters
        ----------
        other : detector of the same class
            Fitted by ``partial_fit`` with the same parameters on the same columns.
        """
        self._check_fitted()
        other._check_fitted()
        if self.feature_names_ != other.feature_names_ or self.sketch != other.sketch:
            raise BadInput(f"two '{type(self).__name__}' states merge only when columns and sketch are the same")
        for piece in other._ladder:
            Ladder(self._ladder).push(piece)
        self._sample = self._sample.merge(other._sample)
        self._offset = None
        return self

    @property
    def profile_(self) -> Profile:
        """Rank tables and level counts of all features."""
        return Ladder(self._ladder).whole()

    @property
    def offset_(self) -> float:
        """Threshold of ``predict``; after ``partial_fit`` it comes from a fair sample of 2,048 rows."""
        if self._offset is None:
            self._set_offset(self._against_profile(self._sample.features()))
        assert self._offset is not None
        return self._offset

    @offset_.setter
    def offset_(self, value: float) -> None:
        self._offset = value

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_ladder")

    def _check_parameters(self) -> None:
        if not 0 <= self.sketch < 0.5:
            raise BadInput(f"sketch is a relative rank error in [0, 0.5), not {self.sketch}")


def is_frame(X: Any) -> bool:
    """Tell frames (pandas, polars, pyarrow, lazy ones) from arrays and lists."""
    return isinstance(X, Reading) or any(
        hasattr(type(X), word) for word in ("columns", "column_names", "__dataframe__")
    )


def _refuse_infinity(features: Features, method: str) -> None:
    for name, column in features:
        if isinstance(column, np.ndarray) and np.isinf(column).any():
            raise BadInput(
                f"column '{name}' holds infinity in row {int(np.isinf(column).argmax())}, which '{method}' cannot "
                "weigh; replace it, or use a method of ranks such as 'ecod'"
            )
