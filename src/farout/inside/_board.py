"""The sums behind :class:`ChannelStats` on a GPU: two kernels a site, and nothing comes home before the end.

The processor that launches kernels must not wait for those that run. So facts stay on the GPU, in float64, and every
batch is added there; :mod:`farout.inside._sums` computes the same on any device, and a test compares the two.

Shape legend: N rows, C channels, P positions, G groups of positions, H heads, K keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from farout.inside._accumulators import MOST_POSITIONS, ChannelStats, farthest
from farout.inside._attention_stats import AttentionStats
from farout.inside._channel_facts import BINS, DROPPED_BITS, HASH, LARGE, SAMPLED, is_sampled

_ROWS, _STEP, _COLUMNS = 128, 16, 128  # rows of a stripe, rows at a time, and columns, of a program
_ALL_BINS = 1 << (31 - DROPPED_BITS)
_COPIES = 64  # of the bins, so that programs which count at once do not wait for each other


@dataclass
class _Slot:
    """What is known of a site: float64 numbers on the GPU as they were before this batch, and room for those after."""

    C: int
    P: int
    PB: int
    old: torch.Tensor
    new: torch.Tensor
    written: bool = False

    @classmethod
    def empty(cls, C: int, P: int, device: Any) -> _Slot:
        PB = min(16, P)
        state = torch.zeros(11 * C + 5 * P + 7 * (P // PB) + _ALL_BINS, dtype=torch.float64, device=device)
        state[5 * C : 6 * C], state[6 * C : 7 * C] = torch.inf, -torch.inf
        return cls(C, P, PB, state, state.clone())

    def keep(self) -> None:
        """Let the batch count."""
        self.old, self.new, self.written = self.new, self.old, False

    def stats(self) -> ChannelStats | None:
        """Bring it home; None when no batch counted."""
        C, P, G = self.C, self.P, self.P // self.PB
        columns, positions, rows, histogram = np.split(self.old.cpu().numpy(), np.cumsum([11 * C, 5 * P, 7 * G]))
        columns = columns.reshape(11, C)
        count, mean, m2, m3, m4, low, high, magnitude, large, nan, infinite = columns
        seen, bad, peak, channel, sizes = positions.reshape(5, P)
        if not seen.any():
            return None
        P = int(np.flatnonzero(seen)[-1]) + 1
        top = farthest(np.where(seen[:P] > 0, peak[:P], -1.0))
        top = top[seen[top] > 0]
        return ChannelStats(
            count.astype(np.int64),
            mean,
            np.maximum(m2, 0.0),
            m3,
            np.maximum(m4, 0.0),
            low,
            high,
            magnitude,
            large.astype(np.int64),
            nan.astype(np.int64),
            infinite.astype(np.int64),
            rows.reshape(G, 7).sum(0),
            seen[:P].astype(np.int64),
            bad[:P].astype(np.int64),
            peak[:P],
            sizes[:P],
            top,
            channel[top].astype(np.int64),
            histogram[:BINS].astype(np.int64),
        )


@dataclass
class _Attention:
    """What is known of a site of attention: mass by key, bad and high of each head (H, K + 2), and queries."""

    old: Any
    old_queries: Any
    new: Any = None
    new_queries: Any = 0
    written: bool = False

    def add(self, sums: torch.Tensor, queries: Any) -> None:
        """Add a batch's part."""
        before, asked = (self.new, self.new_queries) if self.written else (self.old, self.old_queries)
        self.new = before + sums
        torch.maximum(before[:, -1], sums[:, -1], out=self.new[:, -1])
        self.new_queries, self.written = asked + queries, True

    def keep(self) -> None:
        """Let the batch count."""
        self.old, self.old_queries, self.written = self.new, self.new_queries, False

    def stats(self) -> AttentionStats | None:
        """Bring it home; None when no batch counted."""
        if not int(self.old_queries):
            return None
        return AttentionStats.of(self.old[:, :-2], self.old[:, -1], self.old[:, -2], self.old_queries)


