"""FOD: correlations, within the image and with a reference, tell more than a bad reconstruction alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

SETS = ("cookie", "magnetic_tile")
THRESHOLD = (
    "Detectors are fitted on cookie and magnetic_tile. In the mean over both sets and three seeds, the image AUROC of "
    "FOD is above that of the error of reconstruction alone, of the same networks; and it is higher with both kinds of "
    "correlations learned than with those within the image only, and with those than with none."
)
OURS, ALONE, INTRA, NONE = "FOD", "error alone", "intra only", "reconstruction only"
BASELINE, PEER = "Gaussian-AD", "PaDiM"
# The tile has eight times as many images to learn from: nets take about as many steps on both sets.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "most": 24,
        "epochs": dict.fromkeys(SETS, 2),
        "net": {"size": 64, "widths": (32, 32), "depth": 1, "heads": 4, "batch_size": 8},
    },
    "full": {"most": None, "epochs": {"cookie": 60, "magnetic_tile": 8}, "net": {"batch_size": 2}},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all three parts must hold. The small budget hardly trains, at 64 pixels and with one seed."""
    from farout.bench.defects import MEASURES, defects

    seeds = SEEDS[:1] if budget == "small" else SEEDS
    size, rows = SIZES[budget], []
    cells = [(name, seed) for name in SETS for seed in seeds]
    for turn, (name, seed) in enumerate(cells):

        def report(text: str, done: float, turn: int = turn) -> None:
            progress(text, (turn + done) / len(cells))

        methods = _methods(size["net"] | {"epochs": size["epochs"][name]})
        rows += defects(methods, [name], [seed], most=size["most"], progress=report).to_dicts()
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        by_set = {name: _mean([row["auroc"] for row in own if row["set"] == name]) for name in SETS}
        others = {one: _mean([row[one] for row in own]) for one in MEASURES[1:]}
        table.append({"method": method, "auroc": _mean(list(by_set.values())), **by_set, **others})
    means = {row["method"]: row["auroc"] for row in table}
    weighs = means[OURS] > means[ALONE]
    both, one = means[OURS] > means[INTRA], means[INTRA] > means[NONE]
    note = (
        f"Weighed error above error alone {verdict(weighs)}, both correlations above one {verdict(both)}, one above "
        f"none {verdict(one)}: mean image AUROC over {len(SETS)} sets "
        + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        + "."
    )
    return Claim(
        paper="FOD",
        published="MVTec AD, a WideResNet-50-2 or EfficientNet-B6: AUROC of images about 0.992, of pixels 0.983",
        measure=f"mean image AUROC over {' and '.join(SETS)}",
        ours=means[OURS],
        baseline=(BASELINE, means[BASELINE]),
        peer=(PEER, means[PEER]),
        threshold=THRESHOLD,
        holds=bool(weighs and both and one),
        note=note,
        numbers={"Means over sets and seeds": table, "By set and seed": [_short(row) for row in rows]},
        seeds=tuple(seeds),
        budget=budget,
    )


def _methods(settings: dict[str, Any]) -> dict[str, Callable[[int], Any]]:
    """Make the detectors; the error alone is scored by the networks that FOD has just trained with that seed."""
    from farout.image.fod import FOD
    from farout.image.gaussian_ad import GaussianAD
    from farout.image.padim import PaDiM

    trained: dict[int, FOD] = {}

    class ErrorAlone(FOD):
        """FOD's networks without the weights of their correlations."""

        def fit(self, X: Any, y: Any = None, progress: Any = None) -> ErrorAlone:
            net: Any = trained[self.random_state].net_
            for level in net.levels:
                level.weighed_by = None
            self.net_ = net
            return self

    def fod(seed: int) -> FOD:
        trained[seed] = FOD(**settings, device="auto", random_state=seed)
        return trained[seed]

    def other(correlations: str) -> Callable[[int], FOD]:
        return lambda seed: FOD(**settings, correlations=correlations, device="auto", random_state=seed)

    size = {"size": settings["size"]} if "size" in settings else {}
    return {
        OURS: fod,
        ALONE: lambda seed: ErrorAlone(**settings, weighted=False, device="auto", random_state=seed),
        INTRA: other("intra"),
        NONE: other("none"),
        BASELINE: lambda seed: GaussianAD(**size, device="auto", random_state=seed),
        PEER: lambda seed: PaDiM(**size, device="auto", random_state=seed),
    }


def _mean(values: list[Any]) -> float | None:
    """Return the mean of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("error", "f1", "ap")}
