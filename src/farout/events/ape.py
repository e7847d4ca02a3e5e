"""APE: Entity Embedding-based Anomaly Detection for Heterogeneous Categorical Events.

Ting Chen, Lu-An Tang, Yizhou Sun, Zhengzhang Chen, Kai Zhang, IJCAI 2016 (arXiv 1608.07502).

An event is a tuple of entities of different types. Each entity gets a vector, each pair of types a weight, and the
likelihood of an event grows with the weighted products of its entities' vectors. Noise-contrastive estimation learns
them without a normaliser: tell events from copies in which one entity was replaced.

The paper claims that APE finds abnormal events in the surveillance data of an enterprise better than the methods that
it is compared with, and that learned weights of pairs help.

Differences from the paper and from the re-implementation that was read (there is no official code):

- An entity that was never seen has the mean vector of its type and adds ``-log 1 / (n + 1)`` to the score; the
  re-implementation drops such events.
- Replaced entities are drawn in proportion to ``share ** 0.75``, while P_n in the loss is the plain share, as in the
  re-implementation; ``correction="drawn"`` takes the probability of the draw. The k in log k P_n is the one that is
  used (theirs is a constant 10, which c absorbs).
- Draws that give the event itself are left out, so that S + c tends to the log-odds of an entity given the others; with
  many entities that is their log probability, and S the pointwise mutual information.
- A batch has 512 events, but where that is more than a hundredth of the table a hundredth, 32 at least: the defaults
  come from large data, and the 200 steps that they give 10,000 events are too few.
- No noise is added to scores. Missing values, numbers (in bins) and dates (weekday, hour) are entities too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.events._common import EventDetector, surprise
from farout.kit.training import arrays_of, device_named, seeded, torch_or_say, train

_CHUNK = 1 << 20  # numbers of an array of vectors held at a time


@paper(
    "APE",
    title="Entity Embedding-based Anomaly Detection for Heterogeneous Categorical Events",
    authors="Chen, Tang, Sun, Chen, Zhang",
    arxiv="1608.07502",
    year=2016,
    claim="Detects abnormal events in enterprise surveillance data better than the compared detectors; learned weights "
    "of pairs help.",
    differs="Unseen entities take the mean vector of their type, and add an explicit part to the score. Draws that "
    "give the event itself are left out of the loss. Small tables take smaller batches. Missing values, numbers and "
    "dates are entities too.",
    takes=("numeric", "missing", "category", "date"),
    explains=True,
    extra="torch",
)
class APE(EventDetector):
    """``-S(e)``, where ``S(e) = sum_{i<j} w_ij <v_{a_i}, v_{a_j}>``, and a part for each entity that was never seen.

    S knows how entities go together, and not how rare they are: where the anomalies are events of a rare kind,
    :meth:`rarity`, the sum of minus log shares, sees more, and a look at both tells the two kinds apart.

    An entity that none of the n training events held has the mean vector of its type and adds ``log (n + 1)``; a
    missing value is an entity where some were learned, else it has the mean vector and adds nothing.

    Cost an event: m² D to score, ``epochs`` times that and k m D to learn. Memory: D numbers an entity.

    Parameters
    ----------
    dimensions : int
        Of an entity's vector; the paper's D.
    epochs : int
    batch_size : int, optional
        512 by default, and in smaller tables a hundredth of the events, 32 at least.
    n_noise : int
        Replaced copies of an event; the paper's k.
    learning_rate : float
    noise_power : float
    correction : {"unigram", "drawn"}
        What P_n in the loss is: the share of an entity, or the probability with which it is drawn.
    weighted : bool
        Whether pairs of types have weights that are learned, never below 0; else all are 1.
    random_state : int, RandomState or None
    device : str
        "auto" is the first GPU where there is one.

    Attributes
    ----------
    profile_ : Profile
        Rank tables and level counts of all types.
    vocabularies_ : list of Vocabulary
        By type.
    vectors_ : float64 array (entities, dimensions)
        Type after type, in the order of their codes.
    weights_ : float64 array (m, m)
        Symmetric, zero on its diagonal.
    usual_ : float64 array (pairs,)
        Mean of ``w_ij <v_i, v_j>`` over the training events, by pair of types.
    history_ : list of float
        Loss of each epoch.

    Examples
    --------
    >>> import polars as pl
    >>> events = pl.DataFrame({"user": ["ann", "bob"] * 500, "host": ["a", "b"] * 500})
    >>> detector = APE(epochs=50, random_state=0).fit(events)
    >>> usual, crossed = detector.outlier_score(pl.DataFrame({"user": ["ann", "ann"], "host": ["a", "b"]}))
    >>> bool(crossed > usual + 5)
    True
    """

    def __init__(
        self,
        dimensions: int = 10,
        epochs: int = 10,
        batch_size: int | None = None,
        n_noise: int = 5,
        learning_rate: float = 0.01,
        noise_power: float = 0.75,
        correction: str = "unigram",
        weighted: bool = True,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.dimensions = dimensions
        self.epochs = epochs
        self.batch_size = batch_size
        self.n_noise = n_noise
        self.learning_rate = learning_rate
        self.noise_power = noise_power
        self.correction = correction
        self.weighted = weighted
        self.random_state = random_state
        self.device = device

    def rarity(self, X: Any) -> np.ndarray:
        """Return the other half of the picture: ``sum_t -log p_t(a_t)``, how rare the entities are by themselves.

        Returns
        -------
        float64 array (n,)
            What :class:`farout.events.MarginalRarity` gives.
        """
        codes = self._codes(self._features(X, reset=False))
        return np.sum([surprise(v.counts)[column] for v, column in zip(self.vocabularies_, codes.T)], axis=0)

    def reasons(self, X: Any) -> np.ndarray:
        """Return each entity's part: half of its products with the others, and its rarity; parts add up to the score.

        Returns
        -------
        float64 array (n, m)
        """
        codes = self._codes(self._features(X, reset=False))
        return self._unseen(codes) - self._by_type(codes)

    def _learn(self, codes: np.ndarray) -> None:
        from sklearn.utils import check_random_state

        torch = torch_or_say("'ape'")
        from farout.events._ape_net import Energy, Noise, contrast

        if self.correction not in ("unigram", "drawn"):
            raise BadInput(f"correction is 'unigram' or 'drawn', not '{self.correction}'")
        batch_size = max(32, min(512, len(codes) // 100)) if self.batch_size is None else self.batch_size
        if min(self.dimensions, self.epochs, batch_size, self.n_noise) < 1:
            raise BadInput(
                "dimensions, epochs, batch_size and n_noise are at least 1, not "
                f"{self.dimensions}, {self.epochs}, {batch_size} and {self.n_noise}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31))
        device = device_named(self.device)
        counts = [vocabulary.counts for vocabulary in self.vocabularies_]
        noise = Noise(counts, self.noise_power, self.correction, seed, device)
        with seeded(seed):
            energy = Energy(sum(map(len, counts)), len(counts), self.dimensions, self.weighted).to(device)
        self.history_: list[float] = []
        if len(counts) > 1 and noise.varying:
            self.history_ = train(
                energy,
                contrast(energy, noise, self.n_noise),
                torch.from_numpy(self._rows(codes)).to(device),
                epochs=self.epochs,
                batch_size=batch_size,
                learning_rate=self.learning_rate,
                seed=seed,
                after_step=energy.project,
            )
        self.vectors_ = arrays_of(energy)["vectors"].astype(float)
        self.weights_ = energy.matrix().detach().cpu().numpy().astype(float)
        for start, count in zip(self._starts(), counts):
            vectors = self.vectors_[start : start + len(count)]
            vectors[count == 0] = vectors[count > 0].mean(axis=0)
        self.usual_ = self._products(codes, mean=True)

    def _score(self, codes: np.ndarray) -> np.ndarray:
        return self._unseen(codes).sum(axis=1) - self._by_type(codes).sum(axis=1)

    def _novelty(self) -> np.ndarray:
        return np.full(len(self.vocabularies_), np.log(self.profile_.n + 1))

    def _oddness(self, codes: np.ndarray) -> np.ndarray:
        nameless = codes >= [vocabulary.unseen for vocabulary in self.vocabularies_]  # unseen or missing
        silent = nameless[:, self.pairs_].any(axis=2)
        return np.hstack((self._unseen(codes), np.where(silent, 0.0, self.usual_ - self._products(codes))))

    def _pair_words(self, codes: np.ndarray, pair: int) -> str:
        i, j = self.pairs_[pair]
        seen = [f"{self.vocabularies_[t].counts[codes[t]]:,.0f}" for t in (i, j)]
        return f"a worse fit than usual (seen in {seen[0]} and {seen[1]} of {self.profile_.n:,} events)"

    def _starts(self) -> np.ndarray:
        """First row of each type in the table of vectors."""
        return np.cumsum([0, *(len(vocabulary.counts) for vocabulary in self.vocabularies_)])[:-1]

    def _rows(self, codes: np.ndarray) -> np.ndarray:
        return codes + self._starts()

    def _by_type(self, codes: np.ndarray) -> np.ndarray:
        """Half of ``<v_{a_i}, sum_j w_ij v_{a_j}>`` by type: (n, m); its sum is S."""
        parts = np.empty(codes.shape)
        step = max(1, _CHUNK // (codes.shape[1] * self.dimensions))
        for start in range(0, len(codes), step):
            v_BMD = self.vectors_[self._rows(codes[start : start + step])]
            parts[start : start + step] = (v_BMD * (self.weights_ @ v_BMD)).sum(axis=2) / 2
        return parts

    def _products(self, codes: np.ndarray, mean: bool = False) -> np.ndarray:
        """``w_ij <v_{a_i}, v_{a_j}>`` by pair of types: (n, pairs), or its mean (pairs,)."""
        rows, (first, second) = self._rows(codes), self.pairs_.T
        step = max(1, _CHUNK // max(1, len(first)))
        total, pieces = np.zeros(len(first)), []
        for start in range(0, len(rows), step):
            v_BMD = self.vectors_[rows[start : start + step]]
            products = (v_BMD @ v_BMD.transpose(0, 2, 1))[:, first, second] * self.weights_[first, second]
            total += products.sum(axis=0)
            if not mean:
                pieces.append(products)
        return total / len(rows) if mean else np.concatenate(pieces)
