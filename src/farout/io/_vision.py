"""Models of images that are no transformers folder: those of timm, and EfficientNet-Lite with its published weights."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, MissingExtra, nearest
from farout.io._pixels import Pixels, timm_pixels

if TYPE_CHECKING:
    from torch import nn


def open_timm(name: str, weights: Path | None, **options: Any) -> tuple[nn.Module, str, Pixels, list[str]]:
    """Make a timm model; without weights it has random ones, and nothing is downloaded.

    Raises
    ------
    MissingExtra
        timm, or torchvision that it needs, is not installed.
    BadInput
        No model of timm has this name, the weights are not its own, or torchvision does not fit torch.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("opening a timm model", "vision") from error
    except RuntimeError as error:
        raise BadInput(
            f"timm cannot be imported: {error}; install the torchvision that belongs to this torch"
        ) from error
    if not timm.is_model(name):
        raise BadInput(f"timm {timm.__version__} has no model '{name}'; {nearest(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=False, **options)
    pixels, notes = timm_pixels(dict(model.pretrained_cfg)), []
    if weights is None:
        stored = "random weights"
        notes.append(f"the weights are random; for real ones give a file: 'timm:{name}@weights.safetensors'")
    else:
        stored = weights.suffix.lstrip(".")
        load_weights(model, weights)
    return model, stored, pixels, notes


def open_efficientnet_lite(weights: Path) -> tuple[nn.Module, str, Pixels, list[str]]:
    """Make the EfficientNet-Lite that a file of weights is named after, such as ``efficientnet-lite0-57934424.pth``.

    Raises
    ------
    MissingExtra
    BadInput
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise BadInput(
            f"'{weights.name}' holds weights of EfficientNet-Lite; the package of its network is not installed: "
            "pip install --no-deps efficientnet-lite-pytorch==0.1.0"
        ) from error
    name = "-".join(weights.stem.split("-")[:2])
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it builds
        model = EfficientNet.from_name(name)
        size = int(EfficientNet.get_image_size(name))
    load_weights(model, weights)
    return model, "pickled state dict", Pixels((size, size), (127.0,), (128.0,)), []


def load_weights(model: nn.Module, path: Path) -> None:
    """Put a state dict into a model; a pickled one is read without running what it holds.

    Raises
    ------
    BadInput
        The file is missing or damaged, would run code, or its weights do not fit the model.
    """
    import torch

    if not path.is_file():
        raise BadInput(f"there is no file '{path}'; give the path of the weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadInput(
            f"'{path.name}' cannot be read, or would run code when it is unpickled: "
            f"{' '.join(str(error).split())[:200]}; get the weights as safetensors from a source that you trust"
        ) from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BadInput(
            f"the weights in '{path.name}' are not those of this model: {' '.join(str(error).split())[:300]}"
        ) from error
