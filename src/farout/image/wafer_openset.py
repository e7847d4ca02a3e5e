"""Wafer open-set: Deep Open-Set Recognition for Silicon Wafer Production Monitoring.

Luca Frittoli, Diego Carrera, Beatrice Rossi, Pasqualina Fragneto, Giacomo Boracchi, Pattern Recognition 124, 2022
(arXiv 2208.14071).

A wafer defect map is a list of places of defects: a huge and nearly empty image. A network of submanifold sparse
convolutions tells the known patterns apart at full resolution, and a Gaussian mixture on its latent space says how
likely a map is under any of them: an unlikely one shows a pattern that nobody has seen yet.

The paper claims, on maps of a manufacturer that are not public, that this classifies better than dense networks on
binned maps, and that the mixture tells unseen patterns better than other methods of open-set recognition.

This is in the manner of the paper. The idea, the layers and the mixture are its own; the network's table, the
augmentation's sizes and the training were not to be had, there is no official code, and they are our choice:

- The plane is halved ``stem`` times by sums of counts before the first convolution, since single places find no
  neighbours yet, and every block reads log(1 + n) of the n defects of each of its sites. Batch norm takes its running
  statistics where a batch has fewer than 16 rows.
- The latent is the mean and the maximum over the last sites, with log(1 + n) of all n defects, which a mean forgets.
- One Gaussian a class, by its labels, in the principal space with 95 % of the variance of standardised latents, since
  a maximum varies more than a mean; EM is not used. It is fitted on augmented views of the maps that the network
  learned from, since the maps themselves look too certain.
- A share of the maps is held out from all learning; the threshold for ``classify`` stands at a rate of its scores.
- A map without a defect is of the class ``normal`` where that is known, and as usual as the middle of that class: its
  latent is 0, and no Gaussian was fitted to it. Where it is not known, the mixture judges the 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from farout.cards import paper
from farout.contract import Detector
from farout.errors import BadInput
from farout.image._class_mixture import ClassMixture
from farout.image._points import Points, read_labels, read_maps
from farout.image._sparse import LARGEST
from farout.image._wafer_nets import BinnedNet, SparseNet
from farout.kit.fitting import fit
from farout.kit.training import arrays_of, device_named, fill, seeded

__all__ = ["WaferOpenSet"]

NOVEL = -1
LEAST = 3  # maps of a class with a defect


@paper(
    "Wafer OpenSet",
    title="Deep Open-Set Recognition for Silicon Wafer Production Monitoring",
    authors="Frittoli, Carrera, Rossi, Fragneto, Boracchi",
    year=2022,
    arxiv="2208.14071",
    kind="detector",
    takes=("coordinates",),
    extra="torch",
    claim="On a manufacturer's private maps a submanifold sparse network classifies better than dense networks on "
    "binned maps, and a Gaussian mixture on its latent tells unseen patterns better than other open-set methods.",
    differs="In the manner of the paper: network table, augmentation and training are our choice. Counts are summed "
    "before the first convolution; one Gaussian a class by labels, fitted on augmented views; threshold held out.",
)
class WaferOpenSet(Detector):
    """Lists of places in; a known class or none, and ``-log p`` of the latent under all known classes, out.

    Parameters
    ----------
    side : int
        Of the plane: places go from 0 to ``side - 1``. The wafer is the disc in it.
    stem : int
        How often the plane is halved by summing counts, before the first block.
    widths : sequence of int
        Channels of the blocks, between which the plane is halved.
    bins : int, optional
        Count defects in so many squares a side and take an ordinary convolutional network with these ``widths``: the
        dense rival. None is the paper's network.
    epochs, batch_size : int
    learning_rate : float
        Highest, of SGD along a cosine.
    turn : bool
        Whether maps are turned and mirrored in training.
    translation : float
        Largest, in sides.
    drop, noise : float
        Largest share of defects that is left out, and added anywhere on the wafer.
    views : int
        Augmented views of each map that the mixture is fitted on.
    held_out : float
        Share of each class that only sets the threshold.
    rate : float
        Of known maps that ``classify`` may call novel.
    variance, shrinkage, ridge : float
        Of the mixture: share of variance of the principal space, share of a covariance that is replaced by the mean
        one of all classes, and what is added to its diagonal, times the mean variance within classes.
    normal : str or int
        The class of maps without a defect.
    device : str
        ``"auto"`` is the first GPU where there is one.
    random_state : int

    Attributes
    ----------
    classes_ : array (K,)
    mixture_ : ClassMixture
    threshold_ : float
        Scores above it are novel.
    history_ : list of float
        Loss of each epoch.
    net_ : torch.nn.Module

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> left = [rng.integers((0, 0), (128, 40), (30, 2)) for _ in range(30)]
    >>> narrow = [rng.integers((50, 50), (78, 78), (30, 2)) for _ in range(30)]
    >>> detector = WaferOpenSet(side=128, stem=1, widths=(4, 8, 8), epochs=8, batch_size=16, turn=False, held_out=0.4)
    >>> detector = detector.fit(left + narrow, ["left"] * 30 + ["narrow"] * 30)
    >>> print(*detector.classify([left[0], narrow[0]]))
    left narrow
    """

    def __init__(
        self,
        *,
        side: int = 4096,
        stem: int = 4,
        widths: Sequence[int] = (16, 32, 48, 64, 64, 64),
        bins: int | None = None,
        epochs: int = 30,
        batch_size: int = 32,
        learning_rate: float = 0.05,
        turn: bool = True,
        translation: float = 0.02,
        drop: float = 0.2,
        noise: float = 0.2,
        views: int = 2,
        held_out: float = 0.2,
        rate: float = 0.05,
        variance: float = 0.95,
        shrinkage: float = 0.1,
        ridge: float = 1e-3,
        normal: str | int = "Normal",
        device: str = "cpu",
        random_state: int = 0,
    ) -> None:
        self.side = side
        self.stem = stem
        self.widths = widths
        self.bins = bins
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.turn = turn
        self.translation = translation
        self.drop = drop
        self.noise = noise
        self.views = views
        self.held_out = held_out
        self.rate = rate
        self.variance = variance
        self.shrinkage = shrinkage
        self.ridge = ridge
        self.normal = normal
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, progress: Callable[[float], None] | None = None) -> WaferOpenSet:
        """Learn the known classes.

        Parameters
        ----------
        X : list of int array (n_i, 2)
            Places of defects, in any order; a place that is named twice counts once.
        y : sequence of str or int
            The class of each map; a number is not below 0.
        progress : callable, optional
            Called with the share done.
        """
        self.fit_score(X, y, progress)
        return self

    def fit_score(self, X: Any, y: Any = None, progress: Callable[[float], None] | None = None) -> np.ndarray:
        """Fit, and return the scores of the maps, taken as new.

        Returns
        -------
        float64 array (n,)

        Raises
        ------
        BadInput
            There are no labels, fewer than two classes, too few maps of a class with a defect, or too few held out
            for the rate.
        """
        self._check_parameters()
        maps = read_maps(X, self.side)
        self.classes_, codes = read_labels(y, len(maps))
        learned, judged = self._split(maps, codes)
        device = device_named(self.device)
        points = Points.of([maps[i] for i in learned], device)
        known = torch.from_numpy(codes[learned]).to(device)
        counts = torch.bincount(known)
        weights = len(known) / (len(counts) * counts)  # every class counts for as much
        generator = torch.Generator().manual_seed(self.random_state)

        def step(net: Any, rows: Tensor, y: Tensor) -> dict[str, Tensor]:
            logits = net(self._moved(points.chosen(rows), generator))
            return {"loss": F.cross_entropy(logits, y, weights)}

        self.net_ = self._net().to(device)
        history = fit(
            self.net_,
            step,
            (torch.arange(len(points), device=device), known),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=1,
            seed=self.random_state,
            progress=progress,
        )
        self.history_ = [epoch["loss"] for epoch in history]
        self.net_.eval().requires_grad_(False)
        rows = torch.arange(len(points), device=device).split(self.batch_size)
        seen = [self._moved(points.chosen(some), generator) for _ in range(self.views) for some in rows]
        latent = torch.cat([self._features(view) for view in seen])
        filled = torch.cat([view.counts > 0 for view in seen]).cpu().numpy()
        left = np.tile(codes[learned], self.views)[filled]
        if len(np.unique(left)) < len(self.classes_):
            raise BadInput("augmentation leaves no defect on any map of a class; lower drop and translation")
        self.mixture_ = ClassMixture.fit(
            latent.double().cpu().numpy()[filled],
            left,
            self.variance,
            self.shrinkage,
            self.ridge,
        )
        scores = self._scores(maps)
        self.threshold_ = float(np.sort(scores[judged])[self._place(len(judged)) - 1])
        self._set_offset(scores)
        return scores

    def outlier_score(self, X: Any) -> np.ndarray:
        """Return ``-log p`` of each map's latent under the mixture of known classes; larger is more novel.

        Returns
        -------
        float64 array (n,)
        """
        self._check_fitted()
        return self._scores(read_maps(X, self.side))

    def latent(self, X: Any) -> np.ndarray:
        """Return what the head reads of each map: 0 where there is no defect.

        Returns
        -------
        float64 array (n, d)
        """
        self._check_fitted()
        return self._latent(read_maps(X, self.side))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the softmax over the known classes.

        Returns
        -------
        float64 array (n, K)
            In the order of ``classes_``; a map without a defect has 1 for ``normal`` where that is known.
        """
        self._check_fitted()
        maps = read_maps(X, self.side)
        logits = self.net_.head(torch.from_numpy(self._latent(maps)).to(self.net_.head[1].weight))
        found = logits.double().softmax(1).cpu().numpy()
        found[self._clean(maps)] = self.classes_ == self.normal
        return found

    def classify(self, X: Any) -> np.ndarray:
        """Say which known class each map is of, or that it is of none.

        Returns
        -------
        array (n,)
            Classes, and -1 where the score is above the threshold; of objects where classes are words.
        """
        known = self.classes_[self.predict_proba(X).argmax(axis=1)]
        found = known.astype(object) if known.dtype.kind in "US" else known
        found[self.outlier_score(X) > self.threshold_] = NOVEL
        return found

    def _net(self) -> Any:
        """The network, with weights that the seed draws."""
        with seeded(self.random_state):
            if self.bins is None:
                return SparseNet(self.stem, self.widths, len(self.classes_))
            return BinnedNet(self.side, self.bins, self.widths, len(self.classes_))

    def _moved(self, points: Points, generator: torch.Generator) -> Points:
        sizes = {"translation": self.translation, "drop": self.drop, "noise": self.noise}
        return points.moved(self.side, generator, turn=self.turn, **sizes)

    def _features(self, points: Points) -> Tensor:
        with torch.no_grad():
            return self.net_.features(points)

    def _latent(self, maps: list[np.ndarray]) -> np.ndarray:
        device, size = self.net_.head[1].weight.device, self.batch_size
        parts = [self._features(Points.of(maps[i : i + size], device)) for i in range(0, len(maps), size)]
        return torch.cat(parts).double().cpu().numpy() if parts else np.empty((0, self.net_.width))

    def _scores(self, maps: list[np.ndarray]) -> np.ndarray:
        scores = self.mixture_.surprise(self._latent(maps))
        clean = self._clean(maps)
        if clean.any():
            middle = self.mixture_.means[self.classes_ == self.normal] @ self.mixture_.back + self.mixture_.origin
            scores[clean] = self.mixture_.surprise(middle)[0]
        return scores

    def _clean(self, maps: list[np.ndarray]) -> np.ndarray:
        """Which maps hold no defect, where there is a class for them."""
        return np.array([not len(one) for one in maps], bool) & bool(np.any(self.classes_ == self.normal))

    def _split(self, maps: list[np.ndarray], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw of each class which maps are learned from and which set the threshold; empty ones teach nothing."""
        rng = np.random.default_rng(self.random_state)
        filled = np.array([len(one) > 0 for one in maps])
        learned, judged = [], []
        for code, name in enumerate(self.classes_):
            rows = rng.permutation(np.flatnonzero(filled & (codes == code)))
            kept = round(self.held_out * len(rows))
            if len(rows) - kept < LEAST:
                raise BadInput(
                    f"of class '{name}' there are {len(rows)} maps with a defect, {kept} of them held out; the network "
                    f"and its Gaussian take {LEAST} at least"
                )
            judged.append(rows[:kept])
            learned.append(rows[kept:])
        found = np.sort(np.concatenate(judged))
        if self._place(len(found)) > len(found):
            raise BadInput(
                f"a threshold at a rate of {self.rate:g} takes {math.ceil(1 / self.rate) - 1} held-out maps, and there "
                f"are {len(found)}; give more maps, or raise held_out or rate"
            )
        return np.sort(np.concatenate(learned)), found

    def _place(self, n: int) -> int:
        """Which of n sorted scores lets no more than the rate of new ones pass, in the mean over draws."""
        return math.ceil((n + 1) * (1 - self.rate) - 1e-9)

    def _check_parameters(self) -> None:
        shares = (self.drop, self.held_out, self.rate, self.shrinkage)
        if min(self.epochs, self.batch_size, self.views, len(self.widths), self.bins or 1, *self.widths) < 1:
            raise BadInput("epochs, batch_size, views, bins and widths are at least 1, and there is a width")
        if not (all(0 <= share < 1 for share in shares) and self.rate > 0 and 0 < self.variance <= 1):
            raise BadInput("drop, held_out and shrinkage are from 0 to below 1, rate and variance above 0")
        if min(self.stem, self.noise, self.translation, self.ridge) < 0:
            raise BadInput("stem, noise, translation and ridge are not below 0")
        halvings = len(self.widths) - 1 + (self.stem if self.bins is None else 0)
        if not 2**halvings <= (self.bins or self.side) <= self.side <= LARGEST:
            raise BadInput(
                f"{self.bins or self.side} squares a side cannot be halved {halvings} times in a plane of {self.side}; "
                f"take fewer widths or a smaller stem; a plane has {LARGEST} places a side at most"
            )

    def _state(self) -> dict[str, Any]:
        plain = {name: value for name, value in super()._state().items() if name != "net_"}
        return plain | {"widths": tuple(self.widths), "learned": arrays_of(self.net_)}

    def _restore(self, values: dict[str, Any]) -> None:
        learned = values.pop("learned")
        super()._restore(values)
        self.net_ = fill(self._net(), learned).to(device_named(self.device)).requires_grad_(False)
