"""Small images by name, and how they are stored: for out-of-distribution detection and open sets.

The files lie in the folder ``ood`` of ``FAROUT_DATA``. Most are packed JPEG files: what they have in common is held
once, and nothing was compressed again.

How images are stored decides what is measured. CIFAR-10 here is JPEG of 32 x 32 pixels with halved colour; images of 64
pixels that are shrunk lack its blocks of 8 x 8, and scores of feature distances see that before they see what is shown.
:func:`recoded` stores any images as CIFAR-10 is stored.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.data._find import find
from farout.errors import BadInput, MissingExtra, UnknownName

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEVIATION",
    "MEAN",
    "ImageSet",
    "image_set",
    "image_set_names",
    "recoded",
    "resized",
    "resnet20_cifar10",
    "to_tensor",
]

# Of ImageNet's pixels; the stored ResNet-20 was trained behind them.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIN_GROUPS = ("near_animal", "scene", "texture", "object", "food", "invertebrate")
_FILES = {
    "cifar10-train": "cifar10_train",
    "cifar10-test": "cifar10_test",
    "mnist-train": "mnist",
    "mnist-test": "mnist",
    "omniglot": "omniglot_small1",
    "textures64": "textures64",
    "animals-train": "tin64_animals_train",
    "animals-test": "tin64_animals_test",
} | {f"tin-{group}": "tin64_ood" for group in TIN_GROUPS}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes.

    Attributes
    ----------
    images : uint8 array (n, H, W, 3)
        Read-only, because it is shared by all who ask for it.
    labels : int64 array (n,)
        Places in ``classes``.
    classes : tuple of str
    groups : tuple of str, optional
        What each class belongs to, where the set says so: the alphabet of a character, the group of a word.
    rows : int64 array (n,)
        Places of the images in the file, such as to find other labels of them.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None
    rows: np.ndarray


def image_set_names() -> list[str]:
    """List the sets that :func:`image_set` knows, here or not.

    Examples
    --------
    >>> image_set_names()[:3]
    ['cifar10-train', 'cifar10-test', 'mnist-train']
    """
    return list(_FILES)


def image_set(name: str, rows: int | None = None) -> ImageSet:
    """Load a set of small images; a process decodes each only once.

    Parameters
    ----------
    name : str
        ==================  ========  =========  ======================================================
        ``cifar10-train``   50,000    32 x 32    10 classes, in the official order
        ``cifar10-test``    10,000    32 x 32
        ``mnist-train``     10,000    28 x 28    a part of the official training images
        ``mnist-test``      10,000    28 x 28
        ``omniglot``        2,720     28 x 28    136 characters of 5 alphabets, white on black
        ``textures64``      344       64 x 64    crops of 43 patterns
        ``animals-train``   3,200     64 x 64    20 mammals of Tiny ImageNet
        ``animals-test``    1,000     64 x 64
        ``tin-...``         250-550   64 x 64    other classes of Tiny ImageNet: ``near_animal``, ``scene``,
                                                 ``texture``, ``object``, ``food``, ``invertebrate``
        ==================  ========  =========  ======================================================
    rows : int, optional
        At most so many images: the first of every class, the second of every class, and so on, in the order of the
        file.

    Returns
    -------
    ImageSet

    Raises
    ------
    UnknownName
        There is no such set.
    BadInput
        ``rows`` is below 1.
    DataMissing
        Its file is not here.
    MissingExtra
        Pillow is not installed, and the set is packed JPEG.

    Examples
    --------
    >>> image_set("cifar100")
    Traceback (most recent call last):
        ...
    farout.errors.UnknownName: no image set is called 'cifar100'; nearest: 'cifar10-test', 'cifar10-train'
    """
    if name not in _FILES:
        raise UnknownName("image set", name, _FILES)
    if rows is not None and rows < 1:
        raise BadInput(f"'rows' is a number of images and must be at least 1; it is {rows}")
    return _loaded(name, rows, str(find(f"ood/{_FILES[name]}.npz")))


def resnet20_cifar10() -> dict[str, np.ndarray]:
    """Return published weights of a ResNet-20 for CIFAR-10, by the names of :class:`farout.kit.nets.ResNetCIFAR`.

    They are Y. Idelbayev's (2018, BSD-2-Clause): they classify 91.8 % of the original test images right, and about
    80 % of those that are here, which are stored as JPEG. Inputs are those of :func:`to_tensor`.

    Returns
    -------
    dict of str to float32 array

    Raises
    ------
    DataMissing
        The file is not here.
    """
    with np.load(find("ood/resnet20_cifar10.npz")) as file:
        return {name: file[name] for name in file.files}


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Scale images to squares by bicubic interpolation, over a wider window where they shrink (antialiased).

    Parameters
    ----------
    images : uint8 array (n, H, W, 3)
    size : int

    Returns
    -------
    uint8 array (n, size, size, 3)

    Raises
    ------
    BadInput
        The images have another shape or type.
    MissingExtra
        Pillow is not installed.

    Examples
    --------
    >>> resized(np.array([[[[0] * 3, [2] * 3], [[4] * 3, [6] * 3]]], np.uint8), 1).tolist()
    [[[[3, 3, 3]]]]
    """
    _check_images(images)
    if images.shape[1:3] == (size, size):
        return images.copy()
    Image = _pillow("scaling images")
    found = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        found[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return found


def recoded(images: np.ndarray, like: str = "cifar10") -> np.ndarray:
    """Store images as those of a set are stored, and read them again.

    Parameters
    ----------
    images : uint8 array (n, H, W, 3)
        Those of another size are scaled first, see :func:`resized`.
    like : {"cifar10"}
        32 x 32 pixels, JPEG with the quantisation tables of its files, colour at half the resolution (4:2:0).

    Returns
    -------
    uint8 array (n, 32, 32, 3)

    Raises
    ------
    UnknownName
        ``like`` is another set.
    BadInput
        The images have another shape or type.
    DataMissing
        The set whose coding is wanted is not here.
    MissingExtra
        Pillow is not installed.
    """
    if like != "cifar10":
        raise UnknownName("set whose coding is known", like, ["cifar10"])
    tables = _tables(str(find("ood/cifar10_test.npz")))
    Image = _pillow("storing images")
    found = resized(images, 32)
    for i, image in enumerate(found):
        stored = io.BytesIO()
        Image.fromarray(image).save(stored, "JPEG", qtables=tables, subsampling="4:2:0")
        found[i] = np.asarray(Image.open(stored))
    return found


def to_tensor(images: np.ndarray, mean: Sequence[float] = MEAN, deviation: Sequence[float] = DEVIATION) -> torch.Tensor:
    """Turn images into what networks take: channels first, pixels of 0 to 1, normalised by channel.

    Parameters
    ----------
    images : uint8 array (n, H, W, 3)
    mean, deviation : sequence of 3 floats
        ImageNet's, behind which the weights of :func:`resnet20_cifar10` were trained; ``(0, 0, 0), (1, 1, 1)`` leaves
        pixels of 0 to 1.

    Returns
    -------
    float32 tensor (n, 3, H, W)

    Raises
    ------
    BadInput
        The images have another shape or type.
    MissingExtra
        torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("turning images into tensors", "torch") from error
    _check_images(images)
    n, H, W, _ = images.shape
    x_BCHW = np.empty((n, 3, H, W), np.float32)
    for channel in range(3):  # one by one, so that no second float array of all pixels is made
        x_BHW = x_BCHW[:, channel]
        np.divide(images[..., channel], 255, out=x_BHW, dtype=np.float32)
        x_BHW -= np.float32(mean[channel])
        x_BHW /= np.float32(deviation[channel])
    return torch.from_numpy(x_BCHW)


@lru_cache(maxsize=32)
def _loaded(name: str, rows: int | None, path: str) -> ImageSet:
    with np.load(path) as file:
        labels, classes, groups, places = _facts(name, file)
        kept = _in_turn(labels, rows)
        labels, places = labels[kept], places[kept]
        if "data" in file:
            images = _decoded(file, places)
        else:
            grey = file["images" if name == "omniglot" else f"{name.removeprefix('mnist-')}_images"][places]
            images = np.repeat(grey[..., None], 3, axis=3)
    for array in (images, labels, places):
        array.setflags(write=False)
    return ImageSet(images, labels, classes, groups, places)


def _facts(name: str, file: Any) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...] | None, np.ndarray]:
    """Return labels, classes, the group of each class, and where the images lie in the file."""
    if name.startswith("mnist-"):
        labels = file[f"{name.removeprefix('mnist-')}_labels"].astype(np.int64)
        return labels, tuple("0123456789"), None, np.arange(len(labels))
    if name == "omniglot":
        alphabet, names = file["alphabet"].astype(np.int64), file["alphabets"]
        pairs, labels = np.unique(np.stack([alphabet, file["character"]], 1), axis=0, return_inverse=True)
        classes = tuple(f"{names[a]} {c}" for a, c in pairs)
        return labels.astype(np.int64).ravel(), classes, tuple(str(names[a]) for a, _ in pairs), np.arange(len(labels))
    labels, words = file["labels"].astype(np.int64), file["classes"]
    if not name.startswith("tin-"):
        return labels, tuple(map(str, words)), None, np.arange(len(labels))
    group = name.removeprefix("tin-")
    places = np.flatnonzero(file["group"] == file["groups"].tolist().index(group))
    present, labels = np.unique(labels[places], return_inverse=True)  # of the classes, only those of the group
    return labels.astype(np.int64), tuple(map(str, words[present])), (group,) * len(present), places


def _in_turn(labels: np.ndarray, rows: int | None) -> np.ndarray:
    """Return places: all, or the first few of every class, as many of each as there are."""
    if rows is None or rows >= len(labels):
        return np.arange(len(labels))
    nth = np.empty(len(labels), np.int64)  # how many of its class come before
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        nth[of_class] = np.arange(len(of_class))
    return np.sort(np.lexsort((labels, nth))[:rows])


def _decoded(file: Any, places: np.ndarray) -> np.ndarray:
    """Decode packed JPEG files, all of one size."""
    Image = _pillow("reading packed images")
    packed = _Packed(file)
    return np.stack([np.asarray(Image.open(io.BytesIO(packed.jpeg(i))).convert("RGB")) for i in places])


class _Packed:
    """JPEG files that share a few headers: a file is its header and what follows it."""

    def __init__(self, file: Any) -> None:
        self.headers, self.data = file["headers"].tobytes(), file["data"].tobytes()
        self.header_offsets, self.offsets = file["header_offsets"].tolist(), file["offsets"].tolist()
        self.header = file["header_id"].tolist()

    def jpeg(self, place: int) -> bytes:
        """Return one file."""
        first, last = self.header_offsets[self.header[place] : self.header[place] + 2]
        return self.headers[first:last] + self.data[self.offsets[place] : self.offsets[place + 1]]


@lru_cache(maxsize=4)
def _tables(path: str) -> dict[int, list[int]]:
    """Read the quantisation tables of the first image of a file: of brightness and of colour."""
    with np.load(path) as file:
        return _pillow("storing images").open(io.BytesIO(_Packed(file).jpeg(0))).quantization


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise BadInput(f"images are a uint8 array (n, H, W, 3); here is {images.dtype} {images.shape}")


def _pillow(what: str) -> Any:
    """Return the module ``PIL.Image``, or say how to get it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra(what, "vision") from error
    return Image
