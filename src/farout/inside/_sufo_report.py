"""What SUFO finds in one model, and over several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.inside._sufo_features import Features
from farout.inside._sufo_outliers import Outliers


@dataclass(frozen=True)
class SufoReport:
    """The features of a model over its layers and stages, looked at in four ways.

    Attributes
    ----------
    stages, layers, classes, poolings : tuple of str
        The first pooling is the one whose last layer the plane, the axes and the outliers are of.
    y : int array (n,)
        Places of the samples' classes in ``classes``.
    texts : list of str
        What the samples say, empty where it was not given.
    probes : dict of str to float64 array (stages, layers, classes)
        By pooling: F1 of a linear probe for each class; see :attr:`macro`.
    tuned : float64 array (classes,) or None
        F1 of the model's own head at the last stage, on the rows that the probes tell.
    similarity : dict of str to float64 array (stages - 1, layers, 3)
        By pooling, between the first stage and each later one: RSA, linear CKA debiased, linear CKA as it is.
    bounds : dict of str to float64 array (layers, 2, 2)
        By pooling, at the last stage: the middle 95 % of RSA and of debiased CKA over bootstrapped samples.
    places : float64 array (stages, n, 2)
        The samples in the plane of the first two principal axes of the last stage.
    silhouette, linear : float64 array (stages,)
        Of the classes in the plane; and the balanced accuracy of a linear probe in it.
    explained : float64 array (stages, r)
        Share of the variance of the last layer along each principal axis of that stage; each row adds up to 1.
    told : float64 array (5, classes) or None
        Share of the samples that the head puts into each class when it is shown one axis of the last stage alone.
    left : float64 array (6,) or None
        Macro-F1 of the head, on the rows that the probes tell, when the first 0, 1, ... 5 axes are taken away.
    outliers : Outliers
        At the last stage.
    last : Features
        Of the last stage.
    """

    stages: tuple[str, ...]
    layers: tuple[str, ...]
    classes: tuple[str, ...]
    poolings: tuple[str, ...]
    y: np.ndarray
    texts: list[str]
    probes: dict[str, np.ndarray]
    tuned: np.ndarray | None
    similarity: dict[str, np.ndarray]
    bounds: dict[str, np.ndarray]
    places: np.ndarray
    silhouette: np.ndarray
    linear: np.ndarray
    explained: np.ndarray
    told: np.ndarray | None
    left: np.ndarray | None
    outliers: Outliers
    last: Features

    @property
    def macro(self) -> dict[str, np.ndarray]:
        """Macro-F1 of the probes (stages, layers), by pooling."""
        return {how: f1.mean(axis=2) for how, f1 in self.probes.items()}

    @property
    def sparsity(self) -> np.ndarray:
        """Share of the variance that the first five axes explain at each stage (stages,)."""
        return self.explained[:, :5].sum(axis=1)


@dataclass(frozen=True)
class Comparison:
    """Several models on the same samples.

    Attributes
    ----------
    models : tuple of str
    rsa : float64 array (models, models, layers)
        Between the last stages of each two models.
    places : float64 array (models, n, 2)
        The planes of the last stages, turned onto that of the first model.
    disparity : float64 array (models,)
        What is left between each plane and the first after turning, squared, from 0 to 1.
    votes : int array (n,)
        How many models name a sample as an outlier.
    modes : list of dict
        Outliers grouped by the class they are labelled with and the one they lie with, the largest group first:
        ``label``, ``lies_with`` (names of classes), ``rows`` and ``votes`` (int arrays).
    """

    models: tuple[str, ...]
    rsa: np.ndarray
    places: np.ndarray
    disparity: np.ndarray
    votes: np.ndarray
    modes: list[dict[str, Any]]
