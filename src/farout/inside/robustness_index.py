"""Robustness Index: Current Pathology Foundation Models are unrobust to Medical Center Differences.

Edwin D. de Jong, Eric Marcus, Jonas Teuwen, 2025 (arXiv 2501.18055).

Does an embedding place samples by what they are, or by where they come from? Among nearest neighbours, those of the
same class (tissue, cancer type) are counted against those with the same confounder (medical centre, scanner, speaker).

The paper claims that all ten public pathology models it looks at encode the medical centre strongly: for one alone,
slightly, the index is above 1, and errors of a classifier come from images of other classes of the same centre.

Differences from the paper, for which no code was found, and from that of its successor PathoROB (arXiv 2507.17845):

- Both indices are given: the paper's ratio, and the successor's share, which lies between 0 and 1.
- Rows are drawn so that each class and confounder occur together equally often (``design="balanced"``), or all tables
  of two classes and two confounders are pooled as in PathoROB (``"pairs"``), which needs no cell to be filled.
- Ties of a vote go to the class of the nearest neighbour; PathoROB's go to the first label.
- Intervals draw groups where there are groups, since the rows of a slide are alike; PathoROB draws rows.
- The base rate of same-confounder errors, of which a figure of the paper speaks, is computed from the data.
- A fixed number of neighbours may be given; otherwise the one that classifies best, as in PathoROB, up to ``max_k``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import polars as pl

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.inside._neighbour_labels import kinds_of, nearest_others, voted
from farout.inside._performance_drop import performance_drop
from farout.inside._robustness import Robustness
from farout.io.tables import to_polars

__all__ = ["Robustness", "RobustnessIndex", "performance_drop"]

DESIGNS = ("balanced", "pairs", "all")


@paper(
    "Robustness Index",
    title="Current Pathology Foundation Models are unrobust to Medical Center Differences",
    authors="de Jong, Marcus, Teuwen",
    arxiv="2501.18055",
    year=2025,
    claim="All ten pathology models encode the medical centre strongly: for nine, neighbours share the centre more "
    "often than the class (index below 1), and errors come from other classes of the same centre.",
    differs="Both the paper's ratio and its successor's share between 0 and 1 (PathoROB, arXiv 2507.17845). Rows are "
    "balanced over classes and confounders, or pooled over all two by two tables; intervals draw whole groups.",
    kind="measure",
)
class RobustnessIndex:
    """Whether neighbours in an embedding share what is wanted, or what confounds.

    Rows are brought to length 1, so that Euclidean and cosine order agree. Neighbours within a row's own group (its
    slide, patient or speaker session) are left out: they would share both labels for no merit of the embedding.

    Cost: ``O(n^2 d)``, a product of matrices in blocks.

    Parameters
    ----------
    k : int, optional
        Neighbours to count. By default, of 1, 3, 5, 7, 9, 11, 21, 31, ... the number at which a vote of the neighbours
        has the best balanced accuracy for the class; so compare embeddings by their curves too.
    max_k : int
        Largest number of neighbours looked at; fewer where a row has no more outside of its group.
    design : {"balanced", "pairs", "all"}
        Which rows: as many of each class and confounder as the rarest such cell has, drawn; all tables of two classes
        and two confounders, each balanced, pooled; or all rows as they are, whose ratios mean little where cells are
        unequal.
    draws : int
        For intervals.
    random_state : int

    Examples
    --------
    An embedding that holds the class alone, and one that holds the confounder alone:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tissue, centre = np.repeat(["lung", "liver"], 60), np.tile(["A", "B", "C"], 40)
    >>> noise = rng.normal(scale=0.01, size=(120, 3))
    >>> by_tissue = RobustnessIndex(k=9).measure(noise + np.eye(3)[(tissue == "lung") * 1], tissue, centre)
    >>> by_centre = RobustnessIndex(k=9).measure(noise + np.eye(3)[np.arange(120) % 3], tissue, centre)
    >>> by_tissue.share, by_centre.share
    (1.0, 0.0)
    >>> by_tissue.index > 2.5, by_centre.index < 0.7
    (True, True)
    """

    def __init__(
        self,
        k: int | None = None,
        max_k: int = 200,
        design: str = "balanced",
        draws: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.k = k
        self.max_k = max_k
        self.design = design
        self.draws = draws
        self.random_state = random_state

    def measure(self, X: Any, wanted: Any, confounder: Any, groups: Any = None) -> Robustness:
        """Count the neighbours of an embedding.

        Parameters
        ----------
        X : array or data frame (n, d)
            The embedding, a row a sample.
        wanted, confounder : array (n,) of labels, or str
            What neighbours should share, and what they should not; a string names a column of the frame, which is then
            no feature.
        groups : array (n,) or str, optional
            Slide, patient or recording; no row is a neighbour within its group.

        Returns
        -------
        Robustness

        Raises
        ------
        BadInput
            A row is zero or not finite, a label is missing, there are not two classes and two confounders that occur
            together, or too few rows for ``k`` neighbours.
        UnknownName
            ``design`` is another, or the frame has no such column.
        """
        if self.design not in DESIGNS:
            raise UnknownName("design", self.design, DESIGNS)
        if self.max_k < 1 or self.draws < 1 or (self.k is not None and self.k < 1):
            raise BadInput(f"k, max_k and draws are at least 1, not {self.k}, {self.max_k} and {self.draws}")
        embedding, labels, confounders, group = _read(X, wanted, confounder, groups)
        label, confound, group = (np.unique(names, return_inverse=True)[1] for names in (labels, confounders, group))
        tables = list(self._tables(label, confound))
        lists = [nearest_others(embedding[rows], group[rows], max(self.k or 0, self.max_k)) for rows in tables]
        most = min(found.shape[1] for found in lists)
        if most < (self.k or 1):
            raise BadInput(f"some rows have {most} neighbours outside of their group, and k is {self.k or 1}")
        lists = [found[:, :most] for found in lists]
        ks = np.array([k for k in (1, 3, 5, 7, 9, *range(11, most + 1, 10)) if k <= most])
        votes = [voted(label[t], confound[t], group[t], found, ks) for t, found in zip(tables, lists)]
        k = self.k or int(np.median([ks[vote[0].argmax()] for vote in votes]))
        counts = np.zeros((most, 4), dtype=np.int64)
        by_group = np.zeros((group.max() + 1, 4), dtype=np.int64)
        for rows, found in zip(tables, lists):
            shared = kinds_of(label[rows], confound[rows], found)[..., None] == np.arange(4)
            counts += shared.sum(axis=0)
            np.add.at(by_group, group[rows], shared[:, :k].sum(axis=1))
        used = np.unique(np.concatenate(tables))
        accuracy, confounder_accuracy = np.mean([vote[:2] for vote in votes], axis=0)
        hits, expected, all_wrong = np.sum([vote[2:] for vote in votes], axis=0)
        with np.errstate(invalid="ignore"):
            confounded, base_rate = hits / all_wrong, expected / all_wrong
        return Robustness(
            k=k,
            counts=counts.cumsum(axis=0),
            by_group=by_group[np.unique(group[used])],
            ks=ks,
            accuracy=accuracy,
            confounder_accuracy=confounder_accuracy,
            confounded=confounded,
            base_rate=base_rate,
            embedding=embedding[used],
            labels=labels[used],
            confounders=confounders[used],
            draws=self.draws,
            random_state=self.random_state,
        )

    def _tables(self, label: np.ndarray, confound: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the rows of each table whose neighbours are counted together."""
        cells = np.zeros((label.max() + 1, confound.max() + 1), dtype=np.int64)
        np.add.at(cells, (label, confound), 1)
        if min(cells.shape) < 2:
            raise BadInput(f"two classes and two confounders are needed, not {cells.shape[0]} and {cells.shape[1]}")
        rng = np.random.default_rng(self.random_state)
        if self.design == "all":
            yield np.arange(len(label))
        elif self.design == "balanced":
            if not cells.all():
                raise BadInput(
                    f"{int((cells == 0).sum())} of {cells.size} pairs of a class and a confounder do not occur; "
                    "design='pairs' uses the tables of two by two that are whole"
                )
            yield _balanced(label, confound, cells, range(cells.shape[0]), range(cells.shape[1]), rng)
        else:
            pairs = [
                (few, two)
                for few in combinations(range(cells.shape[0]), 2)
                for two in combinations(range(cells.shape[1]), 2)
                if cells[np.ix_(few, two)].all()
            ]
            if not pairs:
                raise BadInput("no two classes occur with the same two confounders, so nothing can be compared")
            for few, two in pairs:
                yield _balanced(label, confound, cells, few, two, rng)


