"""What the neighbours of an embedding were found to share, and the two indices read from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SS, SO, OS, OO = range(4)  # neighbours: same or other class, then same or other confounder


@dataclass(frozen=True)
class Robustness:
    """What an embedding's neighbours share with their row: its class, its confounder, both or neither.

    Attributes
    ----------
    k : int
        Neighbours at which ``index``, ``share`` and ``errors`` are read.
    counts : int64 array (max_k, 4)
        Neighbours of all rows up to each k: same class and confounder, same class only, same confounder only, neither.
    by_group : int64 array (groups, 4)
        The same up to ``k``, for each group of rows; intervals draw from them.
    ks : int64 array (p,)
        Neighbours at which the four curves below were taken.
    accuracy, confounder_accuracy : float64 array (p,)
        Balanced accuracy of a vote of k neighbours on the class, and on the confounder.
    confounded, base_rate : float64 array (p,)
        Among the neighbours that belong to the wrongly predicted class of a misclassified row, the share with the
        row's confounder; and what it would be, were they drawn from that class at random. NaN where nothing is wrong.
    embedding : float64 array (n, d)
        The rows that were used, of length 1.
    labels, confounders : array (n,) of str
        Their classes and confounders.
    draws, random_state : int
        For intervals.
    """

    k: int
    counts: np.ndarray
    by_group: np.ndarray
    ks: np.ndarray
    accuracy: np.ndarray
    confounder_accuracy: np.ndarray
    confounded: np.ndarray
    base_rate: np.ndarray
    embedding: np.ndarray
    labels: np.ndarray
    confounders: np.ndarray
    draws: int
    random_state: int

    @property
    def index(self) -> float:
        """The paper's index at ``k``: above 1, the class rules; below 1, the confounder."""
        return float(self.index_curve[self.k - 1])

    @property
    def share(self) -> float:
        """The successor's index at ``k``, from 0 to 1: 0.5 is balance."""
        return float(self.share_curve[self.k - 1])

    @property
    def index_curve(self) -> np.ndarray:
        """``R_k = (SS + SO) / (SS + OS)`` for each k, float64 (max_k,).

        Where classes are well separated within a confounder, SS keeps it near 1 though no neighbour is from another
        one: then :attr:`share_curve` is near 0.
        """
        return _ratio(self.counts)

    @property
    def share_curve(self) -> np.ndarray:
        """``SO / (SO + OS)`` for each k, float64 (max_k,): neighbours that share exactly one of the two."""
        return _share(self.counts)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The middle 95 % of ``index`` and ``share`` when the groups of rows are drawn again with replacement."""
        rng = np.random.default_rng(self.random_state)
        n = len(self.by_group)
        drawn = [np.bincount(rng.integers(n, size=n), minlength=n) @ self.by_group for _ in range(self.draws)]
        found = np.array(drawn, dtype=np.int64).reshape(-1, 4)
        pairs = {"index": _ratio(found), "share": _share(found)}
        # a drawn number itself, since one between a number and infinity has no meaning
        ends = {name: np.quantile(x, (0.025, 0.975), method="inverted_cdf") for name, x in pairs.items()}
        return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

    @property
    def errors(self) -> dict[str, float]:
        """Both accuracies, the share of same-confounder errors and its base rate at the nearest of ``ks`` to ``k``."""
        at = int(np.abs(self.ks - self.k).argmin())
        curves = ("accuracy", "confounder_accuracy", "confounded", "base_rate")
        return {name: float(getattr(self, name)[at]) for name in curves}


def _ratio(counts: np.ndarray) -> np.ndarray:
    """Return (SS + SO) / (SS + OS) of counts (..., 4); infinite where no neighbour shares the confounder."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts[..., SS] + counts[..., SO]) / (counts[..., SS] + counts[..., OS])


def _share(counts: np.ndarray) -> np.ndarray:
    """Return SO / (SO + OS) of counts (..., 4); NaN where no neighbour shares exactly one of the two."""
    with np.errstate(invalid="ignore"):
        return counts[..., SO] / (counts[..., SO] + counts[..., OS])
