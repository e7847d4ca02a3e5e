"""The files of NOVA: images with boxes, captions and diagnoses in one csv, and answers of models in JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farout.bench._nova_answers import Frame
from farout.errors import BadInput, UnknownName

TASKS = ("localisation", "captioning", "diagnosis")
READER = "boxes_"
KNOWN = ("case", "image", "width", "height", "boxes", "caption", "history", "diagnosis")


@dataclass(frozen=True)
class Slice:
    """An image of a case.

    Attributes
    ----------
    case, image : str
    size : (int, int)
        Width and height.
    boxes : float64 array (n, 4)
        On which the readers agreed.
    readers : dict of str to float64 array (n, 4)
        Each reader's own.
    caption, history, diagnosis : str
        Empty where there is none.
    facts : dict of str to str
        All other columns.
    """

    case: str
    image: str
    size: tuple[int, int]
    boxes: NDArray[np.float64]
    readers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    caption: str = ""
    history: str = ""
    diagnosis: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model said of an image, or of a case where the task is diagnosis."""

    text: str
    frame: Mapping[str, Any] = field(default_factory=dict)

    def on(self, size: tuple[int, int]) -> Frame:
        """Return how its numbers lie on an image of this size."""
        return Frame(size, **self.frame)


def read_cases(path: str | Path) -> list[Slice]:
    """Read a csv of images.

    Parameters
    ----------
    path : str or Path
        Columns: ``case``, ``image`` (a file below the csv's folder, and the image's name), ``boxes`` and
        ``boxes_<reader>`` (JSON lists of [left, top, right, bottom] in pixels; empty means none of that reader),
        ``caption``, ``history``, ``diagnosis``, ``width`` and ``height`` (else the image is opened). Other columns are
        kept, such as ``sequence``.

    Raises
    ------
    BadInput
        A column is missing, an image comes twice, a box cannot be read or lies outside of its image.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"there is no '{path.name}' in '{path.parent}'; it lists the images, one a row")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in ("case", "image", "boxes") if not rows or name not in rows[0]]
    if missing:
        raise BadInput(f"'{path.name}' has no column {missing} or no row; it needs case, image and boxes")
    slices = [_slice(row, path.parent, number) for number, row in enumerate(rows, 2)]
    names = [one.image for one in slices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"'{path.name}' lists '{twice[0]}' twice; an image is one row")
    return slices


def read_answers(path: str | Path) -> dict[str, dict[str, dict[str, Answer]]]:
    """Read answers of models: one JSON object a line.

    Parameters
    ----------
    path : str or Path
        Names: ``model``, ``task`` (``localisation``, ``captioning`` or ``diagnosis``), ``image`` (for diagnosis
        ``case``), ``answer`` (the text as the model gave it); where boxes are not in pixels of the stored image, also
        ``coordinates``, ``order``, ``seen`` and ``letterbox``, as :class:`farout.bench.nova.Frame` has them.

    Returns
    -------
    dict
        By model, task, and image or case.

    Raises
    ------
    BadInput
        A line cannot be read, or an image is answered twice.
    """
    found: dict[str, dict[str, dict[str, Answer]]] = {}
    path = Path(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            model, task, text = said["model"], said["task"], said["answer"]
            what = said["case" if task == "diagnosis" else "image"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"line {number} of '{path.name}' cannot be read ({type(error).__name__}: {error})"
            ) from error
        if task not in TASKS:
            raise UnknownName("task", str(task), TASKS)
        frame = {name: said[name] for name in ("coordinates", "order", "letterbox") if name in said}
        if said.get("seen") is not None:
            frame["seen"] = tuple(said["seen"])
        answers = found.setdefault(str(model), {}).setdefault(task, {})
        if str(what) in answers:
            raise BadInput(f"line {number} of '{path.name}': '{model}' answers '{what}' twice for {task}")
        answers[str(what)] = Answer(text if isinstance(text, str) else json.dumps(text), frame)
    return found


def read_synonyms(path: str | Path) -> dict[str, str]:
    """Read a table of synonyms: columns ``diagnosis`` and ``synonym``. Empty where there is no such file."""
    path = Path(path)
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"diagnosis", "synonym"} <= set(rows[0]):
        raise BadInput(f"'{path.name}' needs the columns diagnosis and synonym; it has {', '.join(rows[0])}")
    return {row["synonym"]: row["diagnosis"] for row in rows}


def _slice(row: dict[str, str], folder: Path, number: int) -> Slice:
    size = _size(row, folder)
    boxes = {
        name: _boxes(text, name, size, number)
        for name, text in row.items()
        if name == "boxes" or (name.startswith(READER) and text)
    }
    return Slice(
        case=row["case"],
        image=row["image"],
        size=size,
        boxes=boxes.pop("boxes"),
        readers={name.removeprefix(READER): one for name, one in boxes.items()},
        caption=row.get("caption") or "",
        history=row.get("history") or "",
        diagnosis=row.get("diagnosis") or "",
        facts={name: text for name, text in row.items() if name not in KNOWN and not name.startswith(READER)},
    )


def _size(row: dict[str, str], folder: Path) -> tuple[int, int]:
    if row.get("width") and row.get("height"):
        return int(row["width"]), int(row["height"])
    from PIL import Image

    try:
        with Image.open(folder / row["image"]) as image:
            return image.size
    except OSError as error:
        raise BadInput(
            f"'{row['image']}' is not here and 'cases.csv' does not say its width and height; give one of both"
        ) from error


def _boxes(text: str, name: str, size: tuple[int, int], number: int) -> NDArray[np.float64]:
    try:
        boxes = np.array(json.loads(text or "[]"), float).reshape(-1, 4)
    except ValueError as error:
        raise BadInput(f"row {number}, '{name}': '{text[:60]}' is no list of [left, top, right, bottom]") from error
    inside = (
        (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= np.array(size)).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    )
    if not inside:
        raise BadInput(f"row {number}, '{name}': a box of {boxes.tolist()} does not lie in an image of {size} pixels")
    return boxes
