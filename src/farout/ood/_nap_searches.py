"""Searches that prove again and again: for the largest radius, and for a small part of a pattern that is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from farout.errors import BadInput
from farout.ood._bounds import ReluNet
from farout.ood._nap_proofs import Answer, falsify, prove
from farout.ood._nap_properties import Box, ball, others_of, robust
from farout.ood._patterns import Pattern


@dataclass(frozen=True)
class Radius:
    """How far from an input proofs reach, and where the nearest counterexample lies.

    Attributes
    ----------
    proved : float
        0 where not even the least radius was proved.
    falsified : float
        ``inf`` where no counterexample was found.
    """

    proved: float
    falsified: float


def largest_radius(
    model: Any,
    x: Tensor,
    label: int,
    pattern: Pattern | None = None,
    *,
    box: Box = (0.0, 1.0),
    least: float = 1e-3,
    precision: float = 1.05,
    seed: int = 0,
    **how: Any,
) -> Radius:
    """Search for the largest radius around an input at which :func:`robust` proves it, by halving ratios.

    Parameters
    ----------
    model, x, label, pattern, box, seed, **how
        As for :func:`robust`.
    least : float
        The smallest radius that is tried.
    precision : float
        The ratio, above 1, of the smallest radius that could not be proved to the largest that was.

    Raises
    ------
    BadInput
        The input is not of that class, or it does not follow the pattern: what is proved would not be of it.
    """
    net, x = ReluNet.of(model), x.double()
    if int(net.run(x[None])[1].argmax()) != label:
        raise BadInput(f"the input is not predicted to be of class {label}, so that no radius is right")
    if pattern is not None:
        _must_follow(net, x, pattern)
    others, top = others_of(net, label), box[1] - box[0]
    falsified, high = float("inf"), top
    while len(found := falsify(net, ball(net, x, high, pattern, box), label, others, x, seed=seed)):
        falsified = float((found - x).abs().amax(dim=1).min())
        high = falsified / precision
        if high < least:
            return Radius(0.0, falsified)

    def answer(radius: float, **how: Any) -> str:
        nonlocal falsified
        found = prove(net, ball(net, x, radius, pattern, box), label, others, x[None], seed=seed, **how)
        if found.counterexample is not None:
            falsified = min(falsified, float((found.counterexample - x).abs().max()))
        return found.status

    proved = 0.0
    for limits in ({"branches": 0}, how):  # what bounds alone prove costs next to nothing
        high = min(top, falsified)
        if falsified > top and answer(top, **limits) == "proved":
            return Radius(top, falsified)
        while high > precision * max(proved, least):
            middle = (high * max(proved, least)) ** 0.5
            if answer(middle, **limits) == "proved":
                proved = middle
            else:
                high = middle
    return Radius(proved, falsified)


def small_pattern(
    model: Any,
    x: Tensor,
    label: int,
    eps: float,
    within: Pattern,
    *,
    at_once: int = 5,
    box: Box = (0.0, 1.0),
    seed: int = 0,
    **how: Any,
) -> tuple[Pattern, Answer]:
    """Look for a small part of a pattern that is enough for :func:`robust`, guided by counterexamples.

    It begins with no neurons. Counterexamples that follow what there is are found, by gradient steps and then by the
    proof, and the neurons of ``within`` that they violate most often are added, until there are no counterexamples.

    Parameters
    ----------
    model, x, label, eps, box, seed, **how
        As for :func:`robust`.
    within : Pattern
        What may be used, such as the pattern of the class; ``x`` follows it.
    at_once : int
        The most neurons that are added at a time.

    Returns
    -------
    Pattern
        More general than ``within``.
    Answer
        Of the last question: "falsified" where a counterexample follows all of ``within``.

    Raises
    ------
    BadInput
        ``x`` does not follow ``within``, or ``at_once`` is below 1.
    """
    net, x = ReluNet.of(model), x.double()
    _must_follow(net, x, within)
    if at_once < 1:
        raise BadInput(f"at least one neuron is added at a time, not {at_once}")
    pattern = Pattern.empty(net.neurons)
    while True:
        found = falsify(net, ball(net, x, eps, pattern, box), label, others_of(net, label), x, seed=seed)
        answer = Answer("falsified", "gradient steps", found[0] if len(found) else None)
        if not len(found):
            answer = robust(net, x, label, eps, pattern, box=box, seed=seed, **how)
            if answer.counterexample is None:
                return pattern, answer
            found = answer.counterexample[None]
        states = net.states(found)
        often = (within.active & ~states | within.inactive & states).sum(dim=0)
        if not often.any():
            return pattern, answer
        added = torch.zeros_like(within.active)
        added[often.argsort(descending=True, stable=True)[: min(at_once, int((often > 0).sum()))]] = True
        pattern = pattern.joined(Pattern(within.active & added, within.inactive & added))


def _must_follow(net: ReluNet, x: Tensor, pattern: Pattern) -> None:
    """Refuse an input (d,) that violates a pattern."""
    if violated := int(pattern.violated(net.states(x[None]))):
        raise BadInput(
            f"the input violates {violated} of {pattern.size} neurons of the pattern, so that what is proved would not "
            "be of it; take inputs that follow it"
        )
