"""NAP: Towards Reliable Neural Specifications.

Chuqin Geng, Nham Le, Xiaojie Xu, Zhaoyue Wang, Arie Gurfinkel, Xujie Si, ICML 2023 (arXiv 2210.16114).

In a ball around a reference input no other real input lies, so that to prove a network right there says little. What
neurons are on and off for most inputs of a class, its neural activation pattern, is a region in which real inputs do
lie, in which a network can be proved right; and in a ball that is too large to be proved, it can often be where the
pattern is followed.

The paper claims that 84 % of MNIST's inputs are in what its patterns let one prove, and that the radius within which
CIFAR-10 is proved grows tenfold.

Differences from the paper, for which no official code was found, and from an author's scripts for Marabou:

- Patterns are mined from inputs of a class that are predicted rightly. A neuron is active where its pre-activation is
  above 0, in mining and in proofs.
- Programs demand no distance from 0 of active neurons, so that nothing is left out of a proof; the scripts demand 1e-6.
- The solver is SciPy's: linear programs in a search that branches on ReLUs, or one mixed-integer program. Steps of the
  falsifier, .075 in the scripts, are in half widths of the box.
- A region that is not known to hold an input is never called proved.
- The score of an input, the share of its predicted class's pattern that it violates, is an addition.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from farout.cards import paper
from farout.errors import BadInput
from farout.ood._bounds import ReluNet
from farout.ood._nap_proofs import Answer
from farout.ood._nap_properties import class_robust, counterexamples, never, robust, unambiguous
from farout.ood._nap_searches import Radius, largest_radius, small_pattern
from farout.ood._patterns import Pattern, PatternFacts, mine, pattern_facts
from farout.ood._score import Score, labels_or_predicted
from farout.ood.views import Views

__all__ = [
    "NAP",
    "Answer",
    "Pattern",
    "PatternFacts",
    "Radius",
    "class_patterns",
    "class_robust",
    "counterexamples",
    "largest_radius",
    "never",
    "pattern_facts",
    "robust",
    "small_pattern",
    "unambiguous",
]


@paper(
    "NAP",
    title="Towards Reliable Neural Specifications",
    authors="Geng, Le, Xu, Wang, Gurfinkel, Si",
    year=2023,
    arxiv="2210.16114",
    kind="score",
    extra="torch",
    claim="84 % of MNIST's test inputs lie where its patterns let one prove, and the proved radius on CIFAR-10 grows "
    "tenfold.",
    differs="Proofs by SciPy and not Marabou; the score of an input, the share of the pattern of its predicted class "
    "that it violates, is an addition.",
)
class NAP(Score):
    """The share of the pattern of the predicted class that an input violates.

    Stages should be what ReLUs give, as those of a multilayer perceptron are: a neuron is active where its number is
    above 0. Averages over a picture are hardly ever 0, so that patterns of convolutional networks say less.

    Parameters
    ----------
    delta : float
        Above 0.5, up to 1: a neuron is in the pattern of a class where it does the same for at least this share of the
        class's inputs that are predicted rightly.

    Attributes
    ----------
    active_, inactive_ : bool tensor (C, N)
        The patterns. A class that was never predicted rightly has an empty one, and what is predicted to be of it has
        the score 1.

    Examples
    --------
    >>> logits, stage = torch.eye(2)[[0, 0, 1]], torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    >>> found = NAP().fit(Views(logits, stages={"relu": stage}))
    >>> found.score(Views(logits, stages={"relu": torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])}))
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """

    needs = ("logits", "stages")
    learns = True
    labelled = True

    def __init__(self, delta: float = 0.99) -> None:
        self.delta = delta

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Mine the pattern of each class.

        Parameters
        ----------
        views : Views
            Of training inputs.
        labels : int tensor (n,), optional
            Without them predicted classes count as right.

        Raises
        ------
        BadInput
            There are no stages, no inputs that are predicted rightly, ``delta`` is not above 0.5 and up to 1, or labels
            and inputs are not equally many.
        """
        states, predicted = _states(views), views.logits.argmax(1)
        right = predicted == labels_or_predicted(views, labels)
        if not right.any():
            raise BadInput(f"none of {len(views)} inputs is predicted as it is labelled; check the labels")
        classes, neurons = views.logits.shape[1], states.shape[1]
        patterns = [Pattern.empty(neurons)] * classes
        for c in predicted[right].unique().tolist():
            patterns[c] = mine(states[right & (predicted == c)].cpu(), self.delta)
        self.active_ = torch.stack([pattern.active for pattern in patterns]).to(states.device)
        self.inactive_ = torch.stack([pattern.inactive for pattern in patterns]).to(states.device)
        return self

    def score(self, views: Views, moved: Any = ()) -> Tensor:
        """Score inputs: float64 (n,), from 0 to 1."""
        active, states, predicted = self._fitted("active_"), _states(views), views.logits.argmax(1)
        if states.shape[1] != active.shape[1]:
            raise BadInput(f"it was fitted to {active.shape[1]} neurons, and the stages have {states.shape[1]}")
        active, inactive = active[predicted], self.inactive_[predicted]
        violated = (active & ~states | inactive & states).sum(dim=1).double()
        size = (active | inactive).sum(dim=1)
        return torch.where(size > 0, violated / size.clamp(min=1), 1.0)


def _states(views: Views) -> Tensor:
    """Return which neurons of all stages are on: bool (n, N)."""
    if not views.stages:
        raise BadInput("the views hold no stages; take them with needs=('logits', 'stages')")
    return torch.cat([stage > 0 for stage in views.stages.values()], dim=1)


def class_patterns(model: Any, x: Tensor, labels: Tensor, delta: float = 0.99) -> dict[int, Pattern]:
    """Mine the pattern of each class over all hidden neurons, from inputs that are predicted rightly.

    Parameters
    ----------
    model : nn.Sequential
        Of Linear and ReLU that take turns; so for all functions of this file.
    x : tensor (n, d)
    labels : int tensor (n,)
    delta : float

    Returns
    -------
    dict of int to Pattern
        Of the classes that some input is rightly predicted to be of.

    Examples
    --------
    >>> from farout.kit.nets import mlp
    >>> x = torch.rand(20, 4)
    >>> model = mlp([4, 8, 2], seed=0)
    >>> for c, pattern in class_patterns(model, x, model(x).argmax(1), delta=1.0).items():
    ...     assert pattern.follows(ReluNet.of(model).states(x[model(x).argmax(1) == c])).all()
    """
    net = ReluNet.of(model)
    z, logits = net.run(x.double())
    right = logits.argmax(1) == labels
    return {c: mine((z > 0)[right & (labels == c)], delta) for c in labels[right].unique().tolist()}
