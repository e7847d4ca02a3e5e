"""What a watched model is given: images, texts or rows of numbers, with names, and labels where there are some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.errors import BadInput, UnknownName
from farout.io.images import read_images
from farout.io.models import OpenModel
from farout.io.tables import TableFile, to_polars
from farout.scoring.texts import read_texts

LABELS = ("label", "labels", "class", "target", "y")  # columns that hold labels where nothing is said
SHOWN = 80  # letters of a text that name it


@dataclass(frozen=True)
class Given:
    """Inputs that were read.

    Attributes
    ----------
    items : list or array (n, ...)
    names : list of str
    labels : int64 array (n,) or None
        Places in ``classes``.
    classes : tuple of str
    columns : tuple of str
        Of a table of numbers that has named ones.
    notes : list of str
    """

    items: Any
    names: list[str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: np.ndarray) -> Given:
        """Return some of the inputs."""
        array = isinstance(self.items, np.ndarray)
        return Given(
            self.items[places] if array else [self.items[place] for place in places],
            [self.names[place] for place in places],
            None if self.labels is None else self.labels[places],
            self.classes,
            self.columns,
        )

    def __add__(self, other: Given) -> Given:
        """Return the inputs of both, without labels."""
        array = isinstance(self.items, np.ndarray)
        items = np.concatenate([self.items, other.items]) if array else [*self.items, *other.items]
        return Given(items, self.names + other.names, columns=self.columns, notes=self.notes + other.notes)

    def groups(self) -> list[str] | None:
        """Return the folder or class of each input, where there are several classes."""
        if self.labels is None:
            return None
        return [name.rpartition("/")[0] or self.classes[label] for name, label in zip(self.names, self.labels.tolist())]

    def prints(self) -> list[bytes]:
        """Return a fingerprint of each input."""
        return [
            blake2b(one.encode() if isinstance(one, str) else one.tobytes(), digest_size=8).digest()
            for one in self.items
        ]


class Batches:
    """Batches as a model takes them, made when they are asked for, since all at once may not fit into memory."""

    def __init__(self, opened: OpenModel, items: Any, batch_size: int, length: int) -> None:
        self.opened, self.items, self.batch_size, self.length = opened, items, batch_size, length

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.items), self.batch_size):
            some = self.items[start : start + self.batch_size]
            yield self.opened.batches(some, length=self.length, batch_size=self.batch_size)[0]


def read_given(
    data: Any,
    opened: OpenModel,
    *,
    column: str | None = None,
    label: str | None = None,
    leave_out: Sequence[str] = (),
    like: Given | None = None,
    skip_broken: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Given:
    """Read what a model takes.

    Parameters
    ----------
    data : path, TableFile, data frame, array or list
    opened : OpenModel
    column, label : str, optional
        Of the texts, and of the labels of texts or rows.
    leave_out : sequence of str
        Columns of a table of numbers that are no input.
    like : Given, optional
        Inputs whose columns these should have.
    skip_broken : bool
        As for :func:`farout.io.images.read_images`.
    progress : callable, optional
    """
    if opened.takes == "pixels":
        size = opened.pixels.size if opened.pixels else None
        found = read_images(data, skip_broken=skip_broken, size=size, progress=progress)
        return Given(found.arrays, found.names, found.labels, found.classes, notes=list(found.notes))
    _refuse_folder(data, opened)
    if opened.takes == "tokens":
        return _texts(data, opened, column, label, like)
    return _rows(data, opened, label, leave_out, like)


def _refuse_folder(data: Any, opened: OpenModel) -> None:
    if isinstance(data, str | PathLike) and Path(data).is_dir():
        what = "texts" if opened.takes == "tokens" else "rows of numbers"
        raise BadInput(
            f"'{data}' is a folder, as images lie in, and '{opened.name}' takes {what}: give a file of these"
        )


def _texts(data: Any, opened: OpenModel, column: str | None, label: str | None, like: Given | None) -> Given:
    """Read texts, and a column of labels beside them."""
    if opened.tokenizer is None:
        raise BadInput(f"'{opened.name}' has no tokenizer, so it cannot read texts: name one (--set tokenizer=FOLDER)")
    if not opened.keywords:
        raise BadInput(
            f"'{opened.name}' takes token ids without a mask, so that texts of different lengths cannot stand in one "
            "batch; give a model of transformers, or batches of your own to farout.ood.Watch"
        )
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if isinstance(data, str | PathLike) and Path(data).suffix.lower() != ".txt":
        data = TableFile(data)
    if isinstance(data, TableFile):
        data = data.read()
    plain = isinstance(data, str | PathLike | list | tuple | pl.Series) or getattr(data, "ndim", 0) == 1
    if not plain:
        data = to_polars(data)
        label = _label(data, label, like)
        if label is not None:
            labels, classes = coded(data[label].to_list(), label)
    texts = read_texts(data, column)
    empty = [row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
    if empty:
        raise BadInput(f"{len(empty):,} of {len(texts):,} texts are empty, the first is row {empty[0]}; leave them out")
    return Given(texts, [_start(text) for text in texts], labels, classes)


def _rows(data: Any, opened: OpenModel, label: str | None, leave_out: Sequence[str], like: Given | None) -> Given:
    """Read rows of numbers, as the model was trained on, and a column of labels beside them."""
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    notes: list[str] = []
    if isinstance(data, str | PathLike):
        data = TableFile(data)
    if isinstance(data, TableFile):
        if data.labels is not None:
            labels, classes = coded(data.labels.tolist(), "y")
        data = data.read()
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        x = np.asarray(data)
    else:
        frame = to_polars(data)
        label = _label(frame, label, like) if labels is None else label
        if label is not None:
            labels, classes = coded(frame[label].to_list(), label)
        for name in leave_out:
            if name not in frame.columns:
                raise UnknownName("column", name, frame.columns)
        columns = tuple(name for name in frame.columns if name != label and name not in leave_out)
        if like is not None and like.columns:
            extra = [name for name in columns if name not in like.columns]
            for name in like.columns:
                if name not in columns:
                    raise UnknownName("column of the inputs", name, columns)
            if extra:
                notes.append(f"columns that the training inputs do not have were passed over: {', '.join(extra[:5])}")
            columns = like.columns
        for name in columns:
            if not (frame[name].dtype.is_numeric() or frame[name].dtype == pl.Boolean):
                raise BadInput(
                    f"column '{name}' holds {frame[name].dtype} and no numbers; encode it as the model was trained, or "
                    f"leave it out (--leave-out '{name}')"
                )
        x = frame.select(columns).cast(pl.Float64).to_numpy()
    if x.dtype.kind not in "fiub" or x.ndim < 2:
        raise BadInput(f"'{opened.name}' takes rows of numbers (n, features), and not {x.dtype} of shape {x.shape}")
    if not len(x):
        raise BadInput("there are no rows; give at least one")
    wrong = ~np.isfinite(x.reshape(len(x), -1).astype(np.float64))
    if wrong.any():
        row, place = np.argwhere(wrong)[0].tolist()
        where = f"'{columns[place]}'" if columns else str(place)
        raise BadInput(
            f"{int(wrong.any(1).sum()):,} of {len(x):,} rows hold a number that is missing or not finite, the first is "
            f"row {row}, column {where}; fill it as the model was trained, or leave the row out"
        )
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    return Given(x, [f"row {row}" for row in range(len(x))], labels, classes, columns, notes)


def _label(frame: pl.DataFrame, label: str | None, like: Given | None) -> str | None:
    """Return the column of labels: the one that was said, or one of a usual name; none has to be beside new inputs."""
    if label is not None and label not in frame.columns:
        if like is None:
            raise UnknownName("column of labels", label, frame.columns)
        return None
    return label or next((name for name in frame.columns if name.lower() in LABELS), None)


def coded(values: list[Any], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn labels into places among the classes, which are in the order of their numbers or names.

    Examples
    --------
    >>> coded([10, 9, 10], "y")
    (array([1, 0, 1]), ('9', '10'))
    """
    if any(value is None for value in values):
        raise BadInput(f"label '{where}' is missing in row {values.index(None)}; give one for each input, or none")
    classes = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    places = {value: place for place, value in enumerate(classes)}
    words = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in classes]
    return np.array([places[value] for value in values]), tuple(words)


def _start(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else flat[: SHOWN - 1] + "…"
