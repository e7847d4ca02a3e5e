"""Lists of rows that lie together: a search for nearest rows that looks at a few lists, and may miss a neighbour.

The rows are cut into about ``sqrt(m)`` cells around centres that k-means finds, and a row looks for its neighbours in
the cells of the nearest centres (the inverted file of Sivic and Zisserman, ICCV 2003, as used for vectors by Jegou,
Douze and Schmid, 2011). What it returns are true distances to true rows, so that an error can only make them larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from farout.io.state import saved

_LOOKED_AT = 16  # cells a row looks at
_FOR_EACH = 100  # rows a centre is learned from
_LONGEST = 16  # times the mean length of a list; a crowd beyond is represented by a drawn part of it


@saved("neighbour_lists")
@dataclass
class NeighbourLists:
    """Which rows lie in the cell of which centre.

    Attributes
    ----------
    centres : float64 array (cells, columns)
    members : int64 array (at most m,)
        Places of rows, cell after cell.
    ends : int64 array (cells,)
        Where each cell's members end.
    """

    centres: np.ndarray
    members: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Self:
        """Cut rows (m, columns) into cells; nothing but the rows decides how."""
        from sklearn.cluster import MiniBatchKMeans

        rng = np.random.RandomState(0)
        cells = int(np.ceil(np.sqrt(len(rows))))
        order = rng.permutation(len(rows))
        learner = MiniBatchKMeans(
            cells, init="random", n_init=1, max_iter=5, batch_size=4096, reassignment_ratio=0, random_state=rng
        )
        centres = learner.fit(rows[order[: _FOR_EACH * cells]]).cluster_centers_
        cell = _search(centres, rows, 1)[1][order, 0]
        longest = _LONGEST * len(rows) // cells
        by_cell = [part[:longest] for part in np.split(order[np.argsort(cell, kind="stable")], _ends(cell, cells)[:-1])]
        return cls(centres, np.concatenate(by_cell), np.cumsum([len(part) for part in by_cell]))

    def nearest(self, rows: np.ndarray, points: np.ndarray, own: np.ndarray | None, k: int) -> np.ndarray:
        """Return the places (n, k) of near rows; -1 where the cells hold fewer.

        Parameters
        ----------
        rows : float64 array (m, columns)
            What the lists were made of.
        points : float64 array (n, columns)
        own : int64 array (n,) or None
            Places of the points among the rows, which are left out.
        k : int
        """
        cells = len(self.centres)
        looked_at = _search(self.centres, points, min(_LOOKED_AT, cells))[1]
        width = looked_at.shape[1]
        visits = np.argsort(looked_at, axis=None, kind="stable")  # by cell: which point looks at it
        ends = _ends(looked_at.ravel(), cells)
        found = np.full((len(points), k), np.inf)
        places = np.full((len(points), k), -1)
        members = np.split(self.members, self.ends[:-1])
        for cell, visitors in enumerate(np.split(visits // width, ends[:-1])):
            if not len(visitors) or not len(members[cell]):
                continue
            about, near = _search(rows[members[cell]], points[visitors], k + (own is not None))
            near = members[cell][near]
            if own is not None:
                about[near == own[visitors, None]] = np.inf
            about, near = np.hstack((found[visitors], about)), np.hstack((places[visitors], near))
            best = np.argsort(about, axis=1, kind="stable")[:, :k]
            found[visitors] = np.take_along_axis(about, best, axis=1)
            places[visitors] = np.take_along_axis(near, best, axis=1)
        places[np.isinf(found)] = -1
        return places


def _search(rows: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest rows by products: distances up to rounding, and places, (n, k) or fewer."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(algorithm="brute").fit(rows).kneighbors(points, min(k, len(rows)))


def _ends(cell: np.ndarray, cells: int) -> np.ndarray:
    """Where each cell's entries end once they stand in order."""
    return np.cumsum(np.bincount(cell, minlength=cells))
