"""AutoOD's search space: strings of tokens, and the autoencoders with a definition of outliers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from farout.errors import BadInput, UnknownName
from farout.io.state import saved

Layer = tuple[int, str, str]  # width, normalisation, activation


@saved("autood-configuration")
@dataclass(frozen=True)
class Configuration:
    """An autoencoder and what it takes for far out.

    Attributes
    ----------
    definition : {"reconstruction", "centroid", "cluster", "density"}
    distance : {"l1", "l2", "l21"}
    layers : tuple of (int, str, str)
        Width, normalisation and activation of the encoder's layers; the decoder mirrors them.

    Examples
    --------
    >>> print(Configuration("centroid", "l2", ((64, "batch", "relu"), (8, "none", "tanh"))))
    centroid by l2, 64 batch relu > 8 none tanh
    """

    definition: str
    distance: str
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        layers = " > ".join(f"{width} {norm} {activation}" for width, norm, activation in self.layers)
        return f"{self.definition} by {self.distance}, {layers}"


@dataclass(frozen=True)
class Space:
    """What can be chosen, in the order in which the controller chooses: definition, distance, depth, then the layers.

    A token is the place of a choice in the vocabulary, which lists the choices of all kinds one after another. Its
    *slot* also says the position where it stands, so that a set of slots tells the whole string.

    Parameters
    ----------
    definitions, distances, depths, widths, norms, activations : tuple
        The choices; all of the method's by default.

    Examples
    --------
    >>> space = Space()
    >>> f"{space.size:.1e}"
    '1.1e+14'
    >>> tokens = space.encode(Configuration("density", "l1", ((16, "none", "elu"),)))
    >>> tokens
    (3, 4, 7, 15, 19, 29)
    >>> print(space.decode(tokens))
    density by l1, 16 none elu
    """

    definitions: tuple[str, ...] = ("reconstruction", "centroid", "cluster", "density")
    distances: tuple[str, ...] = ("l1", "l2", "l21")
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    widths: tuple[int, ...] = (3, 8, 16, 32, 64, 128)
    norms: tuple[str, ...] = ("none", "batch", "instance")
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu", "linear", "softplus", "leaky_relu", "relu6", "elu")

    @cached_property
    def choices(self) -> list[tuple[Any, ...]]:
        """Choices of each kind: definition, distance, depth, width, normalisation, activation."""
        return [self.definitions, self.distances, self.depths, self.widths, self.norms, self.activations]

    @cached_property
    def starts(self) -> list[int]:
        """The first token of each kind, and at the end the number of tokens."""
        return [0, *np.cumsum([len(kind) for kind in self.choices]).tolist()]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.starts[-1]

    @property
    def longest(self) -> int:
        """Number of tokens of the deepest configurations."""
        return 3 + 3 * max(self.depths)

    @cached_property
    def slot_starts(self) -> list[int]:
        """The first slot of each position, and at the end the number of slots."""
        sizes = [len(self.choices[kind_at(position)]) for position in range(self.longest)]
        return [0, *np.cumsum(sizes).tolist()]

    @property
    def size(self) -> int:
        """Number of configurations."""
        layer = len(self.widths) * len(self.norms) * len(self.activations)
        return len(self.definitions) * len(self.distances) * sum(layer**depth for depth in self.depths)

    def length(self, tokens: tuple[int, ...]) -> int:
        """Return how long the string becomes that begins with at least three tokens."""
        return 3 + 3 * self.depths[tokens[2] - self.starts[2]]

    def slots(self, tokens: tuple[int, ...]) -> list[int]:
        """Return the slot of each token."""
        return [self.slot_starts[t] + token - self.starts[kind_at(t)] for t, token in enumerate(tokens)]

    def decode(self, tokens: tuple[int, ...]) -> Configuration:
        """Return the configuration that a string of tokens stands for.

        Raises
        ------
        BadInput
            The string is too short or too long, or a token stands where its kind cannot.
        """
        for position, token in enumerate(tokens):
            kind = kind_at(position)
            if not self.starts[kind] <= token < self.starts[kind + 1]:
                raise BadInput(
                    f"token {token} at position {position} must be from {self.starts[kind]} to "
                    f"{self.starts[kind + 1] - 1}"
                )
        if len(tokens) < 3 or len(tokens) != self.length(tokens):
            raise BadInput(f"a string of {len(tokens)} tokens does not fit the depth that it names")
        chosen = [self.choices[kind_at(t)][token - self.starts[kind_at(t)]] for t, token in enumerate(tokens)]
        layers = zip(chosen[3::3], chosen[4::3], chosen[5::3])
        return Configuration(chosen[0], chosen[1], tuple(layers))

    def encode(self, configuration: Configuration) -> tuple[int, ...]:
        """Return the tokens of a configuration.

        Raises
        ------
        UnknownName
            The space does not hold one of its choices.
        """
        layers = configuration.layers
        chosen: list[Any] = [configuration.definition, configuration.distance, len(layers)]
        chosen += [choice for layer in layers for choice in layer]
        for position, choice in enumerate(chosen):
            known = self.choices[kind_at(position)]
            if choice not in known:
                raise UnknownName("choice", str(choice), map(str, known))
        return tuple(
            self.starts[kind_at(t)] + self.choices[kind_at(t)].index(choice) for t, choice in enumerate(chosen)
        )

    def draw(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Return a string whose tokens are all drawn evenly."""
        tokens: tuple[int, ...] = ()
        while len(tokens) < 3 or len(tokens) < self.length(tokens):
            kind = kind_at(len(tokens))
            tokens += (int(rng.integers(self.starts[kind], self.starts[kind + 1])),)
        return tokens


def kind_at(position: int) -> int:
    """Return which kind of choice stands at a position: 0, 1, 2, then 3, 4, 5 for each layer."""
    return position if position < 3 else 3 + position % 3
