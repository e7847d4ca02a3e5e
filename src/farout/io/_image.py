"""One image: a path, an array or an image of Pillow in; bytes (H, W, 3), and what was done to get them, out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from farout.errors import BadInput, MissingExtra

TRANSPARENT = "transparent in parts, and laid over white"
DEEP = "of 16 bits, and divided by 257"
FRAMES = "of several frames, of which the first was taken"
Size = tuple[int, int]
Read = tuple[np.ndarray, tuple[str, ...]]  # an image, and what was done to it that a user should know


def read_image(item: Any, size: Size | None) -> Read:
    """Read one image: a path, an array or one of Pillow."""
    if isinstance(item, np.ndarray):
        pixels, what = _bytes(item)
        if size is not None and _larger(pixels.shape, size):
            pixels = _scaled(_pillow().fromarray(pixels), size)
        return pixels, what
    image = _pillow()
    if not isinstance(item, str | os.PathLike):
        if not isinstance(item, image.Image):
            raise BadInput(f"an image is a path, an array or an image of Pillow, and not {type(item).__name__}")
        return _rgb(item, size)
    with image.open(item) as opened:
        if size is not None:  # JPEG files can be decoded at a fraction of their size, which is far quicker
            opened.draft(None, (2 * max(size), 2 * max(size)))
        pixels, what = _rgb(opened, size)
        # the second picture of a telephone's MPO file is a thumbnail or the depth
        several = getattr(opened, "is_animated", False) and opened.format != "MPO"
        return pixels, (*what, FRAMES) if several else what


def _rgb(image: Any, size: Size | None) -> Read:
    """Turn an image of Pillow, of any mode, into bytes (H, W, 3)."""
    from PIL import Image, ImageOps

    what: list[str] = []
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise BadInput("it holds floats, whose scale is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadInput("it holds whole numbers of 32 bits, whose scale is not known; save it with 8 or 16 bits")
        image = Image.fromarray(_narrowed(deep))
        what.append(DEEP)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            what.append(TRANSPARENT)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _scaled(image.convert("RGB"), size), tuple(what)


def _scaled(image: Any, size: Size | None) -> np.ndarray:
    """Scale an image down until one of its sides is as long as it must be."""
    width, height = image.size
    if size is not None and _larger((height, width), size):
        share = max(size[0] / height, size[1] / width)
        wanted = max(size[1], round(width * share)), max(size[0], round(height * share))
        image = image.resize(wanted, _pillow().Resampling.BICUBIC)
    return np.array(image)


def _larger(shape: Sequence[int], size: Size) -> bool:
    return shape[0] > size[0] and shape[1] > size[1]


def _bytes(x: np.ndarray) -> Read:
    """Turn one image of an array into bytes (H, W, 3)."""
    what: tuple[str, ...] = ()
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3, 4)) or not x.size:
        raise BadInput(f"an image is an array (height, width, 3), and not of shape {x.shape}")
    if x.dtype == bool:
        x = 255 * x.astype(np.uint8)
    elif x.dtype == np.uint16:
        x, what = _narrowed(x.astype(np.int64)), (DEEP,)
    elif x.dtype.kind == "f":
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise BadInput(f"floats of an image go from 0 to 1, and not from {x.min():.4g} to {x.max():.4g}")
        x = np.round(255 * x).astype(np.uint8)
    elif x.dtype != np.uint8:
        raise BadInput(f"an image holds bytes (uint8), 16 bits (uint16) or floats from 0 to 1, and not {x.dtype}")
    x = np.atleast_3d(x)
    if x.shape[2] == 1:
        return np.repeat(x, 3, axis=2), what
    if x.shape[2] == 3:
        return x, what
    alpha = x[..., 3:].astype(np.int64)
    over = ((x[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return over, (*what, TRANSPARENT) if alpha.min() < 255 else what


def _narrowed(deep: np.ndarray) -> np.ndarray:
    """Turn 16 bits into 8."""
    return ((deep + 128) // 257).astype(np.uint8)


def reason(error: Exception) -> str:
    """Say in a few words why a file is broken; Pillow's own word for an unknown format repeats the path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is of no known format, or empty"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return " ".join(str(error).split())[:160] or type(error).__name__


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("reading images", "vision") from error
    return Image
