"""AutoOD's search: an LSTM that chooses tokens one after another, rewarded with curiosity, imitating its best children.

Shapes: B strings of a batch, T positions of the longest of them, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from farout.errors import UnknownName
from farout.kit.training import seeded
from farout.table._autood_curiosity import Curiosity, module_state, restore_module
from farout.table._autood_space import Space, kind_at

Tokens = tuple[int, ...]

HIDDEN = 64
LEARNING_RATE = 3.5e-4
ENTROPY = 1e-4
CURIOUS = 0.1  # eta
CRITIC = 0.01  # beta
DECAY = 0.95  # of the moving baseline, a child
BATCH = 10
REPLAYS = 10  # updates on past children after each batch
BUFFER = 10 * BATCH
STRATEGIES = ("curiosity", "reinforce", "random")


class Controller(torch.nn.Module):
    """An LSTM with a softmax over the choices at each position, and the value of each history.

    Parameters
    ----------
    space : Space
    seed : int

    Attributes
    ----------
    usual : float
        Moving average of the rewards, from which values start: so they are of the right size after one batch.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        self.space = space
        self.usual = 0.0
        with seeded(seed):
            self.embedding = torch.nn.Embedding(space.vocabulary + 1, HIDDEN)  # the last one begins every string
            self.lstm = torch.nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
            self.policy = torch.nn.Linear(HIDDEN, space.vocabulary)
            self.value = torch.nn.Linear(HIDDEN, 1)
        self.double()
        allowed = torch.zeros(space.longest, space.vocabulary, dtype=torch.bool)
        for position in range(space.longest):
            kind = kind_at(position)
            allowed[position, space.starts[kind] : space.starts[kind + 1]] = True
        self.allowed_TV = allowed

    def forward(self, strings: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read whole strings.

        Returns
        -------
        log_p : tensor (B, T)
            log pi(a | s) of each token after those before it.
        value : tensor (B, T)
            V(s): the reward that is expected from the history before the token.
        entropy : tensor (B, T)
        there : bool tensor (B, T)
            False after the end of the shorter strings.
        """
        tokens_BT = pad_sequence([torch.tensor(string) for string in strings], batch_first=True)
        lengths = torch.tensor([len(string) for string in strings])
        there_BT = torch.arange(tokens_BT.shape[1]) < lengths[:, None]
        start_B1 = torch.full((len(strings), 1), self.space.vocabulary)
        hidden, _ = self.lstm(self.embedding(torch.cat((start_B1, tokens_BT[:, :-1]), dim=1)))
        log_p_BTV = self._log_p(hidden, self.allowed_TV[: tokens_BT.shape[1]])
        chosen_BT = log_p_BTV.gather(2, torch.where(there_BT, tokens_BT, log_p_BTV.argmax(dim=2))[:, :, None])[:, :, 0]
        entropy_BT = -(log_p_BTV.exp() * log_p_BTV.clamp(min=-1e9)).sum(dim=2)
        return chosen_BT, self.usual + self.value(hidden)[:, :, 0], entropy_BT, there_BT

    @torch.no_grad()
    def draw(self, n: int, rng: np.random.Generator) -> list[Tokens]:
        """Draw strings token by token."""
        strings: list[Tokens] = [()] * n
        latest, memory = torch.full((n, 1), self.space.vocabulary), None
        for position in range(self.space.longest):
            hidden, memory = self.lstm(self.embedding(latest), memory)
            p_BV = self._log_p(hidden[:, 0], self.allowed_TV[position]).exp().numpy()
            # every row draws, ended or not, so that a string does not depend on the lengths of the others
            drawn = [int(rng.choice(p.size, p=p / p.sum())) for p in p_BV]
            ended = [len(s) >= 3 and len(s) == self.space.length(s) for s in strings]
            strings = [s if end else (*s, token) for s, token, end in zip(strings, drawn, ended)]
            latest = torch.tensor(drawn)[:, None]
        return strings

    def _log_p(self, hidden: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.policy(hidden).masked_fill(~allowed, -torch.inf), dim=-1)


def on_policy_loss(
    controller: Controller, strings: Sequence[Tokens], advantages: np.ndarray, rewards: np.ndarray
) -> torch.Tensor:
    """REINFORCE with an entropy bonus, and the critic's error: ``-A log pi - bonus H + (R - V)^2 / 2``.

    The advantage A is the reward, with curiosity where it is used, minus the moving baseline; V follows R alone.
    """
    log_p, value, entropy, there = controller(strings)
    policy = -(torch.tensor(advantages)[:, None] * log_p)[there].sum() / len(strings)
    critic = ((torch.tensor(rewards)[:, None] - value)[there] ** 2).mean() / 2
    return policy - ENTROPY * entropy[there].mean() + critic


def self_imitation_loss(controller: Controller, strings: Sequence[Tokens], rewards: np.ndarray) -> torch.Tensor:
    """Pull towards what did better than expected: ``E[-log pi(a|s) (R - V)+ + beta/2 (R - V)+^2]``."""
    log_p, value, _, there = controller(strings)
    better = (torch.tensor(rewards)[:, None] - value).clamp(min=0)
    return (-log_p * better.detach() + CRITIC / 2 * better**2)[there].mean()


class Search:
    """The whole search: propose strings, be told their rewards, and so on.

    Parameters
    ----------
    space : Space
    strategy : {"curiosity", "reinforce", "random"}
        The whole method; the controller with neither curiosity nor self-imitation; or even draws.
    seed : int
    learning_rate : float
        Of the controller.

    Attributes
    ----------
    tried : list of (tuple of int, float)
        Every child and its reward, in order.
    """

    def __init__(self, space: Space, strategy: str, seed: int, learning_rate: float = LEARNING_RATE) -> None:
        if strategy not in STRATEGIES:
            raise UnknownName("search", strategy, STRATEGIES)
        self.space, self.strategy, self.seed = space, strategy, seed
        self.controller = Controller(space, seed)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=learning_rate)
        self.curiosity = Curiosity(space, seed)
        self.baseline: float | None = None
        self.buffer: dict[Tokens, float] = {}
        self.tried: list[tuple[Tokens, float]] = []
        self._told = 0  # of the children tried, those that came last and are still to be learned from

    def propose(self, n: int = BATCH) -> list[Tokens]:
        """Draw the next strings to try; the same ones again until :meth:`tell` is called."""
        self._learn()
        rng = np.random.default_rng([self.seed, len(self.tried), 0])
        if self.strategy == "random":
            return [self.space.draw(rng) for _ in range(n)]
        return self.controller.draw(n, rng)

    def tell(self, strings: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """Take in the rewards of a batch; what follows from them waits until it is needed."""
        self._learn()
        self.tried += [(tuple(string), float(reward)) for string, reward in zip(strings, rewards)]
        self._told = len(strings)

    def _learn(self) -> None:
        """Update the controller, the beliefs and the buffer by the batch that was told, then replay."""
        batch, self._told = self.tried[len(self.tried) - self._told :], 0
        if self.strategy == "random" or not batch:
            return
        rng = np.random.default_rng([self.seed, len(self.tried), 1])
        strings, rewards = [string for string, _ in batch], [reward for _, reward in batch]
        earned = np.array(rewards)
        curious = self.strategy == "curiosity"
        felt = earned + CURIOUS * self.curiosity.bonus(strings, rewards, rng) if curious else earned
        if self.baseline is None:
            self.baseline, self.controller.usual = float(felt.mean()), float(earned.mean())
        self._step(on_policy_loss(self.controller, strings, felt - self.baseline, earned))
        self.baseline = moved(self.baseline, felt)
        self.controller.usual = moved(self.controller.usual, earned)
        if curious:
            self.curiosity.learn(strings, rewards, rng)
            self.remember(strings, rewards)
            for _ in range(REPLAYS):
                self.replay(rng)

    def remember(self, strings: Sequence[Tokens], rewards: Sequence[float]) -> None:
        """Keep the best children so far, each string once with its latest reward."""
        known = self.buffer | dict(zip(map(tuple, strings), map(float, rewards)))
        self.buffer = dict(sorted(known.items(), key=lambda item: -item[1])[:BUFFER])

    def replay(self, rng: np.random.Generator) -> None:
        """Imitate past children, drawn in proportion to ``(R - V)+``; nothing where none did better than expected."""
        strings, rewards = list(self.buffer), np.array(list(self.buffer.values()))
        priority = self.priorities(strings, rewards)
        if priority.sum() > 0:
            drawn = rng.choice(len(strings), size=BATCH, p=priority / priority.sum())
            self._step(self_imitation_loss(self.controller, [strings[i] for i in drawn], rewards[drawn]))

    @torch.no_grad()
    def priorities(self, strings: Sequence[Tokens], rewards: np.ndarray) -> np.ndarray:
        """Return the mean of ``(R - V)+`` over the choices of each string (B,)."""
        _, value, _, there = self.controller(strings)
        better = (torch.tensor(rewards)[:, None] - value).clamp(min=0) * there
        return (better.sum(dim=1) / there.sum(dim=1)).numpy()

    def best(self) -> tuple[Tokens, float]:
        """Return the string with the largest reward so far, the first of equals, and that reward."""
        return max(self.tried, key=lambda pair: pair[1])

    def state(self) -> dict[str, Any]:
        """Return everything as plain values and arrays; no generator is among them, since batches seed their own."""
        self._learn()
        return {
            "controller": module_state(self.controller, self.optimizer),
            "curiosity": self.curiosity.state(),
            "baseline": self.baseline,
            "usual": self.controller.usual,
            "buffer": list(self.buffer.items()),
            "tried": self.tried,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        restore_module(self.controller, self.optimizer, state["controller"])
        self.curiosity.restore(state["curiosity"])
        self.baseline, self.controller.usual = state["baseline"], state["usual"]
        self.buffer, self.tried = dict(state["buffer"]), state["tried"]

    def _step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def moved(average: float, rewards: np.ndarray) -> float:
    """Return a moving average after a batch of rewards.

    Examples
    --------
    >>> moved(1.0, np.array([0.0, 0.0]))
    0.9025
    """
    for reward in rewards:
        average = DECAY * average + (1 - DECAY) * float(reward)
    return average
