"""Mahalanobis: far and adversarial inputs by all stages of a network, and classes that are added without training."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.bench.metrics import auroc
from farout.claims._claim import Claim
from farout.claims._post_hoc import SIZES, table
from farout.claims._tables import Progress, verdict

FAR = ("textures64", "mnist-test")
STRENGTH = 8 / 255  # of an attack, where pixels go from 0 to 1
LEARNED = 0.1  # share of the images that weights of stages are learned from
NEW = 50  # images of each class that is added
GOOD = 0.9
THRESHOLD = (
    "(1) On CIFAR-10 as it is stored here, a ResNet-20 against textures and digits stored alike, in the mean over "
    "three trainings: the AUROC of the stages' distances, all alike and nothing drawn from outliers, is above that "
    "of the energy on both. (2) Test images attacked by one step of 8/255 along the sign of the gradient, where the "
    "class was right before and under noise of that size and is wrong after, are told from those and from the noisy "
    "with an AUROC of at least 0.9 by weights of the stages that were learned from a tenth of them. (3) In a "
    f"network trained on the digits 0 to 4, with 5 to 9 added by {NEW} images each, the area under the accuracies on "
    "old and new digits, as the new ones are favoured more and more, is larger with the Mahalanobis distance than "
    "with the Euclidean."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one short training, and few images."""
    rows, seeds = table(budget, progress)
    mean = {
        name: {s: float(np.mean([r["auroc"] for r in rows if (r["method"], r["set"]) == (name, s)])) for s in FAR}
        for name in ("mahalanobis", "energy", "msp", "odin")
    }
    far = all(mean["mahalanobis"][s] > mean["energy"][s] for s in FAR)
    attacked, added = [], []
    for place, seed in enumerate(seeds):
        progress("attacks, and classes that are added", 0.5 + place / len(seeds) / 2)
        attacked.append({"seed": seed} | _attacked(budget, seed))
        added.append({"seed": seed} | _added(budget, seed))
    learned = float(np.mean([row["learned weights"] for row in attacked]))
    areas = {key: float(np.mean([row[key] for row in added])) for key in ("Mahalanobis", "Euclidean")}
    told = ", ".join(f"{s} {mean['mahalanobis'][s]:.3f} (energy {mean['energy'][s]:.3f})" for s in FAR)
    alike, plain = (float(np.mean([row[key] for row in attacked])) for key in ("all stages alike", "MSP"))
    note = (
        f"Far inputs {verdict(far)}: {told}. Attacks {verdict(learned >= GOOD)}: AUROC {learned:.3f} with learned "
        f"weights, {alike:.3f} with all stages alike, MSP {plain:.3f}. Added classes "
        f"{verdict(areas['Mahalanobis'] > areas['Euclidean'])}: area {areas['Mahalanobis']:.3f}, Euclidean "
        f"{areas['Euclidean']:.3f}."
    )
    return Claim(
        paper="Mahalanobis",
        published="ResNet-34 on CIFAR-10 against SVHN: AUROC 99.1 %, MSP 89.9 % and ODIN 96.7 %",
        measure="AUROC on CIFAR-10 against textures",
        ours=mean["mahalanobis"]["textures64"],
        baseline=("MSP", mean["msp"]["textures64"]),
        peer=("energy", mean["energy"]["textures64"]),
        threshold=THRESHOLD,
        holds=bool(far and learned >= GOOD and areas["Mahalanobis"] > areas["Euclidean"]),
        note=note,
        numbers={
            "Far inputs": [{"method": name} | of for name, of in mean.items()],
            "Attacks, AUROC": attacked,
            "Added classes, area": added,
        },
        seeds=seeds,
        budget=budget,
    )


