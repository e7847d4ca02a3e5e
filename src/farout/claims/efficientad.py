"""EfficientAD: each of its four ideas is worth something, measured by leaving it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._image_detectors import Found
from farout.claims._tables import SEEDS, Progress, verdict

SETS = ("magnetic_tile", "cookie", "solar_mono")
LAID_OUT = ("cookie", "solar_mono")  # whose parts have their places
THRESHOLD = (
    "A teacher is made of EfficientNet-Lite0 on small natural images. In the mean over three seeds and over "
    f"{', '.join(SETS)}, the image AUROC of EfficientAD-S is (1) with the hard loss, p = 0.999, above that with the "
    "plain squared error, p = 0; (2) with the penalty on natural images above that without; (3) with maps normalised "
    f"by quantiles above that with the mean of the raw maps; and (4) on {' and '.join(LAID_OUT)}, normal test images "
    "are told from copies of which two parts have changed places better with the autoencoder's map than without."
)
OURS, PLAIN, FREE = "EfficientAD-S", "p_hard = 0", "no penalty"
RAW, ALONE = "raw maps", "no autoencoder"
BASELINE, PEER = "Gaussian-AD", "PatchCore"
NATURAL = ("animals-train", *(f"tin-{group}" for group in ("near_animal", "scene", "texture", "object", "food")))
SWAPS = 4  # copies of each normal image, with other parts swapped
# The paper takes 70,000 steps for a student and 60,000 for a teacher.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "sets": ("cookie",),
        "most": 8,
        "rows": 4,
        "distil": {"steps": 2, "batch_size": 2, "size": 64},
        "detector": {"size": 64, "batch_size": 8, "steps": 2, "device": "cpu"},
        "others": {"size": 64, "batch_size": 8, "device": "cpu"},
    },
    "full": {
        "sets": SETS,
        "most": None,
        "rows": None,
        "distil": {"steps": 2_500, "batch_size": 16, "size": 256},
        "detector": {"size": 256, "batch_size": 32, "steps": 2_000, "device": "auto"},
        "others": {"device": "auto"},
    },
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all four parts must hold. The small budget takes two steps, to see that all runs."""
    from farout.bench.defects import defects
    from farout.image.efficientad import EfficientAD, distil
    from farout.image.gaussian_ad import GaussianAD
    from farout.image.patchcore import PatchCore

    size = SIZES[budget]
    seeds, sets = (SEEDS[:1] if budget == "small" else SEEDS), size["sets"]
    progress("natural images", 0.0)
    pixels = size["detector"]["size"]
    natural = _mosaics(size["rows"], pixels)
    penalty = _mosaics(size["rows"], 2 * pixels, rounds=3)  # larger, and fewer otherwise
    teacher = distil(
        natural,
        device=size["detector"]["device"],
        progress=lambda done: progress("the teacher", 0.15 * done),
        **size["distil"],
    )
    made: list[Any] = []  # of OURS, in the order of sets and seeds

    def ours(seed: int) -> Any:
        made.append(EfficientAD(teacher=teacher, penalty_images=penalty, random_state=seed, **size["detector"]))
        return made[-1]

    changed: dict[str, dict[str, Any]] = {
        PLAIN: {"penalty_images": penalty, "hard": 0.0},
        FREE: {"penalty_images": None},
    }
    methods: dict[str, Callable[[int], Any]] = {OURS: ours}
    for name, settings in changed.items():
        kind = partial(EfficientAD, teacher=teacher, **settings, **size["detector"])
        methods[name] = lambda seed, kind=kind: kind(random_state=seed)  # type: ignore[misc]
    methods[BASELINE] = lambda seed: GaussianAD(random_state=seed, **size["others"])
    methods[PEER] = lambda seed: PatchCore(random_state=seed, **size["others"])
    found = Found(
        defects(
            methods,
            sets,
            seeds,
            most=size["most"],
            progress=lambda what, done: progress(what, 0.15 + 0.75 * done),
        )
    )
    rows = []
    for place, ((name, seed), detector) in enumerate(zip(product(sets, seeds), made)):
        progress(f"maps on {name}", 0.9 + 0.1 * place / len(made))
        rows.append({"set": name, "seed": seed} | _by_maps(detector, name, size["most"], seed))
    means = {name: found.mean(name) for name in methods}
    means[RAW] = _mean(rows, RAW, sets)
    laid_out = [name for name in sets if name in LAID_OUT]
    swapped = {name: _mean(rows, f"swapped, {name}", laid_out) for name in (OURS, ALONE)}
    parts = {
        "the hard loss above the plain one": means[OURS] > means[PLAIN],
        "the penalty above none": means[OURS] > means[FREE],
        "quantile maps above raw ones": means[OURS] > means[RAW],
        "swapped parts better with the autoencoder": swapped[OURS] > swapped[ALONE],
    }
    note = (
        "; ".join(f"{part} {verdict(holds)}" for part, holds in parts.items())
        + ". Mean image AUROC: "
        + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        + f". Swapped parts: {swapped[OURS]:.3f} with the autoencoder, {swapped[ALONE]:.3f} without. Students took "
        f"{size['detector']['steps']:,} steps of one image, the teacher {size['distil']['steps']:,}."
    )
    return Claim(
        paper="EfficientAD",
        published="Image AUROC of S on MVTec AD 98.8, VisA 97.5, MVTec LOCO 90.0",
        measure=f"mean image AUROC over {len(sets)} set{'s' if len(sets) > 1 else ''} of defects",
        ours=means[OURS],
        baseline=(BASELINE, means[BASELINE]),
        peer=(PEER, means[PEER]),
        threshold=THRESHOLD,
        holds=all(parts.values()),
        note=note[0].upper() + note[1:],
        numbers={**found.tables(), "By maps": rows},
        seeds=tuple(seeds),
        budget=budget,
    )


