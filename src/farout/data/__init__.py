"""Data sets by name: from a local folder, from a package that carries them, or by a checksummed download."""

from __future__ import annotations

from farout.data._dataset import Dataset
from farout.data._find import DataMissing, find
from farout.data._macrodata import macrodata_manifest, macrodata_names, read_split, split_facts
from farout.data._sets import adbench_names, load, names
from farout.data.pretrained import pretrained, pretrained_names
from farout.data.samples import sample_images, sample_texts

__all__ = [
    "DataMissing",
    "Dataset",
    "adbench_names",
    "find",
    "load",
    "macrodata_manifest",
    "macrodata_names",
    "names",
    "pretrained",
    "pretrained_names",
    "read_split",
    "sample_images",
    "sample_texts",
    "split_facts",
]
