"""SUFO: Diagnosing Transformers: Illuminating Feature Spaces for Clinical Decision-Making.

Aliyah R. Hsu, Yeshwanth Cherapanamjeri, Briton Park, Tristan Naumann, Anobel Y. Odisho, Bin Yu, ICLR 2024
(arXiv 2305.17588).

What did fine-tuning do to an encoder, and which samples does it not understand? Four looks at one vector a sample,
over layers and stages of training: supervised probing (what can be read from frozen layers), unsupervised similarity
(which layers moved), feature dynamics (when do the classes part, and into how few axes) and outlier analysis (which
samples lie far from their class, in how many models).

The paper claims, for five encoders of 110 million parameters on pathology reports, that fine-tuning sparsifies the
feature space strongly, so that outliers fall into a few modes that clinicians can read, and that a model trained on the
domain carries useful features but can overfit rare classes.

Differences from the paper and from the official code (adelaidehsu/path_model_evaluation):

- Mean-pooled vectors are looked at beside those of the first token, which carries little before fine-tuning where a
  model was not trained to predict from it.
- Similarity is given by debiased and plain linear CKA beside RSA, and with intervals over samples; the code reports the
  correlation alone, of a thousand training texts.
- A linear probe is a logistic regression; freezing layers and training on, as the code does, is :func:`fine_tune`.
- The plane of the dynamics is that of the last stage; the code's notebook leaves open which.
- The mean is added back before the head is shown single axes; the code shows it centred vectors, which the head never
  saw.
- Far from its class is what lies beyond Tukey's outer fence of the class's distances to its centroid; clusters of
  k-means start at the centroids of the classes. In the paper people look at the picture, and name the modes; here a
  mode is a class and the class with which its outliers lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput
from farout.inside._similarity import Geometry, cka, intervals, rsa
from farout.inside._sufo_features import Features, features_of
from farout.inside._sufo_outliers import aligned, modes_of, outliers_in
from farout.inside._sufo_plane import Axes, Head, classes_told, left_without, logits_of, separation
from farout.inside._sufo_probes import scores, split_of, told_by_probe
from farout.inside._sufo_report import Comparison, SufoReport
from farout.inside._sufo_tuning import fine_tune, frozen_to, predictions

__all__ = [
    "SUFO",
    "Comparison",
    "Features",
    "SufoReport",
    "cka",
    "features_of",
    "fine_tune",
    "frozen_to",
    "intervals",
    "predictions",
    "rsa",
]

COMPONENTS = 5


@paper(
    "SUFO",
    title="Diagnosing Transformers: Illuminating Feature Spaces for Clinical Decision-Making",
    authors="Hsu, Cherapanamjeri, Park, Naumann, Odisho, Yu",
    arxiv="2305.17588",
    year=2023,
    claim="Fine-tuning sparsifies the feature space strongly, so that outliers fall into a few modes that experts can "
    "read; an encoder pre-trained on the domain carries useful features, but can overfit rare classes.",
    differs="Mean-pooled vectors beside the first token's; debiased CKA beside RSA, with intervals over samples; the "
    "mean is added back before the head sees single axes; far is beyond Tukey's outer fence of a class's distances.",
    kind="measure",
    extra="torch",
)
class SUFO:
    """One report over the layers and fine-tuning stages of a model.

    Cost: ``stages x layers`` probes, and for similarity ``O(samples^2)`` a stage, layer and draw.

    Parameters
    ----------
    samples : int
        Samples, drawn, that similarity and silhouette are computed from.
    draws : int
        Of samples, for intervals.
    random_state : int

    Examples
    --------
    Tuning parts the classes along one axis of the last layer:

    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["cat", "dog"], 40)
    >>> before = [rng.normal(size=(80, 6)) for layer in range(2)]
    >>> after = [before[0], before[1] + 9 * np.outer(y == "dog", np.eye(6)[0])]
    >>> report = SUFO(draws=20).measure({"before": before, "after": after}, y)
    >>> report.similarity["given"][0, :, 0].round(2)  # RSA by layer: the first did not move
    array([1.  , 0.28])
    >>> report.sparsity.round(2), report.linear.round(2)
    (array([0.91, 0.98]), array([0.52, 1.  ]))
    """

    def __init__(self, samples: int = 1000, draws: int = 200, random_state: int = 0) -> None:
        self.samples = samples
        self.draws = draws
        self.random_state = random_state

    def measure(
        self,
        stages: Mapping[str, Features | Sequence[Any]],
        y: Any,
        *,
        train: Any = None,
        head: Head | None = None,
        texts: Sequence[str] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> SufoReport:
        """Look at the features of a model before, during and after fine-tuning.

        Parameters
        ----------
        stages : dict of str to Features or list of array (n, d)
            In order of time, the first untuned and the last one done; all of the same samples and with the same layers.
            :func:`features_of` takes them from a model; arrays of another origin are given as a list, one a layer.
        y : array (n,)
            Classes, two or more.
        train : bool array (n,), optional
            The samples that the model was fine-tuned on: probes learn from these and are judged, like the head, on the
            others. By default probes are judged by cross-validation over five folds.
        head : callable, optional
            The last stage's own: from vectors of the last layer and first pooling, float32 (n, d), to logits (n,
            classes) of the classes in sorted order.
        texts : list of str, optional
            What the samples say, for the page.
        progress : callable, optional
            Called with what is being done and the share done.

        Returns
        -------
        SufoReport

        Raises
        ------
        BadInput
            There are fewer than two stages or classes, features are not finite or of other shapes, or the head gives no
            logits.
        """
        if self.samples < 4 or self.draws < 1:
            raise BadInput(f"samples are at least 4 and draws at least 1, not {self.samples} and {self.draws}")
        read = _read(stages)
        names, n = tuple(read), len(next(iter(read.values())))
        last = read[names[-1]]
        classes, label = _labels(y, n)
        if texts is not None and len(texts) != n:
            raise BadInput(f"there are {len(texts):,} texts for {n:,} samples")
        side = split_of(train, label)
        judged = np.arange(n) if side is None else np.flatnonzero(~side)
        rng = np.random.default_rng(self.random_state)
        rows = np.sort(rng.choice(n, self.samples, replace=False)) if n > self.samples else np.arange(n)
        tell = progress or (lambda what, done: None)

        probes: dict[str, Any] = {}
        similarity: dict[str, Any] = {}
        bounds: dict[str, Any] = {}
        for place, how in enumerate(last.pooled):
            probes[how] = np.zeros((len(read), len(last.layers), len(classes)))
            similarity[how] = np.zeros((len(read) - 1, len(last.layers), 3))
            bounds[how] = np.zeros((len(last.layers), 2, 2))
            for layer, name in enumerate(last.layers):
                tell(f"{how} vectors, {name}", (place + layer / len(last.layers)) / len(last.pooled))
                first = Geometry.of(read[names[0]].pooled[how][layer][rows])
                for stage, features in enumerate(read.values()):
                    X = features.pooled[how][layer]
                    probes[how][stage, layer] = self._probed(X, label, side, len(classes))
                    if stage:
                        now = Geometry.of(X[rows])
                        similarity[how][stage - 1, layer] = rsa(first, now), cka(first, now), cka(first, now, False)
                found = intervals(first, now, self.draws, self.random_state)
                bounds[how][layer] = found["rsa"], found["cka"]

        vectors = [next(iter(features.pooled.values()))[-1] for features in read.values()]
        axes = Axes.of(vectors[-1])
        places = np.stack([axes.places(X) for X in vectors])
        told = left = tuned = predicted = None
        if head is not None:
            k = min(COMPONENTS, len(axes.share))
            predicted = logits_of(head, vectors[-1], len(classes)).argmax(1)
            tuned = scores(label[judged], predicted[judged], len(classes))
            told = classes_told(head, axes, vectors[-1], k, len(classes))
            left = left_without(head, axes, vectors[-1][judged], label[judged], k, len(classes))
        tell("done", 1.0)
        return SufoReport(
            stages=names,
            layers=last.layers,
            classes=classes,
            poolings=tuple(last.pooled),
            y=label,
            texts=list(texts or []),
            probes=probes,
            tuned=tuned,
            similarity=similarity,
            bounds=bounds,
            places=places,
            silhouette=np.array([separation(plane, label, rows) for plane in places]),
            linear=np.array([self._recalled(plane, label, side) for plane in places]),
            explained=np.stack([Axes.of(X).share for X in vectors]),
            told=told,
            left=left,
            outliers=outliers_in(places[-1], label, predicted),
            last=last,
        )

    def compare(self, reports: Mapping[str, SufoReport]) -> Comparison:
        """Compare models that were measured on the same samples.

        Parameters
        ----------
        reports : dict of str to SufoReport
            By the name of the model.

        Returns
        -------
        Comparison

        Raises
        ------
        BadInput
            There are fewer than two, or they are of other samples, classes or numbers of layers.
        """
        found = list(reports.values())
        if len(found) < 2:
            raise BadInput(f"there is {len(found)} report; two are needed to compare models")
        for name, one in reports.items():
            if one.classes != found[0].classes or not np.array_equal(one.y, found[0].y):
                raise BadInput(f"'{name}' was measured on other samples than '{next(iter(reports))}'")
            if len(one.layers) != len(found[0].layers):
                raise BadInput(f"'{name}' has {len(one.layers)} layers and not {len(found[0].layers)}")
        rng, n = np.random.default_rng(self.random_state), len(found[0].y)
        rows = np.sort(rng.choice(n, self.samples, replace=False)) if n > self.samples else np.arange(n)
        shapes = [[Geometry.of(X[rows]) for X in one.last.pooled[one.poolings[0]]] for one in found]
        alike = [[[rsa(a, b) for a, b in zip(one, other)] for other in shapes] for one in shapes]
        places, disparity = aligned([one.places[-1] for one in found])
        outliers, classes = [one.outliers for one in found], found[0].classes
        named = [
            mode | {"label": classes[mode["label"]], "lies_with": classes[mode["lies_with"]]}
            for mode in modes_of(outliers, found[0].y)
        ]
        votes = np.sum([one.flagged for one in outliers], axis=0)
        return Comparison(tuple(reports), np.array(alike), places, disparity, votes, named)

    def _probed(self, X: np.ndarray, y: np.ndarray, train: np.ndarray | None, classes: int) -> np.ndarray:
        """F1 of each class by a linear probe."""
        rows, told = told_by_probe(X, y, train, self.random_state)
        return scores(y[rows], told, classes)

    def _recalled(self, X: np.ndarray, y: np.ndarray, train: np.ndarray | None) -> float:
        """Balanced accuracy of a linear probe."""
        rows, told = told_by_probe(X, y, train, self.random_state)
        return float(np.mean([(told[y[rows] == c] == c).mean() for c in np.unique(y[rows])]))


def _read(stages: Mapping[str, Features | Sequence[Any]]) -> dict[str, Features]:
    """Look at the features of all stages together."""
    read = {str(name): Features.read(given, str(name)) for name, given in stages.items()}
    if len(read) < 2:
        raise BadInput(f"there are {len(read)} stages; two are needed, one before and one after")
    first, *others = read.items()
    for name, features in others:
        for what, (here, there) in {
            "samples": (len(features), len(first[1])),
            "layers": (features.layers, first[1].layers),
            "poolings": (tuple(features.pooled), tuple(first[1].pooled)),
        }.items():
            if here != there:
                raise BadInput(f"stage '{name}' has other {what} than '{first[0]}': {here} and {there}")
    widths = {next(iter(features.pooled.values()))[-1].shape[1] for features in read.values()}
    if len(widths) > 1:
        raise BadInput(f"the last layer has {' and '.join(map(str, sorted(widths)))} channels over the stages")
    if min(widths) < 2:
        raise BadInput("the last layer has 1 channel, which has no plane")
    return read


def _labels(y: Any, n: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of classes, and the class of each sample (n,)."""
    array = np.asarray(y)
    if array.shape != (n,):
        raise BadInput(f"there are labels of shape {array.shape} for {n:,} samples")
    if array.dtype.kind == "O" and any(value is None or value != value for value in array.tolist()):
        raise BadInput("a label is missing; leave such samples out")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise BadInput(f"label {int(np.isnan(array).argmax())} is missing; leave such samples out")
    names, label = np.unique(array, return_inverse=True)
    if len(names) < 2:
        raise BadInput("all samples are of one class; two are needed")
    return tuple(str(name) for name in names.tolist()), label
