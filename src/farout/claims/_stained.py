"""Images as if from several laboratories, and ten ways to embed them, for the claim of the robustness index.

Class: the ten of CIFAR-10. Laboratory: five colour maps, each fitted to a real piece of tissue in its own staining and
in a common one.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from farout.data import find
from farout.errors import MissingExtra
from farout.kit.training import torch_or_say

LABORATORIES = 5
MEAN, SPREAD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # what the network was trained with


def stained(each: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw images, as many of each class and laboratory; no image is in two laboratories.

    Parameters
    ----------
    each : int
        Images of a class and laboratory.
    strength : float
        0 leaves the images as they are, 1 gives them the laboratory's staining.
    seed : int

    Returns
    -------
    float64 array (n, 32, 32, 3)
        From 0 to 1.
    int64 arrays (n,)
        Class and laboratory.
    """
    rng = np.random.default_rng(seed)
    with np.load(find("ood/cifar10_test.npz"), allow_pickle=False) as archive:
        stored = {name: archive[name] for name in archive.files}
    few = each * LABORATORIES
    of_class = [rng.choice(np.flatnonzero(stored["labels"] == c), few, replace=False) for c in range(10)]
    rows = np.concatenate(of_class)
    laboratory = np.tile(np.repeat(np.arange(LABORATORIES), each), 10)
    images = np.stack([_unpacked(stored, row) for row in rows])
    flat = images.reshape(len(rows), -1, 3)
    there = np.einsum("npc,ncd->npd", np.insert(flat, 3, 1.0, axis=2), _stains()[laboratory])
    mixed = np.clip(flat + strength * (there - flat), 0, 1).reshape(images.shape)
    return mixed, np.repeat(np.arange(10), few), laboratory


def embedded(images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Embed images (n, 32, 32, 3) in ten ways, (n, d) each; filters that are drawn follow ``seed``."""
    own = (images - images.mean(axis=(1, 2), keepdims=True)) / (images.std(axis=(1, 2), keepdims=True) + 1e-3)
    grey = images.mean(axis=3, keepdims=True)
    stages, alike = _stages((images - MEAN) / SPREAD), _stages(own)
    flat = images.reshape(len(images), -1, 3)
    colours = [flat.mean(axis=1), flat.std(axis=1), *np.quantile(flat, (0.1, 0.5, 0.9), axis=1)]
    return {
        "pixels": _pooled(images, 4),
        "pixels, grey": _pooled(grey, 2),
        "pixels, channels standardised": _pooled(own, 4),
        "colour statistics": np.hstack(colours),
        "edges": _edges(grey[..., 0]),
        "random filters": _random_filters(images, seed),
        "ResNet-20, stage 1": stages[0],
        "ResNet-20, stage 2": stages[1],
        "ResNet-20, stage 3": stages[2],
        "ResNet-20, stage 3, channels standardised": alike[2],
    }


def _unpacked(stored: dict[str, np.ndarray], row: int) -> np.ndarray:
    """Read one image; the archive holds the header that many share once."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("the claim of 'Robustness Index'", "vision") from error
    head, start = stored["header_id"][row], stored["header_offsets"]
    parts = stored["headers"][start[head] : start[head + 1]], stored["data"][slice(*stored["offsets"][row : row + 2])]
    return np.asarray(Image.open(io.BytesIO(b"".join(part.tobytes() for part in parts))).convert("RGB")) / 255


@cache
def _stains() -> np.ndarray:
    """Fit the affine map (laboratories, 4, 3) from the common staining to each tissue's own, by least squares."""
    from PIL import Image

    maps = []
    with zipfile.ZipFile(find("misc/histology_stain_pairs.zip")) as archive:
        for panel in range(LABORATORIES):
            own, common = (
                np.asarray(Image.open(archive.open(f"histology_stain_pairs/{which}_{panel}.jpg")).convert("RGB")) / 255
                for which in ("before", "after")
            )
            known = np.insert(common.reshape(-1, 3), 3, 1.0, axis=1)
            maps.append(np.linalg.lstsq(known, own.reshape(-1, 3), rcond=None)[0])
    return np.stack(maps)


def _pooled(images: np.ndarray, size: int) -> np.ndarray:
    """Average squares of ``size`` pixels and lay the rest out in a row."""
    n, side, _, channels = images.shape
    squares = images.reshape(n, side // size, size, side // size, size, channels)
    return squares.mean(axis=(2, 4)).reshape(n, -1)


def _edges(grey: np.ndarray) -> np.ndarray:
    """Sum the strength of edges of eight directions in each square of 8 pixels: (n, 128)."""
    down, right = np.gradient(grey, axis=(1, 2))
    strength, direction = np.hypot(down, right), np.arctan2(down, right)
    place = np.floor((direction + np.pi) / (2 * np.pi) * 8).astype(int) % 8
    return _pooled(np.eye(8)[place] * strength[..., None], 8)


def _random_filters(images: np.ndarray, seed: int) -> np.ndarray:
    """Average what 64 drawn filters of 5 x 5 pixels let through in each quarter of the image: (n, 256)."""
    torch = torch_or_say("the claim of 'Robustness Index'")
    filters = np.random.default_rng(seed).normal(size=(64, 3, 5, 5)).astype(np.float32)
    x_NCHW = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    passed = torch.nn.functional.conv2d(x_NCHW, torch.from_numpy(filters), padding=2).relu()
    return torch.nn.functional.avg_pool2d(passed, 16).flatten(1).double().numpy()


def _stages(images: np.ndarray) -> list[np.ndarray]:
    """Return the mean of each channel after the three stages of a ResNet-20 that was trained on CIFAR-10."""
    torch = torch_or_say("the claim of 'Robustness Index'")
    found: list[list[np.ndarray]] = [[], [], []]
    with torch.no_grad():
        for start in range(0, len(images), 256):
            batch = images[start : start + 256].transpose(0, 3, 1, 2).astype(np.float32)
            for stage, features in zip(found, _forward(torch.from_numpy(np.ascontiguousarray(batch)), torch)):
                stage.append(features.mean(dim=(2, 3)).double().numpy())
    return [np.vstack(stage) for stage in found]


def _forward(x_NCHW: Any, torch: Any) -> list[Any]:
    """Run the network; a shortcut that halves the image takes every second pixel and pads with zero channels."""
    F, weights = torch.nn.functional, _weights()

    def convolved(x: Any, convolution: str, norm: str, stride: int = 1) -> Any:
        x = F.conv2d(x, weights(f"{convolution}.weight"), stride=stride, padding=1)
        moments = weights(f"{norm}.running_mean"), weights(f"{norm}.running_var")
        return F.batch_norm(x, *moments, weights(f"{norm}.weight"), weights(f"{norm}.bias"))

    x = convolved(x_NCHW, "conv1", "bn1").relu()
    stages = []
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            inner = convolved(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            inner = convolved(inner, f"{name}.conv2", f"{name}.bn2")
            pad = (inner.shape[1] - x.shape[1]) // 2
            x = (inner + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, pad, pad))).relu()
        stages.append(x)
    return stages


@cache
def _weights() -> Callable[[str], Any]:
    """Read the network's weights once."""
    import torch

    with np.load(find("ood/resnet20_cifar10.npz"), allow_pickle=False) as archive:
        arrays = {name.removeprefix("module."): torch.from_numpy(archive[name]) for name in archive.files}
    return arrays.__getitem__
