"""What language models answer about images, read strictly: boxes as JSON, ranked diagnoses as JSON or as a list.

A text that cannot be read is an answer all the same, and a wrong one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from farout.errors import BadInput, UnknownName

COORDINATES = ("pixels", "0-1000", "0-1")
ORDERS = {"xyxy": (0, 1, 2, 3), "yxyx": (1, 0, 3, 2)}  # and "xywh": left, top, width, height
BOX = ("bbox_2d", "box_2d", "bbox", "box", "bounding_box", "coordinates")
CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
SCORE, LABEL = ("score", "confidence", "conf", "probability"), ("label", "name", "class", "description")
DIAGNOSIS = ("diagnosis", "name", "label", "condition")
_FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL)
_ITEM = re.compile(r"^\s*(?:\d{1,2}\s*[.):]|[-*•])\s*(.+)$", re.MULTILINE)
WORDS = 12  # of a line that is one diagnosis and not prose


@dataclass(frozen=True)
class Frame:
    """How the numbers of an answer lie on the stored image.

    Attributes
    ----------
    size : (int, int)
        Width and height of the stored image.
    coordinates : {"pixels", "0-1000", "0-1"}
    order : {"xyxy", "yxyx", "xywh"}
    seen : (int, int), optional
        Width and height of the image as the model got it, where that is another; numbers are on that one.
    letterbox : bool
        Whether the image was scaled by one factor and padded alike on both sides, instead of squeezed.

    Examples
    --------
    >>> Frame((512, 256), "0-1000").to_pixels([[500, 500, 1000, 1000]])
    array([[256., 128., 512., 256.]])
    >>> Frame((200, 100), seen=(100, 100), letterbox=True).to_pixels([[0, 25, 100, 75]])
    array([[  0.,   0., 200., 100.]])
    """

    size: tuple[int, int]
    coordinates: str = "pixels"
    order: str = "xyxy"
    seen: tuple[int, int] | None = None
    letterbox: bool = False

    def __post_init__(self) -> None:
        if self.coordinates not in COORDINATES:
            raise UnknownName("kind of coordinates", self.coordinates, COORDINATES)
        if self.order not in (*ORDERS, "xywh"):
            raise UnknownName("order of a box", self.order, (*ORDERS, "xywh"))
        if min(*self.size, *(self.seen or self.size)) < 1:
            raise BadInput(f"an image has a pixel at least; the sizes are {self.size} and {self.seen}")

    def to_pixels(self, numbers: ArrayLike) -> NDArray[np.float64]:
        """Return boxes (left, top, right, bottom) in pixels of the stored image, cut off at its edges."""
        boxes = np.array(numbers, float).reshape(-1, 4)
        if self.order == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        else:
            boxes = boxes[:, ORDERS[self.order]]
        scale, shift = self._scale_and_shift()
        boxes = (boxes * self._unit() - np.tile(shift, 2)) / np.tile(scale, 2)
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
        return boxes.clip(0, np.tile(np.array(self.size, float), 2))

    def from_pixels(self, boxes: ArrayLike) -> NDArray[np.float64]:
        """Return the numbers that a model would say for boxes of the stored image."""
        boxes = np.array(boxes, float).reshape(-1, 4)
        scale, shift = self._scale_and_shift()
        boxes = (boxes * np.tile(scale, 2) + np.tile(shift, 2)) / self._unit()
        if self.order == "xywh":
            boxes[:, 2:] -= boxes[:, :2]
            return boxes
        return boxes[:, ORDERS[self.order]]

    def _unit(self) -> NDArray[np.float64]:
        """Pixels of the seen image that 1 in the answer is."""
        seen = np.array(self.seen or self.size, float)
        return np.tile({"pixels": np.ones(2), "0-1000": seen / 1000, "0-1": seen}[self.coordinates], 2)

    def _scale_and_shift(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How a stored pixel becomes a seen one."""
        size, seen = np.array(self.size, float), np.array(self.seen or self.size, float)
        if not self.letterbox:
            return seen / size, np.zeros(2)
        scale = np.full(2, (seen / size).min())
        return scale, (seen - size * scale) / 2


@dataclass(frozen=True)
class Boxes:
    """The numbers of an answer, as it gave them.

    Attributes
    ----------
    numbers : float64 array (n, 4)
    scores : float64 array (n,)
        1 where none was given.
    labels : list of str
    """

    numbers: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: list[str]


