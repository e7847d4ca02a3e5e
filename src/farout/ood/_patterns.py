"""Neural activation patterns: which ReLUs are on and which are off, mined from inputs and compared with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from farout.errors import BadInput


@dataclass(frozen=True, eq=False)
class Pattern:
    """What some neurons of a network do; the others are free.

    Parameters
    ----------
    active, inactive : bool tensor (N,)
        The neurons whose pre-activation is above 0, and those where it is not; none is both.

    Raises
    ------
    BadInput
        The two are no masks of one length, or a neuron is in both.

    Examples
    --------
    >>> pattern = Pattern(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
    >>> pattern.violated(torch.tensor([[True, False, True], [False, True, True]]))
    tensor([0, 2])
    """

    active: torch.Tensor
    inactive: torch.Tensor

    def __post_init__(self) -> None:
        shapes, kinds = (self.active.shape, self.inactive.shape), (self.active.dtype, self.inactive.dtype)
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or set(kinds) != {torch.bool}:
            raise BadInput(f"a pattern is two masks (N,) of booleans, not {kinds} of shapes {shapes}")
        if (both := self.active & self.inactive).any():
            raise BadInput(f"neuron {int(both.int().argmax())} is both active and inactive in the pattern")

    @classmethod
    def empty(cls, neurons: int) -> Pattern:
        """Return the pattern that every input follows."""
        return cls(torch.zeros(neurons, dtype=torch.bool), torch.zeros(neurons, dtype=torch.bool))

    @property
    def size(self) -> int:
        """How many neurons are not free."""
        return int(self.active.sum() + self.inactive.sum())

    def violated(self, states: torch.Tensor) -> torch.Tensor:
        """Count, for each row of states (n, N), the neurons that do otherwise: (n,)."""
        return (self.active & ~states | self.inactive & states).sum(dim=1)

    def follows(self, states: torch.Tensor) -> torch.Tensor:
        """Say which rows of states (n, N) have no neuron that does otherwise: bool (n,)."""
        return self.violated(states) == 0

    def subsumes(self, other: Pattern) -> bool:
        """Say whether all that follows ``other`` follows this one: it is the more general."""
        return bool((other.active | ~self.active).all() and (other.inactive | ~self.inactive).all())

    def conflicts(self, other: Pattern) -> int:
        """Count the neurons that are active in one and inactive in the other."""
        return int((self.active & other.inactive | self.inactive & other.active).sum())

    def joined(self, other: Pattern) -> Pattern:
        """Return the pattern of what follows both.

        Raises
        ------
        BadInput
            They conflict, so that nothing follows both.
        """
        return Pattern(self.active | other.active, self.inactive | other.inactive)


def mine(states: torch.Tensor, delta: float) -> Pattern:
    """Find the delta-relaxed dominant pattern: neurons that do the same for at least a share ``delta`` of inputs.

    Parameters
    ----------
    states : bool tensor (n, N)
        Of one class.
    delta : float
        Above 0.5, up to 1.

    Raises
    ------
    BadInput
        ``delta`` is another, or there are no inputs.

    Examples
    --------
    >>> mine(torch.tensor([[True, True], [True, False], [True, False]]), 0.6)
    Pattern(active=tensor([ True, False]), inactive=tensor([False,  True]))
    """
    if not 0.5 < delta <= 1:
        raise BadInput(f"delta is above 0.5 and at most 1, not {delta:g}")
    if not len(states):
        raise BadInput("no inputs, so there is no pattern to mine; give inputs of the class")
    needed = delta * len(states) - 1e-9  # so that .95 of 20 is 19
    on = states.sum(dim=0)
    return Pattern(on >= needed, len(states) - on >= needed)


@dataclass(frozen=True)
class PatternFacts:
    """What the patterns of classes say of labelled inputs, that were not mined.

    Attributes
    ----------
    recall : dict of int to float
        Share of inputs of each class that follow its pattern.
    leakage : dict of int to float
        Share of inputs of other classes that do.
    size : dict of int to float
        Share of neurons that are not free.
    coverage : float
        Share of inputs that follow some pattern.
    ambiguous : float
        Share of inputs that follow two or more.
    """

    recall: dict[int, float]
    leakage: dict[int, float]
    size: dict[int, float]
    coverage: float
    ambiguous: float

    def means(self) -> dict[str, float]:
        """Return all five, means over the classes."""
        per_class = {"recall": self.recall, "leakage": self.leakage, "size": self.size}
        means = {name: sum(values.values()) / len(values) for name, values in per_class.items()}
        return means | {"coverage": self.coverage, "ambiguous": self.ambiguous}


def pattern_facts(patterns: Mapping[int, Pattern], states: torch.Tensor, labels: torch.Tensor) -> PatternFacts:
    """Compare the patterns of classes with the states (n, N) of inputs and their labels (n,).

    Raises
    ------
    BadInput
        A class with a pattern has no inputs, or there are inputs of no other class.
    """
    follows = {c: pattern.follows(states) for c, pattern in patterns.items()}
    for c in patterns:
        if not 0 < int((labels == c).sum()) < len(labels):
            raise BadInput(
                f"{int((labels == c).sum())} of {len(labels)} inputs are of class {c}; some must be, not all"
            )
    times = torch.stack(list(follows.values())).sum(dim=0)

    def share(of: torch.Tensor) -> float:
        return float(of.double().mean())

    return PatternFacts(
        {c: share(found[labels == c]) for c, found in follows.items()},
        {c: share(found[labels != c]) for c, found in follows.items()},
        {c: pattern.size / states.shape[1] for c, pattern in patterns.items()},
        share(times > 0),
        share(times > 1),
    )
