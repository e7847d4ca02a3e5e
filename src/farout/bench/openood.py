"""Scores of a model's inputs on sets from elsewhere: near, far, or whatever settings are given, as OpenOOD does it.

Views of every set are taken once, for all scores. Numbers of a setting are means over its sets, not numbers of the sets
thrown together. How images are stored decides much of what a score of feature distances sees: ``recode`` stores all
sets as CIFAR-10 is stored, and the table says which it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from farout.bench._openood_published import CIFAR10, SOURCE
from farout.bench._tables import as_html, as_text
from farout.bench.metrics import ood_metrics
from farout.bench.suites import Progress
from farout.data.images import DEVIATION, MEAN, image_set, image_set_names, recoded, resized
from farout.errors import BadInput, UnknownName
from farout.io.files import writing
from farout.kit.training import torch_or_say
from farout.scoring import versions

if TYPE_CHECKING:
    from farout.ood._score import Score

__all__ = ["METHODS", "SETTINGS", "main", "openood", "summary"]

METHODS = (
    "msp",
    "max_logit",
    "energy",
    "temperature_scaling",
    "odin",
    "react",
    "ash",
    "scale",
    "grad_norm",
    "deep_knn",
    "mahalanobis",
    "relative_mahalanobis",
    "vim",
)
SETTINGS = {
    "near": ("tin-near_animal",),
    "far": ("tin-scene", "tin-object", "tin-food", "tin-invertebrate", "textures64", "mnist-test"),
}
READY = "resnet20-cifar10"
HELD_OUT = 1_000  # usual inputs of the test set, for scores that want some that were not trained on


def openood(
    model: Any,
    train: tuple[Any, Any],
    usual: Any,
    settings: Mapping[str, Mapping[str, Any]],
    methods: Iterable[str | Score] = METHODS,
    *,
    unseen: tuple[Any, Any] | None = None,
    shifted: Any = None,
    deviation: Sequence[float] | None = None,
    batch_size: int = 256,
    device: str = "cpu",
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Measure scores of a model's inputs.

    Parameters
    ----------
    model : module, OpenModel, str or path
        A classifier.
    train : (inputs, labels)
        What scores are fitted to; labels may be None.
    usual : inputs
        Of the same kind, not trained on.
    settings : mapping of str to mapping of str to inputs
        Sets from elsewhere by setting, such as ``{"near": {"animals": x}, "far": {...}}``.
    methods : iterable of str or Score
    unseen : (inputs, labels), optional
        Usual inputs for scores that are fitted to such (ReAct, temperature scaling); by default the training inputs.
    shifted : inputs, optional
        Usual inputs that look another way. They join the usual ones (full spectrum), so that a score that flags them is
        worse for it.
    deviation : sequence of float, optional
        By which the channels of the inputs were divided, for scores that move inputs; see
        :class:`farout.ood.Watch`.
    batch_size : int
    device : str
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        A row for each method and set: ``method``, ``setting``, ``set``, ``usual`` and ``outliers`` (how many),
        ``seconds`` (of fitting and scoring, without the views), and what :func:`farout.bench.metrics.ood_metrics` says.

    Raises
    ------
    BadInput
        There are no sets, or a method cannot do with this model.
    """
    torch_or_say("scores of a model's inputs")
    from farout.ood.views import extract
    from farout.ood.watch import Watch, score_named

    if not any(settings.values()):
        raise BadInput("there are no sets from elsewhere; give at least one setting with one set")
    scores = [score_named(method) for method in methods]
    inputs = {("train", ""): train[0], ("usual", ""): usual}
    inputs |= {("unseen", ""): unseen[0]} if unseen is not None else {}
    inputs |= {("shifted", ""): shifted} if shifted is not None else {}
    inputs |= {(setting, name): x for setting, sets in settings.items() for name, x in sets.items()}
    needs = tuple(dict.fromkeys(need for score in scores for need in score.needs))
    opened = Watch(model, scores[0], device=device).open()
    views = {}
    for place, (key, x) in enumerate(inputs.items()):
        if progress is not None:
            progress(f"views of {key[1] or key[0]}", 0.8 * place / len(inputs))
        views[key] = extract(opened, x, needs=needs, batch_size=batch_size)
    rows = []
    for place, score in enumerate(scores):
        name = _name(score)
        if progress is not None:
            progress(name, 0.8 + 0.2 * place / len(scores))
        start = time.perf_counter()
        held = score.unseen and unseen is not None
        fitted_to, labels = unseen if unseen is not None and held else train
        fitted = score.fit(views["unseen" if held else "train", ""], _labels(labels))
        if fitted.steps():  # the input is moved, so that views do not do
            watch = Watch(opened, score, deviation=deviation, batch_size=batch_size, device=device)
            watch.fit(fitted_to, labels)
            found = {key: watch.outlier_score(x) for key, x in inputs.items() if key[0] not in ("train", "unseen")}
        else:
            found = {
                key: fitted.score(one).double().numpy()
                for key, one in views.items()
                if key[0] not in ("train", "unseen")
            }
        seconds = time.perf_counter() - start
        inside = found["usual", ""]
        if shifted is not None:
            inside = np.concatenate([inside, found["shifted", ""]])
        for (setting, of), outside in found.items():
            if of:
                row = {"method": name, "setting": setting, "set": of, "usual": len(inside), "outliers": len(outside)}
                rows.append(row | ood_metrics(inside, outside) | {"seconds": seconds})
    return pl.DataFrame(rows)


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """Return means over the sets of each setting, a row a method: AUROC and both numbers that are called FPR95.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`openood`.
    """
    what = ("auroc", "fpr95_out", "fpr95_in")
    settings = table["setting"].unique(maintain_order=True).to_list()
    means = table.group_by("method", "setting", maintain_order=True).agg(pl.col(what).mean())
    rows = []
    for method in table["method"].unique(maintain_order=True):
        own = {row["setting"]: row for row in means.filter(pl.col("method") == method).to_dicts()}
        rows.append({"method": method} | {f"{w} {s}": own[s][w] for w in what for s in settings})
    return pl.DataFrame(rows)


