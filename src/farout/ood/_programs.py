"""Linear and mixed-integer programs of a ReLU network in a region."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor

from farout.ood._bounds import ROUNDING, Limits, Region, ReluNet

DEEPEST = 1e3  # limit of the depth in a program
TIE = 1e-12  # so that of ReLUs to which nothing is owed, the one with the largest gap is settled


class Program:
    """The linear program of a region, in which a ReLU of which neither branch is known lies in its triangle.

    Its variables are the inputs, what each of those ReLUs gives, and last a depth ``t``: active neurons of the pattern
    have at least ``t``, inactive ones at most ``-t``, and ``logits @ row`` is at least ``t``. Where the greatest ``t``
    is below 0, there is no such input; where it is above, the solution lies deep inside, and rounding does no harm.
    """

    def __init__(self, net: ReluNet, region: Region, limits: list[Limits], row: Tensor | None) -> None:
        masks = region.masks(net)
        on = [active | (least >= 0) for (least, _), (active, _) in zip(limits, masks)]
        off = [(inactive | (most <= 0)) & ~o for (_, most), (_, inactive), o in zip(limits, masks, on)]
        self.open = [~o & ~f for o, f in zip(on, off)]
        self.inputs = len(region.lower)
        self.width = self.inputs + sum(int(some.sum()) for some in self.open) + 1
        self.low, self.high = [region.lower], [region.upper]
        self.rows: list[Tensor] = []
        self.rest: list[Tensor] = []
        self.first: list[int] = []  # of each layer, the rows of the two sides of its triangles
        self.opened: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        last = torch.eye(self.width, dtype=torch.float64)[-1]
        gives, shift = torch.eye(self.inputs, self.width, dtype=torch.float64), torch.zeros_like(region.lower)
        start = self.inputs
        for layer, ((least, most), (active, inactive)) in enumerate(zip(limits, masks)):
            reads, add = net.weights[layer] @ gives, net.weights[layer] @ shift + net.biases[layer]
            # The bounds of other neurons of a pattern already say what the pattern does.
            held, kept = active & (least <= 0), inactive & (most >= 0)
            self._less(last - reads[held], add[held])
            self._less(last + reads[kept], -add[kept])
            some, low, high = self.open[layer], least[self.open[layer]], most[self.open[layer]]
            own = torch.eye(self.width, dtype=torch.float64)[start : start + len(low)]
            chord = (high / (high - low))[:, None]
            self.first.append(sum(map(len, self.rows)))
            self._less(reads[some] - own, -add[some])
            self._less(own - chord * reads[some], chord[:, 0] * (add[some] - low))
            self.low.append(torch.zeros_like(high))
            self.high.append(high)
            self.opened.append((own, reads[some], add[some], low, high))
            start += len(low)
            gives = torch.zeros(len(add), self.width, dtype=torch.float64)
            shift = torch.zeros_like(add)
            gives[on[layer]], shift[on[layer]], gives[some] = reads[on[layer]], add[on[layer]], own
        if row is not None:
            self.goal = row @ (net.weights[-1] @ gives)
            self.constant = float(row @ (net.weights[-1] @ shift + net.biases[-1]))
            self._less((last - self.goal)[None], torch.tensor([self.constant], dtype=torch.float64))
        self.low.append(torch.tensor([-DEEPEST], dtype=torch.float64))
        self.high.append(torch.tensor([DEEPEST], dtype=torch.float64))

    def _less(self, rows: Tensor, rest: Tensor) -> None:
        """Demand that ``rows @ variables <= rest``."""
        self.rows.append(rows)
        self.rest.append(rest)

    def deepest(self) -> tuple[float, Tensor | None, Tensor]:
        """Find the greatest depth.

        Returns
        -------
        float
            No input has more. This bound is computed in float64 from the multipliers that the solver gives: whatever
            they are, as long as they are at least 0, it is one. So errors of the solver make it loose but not wrong.
        tensor (variables,) or None
            The solution, where there is one.
        tensor (N,)
            What it is worth to settle each ReLU of the network: by how much it gives more than it should, times what
            the depth owes to its triangle; below 0 where it is settled.
        """
        A, b = torch.cat(self.rows).numpy(), torch.cat(self.rest).numpy()
        low, high = torch.cat(self.low).numpy(), torch.cat(self.high).numpy()
        cost = np.zeros(self.width)
        cost[-1] = -1
        least, solution, multipliers = _safe_minimum(cost, A, b, low, high)
        if solution is not None:
            found = torch.from_numpy(solution)
            return -least, found, self._worth(found, torch.from_numpy(multipliers))
        # No depth is deep enough, the solver says. The least by which all rows must give way proves it.
        A, cost = np.column_stack([A, np.full(len(A), -1.0)]), np.append(0 * cost, 1.0)
        least, _, _ = _safe_minimum(cost, A, b, np.append(low, 0.0), np.append(high, DEEPEST))
        return (-DEEPEST if least > 0 else np.inf), None, torch.cat(self.open).double() - 1

    def _worth(self, solution: Tensor, multipliers: Tensor) -> Tensor:
        found = []
        for some, first, (own, reads, add, _, _) in zip(self.open, self.first, self.opened):
            gap = own @ solution - (reads @ solution + add).relu()
            price = multipliers[first : first + 2 * len(gap)].view(2, -1).sum(dim=0)
            worth = torch.full((len(some),), -1.0, dtype=torch.float64)
            worth[some] = gap.clamp(min=0) * (price + TIE)
            found.append(worth)
        return torch.cat(found)

    def exact(self, seconds: float) -> tuple[float, Tensor | None]:
        """Bound ``logits @ row`` by a mixed-integer program, with a binary variable for each open ReLU.

        Returns
        -------
        float
            No input of the region has more, but for errors of about 1e-6 that HiGHS allows itself; ``inf`` where the
            time ran out before anything was known.
        tensor (variables,) or None
            The best that was found.
        """
        rows, rest = torch.cat(self.rows[:-1]), torch.cat(self.rest[:-1])  # without the row that holds the goal
        extra = sum(len(low) for _, _, _, low, _ in self.opened)
        switch, more, bound = torch.eye(extra, dtype=torch.float64), [], []
        for own, reads, add, low, high in self.opened:
            mine, switch = switch[: len(low)], switch[len(low) :]
            more += [torch.cat([own - reads, -low[:, None] * mine], 1), torch.cat([own, -high[:, None] * mine], 1)]
            bound += [add - low, torch.zeros_like(low)]
        A = torch.cat([torch.cat([rows, torch.zeros(len(rows), extra, dtype=torch.float64)], 1), *more]).numpy()
        b = torch.cat([rest, *bound]).numpy()
        low, high = torch.cat(self.low), torch.cat(self.high)
        low[-1] = high[-1] = 0  # the pattern is followed, however narrowly
        solved = milp(
            np.concatenate([-self.goal.numpy(), np.zeros(extra)]),
            constraints=LinearConstraint(A, -np.inf, b),
            bounds=Bounds(np.append(low.numpy(), np.zeros(extra)), np.append(high.numpy(), np.ones(extra))),
            integrality=np.append(np.zeros(self.width), np.ones(extra)),
            options={"time_limit": max(seconds, 1e-3), "mip_rel_gap": 0.0},
        )
        bound_of = solved.fun if solved.status == 0 else solved.mip_dual_bound  # with no binary variable there is none
        most = np.inf if bound_of is None else self.constant - bound_of
        return most, None if solved.x is None else torch.from_numpy(solved.x[: self.width])


def _safe_minimum(
    cost: np.ndarray, A: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[float, np.ndarray | None, np.ndarray]:
    """Bound ``cost @ v`` from below over ``A v <= b`` and ``low <= v <= high``, by weak duality.

    The solution ``v`` and the multipliers of the rows are returned too.
    """
    solved = linprog(cost, A, b, bounds=np.stack([low, high], axis=1), method="highs-ds")
    if solved.status != 0:
        return -np.inf, None, np.zeros(len(b))
    multipliers = np.maximum(-solved.ineqlin.marginals, 0)
    reduced = cost + A.T @ multipliers
    bound = float(np.minimum(reduced * low, reduced * high).sum() - b @ multipliers)
    return bound - ROUNDING, solved.x, multipliers
