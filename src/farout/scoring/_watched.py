"""A run over a model's inputs: which training inputs teach and which set the line, and what is found then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from farout.alarm import Alarm
from farout.errors import BadInput, FaroutError
from farout.io.models import OpenModel
from farout.kit.training import device_named
from farout.scoring import _rank_p_values
from farout.scoring._given import Batches, Given
from farout.scoring._input_result import KNOWN, Look
from farout.scoring._passes import Progress

WORDS = {"pixels": "images", "tokens": "texts", "features": "rows"}
HELD_OUT = 0.3  # share of the training inputs that set the line, where no others are given
TRIED = 256  # training inputs on which it is tried whether folders are the model's classes


@dataclass
class Found:
    """What a run found."""

    watch: Any
    seen: Look
    held: Look | None
    known: np.ndarray | None
    groups: list[str] | None
    p_values: np.ndarray
    alarms: np.ndarray
    classes: list[str]
    learned: int | None  # from so many inputs
    labels: str | None  # where the classes of these were from, where they matter
    accuracy: float | None


@dataclass
class Run:
    """A model, a score for it, and how both read; what a user should know is noted on the way."""

    opened: OpenModel
    score: Any
    chosen: dict[str, Any]
    device: str
    notes: list[str]
    tell: Progress

    @property
    def what(self) -> str:
        return WORDS[self.opened.takes]

    def watched(
        self,
        train: Given | None,
        usual: Given | None,
        given: Given | None,
        ood: Given | None,
        *,
        rate: float,
        seed: int,
    ) -> Found:
        """Learn, set the line and score."""
        from farout.ood.watch import Watch

        assert given is not None
        _check_sizes([part for part in (train, usual, given, ood) if part is not None], self.opened)
        names = _names_of_classes(self.opened)
        labels, usual_labels, fitted = None, None, None
        own = train if usual is None else None  # what the line is set on is a part of these
        with self._running():
            if train is not None:
                labels, names = self._labels(train, names)
                places, rest = _divided(train, usual, self.score, seed)
                fitted = train[places] if self.score.learns else None
                if usual is None:
                    usual, usual_labels = train[rest], None if labels is None else labels[rest]
                labels = None if labels is None else labels[places]
            if usual is not None:
                _check_line(usual, rate, self.what, own)
            known, groups, given = _known(given, ood)
            how = {key: self.chosen[key] for key in ("features", "layers", "pool") if self.chosen[key] is not None}
            watch = Watch(self.opened, self.score, **how, batch_size=self.chosen["batch_size"], device=self.device)
            learned = given[np.arange(min(2, len(given)))] if fitted is None else fitted  # a few, to learn nothing of
            watch.fit(self._batches(learned), labels if fitted is not None else None, partial(self.tell, "learning"))
            if fitted is not None and getattr(self.score, "unseen", False):
                self.notes.append(
                    f"'{type(self.score).__name__}' is made to learn from usual {self.what} that the model was not "
                    "trained on; those of its training set make it too sure"
                )
            held = None if usual is None else self._look(watch, usual, "held out")[0]
            seen, classes = self._look(watch, given, "scoring")
        if held is not None:
            alarm = Alarm(watch, rate=rate).calibrate_scores(held.scores)
            watch.threshold_ = -alarm.offset_
            p_values, alarms = alarm.p_values_of(seen.scores), seen.scores > watch.threshold_
            self._note_copies(given, [part for part in (train, usual) if part is not None])
        else:
            p_values = _rank_p_values(seen.scores)
            alarms = p_values <= rate
        whence = None if fitted is None or not self.score.labelled else "predicted" if labels is None else "given"
        right = None if usual_labels is None or held is None else float((held.predicted == usual_labels).mean())
        names = names or [f"class {place}" for place in range(classes)]
        learned_from = None if fitted is None else len(fitted)
        return Found(watch, seen, held, known, groups, p_values, alarms, names, learned_from, whence, right)

    def _batches(self, part: Given) -> Batches:
        return Batches(self.opened, part.items, self.chosen["batch_size"], self.chosen["length"])

    def _look(self, watch: Any, part: Given, title: str) -> tuple[Look, int]:
        """Score inputs and see what the model takes them for; return also how many classes there are."""
        told = partial(self.tell, title)
        views = watch.views(self._batches(part), told)
        scores = (
            watch.outlier_score(self._batches(part), told) if watch.method_.steps() else watch.scores_of_views(views)
        )
        probability, predicted = views.logits.double().softmax(1).max(1)
        look = Look(part.names, part.items, scores, predicted.numpy(), probability.numpy())
        return look, views.logits.shape[1]

    def _labels(self, train: Given, names: list[str] | None) -> tuple[np.ndarray | None, list[str] | None]:
        """Return the model's classes of the training inputs, where folders or labels fit these, and their names."""
        from farout.ood.views import extract

        if train.labels is None:
            return None, names
        some = np.linspace(0, len(train) - 1, min(TRIED, len(train))).round().astype(int)
        logits = extract(
            self.opened, self._batches(train[some]), needs=("logits",), device=str(device_named(self.device))
        ).logits
        found = matched(train.classes, names, logits.shape[1])
        said = f"the {len(train.classes):,} classes of the training {self.what} ({_listed(train.classes)})"
        if found is None:
            self.notes.append(
                f"{said} are not the {logits.shape[1]:,} of the model, by name, number or order: the classes that it "
                "predicts stand in"
            )
            return None, names
        labels = found[train.labels]
        recall, chance = _recall(labels[some], logits.argmax(1).numpy())
        if recall <= chance:
            self.notes.append(
                f"{said} do not go with what the model predicts (mean recall {recall:.2f} on {len(some)}), so that "
                "the classes that it predicts stand in"
            )
            return None, names
        worded = len(found) == logits.shape[1] and not all(word.isdigit() for word in train.classes)
        return labels, names or ([train.classes[place] for place in np.argsort(found)] if worded else None)

    def _note_copies(self, given: Given, seen: list[Given]) -> None:
        """Note which inputs are training inputs, for which a p-value is no test."""
        known = {one for part in seen for one in part.prints()}
        copies = [name for name, one in zip(given.names, given.prints()) if one in known]
        if copies:
            self.notes.append(
                f"{len(copies):,} of {len(given):,} {self.what} are among the training inputs, to the last bit "
                f"({_listed(copies)}): their p-values are no tests"
            )

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Say in one line why a model cannot run."""
        try:
            yield
        except (RuntimeError, IndexError) as error:
            if isinstance(error, FaroutError):
                raise
            raise BadInput(
                f"'{self.opened.name}' cannot run on these {self.what}: {' '.join(str(error).split())[:300]}"
            ) from error


def matched(classes: Sequence[str], names: Sequence[str] | None, count: int) -> np.ndarray | None:
    """Find which classes of a model those of a data set are: by name, by number, or by order if equally many.

    Parameters
    ----------
    classes : sequence of str
        Of the data, in order.
    names : sequence of str, optional
        Of the model's classes.
    count : int
        How many these are.

    Returns
    -------
    int64 array (len(classes),) or None
        The model's class of each; None where they do not fit.

    Examples
    --------
    >>> matched(("cat", "dog"), ["Dog", "Cat", "Cow"], 3)
    array([1, 0])
    >>> matched(("0", "10", "2"), None, 11), matched(("cat", "dog"), None, 2), matched(("cat", "dog"), None, 3)
    (array([ 0, 10,  2]), array([0, 1]), None)
    """
    places = {name.casefold(): place for place, name in enumerate(names or ())}
    if all(word.casefold() in places for word in classes):
        return np.array([places[word.casefold()] for word in classes])
    if all(word.isdigit() and int(word) < count for word in classes):
        return np.array([int(word) for word in classes])
    return np.arange(count) if len(classes) == count else None


def _check_sizes(parts: Sequence[Given], opened: OpenModel) -> None:
    """Refuse images of several sizes where the model has no size of its own."""
    if opened.pixels is None or opened.pixels.size is not None:
        return
    sizes = sorted({image.shape[:2] for part in parts for image in part.items})
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:4])
        raise BadInput(
            f"'{opened.name}' takes images of any size, and these have {len(sizes):,} ({shown}"
            f"{', ...' if len(sizes) > 4 else ''}), which cannot stand in one batch: say one, such as --set "
            f"size={sizes[0][0]}"
        )


def _names_of_classes(opened: OpenModel) -> list[str] | None:
    """Return the names of the classes that a model of transformers holds; names such as LABEL_3 are none."""
    named = getattr(getattr(opened.model, "config", None), "id2label", None)
    if not named or all(str(word).startswith("LABEL_") for word in named.values()):
        return None
    return [str(named[place]) for place in sorted(named)]


def _divided(train: Given, usual: Given | None, score: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the training inputs into those that are learned from and those that set the line, by their places."""
    order = np.random.default_rng(seed).permutation(len(train))
    held_out = 0 if usual is not None else round(HELD_OUT * len(train)) if score.learns else len(train)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _check_line(usual: Given, rate: float, what: str, whole: Given | None) -> None:
    """Refuse a rate that so few inputs cannot keep: the least p-value is 1 / (m + 1)."""
    need = math.ceil(1 / rate) - 1
    if len(usual) < need:
        seen = (
            f"{len(usual):,} were given" if whole is None else f"{len(usual):,} of {len(whole):,} are held out for it"
        )
        raise BadInput(
            f"a rate of {rate:g} needs {need:,} {what} at least to set the line on, and {seen}: give more of them "
            "(--fit-on), others to set the line on (--calibrate-on), or a larger rate (--rate)"
        )