def main(
    model: str = READY,
    methods: Iterable[str] = METHODS,
    sets: Iterable[str] | None = None,
    train: str = "cifar10-train",
    usual: str = "cifar10-test",
    rows: int | None = 4000,
    recode: bool = True,
    out: str | Path = "out/openood",
    *,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Run the benchmark on sets by name or folders of images, print the table, and write ``openood.json`` and a page.

    Parameters
    ----------
    model : str
        ``resnet20-cifar10``, or what :func:`farout.io.models.open_model` opens.
    methods : iterable of str
    sets : iterable of str, optional
        ``setting=name`` with a name of :func:`farout.data.images.image_set_names` or a folder of images; by default
        ``near`` and ``far`` of Tiny ImageNet's groups, textures and digits.
    train, usual : str
        Likewise.
    rows : int, optional
        At most so many usual inputs, and twice as many to fit to; None takes all.
    recode : bool
        Store all images as CIFAR-10 is stored. Without it a score may tell sets apart by how they are stored.
    out : path
    progress : callable, optional
    """
    settings: dict[str, dict[str, Any]] = {}
    for word in sets if sets is not None else [f"{s}={name}" for s, names in SETTINGS.items() for name in names]:
        setting, equals, name = word.partition("=")
        if not equals or not setting or not name:
            raise BadInput(f"a set is setting=name, such as near=tin-near_animal, and not '{word}'")
        settings.setdefault(setting, {})[Path(name).name] = name
    ready = model == READY
    opened, size = _ready() if ready else (model, None)
    taken = {
        setting: {name: _images(source, rows, recode, size)[0] for name, source in of.items()}
        for setting, of in settings.items()
    }
    x, y = _images(usual, None if rows is None else rows + HELD_OUT, recode, size)
    every = max(2, len(x) // HELD_OUT)
    apart = np.arange(len(x)) % every == 0
    table = openood(
        opened,
        _images(train, None if rows is None else 2 * rows, recode, size),
        x[~apart],
        taken,
        methods,
        unseen=(x[apart], None if y is None else y[apart]),
        progress=progress,
    )
    _write(Path(out), table, {"model": model, "train": train, "usual": usual, "rows": rows, "recoded": recode})
    return table


def _ready() -> tuple[Any, int]:
    """Open the ResNet-20 for CIFAR-10, and say what size of images it takes."""
    torch = torch_or_say("scores of a model's inputs")
    from farout.data.images import resnet20_cifar10
    from farout.io._pixels import Pixels
    from farout.io.models import open_model
    from farout.kit.nets import ResNetCIFAR

    net = ResNetCIFAR(10, depth=20)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in resnet20_cifar10().items()})
    opened = open_model(net)
    opened.name, opened.takes = READY, "pixels"
    opened.pixels = Pixels(mean=tuple(255 * m for m in MEAN), deviation=tuple(255 * d for d in DEVIATION))
    return opened, 32


def _images(source: str, rows: int | None, recode: bool, size: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a set by name or a folder of images, and store it as it should be stored."""
    labels: np.ndarray | None
    if source in image_set_names():
        found = image_set(source, rows)
        x, labels = found.images, found.labels
    elif Path(source).exists():
        from farout.io.images import read_images

        read = read_images(source)
        shapes = {array.shape for array in read.arrays}
        side = size or (32 if recode else None)
        if side is None and len(shapes) > 1:
            raise BadInput(
                f"the images of '{source}' have {len(shapes)} sizes; scale them to one, or let them be recoded"
            )
        x = np.concatenate([resized(np.asarray(a)[None], side) if side else np.asarray(a)[None] for a in read.arrays])
        x, labels = x[:rows], None if read.labels is None else read.labels[:rows]
    else:
        raise UnknownName("image set or folder", source, image_set_names())
    if recode:
        return recoded(x), labels
    return resized(x, size) if size is not None else np.asarray(x), labels


def _labels(labels: Any) -> Any:
    import torch

    return None if labels is None else torch.tensor(np.asarray(labels)).long()


def _name(score: Score) -> str:
    """Return the slug of a score, with the parameters that are not its defaults."""
    from farout.cards import find

    usual = type(score)().get_params(deep=False)
    other = [f"{k}={v}" for k, v in score.get_params(deep=False).items() if v != usual[k]]
    return ":".join([find(type(score).__paper__).slug, *other])


def _write(folder: Path, table: pl.DataFrame, settings: dict[str, Any]) -> None:
    """Print the summary, and write the numbers and the page."""
    from farout.report._page import Section, page, write

    folder.mkdir(parents=True, exist_ok=True)
    short = summary(table)
    head = list(short.columns)
    rows = [[_word(value) for value in row] for row in short.iter_rows()]
    print(as_text(head, rows))
    settings = settings | {"versions": versions()}
    with writing(folder / "openood.json") as path:
        written = {"settings": settings, "summary": short.to_dicts(), "sets": table.to_dicts()}
        path.write_text(json.dumps(written, indent=2), encoding="utf-8")
    stored = (
        "All images are stored as CIFAR-10 is."
        if settings["recoded"]
        else ("Images are as they came: a score may tell sets apart by how they are stored.")
    )
    how = (
        "In percent; a setting's number is the mean over its sets. FPR95 (out) is the share of usual inputs that are "
        "flagged where 95 % of the others are, as in OpenOOD; FPR95 (in) is the share of others that pass where 95 % "
        f"of the usual inputs do, as in most papers. {stored}"
    )
    others = [
        [name, *(f"{v:.2f}" if v is not None else "-" for v in CIFAR10[name])]
        for name in table["method"].unique(maintain_order=True)
        if name in CIFAR10
    ]
    each_head = [
        "method",
        "setting",
        "set",
        "usual",
        "outliers",
        "AUROC",
        "AUPR in",
        "AUPR out",
        "FPR95 out",
        "FPR95 in",
    ]
    columns = ["method", "setting", "set", "usual", "outliers", "auroc", "aupr_in", "aupr_out", "fpr95_out", "fpr95_in"]
    each = [[_word(value) for value in row] for row in table.select(columns).iter_rows()]
    sections = [
        Section("Means by setting", as_html([_title(name) for name in head], rows), how),
        Section("Published", as_html(["method", "AUROC near", "AUROC far", "FPR95 near", "FPR95 far"], others), SOURCE),
        Section("Every set", as_html(each_head, each), "Numbers of single sets."),
    ]
    best = short.sort(head[1], descending=True)["method"][0]
    facts = [("methods", f"{len(short)}"), ("sets", f"{table['set'].n_unique()}"), (f"best by {_title(head[1])}", best)]
    lead = f"How well scores tell what '{settings['model']}' was trained for from what it was not."
    write(folder / "openood.html", page("Inputs from elsewhere", sections, kind="benchmark", lead=lead, facts=facts))


def _title(name: str) -> str:
    return name.replace("auroc", "AUROC").replace("fpr95_out", "FPR95 (out)").replace("fpr95_in", "FPR95 (in)")


def _word(value: Any) -> str:
    return f"{100 * value:.2f}" if isinstance(value, float) else str(value)
