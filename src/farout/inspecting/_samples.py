"""What a model reads while it is looked into: data of the user, or the small sets that come with farout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput

if TYPE_CHECKING:
    from farout.io.models import OpenModel

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
TABLES = (".jsonl", ".csv", ".tsv")
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Sample:
    """Texts, images or features, or batches that are ready.

    Attributes
    ----------
    source : str
        Where they are from, in words.
    items : sequence or array
    ready : bool
        Whether ``items`` are batches.
    notes : list of str
    """

    source: str
    items: Any
    ready: bool = False
    notes: list[str] = field(default_factory=list)

    def batches(self, opened: OpenModel, length: int, batch_size: int) -> Iterable[Any]:
        """Make the batches that a model takes."""
        return self.items if self.ready else opened.batches(self.items, length=length, batch_size=batch_size)

    def read(self, opened: OpenModel, batches: list[Any]) -> str:
        """Say how much was read."""
        from farout.inside._sites import length_of, tokens_of

        count = sum(length_of(batch) for batch in batches)
        if opened.takes != "tokens":
            return f"{count:,} {'images' if opened.takes == 'pixels' else 'rows'}"
        tokens = 0
        for batch in batches:
            shape, mask = tokens_of(batch)
            tokens += 0 if shape is None else int(mask.sum()) if mask is not None else shape[0] * shape[1]
        return f"{count:,} texts, {tokens:,} tokens"


def sample_for(opened: OpenModel, data: Any, samples: int) -> Sample:
    """Find what a model shall read: at most so many of what the user gives, or of the small sets of farout."""
    if data is None:
        return _builtin(opened, samples)
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if not path.exists():
            raise BadInput(f"there is no file or folder '{path}' to read")
        return Sample(f"'{path}'", _read(path, opened.takes, samples))
    if isinstance(data, np.ndarray):
        return Sample(f"an array of shape {data.shape}", data[:samples] if opened.takes != "features" else data)
    items = list(data)
    if items and all(isinstance(item, str) for item in items):
        return Sample(f"{len(items):,} texts", items[:samples])
    ready = all(isinstance(item, Mapping | list | tuple) or hasattr(item, "ndim") for item in items)
    if not items or not ready:
        kinds = sorted({type(item).__name__ for item in items})
        raise BadInput(f"data are texts or batches of tensors, not {', '.join(kinds) or 'nothing'}")
    return Sample(f"{len(items):,} batches", items, ready=True)


def _builtin(opened: OpenModel, samples: int) -> Sample:
    """Take the small set that comes with farout."""
    from farout.data.samples import sample_images, sample_texts

    if opened.takes == "tokens":
        return Sample("the sample texts of farout", _spread(sample_texts(), samples))
    if opened.takes == "pixels":
        return Sample("the sample images of farout", _spread(sample_images(), samples))
    raise BadInput(f"'{opened.name}' takes features, of which farout has no sample; give some with --data FILE.npy")


def _spread(items: list[Any], most: int) -> list[Any]:
    """Choose from all over a list, since its neighbours are alike."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]


def _read(path: Path, takes: str, samples: int) -> Any:
    """Read the texts, images or features of a file or folder."""
    ending = path.suffix.lower()
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        if not found:
            raise BadInput(f"the folder '{path}' holds no images ({', '.join(IMAGES)})")
        return [_image(file) for file in found[:samples]]
    if ending in ARRAYS:
        array = _array(path)
        return array if takes == "features" else array[:samples]
    if takes != "tokens":
        wanted = "a folder of images" if takes == "pixels" else "a .npy or .npz file"
        raise BadInput(f"the model takes {takes}, so data are {wanted}, not '{path.name}'")
    if ending == ".txt":
        parts = path.read_text(encoding="utf-8", errors="replace").split("\n\n")
        texts = [" ".join(part.split()) for part in parts if part.strip()]
    elif ending in TABLES:
        texts = _column(path)
    else:
        raise BadInput(f"texts are .txt, {', '.join(TABLES)}, and not '{path.name}'")
    if not texts:
        raise BadInput(f"'{path}' holds no text")
    return texts[:samples]


def _column(path: Path) -> list[str]:
    """Read the column of texts of a table."""
    import polars as pl

    from farout.io.tables import TableFile

    frame = TableFile(path).read()
    words = [name for name, kind in frame.schema.items() if kind == pl.String]
    named = [name for name in words if name.lower() == "text"] or (words if len(words) == 1 else [])
    if not named:
        columns = ", ".join(f"'{column}'" for column in frame.columns[:8])
        raise BadInput(f"'{path}' has no column 'text'; its columns are {columns}")
    return [text for text in frame[named[0]].drop_nulls().to_list() if text.strip()]


def _array(path: Path) -> np.ndarray:
    """Read one array, without pickle."""
    try:
        found: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadInput(f"'{path}' cannot be read as an array: {error}") from error
    if isinstance(found, np.ndarray):
        return found
    names = found.files
    if not names:
        raise BadInput(f"'{path}' holds no array")
    return found["X" if "X" in names else names[0]]


def _image(path: Path) -> np.ndarray:
    """Read an image as uint8 (H, W, 3)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise BadInput(f"'{path}' cannot be read as an image") from error