class Board:
    """Facts about the sites of a model that stay on its GPU until they are asked for.

    A batch counts when it is kept; what a batch added that did not end well is written over by the next.
    """

    def __init__(self) -> None:
        self.slots: dict[tuple[str, int, int], Any] = {}
        self.bins: torch.Tensor | None = None  # of the one GPU whose tensors are taken

    def start(self) -> None:
        """Begin a batch."""
        for slot in self.slots.values():
            slot.written = False

    def keep(self) -> None:
        """Let the batch count."""
        for slot in self.slots.values():
            if slot.written:
                slot.keep()

    def take(self, name: str, x_NC: torch.Tensor, period: int, keep_N: torch.Tensor | None) -> bool:
        """Add rows to a site, as ``ChannelStats.of`` sees them; False where these kernels cannot."""
        from farout.inside import _kernels as kernels

        N, C = x_NC.shape
        if x_NC.dtype == torch.float64 or not 1 <= period <= min(N, MOST_POSITIONS) or not self._may_take(x_NC):
            return False
        P = 1 << (period - 1).bit_length()
        slot = self.slots.get((name, C, P))
        if slot is None:
            slot = self.slots[name, C, P] = _Slot.empty(C, P, x_NC.device)
        K, J, G = -(-N // _ROWS), -(-C // _COLUMNS), P // slot.PB
        columns = torch.empty(K * 13 * C, dtype=torch.float32, device=x_NC.device)
        rows = torch.empty(J * 9 * N, dtype=torch.float32, device=x_NC.device)
        kernels.read[K, J](
            x_NC, x_NC if keep_N is None else keep_N.view(torch.int8), columns, rows, self.bins, N, C, *x_NC.stride(),
            MASKED=keep_N is not None, TIMES=SAMPLED if is_sampled(N, C) else 1,
            MULTIPLIER=HASH, ROWS=_ROWS, STEP=_STEP, COLUMNS=_COLUMNS,
            DROPPED=DROPPED_BITS, FROM=LARGE,
            COPIES=_COPIES, BINS=_ALL_BINS, num_warps=4,
        )  # fmt: skip
        old = slot.new if slot.written else slot.old
        kernels.join[-(-C // 16) + G + _ALL_BINS // 64,](
            columns, rows, self.bins, old, slot.new, N, C, K, J, period, P, G,
            COLUMNS=_COLUMNS, CB=16, KB=64, PB=slot.PB, BB=128 // slot.PB, HB=64,
            COPIES=_COPIES, BINS=_ALL_BINS, num_warps=4,
        )  # fmt: skip
        slot.written = True
        return True

    def take_probs(self, name: str, mass: torch.Tensor, high: torch.Tensor, bad: torch.Tensor, queries: Any) -> bool:
        """Add what :func:`farout.inside._attention.attention_sums` gives; False where it is elsewhere."""
        H, K = mass.shape
        if not self._may_take(mass):
            return False
        slot = self.slots.get((name, H, K))
        if slot is None:
            slot = self.slots[name, H, K] = _Attention(mass.new_zeros(H, K + 2), mass.new_zeros(()))
        slot.add(torch.cat([mass, bad[:, None], high[:, None]], 1), queries)
        return True

    def _may_take(self, x: torch.Tensor) -> bool:
        """Whether a tensor is on the GPU that came first, and small enough for indices of 32 bits."""
        if self.bins is None and x.is_cuda:
            self.bins = torch.zeros(_COPIES * _ALL_BINS, dtype=torch.int32, device=x.device)
        return self.bins is not None and x.device == self.bins.device and x.numel() < 1 << 31

    def stats(self) -> dict[str, Any]:
        """Bring everything home, by site."""
        found: dict[str, Any] = {}
        for (name, *_), slot in self.slots.items():
            stats = slot.stats()
            if stats is not None:
                found[name] = found[name].merge(stats) if name in found else stats
        return found
