"""Mean-shift: every row moves to the mean of its nearest neighbours, a few times over. Shared by MOD, APRE and MSS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farout.errors import BadInput, UnknownName
from farout.io.state import saved
from farout.table._neighbours import Neighbours

MOST = 30  # neighbours that are averaged where nobody says how many: a tenth of the rows, and no more than this
ROLES = ("input", "target")


def shift(rows: np.ndarray, n_neighbors: int, times: int = 3, n_jobs: int | None = None) -> np.ndarray:
    """Move every row to the mean of its nearest neighbours among the others, all rows at once, a few times over.

    A step looks only at where the rows stood before it, so the order of the rows changes nothing.

    Parameters
    ----------
    rows : float64 array (n, d)
        Left as they are.
    n_neighbors : int
        Neighbours that are averaged; the row itself is none of them.
    times : int
        Steps.
    n_jobs : int, optional
        Threads.

    Returns
    -------
    float64 array (n, d)

    Examples
    --------
    >>> shift(np.array([[0.0], [1.0], [2.0], [10.0]]), n_neighbors=2, times=1).ravel()
    array([1.5, 1. , 0.5, 1.5])
    """
    return Shift.of(np.array(rows, dtype=np.float64, order="C"), n_neighbors, times, False, n_jobs)[1]


@saved("shift")
@dataclass
class Shift:
    """The training rows as they stood before each step; against them new rows are shifted, one by one.

    Attributes
    ----------
    stages : list of Neighbours
        One a step.
    n_neighbors : int
    """

    stages: list[Neighbours]
    n_neighbors: int

    @classmethod
    def of(
        cls, rows: np.ndarray, n_neighbors: int, times: int, counts_itself: bool, n_jobs: int | None
    ) -> tuple[Shift, np.ndarray]:
        """Shift training rows, each of which is a neighbour of its own or not; return also where they end."""
        if times < 0:
            raise BadInput(f"shifts are a number of steps, at least 0, not {times}")
        made = cls([], max(1, min(n_neighbors, len(rows) - (not counts_itself))))
        for _ in range(times):
            made.stages.append(Neighbours(rows))
            rows = made._step(made.stages[-1], rows if counts_itself else None, n_jobs)
        return made, rows

    def __call__(self, rows: np.ndarray, n_jobs: int | None) -> np.ndarray:
        """Shift new rows (n, d): step m averages the nearest training rows as they stood after m - 1 steps."""
        for stage in self.stages:
            rows = self._step(stage, rows, n_jobs)
        return rows

    def _step(self, stage: Neighbours, rows: np.ndarray | None, n_jobs: int | None) -> np.ndarray:
        """Average the neighbours: from the nearest one on, so that the mean of equal rows is that very row."""
        _, places = stage.nearest(rows, self.n_neighbors, n_jobs)
        nearest = stage.rows[places[:, 0]]
        away = np.zeros_like(nearest)
        for place in places.T[1:]:
            away += stage.rows[place] - nearest
        return nearest + away / self.n_neighbors


def usual_neighbours(n_neighbors: int | None, n: int) -> int:
    """Return how many neighbours to average: those asked for, or a tenth of the rows, between 2 and 30."""
    if n_neighbors is None:
        return max(2, min(MOST, n // 10))
    if n_neighbors < 1:
        raise BadInput(f"n_neighbors is a number of rows, at least 1, or None for a tenth of them, not {n_neighbors}")
    return n_neighbors


def roles(rows: np.ndarray, shifted: np.ndarray, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that a network is shown, and the rows that its answer is compared with."""
    if role not in ROLES:
        raise UnknownName("role of the shifted row", role, ROLES)
    return (shifted, rows) if role == "input" else (rows, shifted)