def _mosaics(rows: int | None, side: int, rounds: int = 1) -> np.ndarray:
    """Lay natural images of 64 pixels side by side, as they are and at twice their size; uint8 (n, side, side, 3).

    Of 33 x 33 pixels, which the teacher sees at once, most then lie within one image.
    """
    from farout.data.images import image_set, resized

    small = [image_set(name, rows).images for name in (*NATURAL, "textures64")]
    images, rng = np.concatenate(small), np.random.default_rng(0)
    found = []
    for turn in range(2 * rounds):
        part, cell = images[rng.permutation(len(images))[: len(images) // 2]], min((64, 128)[turn % 2], side)
        count = side // cell
        scaled = resized(part, cell)
        scaled = scaled[: len(scaled) // count**2 * count**2].reshape(-1, count, count, cell, cell, 3)
        found.append(scaled.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 3))
    return np.concatenate(found)


def _by_maps(detector: Any, name: str, most: int | None, seed: int) -> dict[str, float]:
    """Return AUROCs of a fitted detector: on the test images by its raw maps, and on swapped parts."""
    from farout.bench._defect_cells import Images
    from farout.bench.metrics import auroc
    from farout.data.defects import defect_set
    from farout.io.image_batches import Batches

    images = Images(defect_set(name), most, 0.8)
    tested = [images.found.test[place] for place in images.tested]
    labels = images.found.labels[images.tested]
    x_BCHW = np.concatenate(list(Batches(tested, detector.size, detector.batch_size)))
    scores = _scores(detector, x_BCHW)
    usual = x_BCHW[labels == 0]
    strange = _scores(detector, _swapped(usual, np.random.default_rng(seed)))
    both = np.r_[np.zeros(len(usual)), np.ones(SWAPS * len(usual))].astype(int)
    found = {RAW: auroc(labels, scores[RAW]), ALONE: auroc(labels, scores[ALONE])}
    for kind in (OURS, ALONE):
        found[f"swapped, {kind}"] = auroc(both, np.r_[scores[kind][labels == 0], strange[kind]])
    return found


def _scores(detector: Any, x_BCHW: np.ndarray) -> dict[str, np.ndarray]:
    """Return scores by both maps, by the mean of the raw ones, and by the teacher's alone."""
    import torch

    from farout.image._detector import pixels
    from farout.image._efficientad_net import judged

    net, rows = detector.net_, []
    with torch.inference_mode():
        for part in torch.from_numpy(x_BCHW).split(detector.batch_size):
            x = pixels(part.to(net.mean.device))
            taught, coded = net.quantile_maps(x)
            maps = {OURS: (taught + coded) / 2, RAW: net.raw_maps(x).mean(0), ALONE: taught}
            rows.append({name: judged(one, net.size)[0].double().cpu().numpy() for name, one in maps.items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in (OURS, RAW, ALONE)}


def _swapped(x_BCHW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let one of the four parts in the middle and one of the twelve at the edge change places, of a grid of 4 x 4."""
    side = x_BCHW.shape[2] // 4
    cells = list(product(range(4), repeat=2))
    middle = [cell for cell in cells if set(cell) <= {1, 2}]
    edge = [cell for cell in cells if cell not in middle]
    found = np.repeat(x_BCHW, SWAPS, axis=0)
    for image, kept in zip(found, np.repeat(x_BCHW, SWAPS, axis=0)):
        drawn = (part[rng.integers(len(part))] for part in (middle, edge))
        (top, left), (low, right) = ([slice(side * i, side * (i + 1)) for i in cell] for cell in drawn)
        image[:, top, left], image[:, low, right] = kept[:, low, right], kept[:, top, left]
    return found


def _mean(rows: list[dict[str, Any]], name: str, sets: Sequence[str]) -> float:
    """Return the mean over seeds and sets."""
    return float(np.mean([row[name] for row in rows if row["set"] in sets]))
