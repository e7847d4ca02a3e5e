"""Perplexity of language models on texts, and how far the outputs of one model are from those of another.

A text is tokenised once and cut into windows side by side, and what is left at its end is dropped; the perplexity is
``exp`` of the mean loss, in nats for each token, over all windows. The first token of a window is predicted by nothing:
``length`` tokens have ``length - 1`` that are scored. Where the tokenizer begins texts with a special token, every
window begins with it, as the model was trained; it counts as the first.

Perplexities of different tokenizers, lengths of window or treatments of the beginning are not to be compared. Neither
is that of ``wikitext2``, which is the tokenised form (``<unk>``, ``@-@``), with published ones, which mostly are of the
raw form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench._logits import batch_of, known, module_of, reading, said, stretch
from farout.bench._perplexity_page import table_rows, write_page
from farout.bench._tables import as_text
from farout.bench.divergence import divergence
from farout.bench.suites import Progress
from farout.data.calibration import token_windows, windows_of
from farout.errors import BadInput
from farout.io.files import writing
from farout.kit.training import device_named, torch_or_say
from farout.scoring import versions

__all__ = ["LENGTH", "Perplexity", "divergence", "main", "perplexity"]

LENGTH = 2048  # tokens of a window


@dataclass(frozen=True, eq=False)
class Perplexity:
    """How well a model predicts a text.

    Attributes
    ----------
    value : float
        ``exp(loss)``.
    loss : float
        Mean over the tokens that are scored, in nats.
    tokens : int
        That are scored.
    windows, length : int
        How many, and tokens of each.
    per_window : float64 array (windows,)
        The mean loss of each.
    """

    value: float
    loss: float
    tokens: int
    windows: int
    length: int
    per_window: np.ndarray

    @property
    def error(self) -> float:
        """Standard error of the loss, with windows as the sample; NaN for one window."""
        return float(self.per_window.std(ddof=1) / np.sqrt(self.windows)) if self.windows > 1 else np.nan


def perplexity(
    model: Any,
    texts: str | Path | Sequence[str] | np.ndarray,
    *,
    length: int = LENGTH,
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of a causal language model on a text.

    Parameters
    ----------
    model : OpenModel or torch.nn.Module
        A module gives logits (B, T, V) for ids (B, T), bare or as ``logits``.
    texts : str, path, list of str, or int array (n,) or (windows, length)
        What :func:`farout.data.texts.text` takes; texts, which are joined by blank lines; the tokens of a text; or
        windows that are cut already. A module without a tokenizer takes tokens.
    length : int
        Tokens of a window; the model's own limit may be lower.
    windows : int, optional
        So many, evenly spread over the text, instead of all.
    stride : int, optional
        A window begins every so many tokens, and only its last ``stride`` tokens are scored (of the first, all), so
        that each has more before it. By default windows do not overlap.
    batch_size : int
        Windows at a time.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    Perplexity

    Raises
    ------
    BadInput
        The text holds fewer windows, there is no tokenizer, or the model gives no logits.
    UnknownName, DataMissing
        There is no such text.

    Examples
    --------
    A model that finds all tokens equally likely has the size of its vocabulary as perplexity:

    >>> import torch
    >>> blind = torch.nn.Embedding.from_pretrained(torch.zeros(256, 256))
    >>> found = perplexity(blind, np.arange(100) % 7, length=32)
    >>> round(found.value, 3), found.windows, found.tokens
    (256.0, 3, 93)
    """
    torch = torch_or_say("measuring perplexity")
    module = module_of(model)
    ids_NT, new = _windows(model, module, texts, length, windows, stride)
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    losses = []
    with reading(module):
        for ids_BT in torch.from_numpy(ids_NT).split(batch_size):
            losses.append(_losses(module, ids_BT.to(device)).double().cpu().numpy())
            if progress is not None:
                progress(sum(map(len, losses)) / len(ids_NT))
    scored = [row[-count:] for row, count in zip(np.concatenate(losses), new)]
    loss = float(np.concatenate(scored).mean())
    per_window = np.array([row.mean() for row in scored])
    return Perplexity(float(np.exp(loss)), loss, sum(map(len, scored)), len(scored), ids_NT.shape[1], per_window)