def boxes_in(text: str) -> Boxes | None:
    r"""Read the boxes of an answer: the last JSON in it that holds boxes, or an empty list.

    A box is a list of four numbers, or an object with such a list under ``bbox`` or a name like it, or with four
    corners. A list of boxes may stand under any one name.

    Returns
    -------
    Boxes or None
        None where nothing can be read as boxes.

    Examples
    --------
    >>> found = boxes_in('Here:\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "mass"}, [5, 6, 7, 8]]\n```')
    >>> found.numbers.tolist(), found.labels
    ([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], ['mass', ''])
    >>> boxes_in("The scan looks normal.") is None, len(boxes_in("[]").numbers)
    (True, 0)
    """
    for value in _last_first(text):
        items = _boxes_of(value)
        if items is not None:
            numbers = np.array([item[0] for item in items], float).reshape(-1, 4)
            return Boxes(numbers, np.array([item[1] for item in items], float), [item[2] for item in items])
    return None


def diagnoses_in(text: str, most: int = 5) -> list[str]:
    r"""Read a ranked list of diagnoses: JSON of texts or of objects that name one, a numbered list, or one short line.

    Returns
    -------
    list of str
        The first ``most``; empty where nothing can be read.

    Examples
    --------
    >>> diagnoses_in('{"differential": [{"diagnosis": "Glioma"}, {"diagnosis": "Abscess"}]}')
    ['Glioma', 'Abscess']
    >>> diagnoses_in("Most likely:\n1. **Glioma**: it enhances\n2) Abscess")
    ['Glioma', 'Abscess']
    >>> diagnoses_in("I cannot help with medical images. Please ask a doctor, who will know what is best for you.")
    []
    """
    for value in _last_first(text):
        found = _named(value)
        if found:
            return found[:most]
    listed = [_bare(item) for item in _ITEM.findall(text)]
    if any(listed):
        return [item for item in listed if item][:most]
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if len(lines) == 1 and len(lines[0].split()) <= WORDS:
        return [_bare(lines[0])]
    return []


def _bare(item: str) -> str:
    """Drop marks around a name, and the reason behind it."""
    plain = re.sub(r"[*_`\"]", "", item)
    return re.split(r":\s|\s[-–—]\s", plain)[0].strip(" .")


def _last_first(text: str) -> Iterator[Any]:
    """JSON values in a text: of its last fenced block first, then of the whole, each from the end."""
    for part in [*reversed(_FENCE.findall(text)), text]:
        yield from reversed(list(_values(part)))


def _values(text: str) -> Iterator[Any]:
    """JSON lists and objects in a text, the outermost ones, from the beginning."""
    decoder, place = json.JSONDecoder(), 0
    while match := re.compile(r"[\[{]").search(text, place):
        try:
            value, place = decoder.raw_decode(text, match.start())
            yield value
        except (ValueError, RecursionError):
            place = match.start() + 1


def _boxes_of(value: Any) -> list[tuple[list[float], float, str]] | None:
    """Boxes with score and label; None where it holds something else."""
    one = _box(value)
    if one is not None:
        return [one]
    if isinstance(value, list):
        items = [_box(item) for item in value]
        return None if any(item is None for item in items) else [item for item in items if item is not None]
    if isinstance(value, dict):
        lists = [_boxes_of(inner) for inner in value.values() if isinstance(inner, list)]
        read = [inner for inner in lists if inner is not None]
        return read[0] if len(read) == 1 else None
    return None


def _box(value: Any) -> tuple[list[float], float, str] | None:
    if isinstance(value, list):
        return (value, 1.0, "") if len(value) == 4 and all(map(_is_number, value)) else None
    if not isinstance(value, Mapping):
        return None
    numbers = next((value[name] for name in BOX if name in value), None)
    if numbers is None:
        names = next((names for names in CORNERS if all(name in value for name in names)), None)
        numbers = [value[name] for name in names] if names else None
    if not isinstance(numbers, list) or _box(numbers) is None:
        return None
    score = next((value[name] for name in SCORE if _is_number(value.get(name))), 1.0)
    return numbers, float(score), str(next((value[name] for name in LABEL if name in value), ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _named(value: Any) -> list[str]:
    """Names in a JSON list, or in the only list of an object."""
    if isinstance(value, Mapping):
        lists = [inner for inner in value.values() if isinstance(inner, list)]
        return _named(lists[0]) if len(lists) == 1 else []
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    names = []
    for item in value:
        if isinstance(item, Mapping):
            item = next((item[name] for name in DIAGNOSIS if name in item), None)
        if not isinstance(item, str) or not item.strip():
            return []
        names.append(item.strip())
    return names
