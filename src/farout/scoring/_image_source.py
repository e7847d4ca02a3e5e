"""Where images come from: a folder, a set of defects, or a list; what is known of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farout.data.defects import NORMAL, DefectSet, defect_set, defect_set_names
from farout.errors import BadInput
from farout.io._formats import ENDINGS as TABLES
from farout.io.image_batches import Batches
from farout.io.images import ENDINGS, ImageList, list_images

GLANCE = 1000  # files of a folder that tell what it holds


@dataclass(frozen=True)
class ImageSource:
    """Images, and what is known of them.

    Attributes
    ----------
    name : str
    images : ImageList
        To learn from, or to score.
    kinds : list of str or None
        Of each image: ``"good"`` is normal, others are defects.
    defects : DefectSet or None
        That the images are the test images of, in its order.
    learn : ImageList or None
        Normal images of the same source, which are not among those to score.
    notes : list of str
    """

    name: str
    images: ImageList
    kinds: list[str] | None = None
    defects: DefectSet | None = None
    learn: ImageList | None = None
    notes: list[str] = field(default_factory=list)


def holds_images(data: Any) -> bool:
    """Whether data are images and no table: a set of defects, an image file, or a folder with more images than tables.

    Examples
    --------
    >>> holds_images("cookie"), holds_images("crack.PNG"), holds_images("rows.csv")
    (True, True, False)
    """
    if not isinstance(data, str | os.PathLike):
        return False
    path = Path(data)
    if not path.exists():
        return str(data) in defect_set_names() or _ending(path.name) in ENDINGS
    if path.is_file():
        return _ending(path.name) in ENDINGS
    images = tables = 0
    for _, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += sum(_ending(name) in ENDINGS for name in files)
        tables += sum(_ending(name)[1:] in TABLES for name in files)
        if images + tables > GLANCE:
            break
    return images > 0 and 2 * images > tables  # notes or boxes may lie beside each image


def to_learn(source: Any) -> ImageSource:
    """Find the normal images of a source."""
    found = _defects(source)
    if found is not None:
        listed = _listed(found.train)
        return ImageSource(found.name, listed, notes=[*_halved(source), *listed.notes])
    listed = _named(list_images(source))
    notes = list(listed.notes)
    if listed.classes:
        shown = ", ".join(f"'{name}'" for name in listed.classes[:8])
        notes.append(
            f"images of all {len(listed.classes)} sub-folders are taken as normal ({shown}); where some are defects, "
            "call the folder of normal ones 'good'"
        )
    return ImageSource(_name(source), listed, notes=notes)


def to_score(source: Any) -> ImageSource:
    """Find the images of a source that are to be scored, and their kinds where they are known."""
    found = _defects(source)
    if found is None:
        listed = _named(list_images(source))
        return ImageSource(_name(source), listed, notes=list(listed.notes))
    listed, notes = _listed(found.test), _halved(source)
    wanting = sum(kind != "good" and mask is None for kind, mask in zip(found.kinds, found.masks))
    if found.marked and wanting:
        what = "image has" if wanting == 1 else "images have"
        notes.append(f"{wanting:,} defective {what} no mask and count{'s' if wanting == 1 else ''} only as a whole")
    if "good" not in found.kinds or not any(found.labels):
        lack = "defective" if "good" in found.kinds else "normal"
        notes.append(f"there is no {lack} image to test on, so how well defects are told apart cannot be measured")
    return ImageSource(found.name, listed, found.kinds, found, _listed(found.train), notes)


def sound(listed: ImageList) -> tuple[ImageList, list[str]]:
    """Leave out images that cannot be read, and say so."""
    batches = Batches(listed, 8, skip_broken=True)
    for _ in batches:
        pass
    broken = [note for note in batches.notes if "broken" in note]
    return listed[batches.kept] if broken else listed, broken


def _defects(source: Any) -> DefectSet | None:
    """Read a source as a set of defects, where it is one."""
    if isinstance(source, DefectSet):
        return source
    if not isinstance(source, str | os.PathLike):
        return None
    path = Path(source).expanduser()
    if not path.exists():
        return defect_set(str(source)) if str(source) in defect_set_names() else None
    if not path.is_dir():
        return None
    inside = {one.name for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")}
    if {"train", "test"} <= inside or (inside & set(NORMAL) and len(inside) > 1):
        return defect_set(path)
    return None


def _halved(source: Any) -> list[str]:
    """Say that the normal images of a folder without train and test were cut in two."""
    if isinstance(source, DefectSet) or not Path(source).is_dir() or (Path(source) / "train").is_dir():
        return []
    return [
        "every second normal image is there to learn from, and is not scored; the others, and the defects, are scored"
    ]


def _listed(paths: Sequence[Path]) -> ImageList:
    return _named(ImageList(list(paths), [str(path) for path in paths]))


def _named(listed: ImageList) -> ImageList:
    """Call files by their paths below the folder that all of them lie in."""
    items = listed.items
    if not all(isinstance(one, str | os.PathLike) for one in items):
        return listed
    paths = [os.path.abspath(os.fspath(one)) for one in items]
    try:
        common = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError as error:  # on several drives
        raise BadInput(f"images lie on several drives ({error}); score those of each by themselves") from error
    names = [Path(os.path.relpath(path, common)).as_posix() for path in paths]
    return ImageList(items, names, listed.labels, listed.classes, listed.notes)


def _name(source: Any) -> str:
    if not isinstance(source, str | os.PathLike):
        return "images"
    path = Path(source).expanduser().resolve()
    return path.name if path.is_dir() else path.stem


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
