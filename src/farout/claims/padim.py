"""PaDiM: a Gaussian at each place sees defects that one of the whole image misses, and 100 random channels will do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from farout.claims._claim import Claim
from farout.claims._image_detectors import on_defects
from farout.claims._tables import Progress, verdict

SETS = ("magnetic_tile", "cookie", "deep_pcb")  # those whose defects are marked
FEW, LOSS = 100, 0.01
THRESHOLD = (
    "Ready-made features of EfficientNet-Lite0, nothing trained. In the mean over three seeds and over "
    f"{', '.join(SETS)}, the image AUROC of PaDiM is above that of Gaussian-AD; and with {FEW} random channels image "
    f"and pixel AUROC are at most {LOSS * 100:.0f} point below those with all 176."
)
OURS, WHOLE, BASELINE, PEER = "PaDiM", "PaDiM, all channels", "Gaussian-AD", "PatchCore"


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both parts must hold. The small budget has two sets of a few images."""
    from farout.image.gaussian_ad import GaussianAD
    from farout.image.padim import PaDiM
    from farout.image.patchcore import PatchCore

    kinds: dict[str, Callable[..., Any]] = {
        OURS: partial(PaDiM, dimensions=FEW),
        WHOLE: partial(PaDiM, dimensions=176),
        BASELINE: GaussianAD,
        PEER: PatchCore,
    }
    sets = SETS[:2] if budget == "small" else SETS
    found, seeds = on_defects(kinds, sets, budget, progress)
    above = found.mean(OURS) > found.mean(BASELINE)
    losses = {one: found.mean(WHOLE, one) - found.mean(OURS, one) for one in ("auroc", "pixel_auroc")}
    kept = max(losses.values()) <= LOSS
    note = (
        f"PaDiM above Gaussian-AD {verdict(above)}: mean image AUROC "
        + ", ".join(f"{name} {found.mean(name):.3f}" for name in kinds)
        + f"; {FEW} channels lose at most {LOSS * 100:.0f} point {verdict(kept)}: images "
        f"{-losses['auroc'] * 100:+.1f}, pixels {-losses['pixel_auroc'] * 100:+.1f}. Pixel AUROC "
        + ", ".join(f"{name} {found.mean(name, 'pixel_auroc'):.3f}" for name in (OURS, WHOLE, PEER))
        + "."
    )
    return Claim(
        paper="PaDiM",
        published="MVTec AD, WideResNet-50-2: image AUROC 95.3, pixel AUROC 97.5; ResNet-18 with 100 of 448 channels "
        "loses 0.4 points of pixel AUROC",
        measure=f"mean image AUROC over {len(sets)} sets of defects",
        ours=found.mean(OURS),
        baseline=(BASELINE, found.mean(BASELINE)),
        peer=(PEER, found.mean(PEER)),
        threshold=THRESHOLD,
        holds=bool(above and kept),
        note=note,
        numbers=found.tables(),
        seeds=seeds,
        budget=budget,
    )
