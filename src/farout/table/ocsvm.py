"""OCSVM: Estimating the Support of a High-Dimensional Distribution.

Bernhard Schölkopf, John C. Platt, John Shawe-Taylor, Alex J. Smola, Robert C. Williamson, Neural Computation 2001
(doi 10.1162/089976601750264965).

Map rows into the feature space of a kernel and separate them from the origin with the largest margin; the side where
most rows lie is an estimate of the distribution's support.

The paper proves that nu bounds the share of training rows outside from above and the share of support vectors from
below, and that both come to nu as rows grow.

Differences from the paper: numbers are standardised, the kernel's width follows scikit-learn's rule ``"scale"``, and
the score leaves out the threshold rho, which is the same for all rows. Missing numbers take the training median;
categories are one-hot.
"""

from __future__ import annotations

import numpy as np

from farout.cards import paper
from farout.table._common import MatrixDetector


@paper(
    "OCSVM",
    title="Estimating the Support of a High-Dimensional Distribution",
    authors="Schölkopf, Platt, Shawe-Taylor, Smola, Williamson",
    url="https://doi.org/10.1162/089976601750264965",
    year=2001,
    claim="nu is an upper bound on the share of training rows outside and a lower bound on the share of support "
    "vectors; both come to nu as rows grow.",
    differs="Numbers are standardised and the kernel's width is scikit-learn's 'scale'. The score leaves the threshold "
    "out, the same for all rows. Missing values and categories are added.",
    takes=("numeric", "missing", "category", "date"),
)
class OCSVM(MatrixDetector):
    """Minus the weighted sum of kernels between a row and the support vectors.

    The score is ``-sum_i alpha_i exp(-gamma |x - x_i|^2)``, at most 0. Cost: between ``O(n^2)`` and ``O(n^3)`` to fit,
    by scikit-learn's libsvm, and ``O(nu n d)`` to score a row.

    Parameters
    ----------
    nu : float
        Share of training rows outside, at most.
    gamma : {"scale", "auto"} or float
        One over the kernel's squared width. ``"scale"``: 1 / (columns * variance of the matrix).
    standardize : bool
        Whether numbers are brought to standard deviation 1 first.

    Attributes
    ----------
    machine_ : sklearn.svm.OneClassSVM

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0], [20.0]])
    >>> OCSVM().fit(X).outlier_score([[1.0], [20.0], [50.0]]).round(2)
    array([-1.44, -1. , -0. ])
    """

    _categories = "one_hot"

    def __init__(self, nu: float = 0.5, gamma: str | float = "scale", standardize: bool = True) -> None:
        self.nu = nu
        self.gamma = gamma
        self.standardize = standardize

    def _learn(self, matrix: np.ndarray) -> np.ndarray:
        from sklearn.svm import OneClassSVM

        self.machine_ = OneClassSVM(nu=self.nu, gamma=self.gamma).fit(matrix)
        return self._score(matrix)

    def _score(self, matrix: np.ndarray) -> np.ndarray:
        return -self.machine_.score_samples(matrix)
