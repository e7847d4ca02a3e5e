"""AutoOD's curiosity: how much a transition teaches a Bayesian network that predicts what choices lead to.

The state is the history of choices as a set of slots, with one more coordinate for the child's reward once it is known;
an action is the next slot. The network predicts the state that follows. A choice whose outcome it cannot predict yet
moves its beliefs far, and that distance is the bonus (VIME: Houthooft et al. 2016, arXiv 1605.09674).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from farout.table._autood_space import Space

HIDDEN = 16
PRIOR = 0.2  # standard deviation of a weight before anything is seen
NOISE = 0.5  # standard deviation of a prediction
STEP = 0.01  # of a variational step, both the imagined and the true ones
DRAWS = 5  # of the weights, over which gradients are averaged
UPDATES = 10  # true steps after each batch
REMEMBERED = 10  # batches whose median divides the gain
CLIP = 5.0  # most that one transition counts, in medians


class Beliefs(torch.nn.Module):
    """A network of one hidden layer whose weights are independent Gaussians, ``N(mean, softplus(raw)^2)``.

    Parameters
    ----------
    inputs, outputs : int
    seed : int
    """

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.shapes = [(inputs + 1, HIDDEN), (HIDDEN + 1, outputs)]
        size = sum(a * b for a, b in self.shapes)
        rng = np.random.default_rng(seed)
        self.mean = torch.nn.Parameter(torch.tensor(PRIOR * rng.normal(size=size)))
        self.raw = torch.nn.Parameter(torch.full((size,), float(np.log(np.expm1(PRIOR))), dtype=torch.float64))

    def forward(self, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return ``-E log p(y | x)`` without its constant, for drawn weights ``mean + sd * noise``; (draws, size)."""
        drawn = self.mean + F.softplus(self.raw) * noise
        first, second = drawn.split([a * b for a, b in self.shapes], dim=1)
        (a, b), (c, d) = self.shapes
        hidden = torch.tanh(x @ first[:, :-b].view(-1, a - 1, b) + first[:, None, -b:])
        predicted = hidden @ second[:, :-d].view(-1, c - 1, d) + second[:, None, -d:]
        return ((y - predicted) ** 2).sum(dim=-1).mean() / (2 * NOISE**2)

    def gain(self, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the information gain of each transition (n,): how far one step on it alone would move the beliefs.

        The step follows the likelihood only, because the divergence from the present beliefs has no slope at them.
        """
        beliefs = {name: parameter.detach() for name, parameter in self.named_parameters()}

        def surprise(beliefs: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return functional_call(self, beliefs, (x[None], y[None], noise))

        slopes = vmap(grad(surprise), in_dims=(None, 0, 0))(beliefs, x, y)
        mean, raw = beliefs["mean"], beliefs["raw"]
        moved = F.softplus(raw - STEP * slopes["raw"])
        return divergence(mean - STEP * slopes["mean"], moved, mean, F.softplus(raw))


def divergence(mean_new: torch.Tensor, sd_new: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    """KL(new || old) of factorised Gaussians, ``1/2 sum (s'/s)^2 + 2 log(s/s') - 1 + (m' - m)^2 / s^2``."""
    ratio = sd_new / sd
    return 0.5 * (ratio**2 - 2 * torch.log(ratio) - 1 + ((mean_new - mean) / sd) ** 2).sum(dim=-1)


class Curiosity:
    """Bonuses for batches of children, in units of the recent median gain.

    Parameters
    ----------
    space : Space
    seed : int
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        slots = space.slot_starts[-1]
        self.beliefs = Beliefs(2 * slots + 1, slots + 1, seed)
        self.optimizer = torch.optim.Adam(self.beliefs.parameters(), lr=STEP)
        self.recent: list[np.ndarray] = []

    def bonus(
        self, strings: Sequence[tuple[int, ...]], rewards: Sequence[float], rng: np.random.Generator
    ) -> np.ndarray:
        """Return the mean gain over each child's transitions (B,), divided by the running median and clipped."""
        x, y = self.transitions(strings, rewards)
        gain = self.beliefs.gain(x, y, self._noise(rng)).detach().numpy()
        self.recent = [*self.recent, gain][-REMEMBERED:]
        clipped = np.minimum(gain / max(float(np.median(np.concatenate(self.recent))), 1e-12), CLIP)
        ends = np.cumsum([len(string) for string in strings])[:-1]
        return np.array([part.mean() for part in np.split(clipped, ends)])

    def learn(self, strings: Sequence[tuple[int, ...]], rewards: Sequence[float], rng: np.random.Generator) -> None:
        """Fit the beliefs to a batch: a few steps towards ``E log p(batch) - KL(q || q before the batch)``."""
        x, y = self.transitions(strings, rewards)
        mean, sd = self.beliefs.mean.detach().clone(), F.softplus(self.beliefs.raw.detach().clone())
        for _ in range(UPDATES):
            self.optimizer.zero_grad()
            drift = divergence(self.beliefs.mean, F.softplus(self.beliefs.raw), mean, sd)
            (self.beliefs(x, y, self._noise(rng)) + drift / len(x)).backward()
            self.optimizer.step()

    def transitions(
        self, strings: Sequence[tuple[int, ...]], rewards: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return state and action (n, 2 slots + 1), and the next state (n, slots + 1), of all choices in order."""
        slots = self.space.slot_starts[-1]
        befores, actions, afters = [], [], []
        for tokens, reward in zip(strings, rewards):
            chosen = np.eye(slots + 1)[self.space.slots(tokens)]
            after = chosen.cumsum(axis=0)
            befores.append(after - chosen)
            actions.append(chosen[:, :slots])
            after[-1, slots] = reward  # the last choice is followed by the child's training
            afters.append(after)
        x = np.hstack((np.vstack(befores), np.vstack(actions)))
        return torch.tensor(x), torch.tensor(np.vstack(afters))

    def state(self) -> dict[str, Any]:
        """Return everything as plain values and arrays."""
        return {"network": module_state(self.beliefs, self.optimizer), "recent": self.recent}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        restore_module(self.beliefs, self.optimizer, state["network"])
        self.recent = state["recent"]

    def _noise(self, rng: np.random.Generator) -> torch.Tensor:
        return torch.tensor(rng.normal(size=(DRAWS, len(self.beliefs.mean))))


def module_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return weights and Adam's moments as arrays."""
    return {
        "weights": {name: weight.detach().numpy().copy() for name, weight in module.named_parameters()},
        "moments": {
            place: {word: value.numpy().copy() for word, value in moments.items()}
            for place, moments in optimizer.state_dict()["state"].items()
        },
    }


def restore_module(module: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a module and its Adam what :func:`module_state` took."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.from_numpy(state["weights"][name]))
    moments = {k: {word: torch.from_numpy(v.copy()) for word, v in m.items()} for k, m in state["moments"].items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
