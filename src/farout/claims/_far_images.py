"""What claims about known and unknown small images share: the known ones, sets that show none of them, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from farout.bench.metrics import auroc, fpr_at_tpr

FAR = {
    "cifar10": (
        "textures64",
        "mnist-test",
        "tin-scene",
        "tin-texture",
        "tin-object",
        "tin-food",
        "tin-invertebrate",
    ),
    "mnist": ("omniglot", "textures64"),
}
MOST = 2_000  # images of an unknown set
PLAIN = (0.0,) * 3, (1.0,) * 3  # pixels of 0 to 1


def known(name: str, part: str, rows: int | None, device: Any) -> tuple[Any, Any]:
    """Return images and labels of a known set: pixels (n, 3, H, W) of 0 to 1, and (n,)."""
    import torch

    from farout.data.images import image_set, to_tensor

    found = image_set(f"{name}-{part}", rows)
    return to_tensor(found.images, *PLAIN).to(device), torch.from_numpy(found.labels.copy()).to(device)


def unknown(name: str, sets: tuple[str, ...], rows: int, device: Any, coded: bool = True) -> dict[str, Any]:
    """Return images of unknown sets by name, in the size of the known ones and, where wanted, stored like CIFAR-10."""
    from farout.data.images import image_set, recoded, resized, to_tensor

    found = {}
    for one in sets:
        images = image_set(one, rows).images
        images = recoded(images) if coded and name == "cifar10" else resized(images, 32 if name == "cifar10" else 28)
        found[one] = to_tensor(images, *PLAIN).to(device)
    return found


def normalised(x_BCHW: Any) -> Any:
    """Return pixels of 0 to 1 as networks read them."""
    import torch

    from farout.data.images import DEVIATION, MEAN

    mean, deviation = (torch.tensor(values, device=x_BCHW.device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (x_BCHW - mean) / deviation


def views_of(net: Any, x_BCHW: Any) -> Any:
    """Return logits and features of pixels of 0 to 1, by a network in evaluation mode that reads them normalised."""
    import torch

    from farout.ood.views import Views

    with torch.no_grad():
        features = torch.cat([net.features(normalised(part)) for part in x_BCHW.split(1_000)])
        return Views(net.linear(features), features)


def judged(score: Any, usual: Any, strange: Mapping[str, Any], near: str = "") -> dict[str, float]:
    """Return the AUROC of a score of views for each unknown set against the known test images.

    ``FPR95`` beside them is the mean over all sets but the near one: of unknown images, those above the threshold that
    95 % of the known ones reach, as these papers count.
    """
    import torch

    found, rates = {}, []
    with torch.no_grad():
        inside = score.score(usual).cpu().numpy()
        for name, views in strange.items():
            outside = score.score(views).cpu().numpy()
            label = np.repeat([0, 1], [len(inside), len(outside)])
            both = np.concatenate([inside, outside])
            found[name] = auroc(label, both)
            if name != near:
                rates.append(fpr_at_tpr(label, both, positive="in"))
    return {"FPR95": float(np.mean(rates))} | found