def _balanced(
    label: np.ndarray,
    confound: np.ndarray,
    cells: np.ndarray,
    few: Iterable[int],
    two: Iterable[int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw as many rows of each of these classes and confounders as the rarest such cell has; in order."""
    chosen = list(product(few, two))
    size = min(int(cells[cell]) for cell in chosen)
    drawn = [rng.choice(np.flatnonzero((label == b) & (confound == c)), size, replace=False) for b, c in chosen]
    return np.sort(np.concatenate(drawn))


def _read(X: Any, wanted: Any, confounder: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of length 1 (n, d), and the names of classes, confounders and groups (n,) as text."""
    frame = to_polars(X)
    words = {"wanted": wanted, "confounder": confounder} | ({} if groups is None else {"groups": groups})
    for name in words.values():
        if isinstance(name, str) and name not in frame.columns:
            raise UnknownName("column", name, frame.columns)
    names = {what: _text(what, frame[of] if isinstance(of, str) else of, frame.height) for what, of in words.items()}
    features = frame.drop([name for name in words.values() if isinstance(name, str)])
    if not frame.height:
        raise BadInput("an embedding of no rows has no neighbours")
    unread = [name for name, kind in features.schema.items() if not kind.is_numeric()]
    if unread or not features.width:
        raise BadInput(
            f"an embedding is numbers only; column '{unread[0]}' is not" if unread else "no columns are left"
        )
    rows = features.cast(pl.Float64).to_numpy()
    largest = np.abs(rows).max(axis=1, keepdims=True)
    for bad, why in ((~np.isfinite(largest), "is not finite"), (largest == 0, "is zero and has no direction")):
        if bad.any():
            raise BadInput(f"row {int(bad.argmax())} of the embedding {why}; leave it out")
    rows = rows / largest  # so that squares neither overflow nor vanish
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    own = names["groups"] if groups is not None else np.arange(frame.height)
    return rows, names["wanted"], names["confounder"], own


def _text(what: str, values: Any, n: int) -> np.ndarray:
    """Return labels (n,) as text; none may be missing."""
    array: Any = values if isinstance(values, pl.Series) else np.asarray(values)
    if array.shape != (n,):
        raise BadInput(f"'{what}' has labels of shape {array.shape} for {n:,} rows")
    if array.dtype == object:  # words and numbers together
        array = [None if value is None or value != value else str(value) for value in array]
    labels = pl.Series(array)
    missing = labels.is_null() | (labels.is_nan() if labels.dtype.is_float() else False)
    if missing.any():
        raise BadInput(f"'{what}' is missing in row {missing.arg_max()}; leave such rows out")
    return labels.cast(pl.String).to_numpy().astype(str)
