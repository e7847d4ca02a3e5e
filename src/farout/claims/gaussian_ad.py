"""Gaussian-AD: a covariance of ready-made features tells defects, the distance to their mean hardly does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from farout.claims._claim import Claim
from farout.claims._image_detectors import on_defects
from farout.claims._tables import Progress, verdict

SETS = ("magnetic_tile", "solar_mono", "cookie")
LARGE = ("magnetic_tile", "solar_mono")  # some 250 images to learn from and more
GAIN, LOSS = 0.05, 0.02
THRESHOLD = (
    "Ready-made features of EfficientNet-Lite0, nothing trained. In the mean over three seeds, the image AUROC of the "
    f"Gaussians is on each of {', '.join(SETS)} at least {GAIN * 100:.0f} points above that of the distance to the "
    f"mean; and in the mean over {' and '.join(LARGE)}, the minor components alone (without those that have 99 % of "
    f"the variance) lose at most {LOSS * 100:.0f} points."
)
OURS, MINOR, PRINCIPAL, MEAN, PEER = "Gaussian-AD", "minor components", "principal components", "mean", "PatchCore"


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both parts must hold.

    The distance to the mean is the Gaussian whose covariance is shrunk to a multiple of the identity: at each depth it
    is divided by the mean deviation of a channel. The small budget has two sets of a few images.
    """
    from farout.image.gaussian_ad import GaussianAD
    from farout.image.patchcore import PatchCore

    kinds: dict[str, Callable[..., Any]] = {
        OURS: GaussianAD,
        MINOR: partial(GaussianAD, components="minor"),
        PRINCIPAL: partial(GaussianAD, components="principal"),
        MEAN: partial(GaussianAD, shrinkage=1.0),
        PEER: PatchCore,
    }
    sets = ("magnetic_tile", "cookie") if budget == "small" else SETS
    found, seeds = on_defects(kinds, sets, budget, progress)
    gains = {name: found.mean(OURS, sets=[name]) - found.mean(MEAN, sets=[name]) for name in sets}
    large = [name for name in sets if name in LARGE]
    loss = found.mean(OURS, sets=large) - found.mean(MINOR, sets=large)
    above, kept = min(gains.values()) >= GAIN, loss <= LOSS
    note = (
        f"The covariance is worth {GAIN * 100:.0f} points on each set {verdict(above)} ("
        + ", ".join(f"{name} {gain * 100:+.1f}" for name, gain in gains.items())
        + f"); the minor components alone lose at most {LOSS * 100:.0f} points {verdict(kept)} ({-loss * 100:+.1f}). "
        "Mean AUROC over the sets: " + ", ".join(f"{name} {found.mean(name):.3f}" for name in kinds) + "."
    )
    return Claim(
        paper="Gaussian-AD",
        published="MVTec AD, EfficientNet-B4: image AUROC 95.8 +- 1.2 without training; minor components keep it",
        measure=f"mean image AUROC over {len(sets)} sets of defects",
        ours=found.mean(OURS),
        baseline=("distance to the mean", found.mean(MEAN)),
        peer=(PEER, found.mean(PEER)),
        threshold=THRESHOLD,
        holds=bool(above and kept),
        note=note,
        numbers=found.tables(),
        seeds=seeds,
        budget=budget,
    )
