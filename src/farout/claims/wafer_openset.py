"""Wafer open-set: a sparse network at full resolution sees thin patterns, and a mixture on its latent unseen ones.

How heavy the background is, how many defects a scratch has, and the stem and head of the networks were settled on
wafers of other seeds before the threshold was written.
"""

from __future__ import annotations

from farout.claims import _wafer_lab as lab
from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

THRESHOLD = (
    "Wafers are drawn at 4,096 places a side, networks are trained for as many epochs on the same wafers, and numbers "
    "are means over three seeds. (1) With all of seven kinds known, faint and in a heavy background, F1 of scratches, "
    "the thin kind, is higher by the sparse network on places than by a dense one with about as many weights on "
    "counts in 32 x 32 bins. (2) With Donut and Scratch left out of training and threshold, the AUROC of the Gaussian "
    "mixture on the latent of the sparse network, known against novel, is above that of the maximum softmax of the "
    "same network."
)
THIN = "Scratch"
SIZES = {
    "small": lab.Size(14, 6, 3, 16, (6, 8, 12, 16, 16, 16), (12, 16, 16, 22), "cpu"),
    "full": lab.Size(300, 100, 30, 64, (16, 32, 48, 64, 64, 64), (32, 64, 72, 84)),
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both parts must hold. The small budget has a few wafers and one seed."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    told, novel = [], []
    for place, seed in enumerate(seeds):
        faint = lab.drawn(lab.closed_kinds(), size, seed, **lab.FAINT)
        clear = lab.drawn(lab.known_kinds(), size, seed)
        for part, (name, detector) in enumerate(size.detectors(seed).items()):
            progress(f"seed {seed}, {name}", (place + part / 2) / len(seeds))
            told.append(lab.closed(name, detector, faint, seed))
            novel += lab.opened(name, detector, clear, seed)
    known, found = lab.means(told, ("network",)), lab.means(novel, ("network", "score"))
    thin = {row["network"]: row[THIN] for row in known}
    accuracy = {row["network"]: row["accuracy"] for row in known}
    weights = {row["network"]: round(row["weights"]) for row in known}
    auroc = {(row["network"], row["score"]): row["AUROC"] for row in found}
    real = {(row["network"], row["score"]): row["real AUROC"] for row in found}
    ours, baseline, peer = (auroc["sparse", score] for score in (lab.MIXTURE, lab.SOFTMAX, lab.PEER))
    sees, tells = thin["sparse"] > thin["dense"], ours > baseline
    note = (
        f"(1) {verdict(sees)}: F1 of scratches {thin['sparse']:.3f} sparse and {thin['dense']:.3f} dense, accuracy "
        f"over all seven kinds {accuracy['sparse']:.3f} and {accuracy['dense']:.3f}, with {weights['sparse']:,} and "
        f"{weights['dense']:,} weights. (2) {verdict(tells)}: AUROC of novel kinds {ours:.3f} by the mixture, "
        f"{baseline:.3f} by max softmax and {peer:.3f} by nearest neighbours on the sparse network, "
        f"{auroc['dense', lab.MIXTURE]:.3f} and {auroc['dense', lab.SOFTMAX]:.3f} by mixture and max softmax on the "
        "dense one. On the 104 real maps of MixedWM38, which know 52 dies a side and which no network was trained on, "
        f"mixture and max softmax have {real['sparse', lab.MIXTURE]:.3f} and {real['sparse', lab.SOFTMAX]:.3f} on the "
        f"sparse network, {real['dense', lab.MIXTURE]:.3f} and {real['dense', lab.SOFTMAX]:.3f} on the dense one."
    )
    return Claim(
        paper="Wafer OpenSet",
        published="on private maps: a sparse network better than dense ones on bins, and a Gaussian mixture better "
        "than other open-set methods; the abstract has no number",
        measure="AUROC, known drawn wafers against Donut and Scratch, sparse network",
        ours=ours,
        baseline=(lab.SOFTMAX, baseline),
        peer=(lab.PEER, peer),
        threshold=THRESHOLD,
        holds=bool(sees and tells),
        note=note,
        numbers={
            "All kinds known, faint: accuracy, and F1 of each kind": known,
            "Donut and Scratch unknown": found,
            "All kinds known, by seed": told,
            "Donut and Scratch unknown, by seed": novel,
        },
        seeds=tuple(seeds),
        budget=budget,
    )
