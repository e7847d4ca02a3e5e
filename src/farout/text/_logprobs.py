"""How likely a causal language model finds each token of a text, given the tokens before it.

Texts of unequal length go through the model together, padded on the right, where a causal model does not look. A text
beyond the context is read in windows that overlap by half, and each token counts where it has the most before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.errors import BadInput

if TYPE_CHECKING:
    import torch

LONGEST = 2048  # tokens a model sees at once where it says nothing, or more: logits of all of them are held
LOGITS = 1 << 26  # held at once: 256 MB in single precision
TOKENS = 1 << 14  # in a batch
PROBED = 8  # tokens that show whether a model looks ahead
ALIKE, ALIKE_HALF = 1e-4, 1e-2  # standard deviations of the logits, that rounding may move them by


def token_logprobs(
    model: Any,
    ids: Iterable[Sequence[int]],
    *,
    bos: int | None = None,
    context: int | None = None,
    standardised: bool = False,
    name: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[np.ndarray]:
    """Return the log-probability of each token of each text, ``l_i = log p(x_i | x_<i)``.

    Parameters
    ----------
    model : torch.nn.Module
        Takes ids (b, t) and returns logits (b, t, vocabulary), or something that has them as ``logits``: any causal
        model of transformers, or one's own. It is read in evaluation mode and left as it was.
    ids : sequences of int
        The tokens of each text.
    bos : int, optional
        The token that stands before every text, and then also before every window. Without one, a first token is
        predicted by nothing.
    context : int, optional
        Tokens that the model sees at once; what its configuration says, and 2,048 at most, where it is not given.
    standardised : bool
        Give ``(l_i - mean) / std`` instead, of log p over the vocabulary under the model's own distribution at that
        place (Zhang et al., Min-K%++, arXiv 2404.02936).
    name : str, optional
        Of the model, for errors.
    progress : callable, optional
        Called with the share of tokens done.

    Returns
    -------
    list of float64 array (tokens,)
        In nats, or without a unit where standardised; NaN at the first token where there is no ``bos``.

    Raises
    ------
    BadInput
        The model looks ahead, gives no logits or none that are finite, or knows fewer tokens than the texts have.

    Examples
    --------
    A model that finds each of four tokens equally likely:

    >>> import torch
    >>> class Blind(torch.nn.Module):
    ...     def forward(self, ids):
    ...         return torch.zeros(*ids.shape, 4)
    >>> token_logprobs(Blind(), [[0, 1, 2], [3]], bos=0)
    [array([-1.38629436, -1.38629436, -1.38629436]), array([-1.38629436])]
    """
    import torch

    name = name or type(model).__name__
    rows = [np.asarray(one, dtype=np.int64).reshape(-1) for one in ids]
    width = _context_of(model) if context is None else context
    if width < 2:
        raise BadInput(f"a context of {width} tokens predicts nothing; it must be at least 2")
    found = [np.full(len(row), np.nan) for row in rows]
    windows = [(text, *window) for text, row in enumerate(rows) for window in _windows(len(row), width, bos is None)]
    if not windows:
        return found
    with _reading(model), torch.inference_mode():
        vocabulary = _checked(model, rows, bos, name)
        most = max(width, min(TOKENS, LOGITS // vocabulary))
        done, whole = 0, sum(stop - start for _, start, _, stop in windows)
        for batch in _batches(windows, most):
            inputs = [_input(rows[text][start:stop], bos) for text, start, _, stop in batch]
            logits_BTV = _logits(model, inputs, name)
            # the logits one place before a token predict it, and before a window may stand a token to begin with
            places = [np.arange(first, stop) - start + (bos is not None) - 1 for _, start, first, stop in batch]
            lines = np.repeat(np.arange(len(batch)), list(map(len, places)))
            targets = np.concatenate([rows[text][first:stop] for text, _, first, stop in batch])
            values = _values(logits_BTV, lines, np.concatenate(places), targets, standardised)
            for (text, _, first, stop), few in zip(batch, np.split(values, np.cumsum(list(map(len, places)))[:-1])):
                found[text][first:stop] = few
            done += sum(stop - start for _, start, _, stop in batch)
            if progress is not None:
                progress(done / whole)
    _refuse_nan(found, bos, name)
    return found


def _windows(n: int, width: int, bare: bool) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first token that counts, stop) of the windows over n tokens; ``bare`` without a token before."""
    room = width - (not bare)
    starts = [0] if n <= room else [*range(0, n - room, max(1, room // 2)), n - room]
    first = int(bare)
    for start in starts:
        stop = min(n, start + room)
        if first < stop:
            yield start, first, stop
        first = stop


def _batches(windows: list[tuple[int, int, int, int]], most: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Group windows of like length, at most so many tokens a group with the padding counted."""
    batch: list[tuple[int, int, int, int]] = []
    for window in sorted(windows, key=lambda one: one[1] - one[3]):  # the longest first, which shows early what fits
        longest = batch[0][3] - batch[0][1] if batch else 0
        if batch and (len(batch) + 1) * (longest + 1) > most:
            yield batch
            batch = []
        batch.append(window)
    yield batch


def _input(tokens: np.ndarray, bos: int | None) -> np.ndarray:
    return tokens if bos is None else np.concatenate(([bos], tokens))


def _logits(model: Any, inputs: list[np.ndarray], name: str) -> torch.Tensor:
    """Run the model on lines of unequal length; what stands at the padding means nothing."""
    import torch

    longest = max(map(len, inputs))
    ids_BT = np.stack([np.pad(line, (0, longest - len(line))) for line in inputs])
    device = next(iter(model.parameters()), torch.empty(0)).device
    known = inspect.signature(model.forward).parameters
    more: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if "attention_mask" in known:
        mask_BT = np.arange(longest) < np.array([[len(line)] for line in inputs])
        more["attention_mask"] = torch.from_numpy(mask_BT.astype(np.int64)).to(device)
    given = model(torch.from_numpy(ids_BT).to(device), **more)
    if isinstance(given, tuple):
        given = given[0]
    logits = given.get("logits") if isinstance(given, dict) else getattr(given, "logits", given)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or tuple(logits.shape[:2]) != ids_BT.shape:
        seen = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(given).__name__
        raise BadInput(
            f"'{name}' gives {seen} for ids of shape {ids_BT.shape}, and logits (texts, tokens, vocabulary) are "
            "needed: give a language model with its head"
        )
    return logits


def _values(
    logits_BTV: torch.Tensor, lines: np.ndarray, places: np.ndarray, targets: np.ndarray, standardised: bool
) -> np.ndarray:
    """Return what the logits at some places of some lines say of the tokens that came next."""
    import torch

    device = logits_BTV.device
    wide = torch.float32 if device.type == "mps" else torch.float64
    values = np.empty(len(targets))
    step = max(1, (LOGITS >> 3) // logits_BTV.shape[2])
    for start in range(0, len(targets), step):
        few = slice(start, start + step)
        line, place, target = (torch.from_numpy(one[few]).to(device) for one in (lines, places, targets))
        log_p = torch.log_softmax(logits_BTV[line, place].to(wide), dim=1)
        seen = log_p.gather(1, target[:, None])[:, 0]
        if standardised:
            p, log_p = log_p.exp(), log_p.clamp(min=-1e30)  # of a token that is ruled out, 0 times a finite number
            mean = (p * log_p).sum(dim=1)
            std = (p * (log_p - mean[:, None]) ** 2).sum(dim=1).sqrt()
            seen = (seen - mean) / std.clamp(min=1e-30)  # 0 where the model is certain, and right
        values[few] = seen.cpu().numpy()
    return values


def _checked(model: Any, rows: list[np.ndarray], bos: int | None, name: str) -> int:
    """Return the size of the vocabulary; refuse a model that looks ahead, and tokens that it does not know."""
    line = _input(max(rows, key=len)[:PROBED], bos)
    try:
        logits_TV = _logits(model, [line], name)[0].cpu()
        vocabulary = logits_TV.shape[1]
        other = np.append(line[:-1], (line[-1] + 1) % vocabulary)
        moved = (_logits(model, [other], name)[0].cpu() - logits_TV)[:-1].abs()
    except IndexError as error:
        raise BadInput(f"'{name}' does not know a token of {line.tolist()}: is this its tokenizer?") from error
    alike = ALIKE if logits_TV.dtype.itemsize > 2 else ALIKE_HALF
    if (moved > alike * logits_TV[logits_TV.isfinite()].std()).any():
        raise BadInput(
            f"'{name}' looks ahead: what it says of a token depends on later ones, so it gives no likelihood of a "
            "text; give a causal language model"
        )
    largest = max(int(row.max(initial=0)) for row in rows)
    if largest >= vocabulary:
        raise BadInput(f"token {largest} occurs, and '{name}' knows {vocabulary:,} tokens: is this its tokenizer?")
    return vocabulary


def _refuse_nan(found: list[np.ndarray], bos: int | None, name: str) -> None:
    for text, values in enumerate(found):
        bad = np.flatnonzero(np.isnan(values[int(bos is None) :]))
        if len(bad):
            place = bad[0] + int(bos is None)
            raise BadInput(f"'{name}' gives NaN at token {place} of text {text}; its weights or its precision are off")


def _context_of(model: Any) -> int:
    """Return how many tokens a model sees at once, as its configuration says."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = [getattr(config, word, None) for word in ("max_position_embeddings", "context")]
    return min([LONGEST, *(value for value in known if isinstance(value, int))])


@contextmanager
def _reading(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its parts back into its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
