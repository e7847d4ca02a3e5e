"""A pretrained network of images in; its frozen features at chosen layers out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farout.data.pretrained import pretrained, pretrained_names
from farout.errors import BadInput
from farout.io.models import OpenModel, open_model

__all__ = ["DEFAULT", "Backbone"]

DEFAULT = "efficientnet-lite0"
PROBE = 64  # pixels of the image that channels and strides are read off


class Backbone(nn.Module):
    """Images in, a list of feature maps out; nothing of it is ever trained.

    Parameters
    ----------
    model : str, Path, OpenModel, torch.nn.Module or Backbone
        ``"efficientnet-lite0"``, whose ImageNet weights a Python package carries; else what
        :func:`farout.io.models.open_model` opens, such as ``"timm:resnet18@weights.safetensors"``; or a module.
    layers : sequence of str, optional
        Modules whose outputs (B, C, h, w) are taken; by default the ends of the stages: of EfficientNet-Lite the stem,
        seven stages and the head, of timm what ``feature_info`` lists, of a ResNet ``layer1`` to ``layer4``. An
        activation behind a named batch norm of EfficientNet-Lite is applied.
    mean, deviation : sequence of float, optional
        Of the pixels on the scale from 0 to 1, for a module; an opened model knows its own.

    Attributes
    ----------
    layers : tuple of str
    channels, strides : tuple of int
        Of each layer; a stride is that of the height at an image of 64 pixels.

    Raises
    ------
    BadInput
        The layers are not known, or none is there, or they give no maps.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
    >>> backbone = Backbone(net, layers=["0", "2"])
    >>> backbone.channels, backbone.strides
    ((4, 8), (2, 4))
    >>> [tuple(f_BCHW.shape) for f_BCHW in backbone(torch.rand(1, 3, 32, 32))]
    [(1, 4, 16, 16), (1, 8, 8, 8)]
    """

    mean: Tensor
    deviation: Tensor
    layers: tuple[str, ...]

    def __init__(
        self,
        model: Any = DEFAULT,
        layers: Sequence[str] | None = None,
        *,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, Backbone):
            layers = model.layers if layers is None else layers
            mean, deviation = model.mean.flatten().tolist(), model.deviation.flatten().tolist()
            model = model.net
        if not isinstance(model, nn.Module | OpenModel):
            with torch.random.fork_rng(devices=[]):  # weights are drawn before the stored ones take their place
                model = open_model(pretrained(model) if str(model) in pretrained_names() else _source(model))
        pixels = getattr(model, "pixels", None)
        self.net: nn.Module = model if isinstance(model, nn.Module) else model.model
        if pixels is not None:
            mean = mean or [value / 255 for value in pixels.mean]
            deviation = deviation or [value / 255 for value in pixels.deviation]
        self.register_buffer("mean", _column(mean, 0.0), persistent=False)
        self.register_buffer("deviation", _column(deviation, 1.0), persistent=False)
        self.layers = tuple(layers) if layers is not None else _stages(self.net)
        known = dict(self.net.named_modules())
        missing = [name for name in self.layers if name not in known]
        if missing or not self.layers:
            shown = ", ".join(name for name in known if name and name.count(".") < 2)
            raise BadInput(f"the network has no layer {missing or 'named'}; take some of: {shown[:600]}")
        self.eval().requires_grad_(False)
        self._calls = 0  # of the layers in a pass; a layer may be called more than once
        found = self(torch.zeros(1, 3, PROBE, PROBE, device=_device(self.net)))
        flat = [name for name, f in zip(self.layers, found) if f.ndim != 4]
        if flat:
            raise BadInput(f"the outputs of {flat} are no maps (B, C, height, width); take other layers")
        self.channels = tuple(f_BCHW.shape[1] for f_BCHW in found)
        self.strides = tuple(PROBE // f_BCHW.shape[2] for f_BCHW in found)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the feature maps of images with pixels from 0 to 1, in the order of the layers."""
        taken: dict[str, Tensor] = {}
        calls = 0

        def keep(name: str, output: Any) -> None:
            nonlocal calls
            taken[name] = output[0] if isinstance(output, tuple | list) else output
            calls += 1
            if calls == self._calls:
                raise _Enough

        modules = dict(self.net.named_modules())
        hooks = [
            modules[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name in dict.fromkeys(self.layers)
        ]
        try:
            with suppress(_Enough):  # what lies behind the last layer need not run
                self.net((x_BCHW - self.mean) / self.deviation)
        finally:
            for hook in hooks:
                hook.remove()
        self._calls = calls
        unmet = [name for name in self.layers if name not in taken]
        if unmet:
            raise BadInput(f"the network's pass does not run through {unmet}; take other layers")
        activation: Any = getattr(self.net, "_swish", None)  # EfficientNet-Lite applies it outside of its norms
        named = {"_bn0", "_bn1"} if activation is not None else set()
        return [activation(taken[name]) if name in named else taken[name] for name in self.layers]

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever the network around it does."""
        return super().train(False)


class _Enough(Exception):
    """All layers were met."""


def _column(values: Sequence[float] | None, default: float) -> Tensor:
    """Return a number a channel (C, 1, 1); one for all channels where nothing is said."""
    return torch.tensor([default] if values is None else list(values))[:, None, None]


def _source(model: Any) -> Any:
    """Leave expressions such as 'timm:resnet18' as they are, and make paths of the others."""
    return model if ":" in str(model) else Path(model)


def _stages(net: Any) -> tuple[str, ...]:
    """Find the layers at the ends of the stages."""
    if hasattr(net, "_blocks") and hasattr(net, "_bn0"):
        widths = [block._block_args.output_filters for block in net._blocks]
        ends = [i for i, width in enumerate(widths) if i + 1 == len(widths) or widths[i + 1] != width]
        return ("_bn0", *(f"_blocks.{i}" for i in ends), "_bn1")
    info = getattr(net, "feature_info", None)
    if info is not None:
        return tuple(one["module"] for one in info)
    names = [name for name, _ in net.named_children() if name.startswith("layer") and name[5:].isdigit()]
    if not names:
        raise BadInput(
            f"which layers of '{type(net).__name__}' are ends of stages is not known; name them: layers=[...], of "
            f"{', '.join(name for name, _ in net.named_children())}"
        )
    return tuple(names)


def _device(net: nn.Module) -> torch.device:
    weight = next(net.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device
