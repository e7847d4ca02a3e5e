"""The result files of MAD-Bench: one csv for each model and subset, and the published numbers of samples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from farout.data import DataMissing, find
from farout.errors import BadInput
from farout.io.tables import TableFile

COUNTS = "reference/madbench_levels.csv"
DOMAINS = ("multidog", "mvtec", "visa", "diabetic-retinopathy", "covid19", "skin-lesion")
# The official readme, templates and evaluation name the columns in three ways; only letters are compared.
SEVERITY = ("severity", "severitylevel", "level")
SCORE = ("anomalyscore", "score")
_NAME = re.compile(rf"^(?:(?P<model>.+)_)?(?P<domain>{'|'.join(DOMAINS)})(?:_(?P<subset>.+))?$")


@dataclass(frozen=True)
class Scored:
    """Samples of one subset with a model's scores.

    Attributes
    ----------
    model, domain, subset : str
    severity : float64 array (n,)
        NaN where the file holds no number.
    score : float64 array (n,)
        NaN where the model gave none.
    seed : int or None
        None for scores from a file.
    """

    model: str
    domain: str
    subset: str
    severity: np.ndarray
    score: np.ndarray
    seed: int | None = None


def result_files(paths: Iterable[str | Path]) -> list[Path]:
    """List the files given, and all csv files below the folders given, in order of their names.

    Raises
    ------
    BadInput
        Nothing is there.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    if not found:
        raise BadInput(f"there is no csv file below {', '.join(repr(str(path)) for path in paths)}")
    return found


def read_scored(path: str | Path) -> Scored:
    r"""Read a result file: a severity and a score for each sample, under any of the official column names.

    Model, domain and subset come from the name, ``<model>_<domain>_<subset>.csv``. A file with another name is a domain
    of its own, and its folder names the model.

    Raises
    ------
    BadInput
        The file cannot be read as a table, or lacks one of the columns.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "cflow-ad_mvtec_bottle.csv"
    >>> _ = path.write_text("Path,Severity,Anomaly Score\na.png,0.0,1.5\nb.png,2.0,sorry\n")
    >>> read_scored(path)
    Scored(model='cflow-ad', domain='mvtec', subset='bottle', severity=array([0., 2.]),
           score=array([1.5, nan]), seed=None)
    """
    path = Path(path)
    table = TableFile(path).read()
    letters = {re.sub(r"[^a-z]", "", name.lower()): name for name in table.columns}

    def column(what: str, known: tuple[str, ...]) -> np.ndarray:
        name = next((letters[word] for word in known if word in letters), None)
        if name is None:
            raise BadInput(f"'{path.name}' has no column of the {what}; its columns are {table.columns}")
        return table[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()

    return Scored(*names_of(path), column("severity", SEVERITY), column("anomaly score", SCORE))


def names_of(path: Path) -> tuple[str, str, str]:
    """Return model, domain and subset that a file's name says.

    Examples
    --------
    >>> names_of(Path("results/RRD/RRD_visa_pcb1.csv")), names_of(Path("results/RRD/covid19_template.csv"))
    (('RRD', 'visa', 'pcb1'), ('RRD', 'covid19', 'covid19'))
    """
    stem = path.stem.removesuffix("_template")
    folder = path.parent.name or "model"
    match = _NAME.match(stem)
    if match is None:
        own = stem.removeprefix(f"{folder}_")
        return folder, own, own
    return match["model"] or folder, match["domain"], match["subset"] or match["domain"]


def published_counts() -> dict[tuple[str, str], dict[float, int]] | None:
    """Return the published number of samples of each level, by domain and subset; None where the file is absent."""
    try:
        table = pl.read_csv(find(COUNTS))
    except DataMissing:
        return None
    counts: dict[tuple[str, str], dict[float, int]] = {}
    for (name, level), part in table.group_by("subset", "severity", maintain_order=True):
        place = names_of(Path(f"{name}.csv"))[1:]
        counts.setdefault(place, {})[float(level)] = int(part["test_images"].sum())
    return counts
