"""UniCon-HA: pulling normal images together and nothing else, against pulling nothing, or outliers too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from farout.bench.metrics import auroc
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

MARGIN = 0.01
THRESHOLD = (
    "Networks are trained from scratch and alike long on images of one class of CIFAR-10 and on turned copies, and "
    "score test images of all classes by the nearest training image. In the mean over two classes and three seeds, the "
    f"AUROC of UniCLR, which pulls normal images together, is {MARGIN} or more above that of supervised contrast of "
    f"two classes, which pulls turned ones together too, and this one is {MARGIN} or more above that of SimCLR, which "
    f"pulls none; and neither soft aggregation nor hierarchical augmentation takes more than {MARGIN} away."
)
SIMCLR, TWO, PLAIN, SOFT, WHOLE = "SimCLR", "SupCon, two classes", "UniCLR", "UniCLR + SA", "UniCLR + SA + HA"
PEER = "frozen EfficientNet-Lite0"
WAYS: dict[str, dict[str, Any]] = {
    SIMCLR: {"pulled": "none", "soft": False, "hierarchical": False},
    TWO: {"pulled": "both", "soft": False, "hierarchical": False},
    PLAIN: {"soft": False, "hierarchical": False},
    SOFT: {"hierarchical": False},
    WHOLE: {},
}
# The classes were chosen beforehand: a vehicle and an animal that stand upright. The digits, too, are not turned into
# one another. The learning rate is ten times the default, because epochs are few.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "known": "mnist",
        "classes": (4,),
        "rows": 500,
        "test": 400,
        "peer": 32,
        "net": {"width": 4, "size": 16, "epochs": 5, "batch_size": 16},
    },
    "full": {
        "known": "cifar10",
        "classes": (1, 4),
        "rows": None,
        "test": 4_000,
        "peer": 128,
        "net": {"width": 32, "size": 32, "epochs": 10, "batch_size": 128},
    },
}
RATE = 0.1


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim. The small budget takes small digits for one class, and stops long before anything is settled."""
    from farout.data.images import image_set

    seeds = SEEDS[:1] if budget == "small" else SEEDS
    size = SIZES[budget]
    train = image_set(f"{size['known']}-train", size["rows"])
    test = image_set(f"{size['known']}-test", size["test"])
    rows: list[dict[str, Any]] = []
    runs = [(one, seed) for one in size["classes"] for seed in seeds]
    for place, (one, seed) in enumerate(runs):
        usual, strange = train.images[train.labels == one], test.labels != one

        def passed(what: str, share: float, place: int = place, word: str = train.classes[one]) -> None:
            progress(f"{word}, {what}", (place + share) / len(runs))

        found = _scores(usual, test.images, size, seed, passed)
        rows.append(
            {"class": train.classes[one], "seed": seed} | {name: auroc(strange, score) for name, score in found.items()}
        )
    means = {name: float(np.mean([row[name] for row in rows])) for name in (*WAYS, PEER)}
    unilateral, two = means[PLAIN] >= means[TWO] + MARGIN, means[TWO] >= means[SIMCLR] + MARGIN
    kept = means[SOFT] >= means[PLAIN] - MARGIN and means[WHOLE] >= means[SOFT] - MARGIN
    note = (
        f"UniCLR {MARGIN} above two classes {verdict(unilateral)}, two classes {MARGIN} above SimCLR {verdict(two)}, "
        f"the additions do no harm {verdict(kept)}: mean AUROC "
        + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        + f". A network has {size['net']['epochs']} epochs, where the paper's has 2,048; the frozen one was trained on "
        "ImageNet with labels, and has seen such things."
    )
    return Claim(
        paper="UniCon-HA",
        published="ResNet-18 from scratch, ten classes of CIFAR-10: AUROC 95.4, CSI 94.3",
        measure=f"mean AUROC, one class of {size['known']} against the others",
        ours=means[WHOLE],
        baseline=(SIMCLR, means[SIMCLR]),
        peer=(PEER, means[PEER]),
        threshold=THRESHOLD,
        holds=bool(unilateral and two and kept),
        note=note,
        numbers={"AUROC by class and seed": rows, "Mean AUROC": [{"method": n, "AUROC": v} for n, v in means.items()]},
        seeds=tuple(seeds),
        budget=budget,
    )


def _scores(
    usual: np.ndarray, test: np.ndarray, size: dict[str, Any], seed: int, progress: Progress
) -> dict[str, np.ndarray]:
    """Train a network in each way, and score the test images by each and by the frozen one."""
    from farout.image.unicon_ha import UniConHA

    found = {}
    for place, (name, way) in enumerate(WAYS.items()):
        progress(f"seed {seed}: {name}", place / len(WAYS))
        detector = UniConHA(**size["net"], **way, learning_rate=RATE, device="auto", random_state=seed)
        found[name] = detector.fit(usual).outlier_score(test)
    return found | {PEER: _frozen(usual, test, size["peer"])}


def _frozen(usual: np.ndarray, test: np.ndarray, side: int, batch: int = 256) -> np.ndarray:
    """Score by the largest cosine to a training image, too, but of frozen features."""
    import torch
    from torch.nn.functional import interpolate, normalize

    from farout.image.backbones import Backbone
    from farout.kit.training import device_named

    device = device_named("auto")
    backbone = Backbone(layers=["_bn1"]).to(device)

    def features(images: np.ndarray) -> torch.Tensor:
        found: Sequence[torch.Tensor] = [
            backbone(interpolate(part.to(device).float() / 255, (side, side), mode="bilinear"))[0].mean((2, 3))
            for part in torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).split(batch)
        ]
        return normalize(torch.cat(list(found)), dim=1)

    with torch.inference_mode():
        return -(features(test) @ features(usual).T).amax(1).double().cpu().numpy()
