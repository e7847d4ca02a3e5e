"""The properties of a network that are proved with neural activation patterns, and the falsifier alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from farout.errors import BadInput
from farout.ood._bounds import Region, ReluNet
from farout.ood._nap_proofs import Answer, branch, falsify, prove
from farout.ood._patterns import Pattern

Box = tuple[float, float]


def robust(
    model: Any, x: Tensor, label: int, eps: float, pattern: Pattern | None = None, *, box: Box = (0.0, 1.0), **how: Any
) -> Answer:
    """Ask whether all inputs within ``eps`` of ``x``, in each number, that follow a pattern are of class ``label``.

    Parameters
    ----------
    model : nn.Sequential
    x : tensor (d,)
    label : int
    eps : float
    pattern : Pattern, optional
        Without one the whole ball is asked about.
    box : (float, float)
        Limits of every number of an input.
    **how
        ``solver``, ``branches``, ``seconds`` and ``seed`` of the proof: ``"branch"`` or ``"milp"``, the most linear
        programs, the most time (60), and the seed of the falsifier.

    Returns
    -------
    Answer
        "proved", "falsified" by a counterexample, "unknown", or "empty" where nothing in the ball follows the pattern.
        A tie of two logits falsifies.

    Raises
    ------
    BadInput
        The model is another, or ``eps`` is negative.

    Examples
    --------
    >>> from farout.kit.nets import mlp
    >>> model, x = mlp([4, 8, 2], seed=0), torch.full((4,), 0.5)
    >>> robust(model, x, int(model(x).argmax()), 1e-4).status
    'proved'
    """
    net = ReluNet.of(model)
    if eps < 0:
        raise BadInput(f"a radius is not negative, and eps is {eps:g}")
    region = ball(net, x.double(), eps, pattern, box)
    return prove(net, region, label, others_of(net, label), x[None], **how)


def counterexamples(
    model: Any,
    x: Tensor,
    label: int,
    eps: float,
    pattern: Pattern | None = None,
    *,
    box: Box = (0.0, 1.0),
    steps: int = 100,
    step: float = 0.075,
    restarts: int = 5,
    seed: int = 0,
) -> Tensor:
    """Look for inputs within ``eps`` of ``x`` that follow a pattern and are not of class ``label``, and prove nothing.

    Parameters
    ----------
    model, x, label, eps, pattern, box
        As for :func:`robust`.
    steps, step, restarts, seed
        Of the gradient steps; ``step`` is in half widths of the ball.

    Returns
    -------
    float64 tensor (k, d)
        At most one a restart; none may be found.
    """
    net, x = ReluNet.of(model), x.double()
    region = ball(net, x, eps, pattern, box)
    return falsify(net, region, label, others_of(net, label), x, steps=steps, step=step, restarts=restarts, seed=seed)


def class_robust(
    model: Any, pattern: Pattern, label: int, known: Tensor, *, box: Box = (0.0, 1.0), **how: Any
) -> Answer:
    """Ask whether all inputs of the box that follow a pattern are of class ``label``: then it alone is a certificate.

    Parameters
    ----------
    model, pattern, label, box, **how
        As for :func:`robust`.
    known : tensor (n, d)
        Inputs, some of which follow the pattern; where none does, one is looked for.
    """
    net = ReluNet.of(model)
    return prove(net, whole(net, pattern, box), label, others_of(net, label), known, **how)


def never(
    model: Any, pattern: Pattern, label: int, other: int, known: Tensor, *, box: Box = (0.0, 1.0), **how: Any
) -> Answer:
    """Ask whether no input that follows a pattern has ``logits[other] >= logits[label]``; see :func:`class_robust`."""
    net = ReluNet.of(model)
    return prove(net, whole(net, pattern, box), label, [other], known, **how)


def unambiguous(
    model: Any,
    first: Pattern,
    second: Pattern,
    *,
    box: Box = (0.0, 1.0),
    branches: int = 1000,
    seconds: float = 60.0,
    seed: int = 0,
) -> Answer:
    """Ask whether no input of the box follows two patterns.

    Returns
    -------
    Answer
        "falsified" by an input that follows both.
    """
    net = ReluNet.of(model)
    if first.conflicts(second):
        return Answer("proved", "a neuron that is active in one and inactive in the other")
    region = whole(net, first.joined(second), box)
    found = falsify(net, region, None, [], seed=seed)
    if len(found):
        return Answer("falsified", "gradient steps", found[0])
    status, x, used = branch(net, region, None, branches, seconds)
    return Answer(status, "branch", x, used)


def others_of(net: ReluNet, label: int) -> list[int]:
    """Return the classes that are not ``label``."""
    classes = len(net.biases[-1])
    if not 0 <= label < classes:
        raise BadInput(f"the network has the classes 0 to {classes - 1}, and none is {label}")
    return [other for other in range(classes) if other != label]


def ball(net: ReluNet, x: Tensor, eps: float, pattern: Pattern | None, box: Box) -> Region:
    """Return the region of inputs (d,) within ``eps`` of ``x`` and within the box that follow a pattern."""
    pattern = Pattern.empty(net.neurons) if pattern is None else pattern
    return Region((x - eps).clamp(min=box[0]), (x + eps).clamp(max=box[1]), pattern)


def whole(net: ReluNet, pattern: Pattern, box: Box) -> Region:
    """Return the region of all inputs of the box that follow a pattern."""
    ends = torch.tensor(box, dtype=torch.float64).repeat(net.weights[0].shape[1], 1)
    return Region(ends[:, 0], ends[:, 1], pattern)
