"""Data sets with their labels, ready to use."""

from __future__ import annotations

import numpy as np

from farout.data import _adbench, synbench
from farout.data._dataset import Dataset
from farout.data._find import find
from farout.data._macrodata import load_macrodata, macrodata_names, read_split
from farout.errors import UnknownName

_ADBENCH = {stem.split("_", 1)[1]: stem for stem in _adbench.SHA256}
_NSL_KDD = {"train": "events/nsl_kdd/train_20percent.parquet", "test": "events/nsl_kdd/test.parquet"}
_NO_FEATURES = ["attack", "difficulty", "family", "anomaly"]
# What scikit-learn carries: its loader, and the class that counts as the anomaly where the set has one.
_SKLEARN = {"breast_cancer": ("load_breast_cancer", 0), "wine": ("load_wine", None), "digits": ("load_digits", None)}


def names(prefix: str = "") -> list[str]:
    """List the data sets whose names begin with ``prefix``, in any case.

    Examples
    --------
    >>> names("nsl")
    ['nsl_kdd/train', 'nsl_kdd/test']
    """
    known = [*_SKLEARN, *adbench_names(), *(f"nsl_kdd/{part}" for part in _NSL_KDD), *macrodata_names()]
    return [name for name in known if name.lower().startswith(prefix.lower())]


def adbench_names() -> list[str]:
    """List the classical sets of ADBench in the order of their file numbers.

    Examples
    --------
    >>> adbench_names()[:3], len(adbench_names())
    (['adbench/ALOI', 'adbench/annthyroid', 'adbench/breastw'], 39)
    """
    return [f"adbench/{short}" for short in _ADBENCH]


def load(name: str) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        One of :func:`names`, in any case; or ``"synbench/<prior>-<archetype>-<seed>"``, a set that
        :func:`farout.data.synbench.make` draws; or the path of an archive for :func:`read_split`. The sets from
        scikit-learn and the drawn ones need neither a folder nor a network.

    Returns
    -------
    Dataset

    Raises
    ------
    UnknownName
        No data set has that name.
    DataMissing
        Its file is neither in the data folder nor in the cache, and cannot be downloaded.

    Examples
    --------
    >>> cancer = load("breast_cancer")
    >>> cancer.X.shape, int(cancer.y.sum())
    ((569, 30), 212)
    """
    if name.lower().startswith("synbench/"):
        return synbench.load(name)
    if name.endswith(".npz"):
        return read_split(name)
    known = {word.lower(): word for word in names()}
    if name.lower() not in known:
        raise UnknownName("data set", name, known.values())
    full = known[name.lower()]
    room, _, short = full.partition("/")
    if room == "adbench":
        return _load_adbench(full, _ADBENCH[short])
    if room == "nsl_kdd":
        return _load_nsl_kdd(full, _NSL_KDD[short])
    if room == "macrodata":
        return load_macrodata(full)
    return _load_sklearn(full)


def _load_adbench(name: str, stem: str) -> Dataset:
    """Read one archive of ADBench."""
    with np.load(find(f"tabular/adbench/{stem}.npz"), allow_pickle=False) as archive:
        x_ND, y_N = archive["X"].astype(np.float64), archive["y"].ravel().astype(np.int8)
    return Dataset(
        name=name,
        X=x_ND,
        y=y_N,
        columns=tuple(f"x{j}" for j in range(x_ND.shape[1])),
        source="Han et al., ADBench: Anomaly Detection Benchmark, NeurIPS 2022",
        licence="terms of the set's source (mostly UCI, CC BY 4.0); collection BSD-2-Clause",
    )


def _load_nsl_kdd(name: str, file: str) -> Dataset:
    """Read one part of NSL-KDD; what tells the attack is no feature."""
    import polars as pl

    table = pl.read_parquet(find(file))
    X = table.drop(_NO_FEATURES).with_columns(pl.col(pl.Categorical).cast(pl.String))
    return Dataset(
        name=name,
        X=X,
        y=table["anomaly"].to_numpy().astype(np.int8),
        columns=tuple(X.columns),
        source="Tavallaee et al., A detailed analysis of the KDD CUP 99 data set, CISDA 2009",
        licence="NSL-KDD: free with citation; KDD Cup 1999: CC BY 4.0",
    )


def _load_sklearn(name: str) -> Dataset:
    """Take a set that scikit-learn carries."""
    import polars as pl
    from sklearn import datasets

    loader, anomaly = _SKLEARN[name]
    bunch = getattr(datasets, loader)()
    columns = tuple(str(column) for column in bunch.feature_names)
    target = bunch.target if anomaly is None else bunch.target == anomaly
    return Dataset(
        name=name,
        X=bunch.data if name == "digits" else pl.DataFrame(bunch.data, schema=list(columns), orient="row"),
        y=target.astype(np.int8),
        columns=columns,
        source=f"UCI Machine Learning Repository, by scikit-learn's {loader}",
        licence="CC BY 4.0",
    )
