"""Wafers for the claim on open-set recognition, the methods on them, and what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from farout.bench.metrics import auroc
from farout.data.wafers import KINDS, drawn_wafers, real_wafers

NOVEL = ("Donut", "Scratch")  # unknown kinds
CROWDED = ("Near_Full", "Random")  # kinds that are a matter of number, as is a heavy background
FAINT: dict[str, Any] = {"background": (200, 1000), "share": 0.3}
ACCEPTED = 0.1  # share of novel maps that pass for known, where the right answers are counted
NEIGHBOURS = 10  # fewer than the wafers of a kind
MIXTURE, SOFTMAX, PEER = "mixture", "max softmax", "KNN"


@dataclass(frozen=True)
class Size:
    """How much is drawn and trained in a budget.

    Attributes
    ----------
    train, test : int
        Wafers of each kind.
    epochs, batch : int
    sparse, dense : tuple of int
        Widths that give both networks about as many weights.
    device : str
    """

    train: int
    test: int
    epochs: int
    batch: int
    sparse: tuple[int, ...]
    dense: tuple[int, ...]
    device: str = "auto"

    def detectors(self, seed: int) -> dict[str, Any]:
        """Return both detectors, not fitted."""
        from farout.image.wafer_openset import WaferOpenSet

        shared: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self.batch,
            "device": self.device,
            "random_state": seed,
        }
        return {
            "sparse": WaferOpenSet(widths=self.sparse, **shared),
            "dense": WaferOpenSet(widths=self.dense, bins=32, **shared),
        }


def drawn(kinds: tuple[str, ...], size: Size, seed: int, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """Draw wafers to learn from, and others to test on: maps, kinds, maps, kinds."""
    x, y = drawn_wafers(kinds, size.train, seed=10 * seed, **settings)
    return x, y, *drawn_wafers(kinds, size.test, seed=10 * seed + 1, **settings)


def closed(name: str, detector: Any, data: tuple[Any, Any, Any, Any], seed: int) -> dict[str, Any]:
    """Train on all kinds; return the accuracy and the F1 of each kind on the test wafers."""
    from sklearn.metrics import f1_score

    x, y, test, truth = data
    detector.fit(x, y)
    found = detector.classes_[detector.predict_proba(test).argmax(axis=1)]
    each = f1_score(truth, found, labels=detector.classes_, average=None)
    row = {"network": name, "seed": seed, "weights": weights_of(detector), "accuracy": float((found == truth).mean())}
    return row | {kind: float(value) for kind, value in zip(detector.classes_, each)}


def opened(name: str, detector: Any, data: tuple[Any, Any, Any, Any], seed: int) -> list[dict[str, Any]]:
    """Train without the novel kinds; return how well each score tells them, drawn and real, from known ones."""
    x, y, test, truth = data
    detector.fit(x, y)
    strange, kinds = drawn_wafers(NOVEL, max(1, len(truth) // len(NOVEL)), seed=10 * seed + 1)
    real, real_kinds = real_wafers(seed=seed)
    known = ~np.isin(real_kinds, NOVEL)
    right = detector.classes_[detector.predict_proba(test).argmax(axis=1)] == truth
    real_right = detector.classes_[detector.predict_proba(real).argmax(axis=1)] == real_kinds
    flagged = [float(np.mean(detector.outlier_score(maps) > detector.threshold_)) for maps in (test, strange)]
    rows = []
    for score, by in scores_of(detector, x).items():
        usual, odd, there = by(test), by(strange), by(real)
        row = {"network": name, "score": score, "seed": seed, "AUROC": _auroc(usual, odd)}
        row |= {f"AUROC {kind}": _auroc(usual, odd[kinds == kind]) for kind in NOVEL}
        row |= {f"CCR at {ACCEPTED:.0%} accepted": ccr(usual, right, odd), "accuracy": float(right.mean())}
        row |= {"real AUROC": _auroc(there[known], there[~known]), "real accuracy": float(real_right[known].mean())}
        calibrated = score == MIXTURE
        row |= {
            "known flagged": flagged[0] if calibrated else None,
            "novel flagged": flagged[1] if calibrated else None,
        }
        rows.append(row)
    return rows


def scores_of(detector: Any, x: Any) -> dict[str, Any]:
    """Return the scores of a fitted detector by name: maps in, numbers out, larger is more novel.

    Nearest neighbours see standardised latents, as the mixture does: the number of defects has the largest range.
    """
    import torch

    from farout.ood.deep_knn import DeepKNN
    from farout.ood.views import Views

    learned = detector.latent(x)
    mean, deviation = learned.mean(axis=0), learned.std(axis=0) + 1e-6

    def views(maps: Any) -> Any:
        latent = torch.from_numpy((detector.latent(maps) - mean) / deviation).float()
        return Views(latent, latent)

    knn = DeepKNN(k=NEIGHBOURS).fit(views(x))
    return {
        MIXTURE: detector.outlier_score,
        SOFTMAX: lambda maps: -detector.predict_proba(maps).max(axis=1),
        PEER: lambda maps: knn.score(views(maps)).numpy(),
    }


def ccr(usual: np.ndarray, right: np.ndarray, odd: np.ndarray, accepted: float = ACCEPTED) -> float:
    """Return the share of known maps that are told right and pass, where so many novel ones pass too.

    Examples
    --------
    >>> ccr(np.array([1.0, 2.0, 9.0]), np.array([True, False, True]), np.arange(5.0, 15.0), accepted=0.1)
    0.3333333333333333
    """
    return float(np.mean(right & (usual < np.quantile(odd, accepted, method="lower"))))


def weights_of(detector: Any) -> int:
    """Count the weights of a fitted detector's network."""
    return sum(weight.numel() for weight in detector.net_.parameters())


def means(rows: list[dict[str, Any]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Average rows over seeds; a number that a row does not have stays out."""
    found = []
    for key in dict.fromkeys(tuple(row[name] for name in by) for row in rows):
        chosen = [row for row in rows if tuple(row[name] for name in by) == key]
        names = [name for name in chosen[0] if name not in (*by, "seed")]
        averaged = {
            name: None if chosen[0][name] is None else float(np.mean([row[name] for row in chosen])) for name in names
        }
        found.append(dict(zip(by, key)) | averaged)
    return found


def closed_kinds() -> tuple[str, ...]:
    """Kinds of the closed-set part."""
    return tuple(kind for kind in KINDS if kind not in CROWDED)


def known_kinds() -> tuple[str, ...]:
    """Known kinds of the open-set part."""
    return tuple(kind for kind in KINDS if kind not in NOVEL)


def _auroc(usual: np.ndarray, odd: np.ndarray) -> float:
    return float(auroc(np.repeat([0, 1], [len(usual), len(odd)]), np.concatenate((usual, odd))))
