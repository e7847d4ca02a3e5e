"""Sets for defect detection: normal images to learn from; normal and defective ones, with masks, to test on.

Two layouts of folders are read: that of MVTec AD, ``train/good``, ``test/<kind>``, ``ground_truth/<kind>/<stem>_mask``
with ``good`` for normal ones; and a plain one of two folders, ``good`` and anything else, whose normal images are cut
in two. Named sets lie as zip files of the first layout in the folder ``image`` of ``FAROUT_DATA``, and are unpacked
into the cache when they are first asked for.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from farout.data._find import find
from farout.errors import BadInput, UnknownName

__all__ = ["DefectSet", "defect_folder", "defect_set", "defect_set_names", "image_files"]

NAMES = ("magnetic_tile", "cookie", "deep_pcb", "solar_mono", "brain_mri")
NORMAL = ("good", "normal", "ok")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class DefectSet:
    """Where the images of a set lie.

    Attributes
    ----------
    name : str
    train : list of Path
        Normal images.
    test : list of Path
    kinds : list of str
        Of each test image; ``"good"`` is normal.
    masks : list of Path or None
        Of each test image; None where there is none: the image is normal, or was not marked.
    """

    name: str
    train: list[Path]
    test: list[Path]
    kinds: list[str]
    masks: list[Path | None]

    @property
    def labels(self) -> np.ndarray:
        """1 for a defective test image, 0 for a normal one; int64 (n,)."""
        return np.array([int(kind != "good") for kind in self.kinds])

    @property
    def marked(self) -> list[int]:
        """Places of the test images whose defects are known to the pixel: those with a mask, and the normal ones.

        Empty where no image has a mask.
        """
        if not any(self.masks):
            return []
        return [i for i, (kind, mask) in enumerate(zip(self.kinds, self.masks)) if kind == "good" or mask is not None]

    def mask(self, place: int, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Read the mask of a test image; nothing is marked in a normal one.

        Parameters
        ----------
        place : int
        shape : (int, int), optional
            Height and width; by default those of the mask, or of the image where there is none. Scaled to the nearest
            pixel.

        Returns
        -------
        bool array (height, width)
        """
        from PIL import Image

        path = self.masks[place]
        if path is None:
            if shape is None:
                with Image.open(self.test[place]) as image:
                    shape = image.size[::-1]
            return np.zeros(shape, bool)
        with Image.open(path) as image:
            grey = image.convert("L")
            if shape is not None and grey.size[::-1] != tuple(shape):
                grey = grey.resize(shape[::-1], Image.Resampling.NEAREST)
            return np.asarray(grey) > 0


def defect_set_names() -> list[str]:
    """List the named sets, here or not.

    Examples
    --------
    >>> defect_set_names()[0]
    'magnetic_tile'
    """
    return list(NAMES)


def defect_set(source: str | Path) -> DefectSet:
    """Find the images of a set.

    Parameters
    ----------
    source : str or Path
        A name, or a folder of one of the two layouts.

    Returns
    -------
    DefectSet

    Raises
    ------
    UnknownName
        It is neither.
    BadInput
        The folder has another layout.
    DataMissing
        The named set is not here.
    """
    folder = defect_folder(str(source)) if str(source) in NAMES else Path(source)
    if not folder.is_dir():
        raise UnknownName("set of defects, or folder", str(source), NAMES)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        normal = next((folder / "train" / name for name in NORMAL if (folder / "train" / name).is_dir()), None)
        train = image_files(normal or folder / "train")
        test = {path.name: image_files(path) for path in sorted((folder / "test").iterdir()) if path.is_dir()}
    else:
        parts = {path.name: image_files(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        usual = next((parts[name] for name in NORMAL if name in parts), [])
        if not usual or len(parts) < 2:
            seen = ", ".join(f"'{name}'" for name in parts) or "no folder"
            raise BadInput(
                f"'{folder}' is no set of defects: it holds {seen}; give train/good, test/<kind> and, where defects "
                "are marked, ground_truth/<kind>; or a folder 'good' beside one of defects"
            )
        train, test = usual[0::2], parts | {"good": usual[1::2]}
    if not train or not any(test.values()):
        raise BadInput(f"'{folder}' holds {len(train)} images to learn from and {sum(map(len, test.values()))} to test")
    paths, kinds, masks = [], [], []
    for kind, images in test.items():
        normal_kind = kind in NORMAL
        for path in images:
            paths.append(path)
            kinds.append("good" if normal_kind else kind)
            masks.append(None if normal_kind else _mask(folder / "ground_truth" / kind, path))
    return DefectSet(folder.name, train, paths, kinds, masks)


def defect_folder(name: str) -> Path:
    """Return the folder of a named set, unpacked into the cache where it must be.

    Raises
    ------
    UnknownName
    DataMissing
    """
    if name not in NAMES:
        raise UnknownName("set of defects", name, NAMES)
    source = find(f"image/{name}.zip")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farout" / "unpacked"
    folder = cache / f"{name}-{source.stat().st_size}"
    if not (folder / name).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}.") as temporary,
            zipfile.ZipFile(source) as archive,
        ):
            whole = Path(temporary) / "whole"
            archive.extractall(whole)
            try:
                os.replace(whole, folder)
            except OSError:  # another process was quicker
                if not (folder / name).is_dir():
                    raise
    return folder / name


def image_files(folder: Path) -> list[Path]:
    """List the images in a folder and below it, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def _mask(folder: Path, image: Path) -> Path | None:
    names = (f"{image.stem}_mask", image.stem)
    found = (folder / f"{name}{ending}" for name in names for ending in ENDINGS)
    return next((path for path in found if path.is_file()), None)
