"""PT-OOD: backbones pre-trained on CIFAR-10 with labels and without, a task of ten mammals, and outliers they know."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._rows import counted, means, pick
from farout.claims._tables import SEEDS, Progress, verdict
from farout.data.images import image_set, recoded, resized

TASK = (  # mammals of Tiny ImageNet that are none of CIFAR-10's cats, deer, dogs and horses
    "cougar",
    "lion",
    "brown bear",
    "guinea pig",
    "hog",
    "ox",
    "bison",
    "bighorn",
    "Arabian camel",
    "lesser panda",
)
FAMILIAR = ("airplane", "automobile", "bird", "frog", "ship", "truck")  # the classes of CIFAR-10 that are no mammals
SUPERVISED, SIMCLR = "supervised", "SimCLR"
LOGITS, NEIGHBOURS, CENTRED = "MSP", "10 nearest", "10 nearest, centred"
LEAD = 0.03
THRESHOLD = (
    "In the mean over three seeds, on new images of classes of the pre-training: the AUROC of MSP is at least "
    f"{LEAD} higher with supervised than with self-supervised pre-training; nearest neighbours do better than MSP with "
    "both, and the lead of supervised pre-training is smaller with them than with MSP; and a linear probe separates "
    "those classes better on supervised features."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "pretrain": 2000,
        "task": 1200,
        "tests": 400,
        "pixels": 16,
        "width": 12,
        "epochs": (6, 3),
        "batch": 64,
        "groups": ("food",),
    },
    "full": {
        "pretrain": 50_000,
        "task": 3200,
        "tests": 3000,
        "pixels": 32,
        "width": 32,
        "epochs": (8, 12),
        "batch": 512,
        "groups": ("food", "object", "scene"),
    },
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget shows that it runs: networks are hardly trained."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    rows: list[dict[str, Any]] = []
    progress("images", 0.0)
    data = _Data(size)
    for (seed,) in counted([(seed,) for seed in seeds], progress):
        rows += [row | {"seed": seed} for row in _run(data, size, seed, budget == "full")]
    mean = means(rows, "backbone", "outliers", "score")

    def of(backbone: str, score: str, what: str = "AUROC") -> float:
        return pick(mean, what, backbone=backbone, score=score, outliers="familiar")

    lead = {score: of(SUPERVISED, score) - of(SIMCLR, score) for score in (LOGITS, NEIGHBOURS, CENTRED)}
    apart = {name: of(name, LOGITS, "separability") for name in (SUPERVISED, SIMCLR)}
    parts = {
        "MSP needs labels in pre-training": lead[LOGITS] >= LEAD,
        "neighbours do better with both": all(of(name, NEIGHBOURS) > of(name, LOGITS) for name in apart),
        "neighbours narrow the gap": lead[NEIGHBOURS] < lead[LOGITS],
        "labels separate the classes": apart[SUPERVISED] > apart[SIMCLR],
    }
    told = "; ".join(
        f"{name}: MSP {of(name, LOGITS):.3f}, neighbours {of(name, NEIGHBOURS):.3f}, separability {apart[name]:.3f}, "
        f"accuracy on the task {of(name, LOGITS, 'accuracy'):.3f}"
        for name in (SUPERVISED, SIMCLR)
    )
    return Claim(
        paper="PT-OOD",
        published="Nearest neighbours among features find familiar outliers almost perfectly; scores of logits fail on "
        "them with self-supervised backbones (ImageNet)",
        measure=f"AUROC on familiar outliers, backbone by {SIMCLR}",
        ours=of(SIMCLR, NEIGHBOURS),
        baseline=(LOGITS, of(SIMCLR, LOGITS)),
        peer=("ViM", of(SIMCLR, "ViM")),
        threshold=THRESHOLD,
        holds=all(parts.values()),
        note=f"On familiar outliers, {told}. "
        + " ".join(f"{part[0].upper()}{part[1:]}: {verdict(fine)}." for part, fine in parts.items()),
        numbers={"Mean over seeds": mean, "By seed": rows},
        seeds=seeds,
        budget=budget,
    )


class _Data:
    """All images shrunk to 32 x 32 and stored as CIFAR-10 is stored, so that nothing is told by its coding."""

    def __init__(self, size: dict[str, Any]) -> None:
        import torch

        from farout.kit.training import device_named
        from farout.ood.pt_ood import Group

        self.device = device_named("auto")

        def pixels(images: np.ndarray) -> Any:
            x_BCHW = torch.tensor(images).permute(0, 3, 1, 2).float().to(self.device) / 255
            return torch.nn.functional.adaptive_avg_pool2d(x_BCHW, size["pixels"])

        def group(name: str, classes: tuple[str, ...] | None, rows: int) -> Group:
            stored = image_set(name, rows)
            names = stored.groups if name == "omniglot" and stored.groups else stored.classes  # alphabets of characters
            wanted = tuple(dict.fromkeys(names)) if classes is None else classes
            places = np.array([wanted.index(one) if one in wanted else -1 for one in names])[stored.labels]
            images = stored.images[places >= 0]
            if not name.startswith("cifar10"):
                images = recoded(resized(images, 32))
            return Group(pixels(images), torch.tensor(places[places >= 0]).to(self.device), wanted)

        stored = image_set("cifar10-train", size["pretrain"])
        self.pretraining = pixels(stored.images), torch.tensor(stored.labels).to(self.device)
        self.classes = len(stored.classes)
        self.train, self.test = group("animals-train", TASK, size["task"]), group("animals-test", TASK, size["tests"])
        self.outliers = {"familiar": group("cifar10-test", FAMILIAR, size["tests"])}
        for kind in size["groups"]:
            self.outliers[f"unfamiliar: {kind}"] = group(f"tin-{kind}", None, size["tests"])
        for name in ("textures64", "omniglot"):
            self.outliers[f"unfamiliar: {name}"] = group(name, None, size["tests"])


def _run(data: _Data, size: dict[str, Any], seed: int, full: bool) -> list[dict[str, Any]]:
    """Pre-train both backbones, and study them."""
    from farout.ood.deep_knn import DeepKNN
    from farout.ood.energy import Energy
    from farout.ood.max_logit import MaxLogit
    from farout.ood.msp import MSP
    from farout.ood.pt_ood import PTOOD, familiarity_study
    from farout.ood.react import ReAct
    from farout.ood.vim import ViM

    backbones = {
        name: _pretrained(data, size, seed, name == SUPERVISED, epochs, full).features
        for name, epochs in zip((SUPERVISED, SIMCLR), size["epochs"])
    }
    scores: dict[str, Any] = {LOGITS: MSP(), "MaxLogit": MaxLogit(), "energy": Energy(), "ReAct": ReAct()}
    scores |= {NEIGHBOURS: PTOOD(k=10), CENTRED: PTOOD(k=10, center=True), "50 nearest": DeepKNN(k=50), "ViM": ViM()}
    return familiarity_study(backbones, data.train, data.test, data.outliers, scores)


def _pretrained(data: _Data, size: dict[str, Any], seed: int, supervised: bool, epochs: int, full: bool) -> Any:
    """Train a network on CIFAR-10 by its labels, or without them by SimCLR; what its head reads are the features."""
    import torch

    from farout.kit.augment import crop_and_flip, two_views
    from farout.kit.fitting import cross_entropy_step, fit
    from farout.kit.nets import ResNetCIFAR, SmallCNN, mlp
    from farout.ood.pt_ood import info_nce

    plain: Any = ResNetCIFAR if full else SmallCNN
    net: Any = plain(data.classes, width=size["width"], seed=seed).to(data.device)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": size["batch"], "seed": seed}
    options["amp"] = data.device.type == "cuda"
    if supervised:
        fit(
            net,
            cross_entropy_step,
            data.pretraining,
            learning_rate=0.1,
            augment=partial(crop_and_flip, pad=size["pixels"] // 8),
            warmup=1,
            **options,
        )
        return net
    projector = mlp([net.width, net.width, 64], seed=seed).to(data.device)
    both = torch.nn.ModuleList([net, projector])
    generator = torch.Generator().manual_seed(seed)

    def step(model: Any, x_BCHW: Any) -> dict[str, Any]:
        views = torch.cat(two_views(x_BCHW, generator))
        return {"loss": info_nce(*projector(net.features(views)).chunk(2))}

    fit(both, step, data.pretraining[:1], learning_rate=0.2, weight_decay=1e-4, warmup=1, **options)
    return net
