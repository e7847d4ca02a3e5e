"""Principal axes of a layer's features: the plane of SUFO's feature dynamics, and what each axis tells the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.errors import BadInput

Head = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Axes:
    """Principal axes of centred features.

    Attributes
    ----------
    mean : float64 array (d,)
    axes : float64 array (r, d)
        Directions of length 1, the widest first, each with its largest coefficient positive; r is min(n, d).
    share : float64 array (r,)
        Of the variance, along each; the sum is 1.
    """

    mean: np.ndarray
    axes: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, X: Any) -> Axes:
        """Find the axes of features (n, d).

        Raises
        ------
        BadInput
            All rows are the same.
        """
        X = np.asarray(X, dtype=np.float64)
        mean = X.mean(axis=0)
        _, widths, axes = np.linalg.svd(X - mean, full_matrices=False)
        if not widths[0] > 0:
            raise BadInput("all rows of the features are the same, so there are no principal axes")
        axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
        share = (widths / widths[0]) ** 2
        return cls(mean, axes, share / share.sum())

    def places(self, X: Any, k: int = 2) -> np.ndarray:
        """Place features (n, d) along the first k axes: float64 (n, k)."""
        return (np.asarray(X, dtype=np.float64) - self.mean) @ self.axes[:k].T

    def only(self, X: Any, i: int) -> np.ndarray:
        """Keep of features (n, d) their place along axis i, and the mean."""
        axis = self.axes[i : i + 1]
        return self.mean + (np.asarray(X, dtype=np.float64) - self.mean) @ axis.T @ axis

    def without(self, X: Any, k: int) -> np.ndarray:
        """Take from features (n, d) their places along the first k axes; the mean stays. Nothing is taken for k = 0."""
        X = np.asarray(X, dtype=np.float64)
        return X - self.places(X, k) @ self.axes[:k] if k else X


def classes_told(head: Head, axes: Axes, X: np.ndarray, components: int, classes: int) -> np.ndarray:
    """Share of the samples that the head puts into each class when shown one axis alone: (components, classes)."""
    told = [logits_of(head, axes.only(X, i), classes).argmax(1) for i in range(components)]
    return np.array([np.bincount(these, minlength=classes) / len(X) for these in told])


def left_without(head: Head, axes: Axes, X: np.ndarray, y: np.ndarray, components: int, classes: int) -> np.ndarray:
    """Macro-F1 of the head when the first 0, 1, ... axes are taken away: (components + 1,)."""
    from sklearn.metrics import f1_score

    told = [logits_of(head, axes.without(X, k), classes).argmax(1) for k in range(components + 1)]
    return np.array([f1_score(y, these, average="macro", zero_division=0.0) for these in told])


def logits_of(head: Head, X: np.ndarray, classes: int) -> np.ndarray:
    """Ask the head, in the precision of most models, and look at what it says.

    Raises
    ------
    BadInput
        The head gives no logits (n, classes).
    """
    logits = np.asarray(head(X.astype(np.float32)))
    if logits.shape != (len(X), classes):
        raise BadInput(
            f"the head gives an array of shape {logits.shape} for {len(X):,} samples; it must give logits "
            f"(n, {classes}) of the classes in sorted order"
        )
    return logits


def separation(places: np.ndarray, y: np.ndarray, rows: np.ndarray) -> float:
    """Silhouette of the classes in the plane, over some rows; NaN where these hold one class."""
    from sklearn.metrics import silhouette_score

    held = len(np.unique(y[rows]))
    return float(silhouette_score(places[rows], y[rows])) if 1 < held < len(rows) else float("nan")
