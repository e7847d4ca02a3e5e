"""What the claims of post-hoc scores share: a classifier of CIFAR-10 as it is stored here, and images of other things.

The published ResNet-20 was trained on the original images; on those that are here, stored as JPEG, it loses a tenth of
its accuracy. So it is trained on a little, and kept in the cache. It reads what
:func:`farout.data.images.to_tensor` gives.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farout import __version__
from farout.claims._claim import Progress
from farout.data import find
from farout.data.images import image_set, recoded, resized, resnet20_cifar10, to_tensor
from farout.errors import UnknownName
from farout.io.files import writing
from farout.kit.training import device_named, fill, torch_or_say

NEAR = ("tin-near_animal",)
FAR = ("tin-scene", "tin-object", "tin-food", "tin-invertebrate", "textures64", "mnist-test")


@dataclass(frozen=True)
class Scale:
    """How long the classifier is trained on.

    Attributes
    ----------
    rows : int, optional
        Images, as many of each class; None for all.
    epochs, batch_size : int
    learning_rate : float
    """

    rows: int | None
    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.01


SCALES = {"small": Scale(1_000, 1), "full": Scale(None, 10)}  # six seconds of one core; half a minute of a GPU


def classifier(seed: int, budget: str, progress: Progress = lambda what, done: None) -> Any:
    """Return the ResNet-20 for CIFAR-10 as it is stored here, or take it from the cache.

    Parameters
    ----------
    seed : int
        Of the order of the images and of how they are cropped and mirrored; the start is the same.
    budget : {"small", "full"}
        1,000 training images once, or all ten times, on a GPU where there is one.
    progress : callable
        Called with what is being done and the share done.

    Returns
    -------
    farout.kit.nets.ResNetCIFAR
        On the CPU, in evaluation mode.

    Raises
    ------
    UnknownName
        There is no such budget.
    DataMissing
        The images or the weights are not here.
    """
    if budget not in SCALES:
        raise UnknownName("budget", budget, SCALES)
    torch_or_say("training a classifier")
    from safetensors.torch import load_model, save_model

    from farout.kit.nets import ResNetCIFAR

    net, scale = ResNetCIFAR(), SCALES[budget]
    fill(net, resnet20_cifar10())
    digests = [_digest(f"ood/{name}.npz") for name in ("resnet20_cifar10", "cifar10_train")]
    what = json.dumps([asdict(scale), seed, digests, __version__])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "farout" / "cifar"
    kept = cache / f"resnet20-{budget}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
    if kept.is_file():
        load_model(net, kept)
        return net
    _train(net, scale, seed, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with writing(kept) as temporary:
        save_model(net, str(temporary))
    return net


def ood_suites(coding: bool = True, rows: int | None = 2_000) -> dict[str, dict[str, np.ndarray]]:
    """Return images that show none of CIFAR-10's classes, in its size: animals are near, all others far.

    Parameters
    ----------
    coding : bool
        Whether they are stored as CIFAR-10 is stored and read again; otherwise scaled, and no more.
    rows : int, optional
        At most so many of each set; None for all.

    Returns
    -------
    dict of str to dict of str to uint8 array (n, 32, 32, 3)
        Under ``"near"`` and ``"far"``, by the names of :func:`farout.data.images.image_set`.
    """

    def shown(name: str) -> np.ndarray:
        images = image_set(name, rows).images
        return recoded(images) if coding else resized(images, 32)

    return {"near": {name: shown(name) for name in NEAR}, "far": {name: shown(name) for name in FAR}}


def _train(net: Any, scale: Scale, seed: int, progress: Progress) -> None:
    """Train a network on in place, and bring it back to the CPU."""
    import torch

    from farout.kit.augment import crop_and_flip
    from farout.kit.fitting import cross_entropy_step, fit

    device, known = device_named("auto"), image_set("cifar10-train", scale.rows)
    fit(
        net.to(device),
        cross_entropy_step,
        (to_tensor(known.images).to(device), torch.tensor(known.labels, device=device)),
        epochs=scale.epochs,
        batch_size=scale.batch_size,
        learning_rate=scale.learning_rate,
        augment=crop_and_flip,
        seed=seed,
        progress=lambda done: progress("the classifier is trained on images as they are stored", done),
    )
    net.to("cpu")


def _digest(name: str) -> str:
    with open(find(name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
