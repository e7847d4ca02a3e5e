"""Tables that come with a split of their own, in MacrOData's file format: normal rows to train on, and rows to test.

Ding, Kluettermann, Wen, Chen, Akoglu, "MacrOData: New Benchmarks of Thousands of Datasets for Tabular Outlier
Detection", 2026 (arXiv 2602.09329). An archive holds ``train`` and ``test`` (rows, features), ``test_labels`` (1 =
anomaly) and, where it likes, ``train_labels`` (all 0), ``feature_names``, and the counts that are checked here.
"""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.data._dataset import Dataset
from farout.data._find import DataMissing, find
from farout.errors import BadInput, UnknownName

if TYPE_CHECKING:
    import polars as pl

FOLDER = "tabular/macrodata"
SOURCE = "Ding et al., MacrOData: New Benchmarks of Thousands of Datasets for Tabular Outlier Detection, 2026"
LICENCE = "collected from public repositories without one common licence; for research"
# What a file itself says: of its counts, and of what it is.
_COUNTS = {"anomaly_count": "anomalies", "normal_count": "normal rows", "feature_count": "features"}
_FACTS = {"origin": "domain", "isotropy": "isotropy", "ifor_auc": "iforest_auc", "rf_auc": "rf_auc"}


def macrodata_manifest() -> pl.DataFrame:
    """Read what is known of each set of MacrOData that is here.

    Returns
    -------
    polars.DataFrame
        A row for each set: ``set`` (its name for :func:`farout.data.load`), ``rows_train``, ``rows_test``,
        ``features``, ``anomalies``, ``domain``, ``isotropy``, and the AUROC of the authors' isolation forest and
        supervised forest, ``iforest_auc`` and ``rf_auc``.

    Raises
    ------
    DataMissing
        The sets are not here.
    """
    path = find(f"{FOLDER}/manifest.csv")
    return _manifest(path, os.stat(path).st_mtime_ns)


def macrodata_names() -> list[str]:
    """List the sets of MacrOData that are here, none where there is no manifest."""
    try:
        return macrodata_manifest()["set"].to_list()
    except DataMissing:
        return []


def load_macrodata(name: str) -> Dataset:
    """Load a set of the manifest, and check that the file holds what the manifest says."""
    table = macrodata_manifest()
    known = {word.lower(): word for word in table["set"]}
    if name.lower() not in known:
        raise UnknownName("set of MacrOData", name, known.values())
    full = known[name.lower()]
    facts = table.row(table["set"].to_list().index(full), named=True)
    return read_split(find(f"{FOLDER}/{facts['file']}"), full, facts)


def read_split(path: str | Path, name: str | None = None, counts: dict[str, Any] | None = None) -> Dataset:
    """Read one archive of MacrOData's format, whoever made it.

    Parameters
    ----------
    path : path
        An ``.npz`` with ``train``, ``test`` and ``test_labels``.
    name : str, optional
        By default the file's name without its ending.
    counts : dict, optional
        What the file must hold, of ``rows_train``, ``rows_test``, ``features`` and ``anomalies``.

    Returns
    -------
    Dataset
        The training rows first, then the test rows; ``n_train`` says how many the former are.

    Raises
    ------
    BadInput
        The file cannot be read or lacks an array, the parts differ in width, the training rows hold an anomaly, labels
        are not 0 and 1 (both among the test rows), or a count is another than the file or ``counts`` says.
    """
    path = Path(path)
    name = name or path.stem
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in ("train", "test", "test_labels") if key not in archive]
            if missing:
                raise BadInput(f"'{path.name}' has no '{missing[0]}'; it holds {', '.join(map(repr, archive.files))}")
            train, test = (np.asarray(archive[key], dtype=np.float64) for key in ("train", "test"))
            label = archive["test_labels"].ravel()
            train_label = archive["train_labels"].ravel() if "train_labels" in archive else np.zeros(len(train), int)
            said = {count: int(archive[key]) for key, count in _COUNTS.items() if key in archive}
            columns = _columns(archive)
    except BadInput:
        raise
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"'{path.name}' is no readable npz archive ({type(error).__name__}: {error})") from error
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise BadInput(
            f"'{name}': 'train' and 'test' must have equal columns; their shapes are {train.shape} and {test.shape}"
        )
    if len(label) != len(test) or len(train_label) != len(train):
        raise BadInput(
            f"'{name}' has {len(label)} labels for {len(test)} test rows, and {len(train_label)} for "
            f"{len(train)} training rows"
        )
    if np.any(train_label != 0):
        raise BadInput(
            f"'{name}': {np.sum(train_label != 0)} of {len(train)} training rows are not labelled 0; a "
            "detector is to learn from normal rows alone"
        )
    if set(np.unique(label).tolist()) != {0, 1}:
        raise BadInput(
            f"'{name}': the labels of the test rows must be 0 and 1, both; they are "
            f"{', '.join(repr(str(value)) for value in np.unique(label)[:5].tolist())}"
        )
    holds = {"rows_train": len(train), "rows_test": len(test), "features": test.shape[1], "anomalies": int(label.sum())}
    holds["normal rows"] = len(train) + len(test) - holds["anomalies"]
    for said_by, told in (("the file", said), ("the manifest", counts or {})):
        for count in holds.keys() & told.keys():
            if int(told[count]) != holds[count]:
                raise BadInput(f"'{name}' holds {count} {holds[count]} where {said_by} says {told[count]}")
    return Dataset(
        name=name,
        X=np.concatenate((train, test)),
        y=np.concatenate((np.zeros(len(train), np.int8), label.astype(np.int8))),
        columns=columns if columns and len(columns) == test.shape[1] else tuple(f"x{j}" for j in range(test.shape[1])),
        source=SOURCE,
        licence=LICENCE,
        n_train=len(train),
    )


def split_facts(path: str | Path) -> dict[str, Any]:
    """Read what the authors of an archive of MacrOData's format wrote about it.

    Parameters
    ----------
    path : path
        An archive that :func:`read_split` reads.

    Returns
    -------
    dict
        ``domain``, ``isotropy``, ``iforest_auc`` and ``rf_auc``, as far as the file has them.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {word: archive[key].item() for key, word in _FACTS.items() if key in archive}


def _columns(archive: Any) -> tuple[str, ...]:
    """Names of the features, none where they were stored in a way that only a pickle can read."""
    try:
        return tuple(map(str, archive["feature_names"]))
    except (KeyError, ValueError):
        return ()


@lru_cache(maxsize=1)
def _manifest(path: Path, changed: int) -> pl.DataFrame:
    import polars as pl

    return pl.read_csv(path).select(pl.format("macrodata/{}/{}", "bench", "name").alias("set"), pl.all())
