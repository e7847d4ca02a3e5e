"""Outlier-driven rescaling: outliers rescale and do not contribute, and norms with levers of their own need none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict
from farout.claims._trained_decoders import SCALES, means, table_of, trained

LIKE_QWEN = {"mlp": "swiglu", "positions": "rope"}
ARMS: dict[str, dict[str, Any]] = {
    "RMSNorm": LIKE_QWEN | {"norm": "rms"},
    "PreAffine": LIKE_QWEN | {"norm": "pre affine"},
    "GatedNorm": LIKE_QWEN | {"norm": "gated"},
    "GatedNorm, gated attention": LIKE_QWEN | {"norm": "gated", "gate": "element"},
}
TEXT = "text/wikitext2/test.txt.xz"
PASSAGES, LENGTH = 4, 128
TIMES, WORSE = 10.0, 0.01
THRESHOLD = (
    "In SmolLM2-135M, in the mean over three draws of passages, clipping the largest channel before every norm raises "
    "the loss at least 10 times as much as zeroing it after every norm changes it. Of decoders trained for equal "
    "steps, in the mean over three seeds, PreAffine, GatedNorm and GatedNorm with gated attention each have a smaller "
    "peak of the residual stream and a smaller loss added by W4A4 than RMSNorm, and a validation loss at most 0.01 "
    "nats a byte above its."
)
CHANGES = ("clipped before", "zeroed before", "zeroed after")


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; both parts must hold. The small budget trains two arms for some steps, and knows no SmolLM2."""
    small = budget == "small"
    seeds = SEEDS[:1] if small else SEEDS
    arms = {name: ARMS[name] for name in (("RMSNorm", "GatedNorm") if small else ARMS)}
    rows = trained(arms, seeds, SCALES[budget], lambda what, done: progress(what, done * (1.0 if small else 0.5)))
    late = means(rows, max(row["step"] for row in rows))
    failing = {arm: lost for arm in list(arms)[1:] if (lost := _lost(late[arm], late["RMSNorm"]))}
    rises = {} if small else _pretrained(seeds, progress)
    tables = {"Decoders after training": table_of(late), "By seed and step": rows}
    tables |= {f"SmolLM2-135M, {title}": table for title, table in rises.items()}
    ours, after, control = float("nan"), float("nan"), float("nan")
    places = ""
    if rises:
        mean = {row["norms"]: row for row in rises["nats a token that a change adds"] if row["seed"] == "mean"}
        ours, after = mean["every norm"]["clipped before"], mean["every norm"]["zeroed after"]
        control = mean["median channel"]["zeroed before"]  # clipped it stays what it is
        places = "; by group, " + ", ".join(
            f"{norms} {row['clipped before']:.3f} and {row['zeroed after']:.3f}"
            for norms, row in mean.items()
            if norms not in ("every norm", "median channel")
        )
    rescales = ours > 0 and ours >= TIMES * abs(after)
    peaks = ", ".join(f"{arm} {facts['peak']:.1f}" for arm, facts in late.items())
    found = f"clipping before adds {ours:.2f}, zeroing after {after:.2f}{places}"
    note = (
        f"{f'SmolLM2-135M {verdict(rescales)}: {found}. ' if rises else ''}Trained norms {verdict(not failing)}"
        f"{''.join(f'; {arm}: {lost}' for arm, lost in failing.items())}; peaks: {peaks}."
    )
    return Claim(
        paper="Outlier-driven rescaling",
        published="clipping outliers before the norm harms; their own part is small; with gates W4A4 costs 1.2 points",
        measure="loss added by W4A4, nats a byte" if small else "nats a token that clipping before the norms adds",
        ours=late["GatedNorm"]["W4A4"] if small else ours,
        baseline=("RMSNorm", late["RMSNorm"]["W4A4"]) if small else ("zeroing after the norms", after),
        peer=("RMSNorm", late["RMSNorm"]["W4A4"]) if small else ("zeroing the median channel", control),
        threshold=THRESHOLD,
        holds=rescales and not failing,
        note=note,
        numbers=tables,
        seeds=seeds,
        budget=budget,
    )


def _lost(arm: Mapping[str, float], default: Mapping[str, float]) -> str:
    """Say in what a norm is not better than RMSNorm; nothing where it is in all."""
    worse = [name for name in ("peak", "W4A4") if arm[name] >= default[name]]
    parts = [f"{name} {arm[name]:.4g} against {default[name]:.4g}" for name in worse]
    if arm["loss"] > default["loss"] + WORSE:
        parts.append(f"loss {arm['loss']:.4f} against {default['loss']:.4f}")
    return ", ".join(parts)


def _pretrained(seeds: Sequence[int], progress: Progress) -> dict[str, list[dict[str, Any]]]:
    """Change the sinks of SmolLM2-135M: by how much the loss rises, and what each norm's sink is like."""
    from farout.claims._passages import passages, smollm2
    from farout.inside.outlier_driven_rescaling import OutlierDrivenRescaling

    opened, found = smollm2(), []
    for place, seed in enumerate(seeds):
        progress(f"SmolLM2-135M, passages {seed}", 0.5 + 0.5 * place / len(seeds))
        batches = passages(opened, TEXT, PASSAGES, LENGTH, seed)
        found.append(OutlierDrivenRescaling().measure(opened.model, batches))
    rises: list[dict[str, Any]] = [
        {"norms": norms, "seed": seed} | {change: one.rise(change, norms) for change in CHANGES}
        for norms in found[0].changes
        for seed, one in zip(seeds, found)
    ]
    for norms in found[0].changes:
        mean = {change: float(np.mean([one.rise(change, norms) for one in found])) for change in CHANGES}
        rises.append({"norms": norms, "seed": "mean"} | mean)
    levers = [lever | {"channels": " ".join(map(str, lever["channels"]))} for lever in map(asdict, found[0].levers)]
    return {"nats a token that a change adds": rises, f"norm by norm, passages {seeds[0]}": levers}
