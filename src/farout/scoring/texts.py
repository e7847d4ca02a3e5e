"""Score texts with a language model from beginning to end. ``farout score TEXTS --model MODEL`` in Python."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.alarm import Alarm, check_rate
from farout.cards import Card, find, list_cards
from farout.contract import LABEL_RATE
from farout.errors import BadInput, UnknownName
from farout.io.models import open_model
from farout.io.tables import TableFile, to_polars, write_table
from farout.kit.training import device_named
from farout.scoring import _rank_p_values, versions
from farout.scoring._passes import Progress

DEFAULT = "min_k_prob"
FIELDS = ("text", "input")  # columns that hold the texts where nothing is said; the second is WikiMIA's
EXPLAINED, FIRST, LAST = 100, 20, 10  # texts with reasons, and those that a page shows whole, of both ends


@dataclass
class TextResult:
    """The scores of texts, and what their model makes of the farthest out and of the nearest.

    Attributes
    ----------
    name, model : str
    texts : list of str
    scores : float64 array (n,)
        Larger is farther out: less likely seen in training.
    p_values : float64 array (n,)
        Conformal p-values when normal texts were given (``calibrated``), else the share of texts that score as high.
    alarms : bool array (n,)
    rate : float
    calibrated : bool
    card : Card
        Of the method.
    order : int64 array (n,)
        The texts, farthest out first.
    said : list of list of str
        The least likely tokens of the first texts of ``order``, in words.
    first, last : list of Tokens
        The first and the last texts of ``order`` as the model reads them; the farthest out, and the nearest, first.
    settings : dict
        What would repeat the run.
    """

    name: str
    model: str
    texts: list[str]
    scores: np.ndarray
    p_values: np.ndarray
    alarms: np.ndarray
    rate: float
    calibrated: bool
    card: Card
    order: np.ndarray
    said: list[list[str]]
    first: list[Any]
    last: list[Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pl.DataFrame:
        """Return score, p-value, alarm and least likely tokens of every text, in the order of the file.

        Tokens stand at the 100 texts that are farthest out, and are empty elsewhere.
        """
        words: list[str | None] = [None] * len(self.texts)
        for row, said in zip(self.order.tolist(), self.said):
            words[row] = "; ".join(said)
        return pl.DataFrame(
            {
                "row": np.arange(len(self.scores)),
                "score": self.scores,
                "p_value": self.p_values,
                "alarm": self.alarms,
                "reasons": pl.Series(words, dtype=pl.String),
            }
        )

    def top(self, most: int = 20) -> pl.DataFrame:
        """Return the texts that are farthest out."""
        return self.frame()[self.order[:most]]

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the table of scores (parquet, feather, csv, jsonl), whole or not at all."""
        if Path(path).suffix.lower() in (".html", ".htm"):
            from farout.report.texts import write_page

            write_page(self, path)
        else:
            write_table(self.frame(), path)


