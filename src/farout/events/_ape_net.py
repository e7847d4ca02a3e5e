"""APE's energy as a torch module, and its noise-contrastive loss; imported only where a network is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import logsigmoid


class Energy(torch.nn.Module):
    """``S(e) = sum_{i<j} w_ij <v_{a_i}, v_{a_j}>`` of events whose entities are rows of one table.

    Parameters
    ----------
    entities, types, dimensions : int
    weighted : bool
        Whether the weights of pairs of types are learned; else they stay 1.
    """

    def __init__(self, entities: int, types: int, dimensions: int, weighted: bool) -> None:
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.empty(entities, dimensions).uniform_(-0.05, 0.05))
        self.weights = torch.nn.Parameter(torch.ones(types * (types - 1) // 2), requires_grad=weighted)
        self.bias = torch.nn.Parameter(torch.zeros(()))  # c, in the place of -log Z
        self.pairs: torch.Tensor
        self.register_buffer("pairs", torch.triu_indices(types, types, 1), persistent=False)
        self.types = types

    def matrix(self) -> torch.Tensor:
        """Return the weights as a symmetric matrix (types, types) with zeros on its diagonal."""
        upper = torch.zeros(self.types, self.types, device=self.weights.device, dtype=self.weights.dtype)
        upper = upper.index_put((self.pairs[0], self.pairs[1]), self.weights)
        return upper + upper.T

    def forward(self, rows_BM: torch.Tensor) -> torch.Tensor:
        """Return S (B,) of events given as rows of the table."""
        v_BMD = self.vectors[rows_BM]
        return (v_BMD * (self.matrix() @ v_BMD)).sum(dim=(1, 2)) / 2

    def project(self) -> None:
        """Set weights below 0 to 0."""
        with torch.no_grad():
            self.weights.clamp_(min=0)


class Noise:
    """Events in which the entity of one type is replaced by a drawn one.

    Parameters
    ----------
    counts : list of float64 array
        Events with each entity, by type; those with none are never drawn.
    power : float
        Entities are drawn with probabilities proportional to ``counts ** power``.
    correction : {"unigram", "drawn"}
        Whether P_n is the plain share of an entity, or the probability with which it is drawn.
    seed : int
    device : torch.device
    """

    def __init__(
        self, counts: list[np.ndarray], power: float, correction: str, seed: int, device: torch.device
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device
        self.varying = [t for t, count in enumerate(counts) if (count > 0).sum() > 1]
        self.starts = np.cumsum([0, *map(len, counts)]).tolist()
        self.ends, self.log_p = [], []
        for count in counts:
            drawn = np.where(count > 0, count**power, 0.0)
            drawn /= drawn.sum()
            share = count / count.sum() if correction == "unigram" else drawn
            self.ends.append(torch.from_numpy(np.cumsum(drawn)))
            with np.errstate(divide="ignore"):  # entities of no event are neither drawn nor trained on
                self.log_p.append(torch.from_numpy(np.log(share)).float().to(device))

    def draw(self, events: int, k: int) -> tuple[int, torch.Tensor]:
        """Draw a type that varies, and k of its entities for each event: (events, k), as rows of the table."""
        t = self.varying[int(torch.randint(len(self.varying), (), generator=self.generator))]
        ends = self.ends[t]
        u = torch.rand(events, k, generator=self.generator, dtype=torch.float64) * ends[-1]
        return t, torch.searchsorted(ends, u, right=True).clamp_(max=len(ends) - 1).to(self.device) + self.starts[t]


def contrast(energy: Energy, noise: Noise, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the loss of each event of a batch.

    ``-log s(S(e) + c - log k P_n(e)) - sum_l log s(-(S(e'_l) + c - log k P_n(e'_l)))``, where ``e'_l`` is the event
    with its entity of one type, the same for the whole batch, replaced by a drawn one. Draws that give the event itself
    are left out.
    """

    def loss(rows_BM: torch.Tensor) -> torch.Tensor:
        t, other_BK = noise.draw(len(rows_BM), k)
        v_BMD = energy.vectors[rows_BM]
        pull_BMD = energy.matrix() @ v_BMD
        total_B = (v_BMD * pull_BMD).sum(dim=(1, 2)) / 2
        pull_BD = pull_BMD[:, t]  # S depends on the entity of type t by its product with this
        rest_B = total_B - (v_BMD[:, t] * pull_BD).sum(dim=1)
        noisy_BK = rest_B[:, None] + (energy.vectors[other_BK] @ pull_BD[:, :, None])[:, :, 0]
        prior = noise.log_p[t] + float(np.log(k))
        own = rows_BM[:, t] - noise.starts[t]
        data_B = total_B + energy.bias - prior[own]
        fake_BK = noisy_BK + energy.bias - prior[other_BK - noise.starts[t]]
        differs_BK = other_BK != rows_BM[:, t, None]
        return -logsigmoid(data_B) - (logsigmoid(-fake_BK) * differs_BK).sum(dim=1)

    return loss
