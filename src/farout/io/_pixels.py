"""Images as a model wants them: size, range and channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pixels:
    """What a model of images expects.

    Attributes
    ----------
    size : (int, int) or None
        Height and width; None leaves images as they are.
    mean, deviation : tuple of float
        On the scale from 0 to 255, one for each channel: pixels are ``(x - mean) / deviation``. Where there is one for
        three channels, it holds for all of them.
    channels : int
        3, or 1 for shades of grey.
    channels_first : bool
        Channels stand before height and width, as in torch, and not behind.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (255.0,)
    channels: int = 3
    channels_first: bool = True

    def batch(self, images: Sequence[Any]) -> torch.Tensor:
        """Turn images into one tensor.

        The largest part of an image with the wanted shape, from its middle, is scaled bicubically.

        Parameters
        ----------
        images : sequence of uint8 array (H, W, 3) or (H, W)

        Returns
        -------
        float32 tensor (B, channels, height, width), or with channels last

        Raises
        ------
        BadInput
        """
        import torch

        ready = [self._one(np.asarray(image)) for image in images]
        shapes = {tuple(image.shape) for image in ready}
        if len(shapes) > 1:
            raise BadInput(f"the model takes images of any size, but of one size: these have {len(shapes)}; scale them")
        x = torch.stack(ready)
        return x if self.channels_first else x.movedim(1, -1)

    def _one(self, image: np.ndarray) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise BadInput(
                f"an image is a uint8 array of (height, width, 3), not {image.dtype} of shape {image.shape}; "
                "scale its pixels to 0 to 255"
            )
        x = torch.tensor(np.atleast_3d(image)[..., :3], dtype=torch.float32).movedim(-1, 0)
        if len(x) != self.channels:
            x = x.mean(0, keepdim=True).expand(self.channels, -1, -1)
        if self.size is not None and tuple(x.shape[1:]) != self.size:
            have, want = x.shape[1:], self.size
            scale = min(have[0] / want[0], have[1] / want[1])
            part = [max(1, min(size, round(side * scale))) for size, side in zip(have, want)]
            top, left = ((size - side) // 2 for size, side in zip(have, part))
            x = x[:, top : top + part[0], left : left + part[1]]
            x = F.interpolate(x[None], self.size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 255)
        return (x - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.deviation)[:, None, None]


def folder_pixels(folder: Path | None, config: Any) -> Pixels:
    """Read what the configuration and the preprocessor of a transformers folder say."""
    said: dict[str, Any] = {}
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        said = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    size = getattr(config, "image_size", None) or said.get("crop_size") or said.get("size")
    if isinstance(size, dict):
        size = (size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge")))
    elif isinstance(size, int):
        size = (size, size)
    channels = getattr(config, "num_channels", 3)
    return Pixels(
        tuple(size) if size and all(size) else None,
        _times_255(said.get("image_mean") or [0.5] * channels),
        _times_255(said.get("image_std") or [0.5] * channels),
        channels,
    )


def timm_pixels(config: dict[str, Any]) -> Pixels:
    """Read what timm says of a model: its ``pretrained_cfg``."""
    channels, *size = config.get("input_size", (3, 224, 224))
    mean, deviation = config.get("mean", (0.5,)), config.get("std", (0.5,))
    return Pixels((int(size[0]), int(size[1])), _times_255(mean), _times_255(deviation), int(channels))


def _times_255(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(255.0 * float(value) for value in values)