def _windows(
    model: Any, module: Any, texts: Any, length: int, windows: int | None, stride: int | None
) -> tuple[np.ndarray, list[int]]:
    """Return windows of tokens, and of how many tokens of each, at its end, the loss is taken."""
    length = min(length, known(module, "max_position_embeddings") or length)
    if stride is not None and not 0 < stride < length:
        raise BadInput(f"a stride is from 1 to {length - 1}, below the length of a window, not {stride}")
    if isinstance(texts, str | Path) or (len(texts) and isinstance(texts[0], str)):
        if getattr(model, "tokenizer", None) is None:
            raise BadInput(f"'{getattr(model, 'name', type(model).__name__)}' has no tokenizer: give it tokens")
        found = token_windows(texts, model, length, stride)
    else:
        found = np.asarray(texts, dtype=np.int64)
        if found.ndim == 1:
            found = windows_of(found, length, stride or length)
        elif stride is not None:
            raise BadInput("windows that are cut already have no stride")
    if not len(found) or found.shape[1] < 2 or (windows is not None and not 0 < windows <= len(found)):
        asked = "one, of two tokens at least," if windows is None else f"{windows}"
        raise BadInput(f"the text holds {len(found)} windows of {length} tokens, and {asked} are asked for")
    if windows is not None:
        found = found[np.linspace(0, len(found) - 1, windows).round().astype(int)]
    whole = found.shape[1] - 1
    return np.ascontiguousarray(found), [whole, *[stride or whole] * (len(found) - 1)]


def _losses(model: Any, ids_BT: Any) -> Any:
    """Return the loss of all tokens but the first (B, T - 1)."""
    import torch

    from farout.kit.language import cross_entropy

    step = stretch(model, sequences=len(ids_BT))
    found = said(model, batch_of(model, ids_BT), step)
    if found.at is None or found.tokens != ids_BT.shape[1]:
        raise BadInput(f"'{type(model).__name__}' gives no logits for each token: it is no language model")
    last, parts = ids_BT.shape[1] - 1, []
    for start in range(0, last, step):
        stop = min(start + step, last)
        parts.append(cross_entropy(found.at(slice(start, stop)), ids_BT[:, start + 1 : stop + 1]))
    return torch.cat(parts, dim=1)


def main(
    model: Any,
    texts: Iterable[str | Path] = ("wikitext2",),
    length: int = LENGTH,
    windows: int | None = None,
    out: str | Path = "out/perplexity",
    *,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Measure a model's perplexity on texts, print the table and write it with a page.

    Parameters
    ----------
    model : str, path, OpenModel or torch.nn.Module
        A name of :func:`farout.data.pretrained_names`, or what :func:`farout.io.models.open_model` takes.
    texts : iterable of str or path
        Names of :func:`farout.data.texts.text_names`, and text files.
    length, windows : int
        As in :func:`perplexity`.
    out : path
        A folder: ``perplexity.json`` (results, losses of all windows, settings) and ``page.html``.
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        A row for each text: ``model``, ``text``, ``perplexity``, ``loss`` and its standard ``error``, ``tokens``,
        ``windows``, ``length``, ``losses`` of the windows.

    Raises
    ------
    UnknownName, BadInput, DataMissing
        The model or a text cannot be had, or is too short.
    """
    opened = _opened(model)
    rows = []
    for text in map(str, texts):
        tell = None if progress is None else lambda done, text=text: progress(text, done)
        found = perplexity(opened, text, length=length, windows=windows, progress=tell)
        numbers = {"perplexity": found.value, "loss": found.loss, "error": found.error, "tokens": found.tokens}
        sizes = {"windows": found.windows, "length": found.length, "losses": found.per_window.tolist()}
        rows.append({"model": opened.name, "text": text} | numbers | sizes)
    table = pl.DataFrame(rows)
    settings = {
        "model": str(model) if isinstance(model, str | Path) else opened.name,
        "facts": opened.facts,
        "notes": opened.notes,
        "begins with": None if opened.tokenizer.bos is None else opened.tokenizer.piece(opened.tokenizer.bos),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    print(as_text(*table_rows(table)))
    with writing(folder / "perplexity.json") as temporary:
        written = json.dumps({"settings": settings, "results": rows}, indent=2, default=repr)
        temporary.write_text(written + "\n", encoding="utf-8")
    write_page(table, settings, folder / "page.html")
    return table


def _opened(model: Any) -> Any:
    """Open a model by its name, from a file or a folder."""
    from farout.data.pretrained import pretrained, pretrained_names
    from farout.io.models import OpenModel, open_model

    if isinstance(model, OpenModel):
        return model
    named = isinstance(model, str) and model in pretrained_names()
    opened = open_model(pretrained(model) if named else model, device=str(device_named("auto")))
    return replace(opened, name=model) if named else opened
