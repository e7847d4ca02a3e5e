"""What a recording keeps of attention: where each head looks, summed over sequences and queries.

Shape legend: H heads, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput
from farout.inside._channel_facts import padded
from farout.io.state import saved

if TYPE_CHECKING:
    import torch


@saved("attention_stats")
@dataclass
class AttentionStats:
    """Where attention goes: probabilities of each head, summed over sequences and queries.

    Of a sequence with more than 64 queries, 64 that are spread evenly are looked at.

    Attributes
    ----------
    mass : float64 array (H, K)
        Sum of the probabilities that a key position received.
    queries : int64 array (K,)
        Queries that were looked at, in sequences that have this key position.
    high : float64 array (H,)
        Largest probability.
    bad : int64 array (H,)
        Probabilities that are NaN, as rows without any visible key give; they count as 0.
    """

    mass: np.ndarray
    queries: np.ndarray
    high: np.ndarray
    bad: np.ndarray

    @classmethod
    def of(cls, mass: torch.Tensor, high: torch.Tensor, bad: torch.Tensor, queries: Any) -> AttentionStats:
        """Take what :func:`farout.inside._attention.attention_sums` has added up."""
        counted = np.full(mass.shape[1], int(queries))
        return cls(mass.cpu().numpy(), counted, high.cpu().numpy(), bad.cpu().numpy().astype(np.int64))

    def merge(self, other: AttentionStats) -> AttentionStats:
        """Return the facts about both sets of sequences together."""
        if len(self.mass) != len(other.mass):
            raise BadInput(f"facts about {len(self.mass)} heads do not merge with those about {len(other.mass)}")
        K = max(len(self.queries), len(other.queries))
        return AttentionStats(
            padded(self.mass, K) + padded(other.mass, K),
            padded(self.queries, K) + padded(other.queries, K),
            np.maximum(self.high, other.high),
            self.bad + other.bad,
        )

    @property
    def share(self) -> np.ndarray:
        """Mean attention that each key position gets from a query (H, K); a sink is a column near 1."""
        return self.mass / np.maximum(self.queries, 1)
