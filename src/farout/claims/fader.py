"""FADeR: a network that paints images anew finds defects better where it lets less of bad patches through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

SETS = ("cookie", "magnetic_tile")
BASES = ("checkerboard", "reconstruction")
THRESHOLD = (
    "Painters are trained on cookie and magnetic_tile, behind a checkerboard and without a mask, with attenuation and "
    "without, for the same number of steps. For each of the two bases, in the mean over both sets and three seeds, "
    "attenuation raises the AUROC of images and of pixels, and lowers the share of the pixels of good test images that "
    "lie above the median of marked pixels."
)
PEER = "Gaussian-AD"
FALSE = "false area"
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "most": 16,
        "net": {"size": 64, "widths": (8, 16), "cell": 8, "steps": 8, "smoothing": 1.0, "batch_size": 4},
    },
    "full": {"most": None, "net": {"size": 128, "cell": 8, "steps": 1_000, "smoothing": 2.0}},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; it must hold for both bases. The small budget hardly trains, at 64 pixels and with one seed."""
    from farout.bench.defects import MEASURES, defects
    from farout.data.defects import defect_set

    seeds = SEEDS[:1] if budget == "small" else SEEDS
    size, rows = SIZES[budget], []
    cells = [(name, seed) for name in SETS for seed in seeds]
    for turn, (name, seed) in enumerate(cells):

        def report(text: str, done: float, turn: int = turn) -> None:
            progress(text, (turn + done) / len(cells))

        made: dict[str, Any] = {}
        found = defects(_methods(size["net"], made), [name], [seed], most=size["most"], progress=report).to_dicts()
        images = defect_set(name)
        rows += [row | {FALSE: _false_area(made[row["method"]], images, size["most"])} for row in found]
    names = ("auroc", *MEASURES[1:], FALSE)
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        table.append({"method": method} | {one: _mean([row[one] for row in own]) for one in names})
    means = {row["method"]: row for row in table}
    verdicts, words = [], []
    for base in BASES:
        with_it, without = means[_name(base, True)], means[_name(base, False)]
        held = [with_it[one] > without[one] for one in ("auroc", "pixel_auroc")] + [with_it[FALSE] < without[FALSE]]
        verdicts += held
        numbers = ", ".join(
            f"{what} {without[one]:.3f} to {with_it[one]:.3f}"
            for what, one in (("image AUROC", "auroc"), ("pixel AUROC", "pixel_auroc"), (FALSE, FALSE))
        )
        words.append(f"{base} {verdict(all(held))} ({numbers})")
    ours, alone = means[_name(BASES[0], True)], means[_name(BASES[0], False)]
    return Claim(
        paper="FADeR",
        published="MVTec AD and VisA: a higher AUROC of images and pixels and fewer false alarms than without",
        measure=f"mean image AUROC over {' and '.join(SETS)}, behind a {BASES[0]}",
        ours=ours["auroc"],
        baseline=(_name(BASES[0], False), alone["auroc"]),
        peer=(PEER, means[PEER]["auroc"]),
        threshold=THRESHOLD,
        holds=all(verdicts),
        note=f"That attenuation helps, by base: {'; '.join(words)}. {PEER} has {means[PEER]['auroc']:.3f}.",
        numbers={
            "Means over sets and seeds": table,
            "By set and seed": [{k: v for k, v in row.items() if k not in ("error", "f1", "ap")} for row in rows],
        },
        seeds=tuple(seeds),
        budget=budget,
    )


def _name(base: str, attenuate: bool) -> str:
    return f"{base} + FADeR" if attenuate else base


def _methods(settings: dict[str, Any], made: dict[str, Any]) -> dict[str, Callable[[int], Any]]:
    """Say how detectors are made; each made one is kept by its name."""
    from farout.image.fader import FADeR
    from farout.image.gaussian_ad import GaussianAD

    def maker(name: str, kind: Any, **given: Any) -> Callable[[int], Any]:
        def make(seed: int) -> Any:
            made[name] = kind(**given, device="auto", random_state=seed)
            return made[name]

        return make

    painters = {
        _name(base, on): maker(_name(base, on), FADeR, **settings, base=base, attenuate=on)
        for base in BASES
        for on in (False, True)
    }
    return painters | {PEER: maker(PEER, GaussianAD, size=settings["size"])}


def _false_area(detector: Any, images: Any, most: int | None) -> float | None:
    """Return the share of the pixels of good test images above the median of marked pixels; None without maps."""
    from farout.image import map_like

    if not hasattr(detector, "base"):
        return None
    good = [i for i in images.marked if images.kinds[i] == "good"][:most]
    marked = [i for i in images.marked if images.masks[i] is not None][:most]
    maps = detector.score_maps([images.test[i] for i in marked])
    masks = [images.mask(i) for i in marked]
    limit = np.median(np.concatenate([map_like(one, mask.shape)[mask] for one, mask in zip(maps, masks)]))
    return float(np.mean(detector.score_maps([images.test[i] for i in good]) > limit))


def _mean(values: list[Any]) -> float | None:
    """Return the mean of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
