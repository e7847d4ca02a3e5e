"""NOVA: what finds lesions in images like those that it learned from loses them in images of another protocol.

The threshold was changed after first runs, on other scenes. It had asked the same of PatchCore, which passed with an AP
of .01 on its own protocol, because its boxes are far too coarse; PatchCore is only shown since. The coarse protocol has
as many samples a side at every size since, where it had blocks of four pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from farout.bench.boxes import Found, Localisation, map_boxes
from farout.bench.metrics import auroc
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict
from farout.data.phantoms import PROTOCOLS, phantoms

KEPT = 0.5  # share of AP, at most
ANCHOR, NEAR = 0.680, 0.02
OWN, *OTHERS = PROTOCOLS
PIXELS, PEER = "per-pixel Gaussian", "PatchCore"
QUANTILE, LEAST = 0.999, 4  # of the maps of held-out normal heads; pixels of a box
THRESHOLD = (
    f"A {PIXELS} learns drawn heads of one protocol, and marks what lies above the 99.9 % quantile of other normal "
    "heads' maps. The mean AP of its boxes at an overlap of 0.3 over three other protocols (contrast inverted, bias "
    f"field, coarse sampling) is at most {KEPT:.0%} of that on its own protocol, in the mean over seeds. And on brain "
    f"MRI at 224 pixels the AUROC of Gaussian-AD is within {NEAR} of {ANCHOR}."
)
SIZES: dict[str, dict[str, int]] = {
    "small": {"train": 40, "normal": 20, "test": 12, "side": 64, "size": 128},
    "full": {"train": 200, "normal": 100, "test": 200, "side": 96, "size": 256},
}
SCENES = 1_000  # seeds of scenes begin here; those of smaller seeds were looked at


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget draws few heads, and takes brain MRI at once."""
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    rows = []
    for place, seed in enumerate(seeds):
        progress(f"heads, seed {seed}", 0.8 * place / len(seeds))
        rows += _heads(seed, SIZES[budget])
    progress("brain MRI", 0.8)
    brain = _brain()
    (own, other), (peer_own, peer_other) = (_mean(rows, method) for method in (PIXELS, PEER))
    lost, near = other <= KEPT * own, abs(brain - ANCHOR) <= NEAR
    return Claim(
        paper="NOVA",
        published="about 65 % lower localisation of vision-language models than on natural images",
        measure="AP at an overlap of 0.3; the first is on other protocols, the second on the own one",
        ours=other,
        baseline=(f"{PIXELS}, own protocol", own),
        peer=(f"{PEER}, other protocols", peer_other),
        threshold=THRESHOLD,
        holds=bool(lost and near),
        note=f"Localisation is lost, {verdict(lost)}: AP {own:.3f} on its own protocol and {other:.3f} on others. "
        f"Boxes from {PEER}'s maps have {peer_own:.3f} and {peer_other:.3f}. "
        f"Gaussian-AD on brain MRI has AUROC {brain:.3f}, which {verdict(near)}. The images of NOVA may not be passed "
        "on, and no language model is run here: this is the claim's shape, of detectors on drawn heads.",
        numbers={"By protocol": _table(rows), "By seed": rows},
        seeds=tuple(seeds),
        budget=budget,
    )


def _heads(seed: int, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Fit on normal heads, set the threshold on others, and judge boxes under all protocols."""
    from farout.image._detector import map_like
    from farout.image.patchcore import PatchCore

    side = sizes["side"]
    train = phantoms(sizes["train"], SCENES + 10 * seed, size=side, lesions=(0, 0)).images
    usual = phantoms(sizes["normal"], SCENES + 10 * seed + 1, size=side, lesions=(0, 0)).images
    peer = PatchCore(size=sizes["size"], device="auto", random_state=seed).fit(train)

    def peer_maps(x_BHW: np.ndarray) -> np.ndarray:
        return np.stack([map_like(one, (side, side)) for one in peer.score_maps(x_BHW)])

    rows = []
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {PIXELS: _pixel_gaussian(train), PEER: peer_maps}
    for method, maps in ways.items():
        threshold = float(np.quantile(maps(usual), QUANTILE))
        for protocol in PROTOCOLS:
            heads = phantoms(sizes["test"], SCENES + 10 * seed + 2, size=side, protocol=protocol)
            found = [
                Found(*map_boxes(one, threshold, LEAST), boxes) for one, boxes in zip(maps(heads.images), heads.boxes)
            ]
            local = Localisation(found)
            row = {
                "method": method,
                "protocol": protocol,
                "seed": seed,
                "AP@0.3": local.ap(0.3),
                "mAP": local.mean_ap(),
            }
            rows.append(row | {"any hit": float(local.hit.mean()), "false boxes": float(local.false.mean())})
    return rows


def _pixel_gaussian(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what maps images: how many deviations each pixel is off its mean, with a little blur."""
    from scipy.ndimage import gaussian_filter

    def blurred(x_BHW: np.ndarray) -> np.ndarray:
        return gaussian_filter(x_BHW.astype(float), (0, 1, 1))

    mean, deviation = blurred(train).mean(0), blurred(train).std(0)
    return lambda x_BHW: blurred(np.abs(blurred(x_BHW) - mean) / (deviation + 2))  # of 255: black corners do not vary


def _brain() -> float:
    """Return the AUROC of Gaussian-AD on brain MRI."""
    from farout.data.defects import defect_set
    from farout.image.gaussian_ad import GaussianAD

    found = defect_set("brain_mri")
    return auroc(found.labels, GaussianAD(size=224, device="auto").fit(found.train).outlier_score(found.test))


def _mean(rows: Sequence[dict[str, Any]], method: str) -> tuple[float, float]:
    """Mean AP on the own protocol, and over the others."""
    own = [row["AP@0.3"] for row in rows if row["method"] == method and row["protocol"] == OWN]
    other = [row["AP@0.3"] for row in rows if row["method"] == method and row["protocol"] != OWN]
    return float(np.mean(own)), float(np.mean(other))


def _table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    found = []
    for method in (PIXELS, PEER):
        for protocol in PROTOCOLS:
            own = [row for row in rows if row["method"] == method and row["protocol"] == protocol]
            numbers = {name: float(np.mean([row[name] for row in own])) for name in list(own[0])[3:]}
            found.append({"method": method, "protocol": protocol} | numbers)
    return found
