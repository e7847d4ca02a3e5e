"""PatchCore: neighbours among patches of normal images see more than Gaussians do, and 1 % of the patches will do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from farout.claims._claim import Claim
from farout.claims._image_detectors import on_defects
from farout.claims._tables import Progress, verdict

SETS = ("magnetic_tile", "cookie", "solar_mono")
SHARE, LOSS = 0.01, 0.01
THRESHOLD = (
    "Ready-made features of EfficientNet-Lite0, nothing trained. In the mean over three seeds and over "
    f"{', '.join(SETS)}, the image AUROC of PatchCore with {SHARE:.0%} of the patches is at least that of PaDiM, above "
    f"that of Gaussian-AD, and at most {LOSS * 100:.0f} point below that with all patches."
)
OURS, WHOLE, BASELINE, PEER = "PatchCore", "PatchCore, all patches", "PaDiM", "Gaussian-AD"


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget has two sets of a few images."""
    from farout.image.gaussian_ad import GaussianAD
    from farout.image.padim import PaDiM
    from farout.image.patchcore import PatchCore

    kinds: dict[str, Callable[..., Any]] = {
        OURS: partial(PatchCore, coreset=SHARE),
        WHOLE: partial(PatchCore, coreset=1.0),
        BASELINE: PaDiM,
        PEER: GaussianAD,
    }
    sets = SETS[:2] if budget == "small" else SETS
    found, seeds = on_defects(kinds, sets, budget, progress)
    means = {name: found.mean(name) for name in kinds}
    places, images = means[OURS] >= means[BASELINE], means[OURS] > means[PEER]
    kept = means[WHOLE] - means[OURS] <= LOSS
    note = (
        f"At least PaDiM {verdict(places)}, above Gaussian-AD {verdict(images)}, {SHARE:.0%} of the patches within "
        f"{LOSS * 100:.0f} point of all {verdict(kept)}: mean image AUROC "
        + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        + "; pixel AUROC "
        + ", ".join(f"{name} {found.mean(name, 'pixel_auroc'):.3f}" for name in (OURS, WHOLE, BASELINE))
        + "."
    )
    return Claim(
        paper="PatchCore",
        published="MVTec AD, WideResNet-50: image AUROC 99.0 with 1 % of the patches and 99.1 with 25 %; PaDiM 95.3",
        measure=f"mean image AUROC over {len(sets)} sets of defects",
        ours=means[OURS],
        baseline=(BASELINE, means[BASELINE]),
        peer=(PEER, means[PEER]),
        threshold=THRESHOLD,
        holds=bool(places and images and kept),
        note=note,
        numbers=found.tables(),
        seeds=seeds,
        budget=budget,
    )
