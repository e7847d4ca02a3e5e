"""Proofs about a ReLU network in a region: bounds, then a falsifier, then branching or a mixed-integer program."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor

from farout.errors import UnknownName
from farout.ood._bounds import Limits, Region, ReluNet, bounds, greatest
from farout.ood._patterns import Pattern
from farout.ood._programs import Program

SOLVERS = ("branch", "milp")
MARGIN = 1e-5  # by which the bound of HiGHS must be below 0: it allows itself errors of about 1e-6


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found about a region.

    Attributes
    ----------
    status : {"proved", "falsified", "unknown", "empty"}
        "empty" where nothing in the box follows the pattern, so that nothing was asked; "unknown" where limits of time
        or branches were met, or no input is known that follows the pattern.
    by : str
        What settled it, or what was tried last.
    counterexample : float64 tensor (d,) or None
        Checked in float64.
    branches : int
        Regions that were looked at by linear programs.
    seconds : float
    """

    status: str
    by: str
    counterexample: Tensor | None = None
    branches: int = 0
    seconds: float = 0.0


def falsify(
    net: ReluNet,
    region: Region,
    label: int | None,
    others: Sequence[int],
    start: Tensor | None = None,
    *,
    steps: int = 100,
    step: float = 0.075,
    restarts: int = 5,
    seed: int = 0,
) -> Tensor:
    """Look for inputs of a region with ``logits[other] >= logits[label]``, by gradient steps inside the box (PGD).

    Neurons that violate the pattern count against an input, by another weight in each of the restarts.

    Parameters
    ----------
    net : ReluNet
    region : Region
    label : int or None
        With None, any input of the region is looked for.
    others : sequence of int
    start : tensor (d,), optional
        Where the first restart begins; the others begin anywhere in the box.
    steps, restarts, seed : int
    step : float
        In half widths of the box; steps get smaller towards the end.

    Returns
    -------
    float64 tensor (k, d)
        At most one a restart, checked in float64; none may be found.
    """
    drawn = torch.Generator().manual_seed(seed)
    width = region.upper - region.lower
    x = region.lower + width * torch.rand(restarts, len(width), generator=drawn, dtype=torch.float64)
    if start is not None:
        x[0] = start
    weight = torch.logspace(-1, 1.5, restarts, dtype=torch.float64)
    found: dict[int, Tensor] = {}
    for i in range(steps + 1):
        x.requires_grad_(True)
        z, logits = net.run(x)
        margin = torch.zeros(restarts, dtype=torch.float64)
        if label is not None:
            margin = logits[:, list(others)].amax(dim=1) - logits[:, label]
        for k in torch.nonzero((margin >= 0) & region.holds(net, x.detach()))[:, 0].tolist():
            found.setdefault(k, x[k].detach().clone())
        if len(found) == restarts:
            break
        # Just past 0 is not active yet; and a large margin is worth no violation.
        violation = (MARGIN - z).relu() * region.pattern.active + z.relu() * region.pattern.inactive
        gain = (margin.clamp(max=1) - weight * violation.sum(dim=1)).sum()
        (slope,) = torch.autograd.grad(gain, x)
        x = x.detach() + step * (1 - i / (steps + 1)) * width / 2 * slope.sign()
        x = torch.minimum(torch.maximum(x, region.lower), region.upper)
    return torch.stack(list(found.values())) if found else torch.zeros(0, len(width), dtype=torch.float64)


