"""Samples far from their class in the plane of the first two principal axes, in one model and over several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FENCE = 3.0  # of Tukey's outer fence, in interquartile ranges


@dataclass(frozen=True)
class Outliers:
    """How each of n samples lies to its class.

    Attributes
    ----------
    distance : float64 array (n,)
        From the centroid of the sample's class, in the plane.
    lies_with : int array (n,)
        The class whose k-means cluster it is in.
    far : bool array (n,)
        Beyond Tukey's outer fence of its class's distances.
    misclassified : bool array (n,)
        By the head, or without one, ``lies_with`` is another class.
    """

    distance: np.ndarray
    lies_with: np.ndarray
    far: np.ndarray
    misclassified: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """Outliers (n,): far, or misclassified."""
        return self.far | self.misclassified

    @property
    def ranked(self) -> np.ndarray:
        """Numbers of the outliers, the farthest first."""
        order = np.argsort(-self.distance, kind="stable")
        return order[self.flagged[order]]


def outliers_in(places: np.ndarray, y: np.ndarray, predicted: np.ndarray | None) -> Outliers:
    """Find outliers among places (n, 2) of samples with classes y (n,) and, where known, predicted ones.

    k-means starts from the centroids of the classes, so that its clusters bear their numbers.
    """
    from sklearn.cluster import KMeans

    classes = int(y.max()) + 1
    centroids = np.stack([places[y == c].mean(axis=0) for c in range(classes)])
    distance = np.linalg.norm(places - centroids[y], axis=1)
    far = np.zeros(len(y), dtype=bool)
    for c in range(classes):
        low, high = np.quantile(distance[y == c], (0.25, 0.75))
        far |= (y == c) & (distance > high + FENCE * (high - low))
    lies_with = KMeans(classes, init=centroids, n_init=1).fit(places).labels_.astype(np.int64)
    return Outliers(distance, lies_with, far, (lies_with if predicted is None else predicted) != y)


def aligned(planes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Turn the planes (n, 2) of several models so that they lie on the first, by Procrustes.

    Each is centred and brought to size 1, since neither the sign of an axis nor its unit means anything.

    Returns
    -------
    float64 array (models, n, 2)
    float64 array (models,)
        What is left between each and the first, squared: 0 where they are alike, 1 where they have nothing in common.
    """
    from scipy.spatial import procrustes

    turned = [procrustes(planes[0], plane) for plane in planes]
    return np.stack([plane for _, plane, _ in turned]), np.array([disparity for *_, disparity in turned])


def modes_of(found: list[Outliers], y: np.ndarray) -> list[dict[str, Any]]:
    """Group outliers of several models by their class and the one that most models lay them with; largest group first.

    Returns
    -------
    list of dict
        ``label``, ``lies_with``, ``rows`` (int array, those that most models name first) and ``votes`` (for each row,
        the models that name it).
    """
    classes = int(y.max()) + 1
    votes = np.sum([one.flagged for one in found], axis=0)
    lies = np.zeros((len(y), classes), dtype=np.int64)
    for one in found:
        lies[np.arange(len(y)), one.lies_with] += one.flagged
    place = lies.argmax(axis=1)
    groups = []
    for label, lies_with in np.ndindex(classes, classes):
        rows = np.flatnonzero((votes > 0) & (y == label) & (place == lies_with))
        rows = rows[np.argsort(-votes[rows], kind="stable")]
        if len(rows):
            groups.append({"label": label, "lies_with": lies_with, "rows": rows, "votes": votes[rows]})
    return sorted(groups, key=lambda group: -len(group["rows"]))