def _attacked(budget: str, seed: int) -> dict[str, float]:
    """Attack test images, and tell them from clean and noisy ones."""
    import torch
    from torch.nn import functional as F

    from farout.claims._cifar import classifier
    from farout.data.images import DEVIATION, MEAN, image_set, to_tensor
    from farout.ood import extract
    from farout.ood.mahalanobis import Mahalanobis
    from farout.ood.msp import MSP

    usual, train, _ = SIZES[budget]
    net = classifier(seed, budget)
    known, new = image_set("cifar10-train", train), image_set("cifar10-test", 2 * usual)
    x_BCHW, y = to_tensor(new.images), torch.tensor(new.labels)
    mean, deviation = (torch.tensor(value)[:, None, None] for value in (MEAN, DEVIATION))

    def inside(z_BCHW: Any) -> Any:
        """Keep pixels between 0 and 1."""
        return ((z_BCHW * deviation + mean).clamp(0, 1) - mean) / deviation

    slopes = []
    for part, labels in zip(x_BCHW.split(256), y.split(256), strict=True):
        part = part.requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(net(part), labels, reduction="sum"), part)
        slopes.append(slope.sign())
    x_BCHW = x_BCHW.detach()
    noise = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(seed))
    kinds = {
        "clean": x_BCHW,
        "noisy": inside(x_BCHW + STRENGTH * noise / deviation),
        "attacked": inside(x_BCHW + STRENGTH * torch.cat(slopes) / deviation),
    }
    needs = ("logits", "stages")
    views = {kind: extract(net, of, needs=needs) for kind, of in kinds.items()}
    right = {kind: of.logits.argmax(1) == y for kind, of in views.items()}
    kept = right["clean"] & right["noisy"] & ~right["attacked"]
    score = Mahalanobis("stages").fit(
        extract(net, to_tensor(known.images), needs=needs), torch.tensor(known.labels.copy())
    )
    layers = {kind: score.layer_scores(of)[kept] for kind, of in views.items()}
    count = round(LEARNED * int(kept.sum()))
    usual_layers = [torch.cat([layers[kind][part] for kind in ("clean", "noisy")]) for part in _parts(count)]
    found = {"images": float(kept.sum())}
    alike, odd = score.weights_.clone(), [layers["attacked"][part] for part in _parts(count)]
    score.fit_weights(usual_layers[0], odd[0])
    msp = [torch.cat([MSP().score(views[kind])[kept][count:] for kind in kinds if kind != "attacked"])]
    msp.append(MSP().score(views["attacked"])[kept][count:])
    pairs = {
        "learned weights": (usual_layers[1] @ score.weights_, odd[1] @ score.weights_),
        "all stages alike": (usual_layers[1] @ alike, odd[1] @ alike),
        "MSP": tuple(msp),
    }
    for name, (before, after) in pairs.items():
        found[name] = auroc(np.repeat([0, 1], [len(before), len(after)]), torch.cat([before, after]).numpy())
    return found


def _parts(count: int) -> tuple[slice, slice]:
    return slice(count), slice(count, None)


def _added(budget: str, seed: int) -> dict[str, float]:
    """Train on five digits, add five, and return the area under the accuracies by distance."""
    import torch

    from farout.data.images import image_set, to_tensor
    from farout.kit.fitting import cross_entropy_step, fit
    from farout.kit.nets import SmallCNN
    from farout.kit.training import seeded
    from farout.ood import extract
    from farout.ood._score import features_of
    from farout.ood.mahalanobis import Mahalanobis

    rows, epochs = (1_000, 2) if budget == "small" else (10_000, 6)
    train, test = image_set("mnist-train", rows), image_set("mnist-test", rows)
    x_BCHW, y = to_tensor(train.images), torch.tensor(train.labels)
    old = y < 5
    with seeded(seed):
        net = SmallCNN(5, width=16)
    fit(net, cross_entropy_step, (x_BCHW[old], y[old]), epochs=epochs, learning_rate=0.05, seed=seed)
    views, new = extract(net, x_BCHW), extract(net, to_tensor(test.images))
    score = Mahalanobis("features").fit(views[old], y[old])
    features = features_of(views).double()
    means = [features[y == label].mean(0) for label in range(5)]
    generator = torch.Generator().manual_seed(seed)
    for label in range(5, 10):
        places = (y == label).nonzero()[:, 0]
        some = views[places[torch.randperm(len(places), generator=generator)[:NEW]]]
        score.add_class(some, label)
        means.append(features_of(some).double().mean(0))
    truth = torch.tensor(test.labels)
    distances = {
        "Mahalanobis": score.distances(new)["features"],
        "Euclidean": torch.cdist(features_of(new).double(), torch.stack(means)).square(),
    }
    return {name: _area(of, truth) for name, of in distances.items()}


def _area(distances: Any, truth: Any) -> float:
    """Return the area under (accuracy on old, accuracy on new) as a growing bonus moves answers to the new classes."""
    import torch

    old, new = distances[:, :5], distances[:, 5:]
    margin = new.amin(1) - old.amin(1)  # a bonus above it makes the answer a new class
    answers_old, answers_new = old.argmin(1), new.argmin(1) + 5
    bonuses = torch.cat([margin.min().view(1) - 1, margin.sort().values])
    is_old = truth < 5
    right_old = [(answers_old == truth)[is_old & (margin > bonus)].sum() / is_old.sum() for bonus in bonuses]
    right_new = [(answers_new == truth)[~is_old & (margin <= bonus)].sum() / (~is_old).sum() for bonus in bonuses]
    return abs(float(np.trapezoid(np.array(right_new), np.array(right_old))))