def prove(
    net: ReluNet,
    region: Region,
    label: int,
    others: Sequence[int],
    known: Tensor,
    *,
    solver: str = "branch",
    branches: int = 1000,
    seconds: float = 60.0,
    seed: int = 0,
) -> Answer:
    """Prove that no input of a region has ``logits[other] >= logits[label]``, or find one that has.

    Parameters
    ----------
    net : ReluNet
    region : Region
    label : int
    others : sequence of int
    known : tensor (n, d)
        Inputs of which one should lie in the region: a region without inputs proves everything.
    solver : {"branch", "milp"}
        For what bounds leave open: branch on ReLUs, with linear programs whose bounds hold in float64; or the
        mixed-integer program of HiGHS, which must be clear by 1e-5.
    branches : int
        How many linear programs are solved at most; with 0 bounds are all that is tried.
    seconds : float
    seed : int
        For the falsifier.

    Raises
    ------
    UnknownName
        ``solver`` is another.
    """
    if solver not in SOLVERS:
        raise UnknownName("solver", solver, SOLVERS)
    started, known = time.perf_counter(), known.double()
    limits = bounds(net, region)

    def answer(status: str, by: str, counterexample: Tensor | None = None, used: int = 0) -> Answer:
        return Answer(status, by, counterexample, used, time.perf_counter() - started)

    if limits is None:
        return answer("empty", "bounds")
    inside = known[region.holds(net, known)]
    if not len(inside):
        inside = falsify(net, region, None, others, known[0] if len(known) else None, seed=seed)
        if not len(inside):
            return answer("unknown", "no input is known that follows the pattern")
    rows = torch.eye(len(net.biases[-1]), dtype=torch.float64)[list(others)]
    rows[:, label] -= 1
    most = greatest(net, region, limits, rows)
    rows = rows[most.argsort(descending=True)][: int((most >= 0).sum())]
    if not len(rows):
        return answer("proved", "bounds")
    if not branches:
        return answer("unknown", "bounds")
    found = falsify(net, region, label, others, inside[0], seed=seed)
    if len(found):
        return answer("falsified", "gradient steps", found[0])
    used = 0
    for row in rows:
        left = seconds - (time.perf_counter() - started)
        if solver == "branch":
            status, x, more = branch(net, region, row, branches - used, left)
            used += more
        else:
            status, x = _by_milp(net, region, limits, row, left)
        if status != "proved":
            return answer(status, solver, x, used)
    return answer("proved", solver, None, used)


def branch(
    net: ReluNet, region: Region, row: Tensor | None, branches: int, seconds: float
) -> tuple[str, Tensor | None, int]:
    """Split a region in two by a ReLU, on and off, until nothing is left open, the deepest first.

    Parameters
    ----------
    net : ReluNet
    region : Region
    row : float64 tensor (C,) or None
        With None it is asked whether the region has any input.
    branches : int
    seconds : float

    Returns
    -------
    {"proved", "falsified", "unknown"}
    tensor (d,) or None
        An input of the region with ``logits @ row >= 0``, checked in float64.
    int
        How many linear programs were solved.
    """
    deadline, order, used = time.perf_counter() + seconds, count(), 0
    heap: list[tuple[float, int, Pattern, list[Limits] | None]] = [(-np.inf, next(order), region.pattern, None)]
    while heap:
        if used >= branches or time.perf_counter() > deadline:
            return "unknown", None, used
        _, _, pattern, within = heapq.heappop(heap)
        part = Region(region.lower, region.upper, pattern)
        limits = bounds(net, part, within)
        if limits is None or (row is not None and greatest(net, part, limits, row[None]) < 0):
            continue
        used += 1
        depth, solution, worth = Program(net, part, limits, row).deepest()
        if depth < 0:
            continue
        if solution is not None and (x := _counterexample(net, region, row, solution)) is not None:
            return "falsified", x, used
        neuron = int(worth.argmax())
        if worth[neuron] < 0:  # all is linear, and the region is too thin for what float64 can tell
            return "unknown", None, used
        for side in ("active", "inactive"):
            mask = getattr(pattern, side).clone()
            mask[neuron] = True
            heapq.heappush(heap, (-depth, next(order), replace(pattern, **{side: mask}), limits))
    return "proved", None, used


def _counterexample(net: ReluNet, region: Region, row: Tensor | None, solution: Tensor) -> Tensor | None:
    """Return the input of a program's solution if it is in the region and has ``logits @ row >= 0`` in float64."""
    x = torch.minimum(torch.maximum(solution[: len(region.lower)], region.lower), region.upper)[None]
    right = row is None or bool(net.run(x)[1] @ row >= 0)
    return x[0] if right and bool(region.holds(net, x)) else None


def _by_milp(
    net: ReluNet, region: Region, limits: list[Limits], row: Tensor, seconds: float
) -> tuple[str, Tensor | None]:
    most, solution = Program(net, region, limits, row).exact(seconds)
    if most < -MARGIN:
        return "proved", None
    x = None if solution is None else _counterexample(net, region, row, solution)
    return ("unknown" if x is None else "falsified"), x
