"""Read images from wherever they are: a folder, files, an array or an archive of arrays in; bytes (H, W, 3) out.

Whatever a file holds becomes eight bits of red, green and blue: shades of grey are repeated, palettes looked up,
transparent parts laid over white, CMYK converted, 16 bits divided by 257, and the turn that a camera noted is made.
Files are decoded by Pillow in several threads, which do run at once, since it lets Python's lock go.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from farout.errors import BadInput, MissingExtra
from farout.io._image import Read, Size, read_image, reason

__all__ = ["ENDINGS", "ImageList", "Images", "list_images", "read_images"]

ENDINGS = (
    ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jfif", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
)  # fmt: skip
ARRAYS = (".npy", ".npz")
KEYS, LABELS = ("images", "X", "x", "data"), ("labels", "label", "y", "targets")  # of an archive's members
THREADS = 8
NAMED = 5  # broken files that a message names


@dataclass(frozen=True)
class Images:
    """Images that were read.

    Attributes
    ----------
    arrays : list of uint8 array (H, W, 3)
        Of any sizes.
    names : list of str
        Paths below the folder, paths as they were given, or places in the array.
    labels : int64 array (n,) or None
        Places in ``classes``: the sub-folders, where every image lies in one and there are several, or the labels that
        an archive holds.
    classes : tuple of str
        In order of their names, or of their numbers.
    notes : list of str
        What a user must know, in sentences.
    """

    arrays: list[np.ndarray]
    names: list[str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrays)


@dataclass(frozen=True)
class ImageList:
    """Images that were found and not decoded yet.

    Attributes
    ----------
    items : sequence
        Paths, arrays or Pillow images.
    names, labels, classes, notes
        As of :class:`Images`.
    """

    items: Sequence[Any]
    names: list[str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: Sequence[int]) -> ImageList:
        """Return the images at some places."""
        return ImageList(
            [self.items[place] for place in places],
            [self.names[place] for place in places],
            None if self.labels is None else self.labels[list(places)],
            self.classes,
            self.notes,
        )


def read_images(
    source: Any,
    *,
    skip_broken: bool = False,
    size: int | Size | None = None,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Images:
    """Read images.

    Parameters
    ----------
    source : str, Path, sequence or array
        A folder, which is read with all that lies below it, in the order of the paths; the path of an image, or of an
        .npy or .npz file; a list of paths, arrays or Pillow images; an array (n, H, W), (n, H, W, 3), (n, H, W, 4),
        (n, 3, H, W), or of one image (H, W, 3), of bytes, of 16 bits, or of floats from 0 to 1.
    skip_broken : bool
        Leave out files that cannot be read, and note it, instead of refusing.
    size : int or (int, int), optional
        Height and width that are enough: larger images are scaled down until one side is that long.
    threads : int, optional
        By default as many as there are cores, at most 8.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    Images

    Raises
    ------
    BadInput
        There is no image, or one cannot be read: the first is named, and the others are counted.
    MissingExtra
        Pillow is not installed, and files are to be read.

    Examples
    --------
    >>> images = read_images(np.zeros((2, 4, 5), np.uint8))
    >>> images.arrays[0].shape, images.names
    ((4, 5, 3), ['0', '1'])
    """
    enough = (size, size) if isinstance(size, int) else size
    if enough is not None and min(enough) < 1:
        raise BadInput(f"a size is 1 pixel at least, not {min(enough)}")
    listed = list_images(source)
    arrays, kept, told = _all(listed.items, listed.names, enough, skip_broken, threads, progress)
    labels = listed.labels
    if len(kept) < len(listed) and labels is not None:
        labels = labels[kept]
    names = [listed.names[place] for place in kept]
    return Images(arrays, names, labels, listed.classes, (*listed.notes, *told))


def list_images(source: Any) -> ImageList:
    """Find images without decoding them.

    Parameters
    ----------
    source
        As for :func:`read_images`.

    Returns
    -------
    ImageList

    Raises
    ------
    BadInput
        There is no image.

    Examples
    --------
    >>> len(list_images(np.zeros((2, 4, 5), np.uint8)))
    2
    """
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    notes: list[str] = []
    items: Sequence[Any]
    if isinstance(source, ImageList):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if path.is_dir():
            items, names, notes = _folder(path)
            labels, classes = _classes(names, notes)
        elif not path.is_file():
            raise BadInput(f"there is no file or folder '{path}' with images")
        elif path.suffix.lower() in ARRAYS:
            array, labels, classes = _archive(path)
            items, names = _of_array(array, f"'{path.name}'", notes)
        else:
            items, names = [path], [path.name]
    elif hasattr(source, "ndim") and hasattr(source, "dtype"):
        items, names = _of_array(np.asarray(source), "the array", notes)
    elif isinstance(source, Sequence):
        items = list(source)
        names = [str(one) if isinstance(one, str | os.PathLike) else str(place) for place, one in enumerate(items)]
    else:
        raise BadInput(f"images are a folder, files or an array, and not {type(source).__name__}")
    if not len(items):
        raise BadInput("there are no images; give at least one")
    return ImageList(items, names, labels, classes, tuple(notes))


def _all(
    items: Sequence[Any],
    names: list[str],
    size: Size | None,
    skip_broken: bool,
    threads: int | None,
    progress: Callable[[float], None] | None,
) -> tuple[list[np.ndarray], list[int], list[str]]:
    """Read all images in several threads; return them, their places, and notes on what was done."""
    broken: list[tuple[str, str]] = []
    arrays, kept, done = [], [], Counter[str]()

    def one(place: int) -> Read | str:
        try:
            return read_image(items[place], size)
        except MissingExtra:
            raise
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            return reason(error)

    workers = threads or min(THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # of large images and odd metadata; what matters is raised
        for place, read in enumerate(pool.map(one, range(len(items)))):
            if isinstance(read, str):
                broken.append((names[place], read))
            else:
                kept.append(place)
                done.update(read[1])
                if skip_broken or not broken:
                    arrays.append(read[0])
            if progress is not None:
                progress((place + 1) / len(items))
    if broken and not (skip_broken and arrays):
        others = f"; so are {len(broken) - 1:,} more of {len(items):,}: {_named(broken[1:])}" if len(broken) > 1 else ""
        cure = "" if skip_broken else ", or leave such files out: skip_broken=True (--skip-broken)"
        raise BadInput(f"'{broken[0][0]}' cannot be read as an image ({broken[0][1]}){others}; mend or remove it{cure}")
    notes = [f"{_count(count)} {what}" for what, count in done.items()]
    if broken:
        notes.insert(0, f"{len(broken):,} of {len(items):,} images are broken and left out: {_named(broken)}")
    return arrays, kept, notes


def _folder(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Find the images below a folder: their paths, their paths below it, and notes."""
    found = sorted(_below(folder), key=lambda path: path.relative_to(folder).as_posix())
    images = [path for path in found if path.suffix.lower() in ENDINGS]
    others = Counter(path.suffix.lower() or path.name for path in found if path.suffix.lower() not in ENDINGS)
    seen = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(NAMED))
    if not images:
        inside = f"it holds {seen}" if seen else "it is empty"
        raise BadInput(f"there is no image in the folder '{folder}': {inside}; images end in {', '.join(ENDINGS)}")
    notes = [f"{others.total():,} files of the folder are no images and were passed over: {seen}"] if others else []
    return images, [path.relative_to(folder).as_posix() for path in images], notes


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, also behind links, but none that is hidden; circles of links end."""
    met = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        met.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in met
        ]
        yield from (Path(root) / name for name in files if not name.startswith("."))


def _classes(names: list[str], notes: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Read the class of each image from the first folder of its path, where there are several."""
    first = [PurePosixPath(name).parts[0] if "/" in name else "" for name in names]
    classes = sorted(set(first) - {""})
    if len(classes) < 2:
        return None, ()
    if "" in first:
        notes.append(
            f"{_count(first.count(''))} beside the {len(classes)} sub-folders, so that these were not taken as classes"
        )
        return None, ()
    place = {name: index for index, name in enumerate(classes)}
    return np.array([place[name] for name in first]), tuple(classes)