def score_texts(
    data: Any,
    model: Any,
    method: str = DEFAULT,
    *,
    column: str | None = None,
    fit_on: Any = None,
    rate: float | None = None,
    parameters: dict[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> TextResult:
    """Score texts by how likely a language model has seen them; larger is less likely.

    Parameters
    ----------
    data : list, array or column of str, path, TableFile or data frame
        A ``.txt`` file holds a text a line; other files and frames are tables with a column of texts.
    model : str, Path, OpenModel or torch.nn.Module
    method : str
        Of the room of texts.
    column : str, optional
        That holds the texts; ``"text"``, ``"input"`` or the only one that holds words, where it is not said.
    fit_on : as ``data``, optional
        Normal texts: those that are known to be seen, to ask which others are not. P-values then are tests.
    rate : float, optional
        Share of texts that may ring; 0.01 where it is not given.
    parameters : dict, optional
        Of the method.
    seed : int
        For everything that is drawn.
    name : str, optional
        Of the texts, for reports.
    progress : callable, optional
        Called with what is being done and the share done.

    Returns
    -------
    TextResult

    Raises
    ------
    BadInput
        A text is empty, or the model is no causal language model.
    UnknownName
        There is no such column, method or parameter.

    Examples
    --------
    >>> import torch
    >>> class Alphabet(torch.nn.Module):
    ...     def forward(self, ids):
    ...         return 9.0 * torch.nn.functional.one_hot(ids + 1, 256)
    >>> texts = pl.DataFrame({"id": [7, 8], "text": ["abcdefghijklmnop", "abcdefgxijklmnop"]})
    >>> result = score_texts(texts, Alphabet(), parameters={"tokenizer": "bytes"})
    >>> result.scores.round(2), result.order
    (array([3.03, 9.03]), array([1, 0]))
    """
    started = time.perf_counter()
    tell: Progress = progress or (lambda what, done: None)
    card = find(method)
    if card.room != "text" or card.kind != "detector":
        able = ", ".join(f"'{one.slug}'" for one in list_cards("text", "detector"))
        raise BadInput(f"'{card.slug}' does not score texts with a model ({card.room}); methods that do: {able}")
    texts = read_texts(data, column)
    normal = None if fit_on is None else read_texts(fit_on, column)
    rate = LABEL_RATE if rate is None else rate
    check_rate(rate, None if normal is None else len(normal))
    tell("opening", 0.0)
    source = model
    if isinstance(model, str) and model.startswith("py:"):  # marked as code by whoever asks for scores
        source = open_model(model, device=str(device_named("auto")))
    detector = _detector(card, source, parameters, seed)
    opened = detector.open()
    tell("opening", 1.0)
    scores = detector.outlier_score(texts, lambda done: tell("reading", done))
    if normal is None:
        p_values = _rank_p_values(scores)
    else:
        known = detector.outlier_score(normal, lambda done: tell("normal texts", done))
        p_values = Alarm(detector, rate=rate).calibrate_scores(known).p_values_of(scores)
    order = np.argsort(-scores, kind="stable")
    tell("explaining", 0.0)
    said = detector.words([texts[row] for row in order[:EXPLAINED]])
    first = detector.tokens([texts[row] for row in order[:FIRST]])
    last = detector.tokens([texts[row] for row in order[FIRST:][::-1][:LAST]])
    tell("explaining", 1.0)
    return TextResult(
        name=name or getattr(data, "name", None) or (Path(data).stem if isinstance(data, str | Path) else "texts"),
        model=opened,
        texts=texts,
        scores=scores,
        p_values=p_values,
        alarms=p_values <= rate,
        rate=rate,
        calibrated=normal is not None,
        card=card,
        order=order,
        said=said,
        first=first,
        last=last,
        settings={
            "data": str(getattr(data, "path", data)) if isinstance(data, str | Path | TableFile) else None,
            "texts": len(texts),
            "model": str(model) if isinstance(model, str | Path) else opened,
            "method": card.slug,
            "parameters": {key: value for key, value in detector.get_params(deep=False).items() if _plain(value)},
            "normal texts": None if normal is None else len(normal),
            "rate": rate,
            "seed": seed,
            "seconds": {"in all": round(time.perf_counter() - started, 3)},
            "versions": versions(),
        },
    )


def read_texts(data: Any, column: str | None = None) -> list[str]:
    """Read texts from wherever they are; see :func:`score_texts`.

    Raises
    ------
    BadInput
        There is no text, or the column does not hold words.
    UnknownName
        There is no such column, or none that holds texts.

    Examples
    --------
    >>> read_texts(pl.DataFrame({"id": [1, 2], "body": ["a b", "c d"]}))
    ['a b', 'c d']
    """
    if isinstance(data, str | Path) and Path(data).suffix.lower() == ".txt":
        return _lines(Path(data))
    if isinstance(data, str | Path):
        data = TableFile(data)
    if isinstance(data, TableFile):
        data = data.read()
    elif isinstance(data, list | tuple | pl.Series) or (isinstance(data, np.ndarray) and data.ndim == 1):
        texts = list(data)
        if not texts:
            raise BadInput("there are no texts to score")
        return texts
    frame = to_polars(data)
    words = [one for one, kind in frame.schema.items() if kind == pl.String]
    if column is None:
        column = next((one for one in FIELDS if one in frame.columns), words[0] if len(words) == 1 else "text")
    if column not in frame.columns:
        raise UnknownName("column of texts", column, frame.columns)
    if column not in words:
        known = ", ".join(f"'{word}'" for word in words) or "none"
        raise BadInput(f"column '{column}' holds no texts but {frame.schema[column]}; columns that hold words: {known}")
    return frame[column].to_list()


def _lines(path: Path) -> list[str]:
    """Read a text a line; empty lines are none."""
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"'{path}' cannot be read as text: {error}") from error
    if not texts:
        raise BadInput(f"'{path.name}' holds no text; it should hold one a line")
    return texts


def _detector(card: Card, model: Any, parameters: dict[str, Any] | None, seed: int) -> Any:
    """Make the detector."""
    made = card.load()()
    known = made.get_params()
    chosen = {"random_state": seed} | (parameters or {}) | {"model": model}
    for name in chosen:
        if name not in known:
            raise UnknownName(f"parameter of '{card.slug}'", name, known)
    return made.set_params(**chosen)


def _plain(value: Any) -> bool:
    """Whether a setting can be written down."""
    return isinstance(value, str | Path | int | float)
