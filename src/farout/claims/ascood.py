"""ASCOOD: outliers made from the training images, where a texture comes along with the class, and on real images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._drawn_images import agreeing, objects_on_textures
from farout.claims._exposure_lab import FINE, mammals, pictures, told
from farout.claims._rows import means, pick
from farout.claims._tables import SEEDS, Progress, verdict

if TYPE_CHECKING:
    from torch import Tensor, nn

PLAIN, HEAD, OURS, RANDOM = "MSP", "standardized features alone", "ASCOOD", "ASCOOD at random places"
MINUS, SHUFFLED, OE = "ASCOOD, subtracting", "ASCOOD, shuffling", "OE"
DRAWN, CIFAR, MAMMALS = "drawn objects", "CIFAR-10", "mammals"
ALONE, FAR = "textures alone", "far (mean)"
AGREEING = 0.9  # of objects stand on the texture of their class
# How long the change is in the beginning against the image; it falls to a tenth, as the paper's 300 falls to 30. Best,
# or close to it, among those of 1, 0.3, 0.1 and 0.03 that were run on draws that the claim does not use (100, 101,
# 102).
RATIO = 0.1
FEWER, LOST = 0.1, 0.01  # of FPR95 and of accuracy
MEASURES = ("AUROC", "TNR95", "FPR95")
THRESHOLD = (
    "In the mean over three draws, by MSP, where FPR95 is the share of usual images flagged at 95 % of the unknown: "
    "with drawn objects that agree with the texture behind them at a rate of 0.9, FPR95 on textures alone is with "
    "ASCOOD at least 10 points below that of the plain classifier, and below that of the same changes at random "
    "places, with accuracy no more than 1 point below the plain one's; on CIFAR-10 (mean of four far sets) and on 17 "
    "mammals (two dogs and a cat held out) it is below that of the plain classifier."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"tasks": (DRAWN,), "methods": (OURS, RANDOM), "drawn": 600, "width": 8, "epochs": 6, "test": 500},
    "full": {
        "tasks": (DRAWN, CIFAR, MAMMALS),
        "methods": (OURS, RANDOM, MINUS, SHUFFLED, OE),
        "drawn": 1000,
        "width": 16,
        "epochs": 12,
        "test": 2000,
    },
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: few and small drawn images, two ways, and one draw."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    runs = {DRAWN: _on_drawn_objects, CIFAR: _on_cifar, MAMMALS: _on_mammals}
    jobs = [(task, seed) for task in size["tasks"] for seed in seeds]
    rows = []
    for i, (task, seed) in enumerate(jobs):

        def told_of(what: str, share: float, i: int = i, job: str = f"{task}, draw {seed}") -> None:
            progress(f"{what}, {job}", (i + share) / len(jobs))

        rows += [{"images": task} | row for row in runs[task](size, seed, told_of)]
    mean = means(rows, "images", "method", "unknown")

    def at(task: str, method: str, unknown: str, what: str = "FPR95") -> float:
        return pick(mean, what, images=task, method=method, unknown=unknown)

    alone = {method: at(DRAWN, method, ALONE) for method in (PLAIN, HEAD, *size["methods"])}
    right = {method: at(DRAWN, method, ALONE, "accuracy") for method in (PLAIN, OURS)}
    parts = {
        "textures alone": alone[OURS] <= alone[PLAIN] - FEWER,
        "salient places": alone[OURS] < alone[RANDOM],
        "accuracy": right[OURS] >= right[PLAIN] - LOST,
    }
    told_as = {
        "textures alone": f"FPR95 {alone[OURS]:.3f}, plain {alone[PLAIN]:.3f}",
        "salient places": f"at random places {alone[RANDOM]:.3f}",
        "accuracy": f"{right[OURS]:.3f}, plain {right[PLAIN]:.3f}",
    }
    for task, unknown in ((CIFAR, FAR), (MAMMALS, FINE)):
        if task in size["tasks"]:
            ours, plain = at(task, OURS, unknown), at(task, PLAIN, unknown)
            parts[task], told_as[task] = ours < plain, f"FPR95 {ours:.3f}, plain {plain:.3f}"
    return Claim(
        paper="ASCOOD",
        published="FPR95 on Waterbirds 11.4 %, MSP 60.4 %; on cars 40.8 % and 58.2 %; on CIFAR-10 7.7 % and 29.9 %",
        measure="FPR95 on textures without their object, by MSP (smaller is better)",
        ours=alone[OURS],
        baseline=(PLAIN, alone[PLAIN]),
        peer=(OE, alone[OE]) if OE in alone else (HEAD, alone[HEAD]),
        threshold=THRESHOLD,
        holds=all(parts.values()),
        note=" ".join(f"{what[0].upper()}{what[1:]} {verdict(fits)}: {told_as[what]}." for what, fits in parts.items()),
        numbers={"Means over draws": mean, "By draw": rows},
        seeds=seeds,
        budget=budget,
    )


def _on_drawn_objects(size: dict[str, Any], seed: int, progress: Progress) -> list[dict[str, Any]]:
    """Discs and crosses, mostly on waves and on strokes; unknown are bare textures, other objects and far images."""
    import torch

    from farout.kit.nets import SmallCNN
    from farout.ood.ascood import ASCOOD, strength_for
    from farout.ood.mixoe import OutlierExposure

    pixels, rng = 16, np.random.default_rng(seed)

    def drawn(objects: np.ndarray | None, textures: np.ndarray, part: int) -> Tensor:
        return torch.from_numpy(objects_on_textures(objects, textures, pixels, 10 * seed + part))

    y, labels, textures = (rng.integers(2, size=n) for n in (size["drawn"], size["test"], size["test"]))
    x = drawn(y, agreeing(y, AGREEING, 10 * seed), 0)
    usual = drawn(labels, agreeing(labels, AGREEING, 10 * seed + 1), 1)
    unknown = {
        ALONE: drawn(None, textures, 2),
        "other objects": drawn(2 + rng.integers(2, size=size["test"]), textures, 3),
        "digits": pictures("mnist-test", size=pixels, rows=size["test"]),
        "noise": torch.randn(size["test"], 3, pixels, pixels, generator=torch.Generator().manual_seed(seed)),
    }
    settings = {"epochs": size["epochs"], "batch_size": 32, "seed": seed}

    def net() -> nn.Module:
        return SmallCNN(2, width=size["width"], seed=seed)

    progress(PLAIN, 0.05)
    data = _data(x, y)
    plain, head = _plain(net(), data, settings), _plain(_standardized(net()), data, settings)
    models = {PLAIN: plain, HEAD: head}
    most = strength_for(head, data[0][:512], data[1][:512], ratio=RATIO)
    methods = {
        OURS: ASCOOD(weight=0.1, strongest=most, weakest=most / 10),
        RANDOM: ASCOOD(weight=0.1, strongest=most, weakest=most / 10, places="random"),
        MINUS: ASCOOD(weight=0.1, strongest=most, weakest=most / 10, sign=-1),
        SHUFFLED: ASCOOD(weight=0.1, how="shuffle"),
    }
    for i, name in enumerate(size["methods"]):
        progress(name, 0.2 + 0.8 * i / len(size["methods"]))
        if name == OE:
            outliers = pictures("textures64", "tin-texture", size=pixels).to(data[0].device)
            models[name] = _exposed(net(), OutlierExposure(), outliers, data, settings)
        else:
            models[name] = _tampered(_standardized(net()), methods[name], data, settings)
    return [
        row for name, model in models.items() for row in told(model, usual, labels, unknown, method=name, seed=seed)
    ]


def _on_cifar(size: dict[str, Any], seed: int, progress: Progress) -> list[dict[str, Any]]:
    """CIFAR-10 from published weights of a ResNet-20; what is unknown is stored as CIFAR-10 is."""
    import torch

    from farout.data.images import image_set, resnet20_cifar10, to_tensor
    from farout.kit.augment import crop_and_flip
    from farout.kit.nets import ResNetCIFAR
    from farout.ood.ascood import ASCOOD

    progress("images", 0.0)
    train, test = image_set("cifar10-train", 10_000), image_set("cifar10-test", 4_000)
    far = {"mnist": "mnist-test", "textures64": "textures64", "scene": "tin-scene", "object": "tin-object"}
    unknown = {name: pictures(found, rows=1000, coded=True) for name, found in far.items()}
    data, usual = _data(to_tensor(train.images), train.labels), to_tensor(test.images)
    settings = {"epochs": 6, "seed": seed, "learning_rate": 0.01, "augment": crop_and_flip}

    def net() -> nn.Module:
        model = ResNetCIFAR()
        model.load_state_dict({name: torch.from_numpy(value) for name, value in resnet20_cifar10().items()})
        return model

    progress(PLAIN, 0.05)
    models = {PLAIN: _plain(net(), data, settings)}
    progress(OURS, 0.25)
    models[OURS] = _tampered(_standardized(net()), ASCOOD(how="shuffle", share=0.15), data, settings)
    rows = []
    for name, model in models.items():
        found = told(model, usual, test.labels, unknown, method=name, seed=seed)
        rows += [*found, found[0] | {"unknown": FAR} | {k: float(np.mean([r[k] for r in found])) for k in MEASURES}]
    return rows


def _on_mammals(size: dict[str, Any], seed: int, progress: Progress) -> list[dict[str, Any]]:
    """17 mammals; two dogs and a cat are unknown, and so are scenes and objects."""
    from farout.kit.nets import ResNet18
    from farout.ood.ascood import ASCOOD

    progress("images", 0.0)
    task = mammals()
    data = _data(task.x, task.y)
    settings = {"epochs": 30, "seed": seed, "augment": task.augment}

    def net() -> nn.Module:
        return ResNet18(int(task.y.max()) + 1, width=32, seed=seed)

    progress(PLAIN, 0.05)
    models = {PLAIN: _plain(net(), data, settings)}
    progress(OURS, 0.25)
    cars = ASCOOD(strongest=0.1, weakest=0.1)  # as the paper has it for cars and aircraft
    models[OURS] = _tampered(_standardized(net()), cars, data, settings)
    return [
        row
        for name, model in models.items()
        for row in told(model, task.usual, task.labels, task.unknown, method=name, seed=seed)
    ]


def _data(x: Tensor, y: np.ndarray) -> tuple[Tensor, Tensor]:
    import torch

    from farout.kit.training import device_named

    device = device_named("auto")
    return x.to(device), torch.tensor(y, device=device)


def _standardized(net: Any) -> nn.Module:
    from farout.ood.ascood import StandardizedHead

    net.linear = StandardizedHead(net.linear)
    return net


def _plain(net: nn.Module, data: tuple[Tensor, Tensor], settings: dict[str, Any]) -> nn.Module:
    from farout.kit.fitting import cross_entropy_step

    return _fitted(net, cross_entropy_step, data, settings)


def _tampered(net: nn.Module, method: Any, data: tuple[Tensor, Tensor], settings: dict[str, Any]) -> nn.Module:
    """Train on images and on outliers made from them, less and less strongly."""
    import torch

    generator, done = torch.Generator().manual_seed(settings["seed"]), [0.0]

    def step(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return method.losses(model, x, y, method.strength(done[-1]), generator)

    return _fitted(net, step, data, settings | {"progress": done.append})


def _exposed(
    net: nn.Module, method: Any, outliers: Tensor, data: tuple[Tensor, Tensor], settings: dict[str, Any]
) -> nn.Module:
    """Train on images and as many outliers of a set."""
    from farout.kit.fitting import Cycle

    batches = Cycle(outliers, batch_size=settings["batch_size"], seed=settings["seed"])

    def step(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return method.losses(model, x, y, next(batches)[0][: len(x)])

    return _fitted(net, step, data, settings)


def _fitted(
    net: nn.Module, step: Callable[..., dict[str, Tensor]], data: tuple[Tensor, Tensor], settings: dict[str, Any]
) -> nn.Module:
    from farout.kit.fitting import fit

    net.to(data[0].device)
    fit(net, step, data, amp=data[0].is_cuda, **settings)
    return net
