"""MarginalRarity: A Scalable and Efficient Outlier Detection Strategy for Categorical Data.

Anna Koufakou, Enrique G. Ortiz, Michael Georgiopoulos, Georgios C. Anagnostopoulos, Kenneth M. Reynolds, ICTAI 2007
(doi 10.1109/ICTAI.2007.125).

An event is odd when its values are rare, each for itself. The paper's score, AVF, is the mean frequency of the values;
here it is the sum of minus log frequencies, the surprise of an event whose types were independent. It is the baseline
that methods of pairs have to beat, and hard to beat where anomalies are events of a rare kind.

The paper claims that AVF finds as many outliers as greedy entropy, frequent itemsets and frequent patterns do, and is
many times faster, in one pass and in time linear in events and types.

Differences from the paper: logarithms, so that one very rare value counts as much as it surprises. Values never seen
have probability 1 / (n + 1). A missing value takes the mean part of its type, so that it says nothing. Numbers are put
into bins. States merge.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.cards import paper
from farout.events._common import Vocabulary, surprise
from farout.kit.columns import Features
from farout.kit.profile import Profile, RowSample
from farout.rows import ProfileDetector


@paper(
    "MarginalRarity",
    title="A Scalable and Efficient Outlier Detection Strategy for Categorical Data",
    authors="Koufakou, Ortiz, Georgiopoulos, Anagnostopoulos, Reynolds",
    url="https://doi.org/10.1109/ICTAI.2007.125",
    year=2007,
    claim="Finds as many outliers as entropy, frequent itemsets and frequent patterns do, in one pass and in time "
    "linear in events and types.",
    differs="Sums minus log frequencies, where the paper's AVF averages frequencies. Unseen and missing values, bins "
    "for numbers and merging states are added.",
    takes=("numeric", "missing", "category", "date"),
    streams=True,
    explains=True,
)
class MarginalRarity(ProfileDetector):
    """``sum_t -log p_t(a_t)``: the surprise of each entity by itself.

    ``p_t(a)`` is the share of entity ``a`` among those of type ``t``, and 1 / (n + 1) for one never seen. A number that
    takes few values is read as it is; others fall into bins, even near the median and growing towards the tails.

    Cost: a pass to count; to score, a look-up a cell.

    Parameters
    ----------
    sketch : float
        Relative rank error of stored number columns, as for ECOD; 0 keeps every number.

    Attributes
    ----------
    profile_ : Profile
        Rank tables and level counts of all types.

    Examples
    --------
    >>> import polars as pl
    >>> events = pl.DataFrame({"user": ["ann"] * 6 + ["bob"] * 2, "host": ["a", "b"] * 4})
    >>> MarginalRarity().fit_score(events).round(2)
    array([0.98, 0.98, 0.98, 0.98, 0.98, 0.98, 2.08, 2.08])
    """

    def __init__(self, sketch: float = 0.0) -> None:
        self.sketch = sketch

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        """Count the entities of events, and return the scores (n,) of these events."""
        self._check_parameters()
        features = self._features(X, reset=True)
        self._ladder = [Profile.of(features, self.sketch)]
        self._sample = RowSample.of(features)
        scores = self._against_profile(features)
        self._set_offset(scores)
        return scores

    def reasons(self, X: Any) -> np.ndarray:
        """Return each entity's surprise in nats; parts add up to the score.

        Returns
        -------
        float64 array (n, m)
        """
        return np.stack(list(self._parts(self._features(X, reset=False))), axis=1)

    def _against_profile(self, features: Features) -> np.ndarray:
        total = np.zeros(features.n)
        for part in self._parts(features):
            total += part
        return total

    def _parts(self, features: Features) -> Any:
        """Yield the surprise (n,) of each type."""
        for (_, column), table in zip(features, self.profile_.columns):
            vocabulary = Vocabulary.of(table)
            yield surprise(vocabulary.counts)[vocabulary.encode(column)]
