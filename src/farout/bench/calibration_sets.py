"""Outliers and Calibration Sets have Diminishing Effect on Quantization of Modern LLMs.

Davide Paglieri, Saurabh Dash, Tim Rocktäschel, Jack Parker-Holder, ES-FoMo-II workshop, ICML 2024 (arXiv 2405.20835).

Quantization looks at calibration text to find outliers. Does it matter which text? The study quantizes models with
texts of other content, quality and language, and compares what they lose.

It claims that OPT-6.7B, on which much of the early evidence rests, depends strongly on calibration text, and that later
models (Llama, Command-R, Mistral) hardly do.

What is not in the paper: every set is drawn several times. Without that, the effect of a set cannot be told from that
of a draw. With ``D(c, s)`` what a model loses with draw ``s`` of set ``c``,

    between sets ``V_b = Var_c(mean_s D)``, within sets ``V_w = mean_c Var_s D``, and ``F = V_b / (V_w / S)``,

which is about 1 where sets do not matter. Tasks of the paper (ARC, PiQA, FLORES+) are not here; texts of
:func:`farout.data.texts.text` stand for content, language and nonsense, matched in number, length and special tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench.divergence import divergence
from farout.bench.suites import Progress
from farout.cards import paper
from farout.data.calibration import calibration
from farout.kit.training import torch_or_say

__all__ = ["ARMS", "SETS", "calibration_sets", "decomposed", "spread"]

SETS = ("tinyshakespeare", "code", "german", "ascii", "random-tokens")
# name -> (recipe, scheme); the last looks at no calibration data, so its losses cannot differ
ARMS: dict[str, tuple[Any, str]] = {
    "plain, static": ("rtn", "w8a8-tensor"),
    "SmoothQuant, static": ("smoothquant", "w8a8-tensor"),
    "AWQ": ("awq", "w4a16g32-clamped"),
    "GPTQ": ("gptq", "w4a16g32"),
    "plain, a scale a token": ("rtn", "w8a8"),
}


def decomposed(losses_CS: np.ndarray) -> dict[str, float]:
    """Tell the effect of sets from that of draws.

    Parameters
    ----------
    losses_CS : float array (sets, draws)

    Returns
    -------
    dict of str to float
        ``between`` (variance of the means of sets), ``within`` (mean variance of draws of a set), ``F``, and ``range``
        (of the means). F is 0 where nothing differs, and infinite where draws alone do not.

    Examples
    --------
    >>> decomposed(np.array([[1.0, 3.0], [5.0, 7.0]]))
    {'between': 8.0, 'within': 2.0, 'F': 8.0, 'range': 4.0}
    """
    means = losses_CS.mean(1)
    between = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    within = float(losses_CS.var(1, ddof=1).mean()) if losses_CS.shape[1] > 1 else 0.0
    noise = within / losses_CS.shape[1]
    F = between / noise if noise > 0 else float(np.inf) if between > 0 else 0.0
    return {"between": between, "within": within, "F": F, "range": float(np.ptp(means))}


@paper(
    "Calibration sets",
    title="Outliers and Calibration Sets have Diminishing Effect on Quantization of Modern LLMs",
    authors="Paglieri, Dash, Rocktäschel, Parker-Holder",
    arxiv="2405.20835",
    year=2024,
    kind="benchmark",
    extra="llm",
    claim="OPT-6.7B depends strongly on calibration text and suffers from outliers; Llama, Command-R and Mistral "
    "hardly do.",
    differs="Every set is drawn several times, so that the effect of a set is told from that of a draw. Texts stand "
    "for the paper's tasks.",
)
def calibration_sets(
    models: Mapping[str, Any],
    sets: Iterable[str | Path] = SETS,
    arms: Mapping[str, tuple[Any, str]] = ARMS,
    *,
    test: str | Path | Sequence[str] = "tinyshakespeare",
    samples: int = 32,
    length: int = 128,
    windows: int = 32,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Quantize models with several calibration sets, several draws of each, and measure what they lose.

    Parameters
    ----------
    models : dict of str to OpenModel
    sets : iterable of str
        Texts of :func:`farout.data.texts.text`, or ``"random-tokens"``.
    arms : dict of str to (recipe, str)
        Recipes and schemes by name.
    test : str, path or list of str
        The text on which the divergence from the full model is measured.
    samples, length : int
        Calibration windows, and tokens of each.
    windows : int
        Of the test text.
    seeds : list of int
        Draws of each set.
    progress : callable, optional

    Returns
    -------
    polars.DataFrame
        A row for each ``model``, ``arm``, ``set`` and ``seed`` with its ``loss``: the mean divergence of next-token
        distributions in nats, or of pooled embeddings (1 - cosine).
    """
    torch_or_say("comparing calibration sets")
    from farout.quantize.recipe import quantize

    sets = list(sets)
    cells = [(m, c, s) for m in models for c in sets for s in seeds]
    rows = []
    for i, (name, chosen, seed) in enumerate(cells):
        if progress is not None:
            progress("calibration sets", i / len(cells))
        opened = models[name]
        judged = calibration(test, opened, samples=windows, length=length, seed=10_000)
        batches = calibration(chosen, opened, samples=samples, length=length, seed=seed, batch_size=16)
        for arm, (recipe, scheme) in arms.items():
            model = copy.deepcopy(opened.model)
            quantize(model, recipe, scheme, batches)
            loss = divergence(opened.model, model, judged)
            rows.append({"model": name, "arm": arm, "set": str(chosen), "seed": seed, "loss": loss})
    return pl.DataFrame(rows)


def spread(table: pl.DataFrame) -> pl.DataFrame:
    """Return a row for each model and arm: mean loss, the worst set, and what :func:`decomposed` says."""
    rows = []
    for (model, arm), part in table.group_by(["model", "arm"], maintain_order=True):
        losses = part.pivot(on="seed", index="set", values="loss")
        values = losses.drop("set").to_numpy()
        worst = losses["set"][int(values.mean(1).argmax())]
        rows.append({"model": model, "arm": arm, "loss": float(values.mean()), "worst": worst, **decomposed(values)})
    return pl.DataFrame(rows)
