"""Data sets by name: from a local folder, from a package that carries them, or by a checksummed download."""

from __future__ import annotations

from farout.data._find import DataMissing, find
from farout.data._sets import Dataset, adbench_names, load, names

__all__ = ["DataMissing", "Dataset", "adbench_names", "find", "load", "names"]