def _known(given: Given, ood: Given | None) -> tuple[np.ndarray | None, list[str] | None, Given]:
    """Tell which inputs are known outliers, and the folder of each; put both kinds together."""
    both = {word.lower() for word in given.classes} == set(KNOWN)
    if ood is None:
        known = None
        if both and given.labels is not None:
            known = np.array([word.lower() == KNOWN[1] for word in given.classes])[given.labels]
        return known, given.groups(), given
    if both:
        raise BadInput("the inputs have the sub-folders 'id' and 'ood', and outliers were given beside them; give one")
    groups = None
    if given.classes or ood.classes:
        groups = [
            f"{kind}/{group}" if group else kind
            for kind, part in zip(KNOWN, (given, ood))
            for group in part.groups() or [""] * len(part)
        ]
    return np.repeat([False, True], [len(given), len(ood)]), groups, given + ood


def _recall(labels: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Return the mean recall of the classes, and what a model that guesses hardly ever reaches."""
    classes = np.unique(labels)
    recall = float(np.mean([(predicted[labels == label] == label).mean() for label in classes]))
    chance = 1 / max(2, len(classes))
    return recall, chance + 2 * (chance * (1 - chance) / len(labels)) ** 0.5


def _listed(words: Sequence[str], most: int = 4) -> str:
    return ", ".join(f"'{word}'" for word in words[:most]) + (", ..." if len(words) > most else "")
