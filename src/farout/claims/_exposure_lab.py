"""What the claims on training with outliers share: images as tensors, and how sure a classifier is of which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.bench.metrics import auroc, fpr_at_tpr

if TYPE_CHECKING:
    from torch import Tensor, nn

# of the six dogs the last two, and of the three house cats the last, in the order of the file
HELD_OUT = ("German shepherd", "standard poodle", "Egyptian cat")
FINE, COARSE = "held-out", ("scene", "object")


@dataclass(frozen=True)
class Task:
    """Classes to learn, what is unknown to them, outliers to train on, and a network."""

    x: Tensor
    y: np.ndarray
    usual: Tensor
    labels: np.ndarray
    unknown: dict[str, Tensor]
    outliers: Tensor
    net: Callable[..., Any]
    augment: Callable[..., Tensor] | None


def mammals() -> Task:
    """Return 17 mammals of Tiny ImageNet with three siblings held out, and textures to train on."""
    import torch

    from farout.data.images import image_set
    from farout.kit.augment import crop_and_flip
    from farout.kit.nets import ResNet18

    train, test = image_set("animals-train"), image_set("animals-test")
    x_train, x_test = pictures("animals-train"), pictures("animals-test")
    held = [train.classes.index(name) for name in HELD_OUT]
    known = ~np.isin(np.arange(len(train.classes)), held)
    place = np.cumsum(known) - 1  # of a class among those that are left
    left, right = known[train.labels], known[test.labels]
    return Task(
        x_train[left],
        place[train.labels[left]],
        x_test[right],
        place[test.labels[right]],
        {FINE: torch.cat([x_train[~left], x_test[~right]])} | {name: pictures(f"tin-{name}") for name in COARSE},
        pictures("tin-texture", "textures64"),
        ResNet18,
        crop_and_flip,
    )


def pictures(*names: str, size: int = 32, rows: int | None = None, coded: bool = False) -> Tensor:
    """Return the images of sets, scaled and normalised, and stored again as CIFAR-10 is where that is asked for."""
    import torch

    from farout.data.images import image_set, recoded, resized, to_tensor

    sets = [image_set(name, rows).images for name in names]
    return torch.cat([to_tensor(recoded(images) if coded else resized(images, size)) for images in sets])


def told(
    model: nn.Module, usual: Tensor, labels: np.ndarray, unknown: Mapping[str, Tensor], **where: Any
) -> list[dict[str, Any]]:
    """Return a row for each unknown set: how well MSP tells it from usual images, which are classified beside.

    ``TNR95`` is the share of unknown images below the threshold that 95 % of the usual ones reach; ``FPR95`` is the
    share of usual images flagged where 95 % of the unknown are. They are different numbers of the same scores.
    """
    from farout.kit.fitting import predict

    answers = predict(model, usual).float().softmax(1).cpu()
    accuracy = float((answers.argmax(1).numpy() == labels).mean())
    inside = -answers.amax(1).double().numpy()
    rows = []
    for name, x_BCHW in unknown.items():
        outside = -predict(model, x_BCHW).float().softmax(1).amax(1).cpu().double().numpy()
        label, score = np.repeat([0, 1], [len(inside), len(outside)]), np.concatenate([inside, outside])
        rows.append(
            where
            | {
                "unknown": name,
                "AUROC": auroc(label, score),
                "TNR95": 1 - fpr_at_tpr(1 - label, -score),
                "FPR95": fpr_at_tpr(label, score),
                "accuracy": accuracy,
            }
        )
    return rows
