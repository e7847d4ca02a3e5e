"""Detectors whose samples are rows: any table in, checked and named features out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data

from farout.contract import Detector
from farout.errors import BadInput
from farout.io.tables import to_polars
from farout.kit.columns import ArrayFeatures, Codes, Columns, Features, Reading


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
