"""One cell of a suite: a method on a set with a seed, measured with one thread and kept when it is finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from farout.bench.metrics import auroc, average_precision
from farout.contract import Detector
from farout.data import Dataset, load
from farout.errors import BadInput
from farout.io.files import writing
from farout.scoring import versions

OVER = "over the limit"  # how the error of a cell begins that was not run because of `Limits.columns`
TOGETHER = 200_000  # values in a set, below which all its cells are one task of a process


@dataclass(frozen=True)
class Limits:
    """How much of a set is used; what was used stands in the table, in ``rows``, ``fitted`` and ``rows_in_set``.

    Attributes
    ----------
    rows : int
        Larger sets are cut to as many rows, drawn once (seed 0), the same for all methods.
    fit_rows : mapping of str to int
        Most rows that a class of detectors is fitted on, drawn by the seed; all rows are scored. The cost of the
        one-class SVM is cubic in the rows that it is fitted on, and that of MCD is hundreds of passes over them.
    columns : mapping of str to int
        Most columns that a class of detectors is given; a cell with more is not run, and its error says so. MCD inverts
        about a thousand matrices of that size.

    Examples
    --------
    >>> Limits(rows=1_000).fit_rows
    {'OCSVM': 12000, 'MCD': 10000}
    """

    rows: int = 50_000
    fit_rows: Mapping[str, int] = field(default_factory=lambda: {"OCSVM": 12_000, "MCD": 10_000})
    columns: Mapping[str, int] = field(default_factory=lambda: {"MCD": 500})


def one_class_split(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw half of the normal rows to train on; the other half and all anomalies test.

    Parameters
    ----------
    y : int array (n,)
        1 = anomaly, 0 = normal.
    seed : int

    Returns
    -------
    train, test : int array
        Row numbers, rising.

    Examples
    --------
    >>> train, test = one_class_split(np.array([0, 1, 0, 0, 1, 0]), seed=0)
    >>> len(train), test[np.isin(test, [1, 4])].tolist()
    (2, [1, 4])
    """
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
    train = np.sort(normal[: len(normal) // 2])
    return train, np.setdiff1d(np.arange(len(y)), train)


@dataclass
class Cell:
    """One method on one set with one seed; ``data`` is the set, cut if it was large, or why it did not load."""

    set: str
    identity: str
    rows_in_set: int | None
    data: Dataset | str
    method: str
    detector: Detector
    protocol: str
    seed: int
    limits: Limits

    @property
    def size(self) -> int:
        """Values in the table, by which cells are ordered."""
        return 0 if isinstance(self.data, str) else int(np.prod(self.data.X.shape))

    @property
    def file(self) -> str:
        """Name of the file that keeps the finished cell."""
        kind = type(self.detector)
        facts = {
            "set": self.identity,
            "method": [self.method, f"{kind.__module__}.{kind.__qualname__}", self.detector.get_params()],
            "run": [self.protocol, self.seed, self.limits.rows, self.limits.fit_rows.get(kind.__name__)],
            "version": versions()["farout"],
        }
        text = json.dumps(facts, sort_keys=True, default=repr)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def kept(self, folder: Path | None) -> dict[str, Any] | None:
        """Return the finished cell of an earlier run, if there is one."""
        path = None if folder is None else folder / self.file
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None

    def measure(self, data: Dataset) -> dict[str, Any]:
        """Fit, score and judge."""
        X, y = data.X, data.y
        transductive = self.protocol == "unsupervised"
        train, test = self._parts(data)
        most = self.limits.fit_rows.get(type(self.detector).__name__, len(y))
        if len(train) > most:
            drawn = np.sort(np.random.default_rng(self.seed).choice(train, most, replace=False))
            test = np.setdiff1d(train, drawn) if transductive else test
            train = drawn
        detector = clone(self.detector)
        if "random_state" in detector.get_params():
            detector.set_params(random_state=self.seed)
        if "novelty" in detector.get_params() and not transductive:  # these protocols say that the rows are normal
            detector.set_params(novelty=True)
        X_train, X_test = _standardized(X[train], X[test])
        started = time.perf_counter()
        if transductive:
            label, scores = y[np.concatenate((train, test))], detector.fit_score(X_train)
            if len(test):
                scores = np.concatenate((scores, detector.outlier_score(X_test)))
        else:
            label, scores = y[test], detector.fit(X_train).outlier_score(X_test)
        return {
            "seconds": round(time.perf_counter() - started, 4),
            "auroc": auroc(label, scores),
            "ap": average_precision(label, scores),
            "rows": len(label),
            "anomalies": int(label.sum()),
            "fitted": len(train),
        }

    def _parts(self, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows to learn from, and of the others."""
        if self.protocol == "one-class":
            return one_class_split(data.y, self.seed)
        n_train = len(data.y) if self.protocol == "unsupervised" else data.n_train
        if n_train is None:
            raise BadInput(f"'{data.name}' has no split of its own; take the protocol 'one-class' or 'unsupervised'")
        return np.arange(n_train), np.arange(n_train, len(data.y))


def _standardized(train: Any, test: Any) -> tuple[Any, Any]:
    """Bring columns to mean 0 and standard deviation 1 by the training rows, as published results were made.

    Data frames can hold more than numbers and stay as they are; missing values stay missing.
    """
    if not isinstance(train, np.ndarray):
        return train, test
    mean, std = (np.nanmean, np.nanstd) if np.isnan(train).any() else (np.mean, np.std)
    center, scale = mean(train, axis=0), std(train, axis=0)
    scale[scale == 0] = 1.0
    return (train - center) / scale, (test - center) / scale


def batches(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Lay the cells of a small set together, so that its rows are sent once; the largest first, so that none is late.

    A cell of a large set goes alone: several processes can then share the set.
    """
    laid: dict[tuple[str, int], list[Cell]] = {}
    for i, cell in enumerate(cells):
        laid.setdefault((cell.identity, -1 if cell.size < TOGETHER else i), []).append(cell)
    return sorted(laid.values(), key=lambda batch: -sum(cell.size for cell in batch))


def measured_in_turn(cells: Iterable[Cell], folder: Path | None) -> list[dict[str, Any]]:
    """Run the cells of a batch, one after the other."""
    return [measured(cell, folder) for cell in cells]


def measured(cell: Cell, folder: Path | None) -> dict[str, Any]:
    """Run a cell with one thread and keep it; an error becomes part of the record and is tried again next time."""
    from threadpoolctl import threadpool_limits

    record: dict[str, Any] = {"set": cell.set, "method": cell.method, "protocol": cell.protocol, "seed": cell.seed}
    record["rows_in_set"] = cell.rows_in_set
    if isinstance(cell.data, str):
        return record | {"error": cell.data}
    record["features"] = width = cell.data.X.shape[1]
    kind = type(cell.detector).__name__
    most = cell.limits.columns.get(kind, width)
    if width > most:
        return record | {"error": f"{OVER}: {width:,} columns, and '{kind}' is given at most {most:,}"}
    try:
        with threadpool_limits(1):
            record |= cell.measure(cell.data)
    except Exception as error:  # whatever a method raises, the other cells go on
        return record | {"error": _words(error)}
    if folder is not None:
        with writing(folder / cell.file) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")
    return record


def read(item: str | Dataset, most: int) -> tuple[Dataset | str, str, int | None]:
    """Load a set and cut it, or say why it does not load. With it, what tells the set from others, and its rows."""
    from joblib import hash as hash_of

    try:
        data = load(item) if isinstance(item, str) else item
        if set(np.unique(data.y).tolist()) != {0, 1}:
            raise BadInput(f"'{data.name}' has no labels 0 (normal) and 1 (anomaly)")
    except Exception as error:
        return _words(error), str(item), None
    by_name = isinstance(item, str) and not item.endswith(".npz")  # what stands in a user's file may change
    identity = str(item) if by_name else f"{data.name} {hash_of(data)}"
    n = len(data.y)
    if n > most:
        rows = np.sort(np.random.default_rng(0).choice(n, most, replace=False))
        n_train = None if data.n_train is None else int(np.searchsorted(rows, data.n_train))
        data = replace(data, X=data.X[rows], y=data.y[rows], n_train=n_train)
    return data, identity, n


def _words(error: Exception) -> str:
    """Say an error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
