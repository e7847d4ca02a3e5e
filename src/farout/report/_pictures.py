"""Images in a page: any image or map as the address of a PNG picture, which needs no library."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import numpy as np

HEAT = np.array([255, 122, 40])  # what a map lays over an image


def visible(image: np.ndarray) -> np.ndarray:
    """Turn an image (c, h, w) of any scale into bytes (h, w, 3)."""
    low, span = image.min(), np.ptp(image) or 1.0
    grey = np.round(255 * (image - low) / span).astype(np.uint8)
    grey = grey[:3] if len(grey) >= 3 else np.repeat(grey[:1], 3, axis=0)
    return grey.transpose(1, 2, 0)


def laid(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map (h, w) over a darkened image."""
    strength = (np.clip(heat, 0, None) / max(float(heat.max()), 1e-30))[..., None]
    return np.round(0.45 * visible(image) * (1 - strength) + HEAT * strength).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """Write bytes (h, w, 3) as the address of a PNG image."""
    h, w, _ = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines, 9)), chunk(b"IEND", b""))
    return "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()