def _archive(path: Path) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Read images, and labels where there are some, from numpy's files, without pickle."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None, ()
        with np.load(path, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"'{path.name}' cannot be read as arrays without pickle: {error}") from error
    key = next((name for name in KEYS if name in members), None)
    if key is None:
        pictures = [name for name, x in members.items() if x.ndim in (3, 4)]
        if len(pictures) != 1:
            seen = ", ".join(f"'{name}' {x.shape}" for name, x in members.items()) or "nothing"
            raise BadInput(f"'{path.name}' has no array 'images' and not just one that looks like some: {seen}")
        key = pictures[0]
    n = len(members[key])
    given = next((members[name] for name in LABELS if name in members and members[name].shape == (n,)), None)
    if given is None:
        return members[key], None, ()
    classes, labels = np.unique(given, return_inverse=True)
    return members[key], labels.astype(np.int64), tuple(map(str, classes.tolist()))


def _of_array(x: np.ndarray, where: str, notes: list[str]) -> tuple[Sequence[Any], list[str]]:
    """Take an array apart into images."""
    if x.ndim == 2 or (x.ndim == 3 and x.shape[2] in (3, 4)):
        x = x[None]
    elif x.ndim == 4 and x.shape[3] not in (1, 3, 4) and x.shape[1] in (1, 3, 4):
        x = np.moveaxis(x, 1, 3)
        notes.append(f"{where} has its channels first, shape {(len(x), x.shape[3], *x.shape[1:3])}")
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3, 4)):
        raise BadInput(f"images are an array (n, height, width) or (n, height, width, 3); {where} has shape {x.shape}")
    return list(x), [str(place) for place in range(len(x))]


def _named(broken: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(f"'{name}'" for name, _ in broken[:NAMED])
    return shown + (" and others" if len(broken) > NAMED else "")


def _count(count: int) -> str:
    return f"{count:,} image is" if count == 1 else f"{count:,} images are"
