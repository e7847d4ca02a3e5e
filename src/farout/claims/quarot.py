"""QuaRot: a rotated model can do with 4 bits for what its maps read, where rounding to nearest destroys it."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict

RUNS = "out/quarot"  # where finished runs of the full budget lie
RTN, SMOOTH, TURNED, OURS = "RTN", "SmoothQuant", "QuaRot, RTN", "QuaRot"
ONE_STEP = "QuaRot, RTN, one step for all tokens"
METHODS: dict[str, dict[str, Any]] = {
    RTN: {"recipe": "rtn"},
    SMOOTH: {"recipe": "smoothquant", "alpha": 0.85},
    TURNED: {"recipe": "quarot", "solver": "rtn"},
    OURS: {"recipe": "quarot"},
}
CALIBRATED = SMOOTH, OURS  # the others take no more of the data than shows the structure
EIGHT, FOUR = "w8a4", "w4a4"
JOBS = {EIGHT: (RTN, SMOOTH, TURNED), FOUR: (RTN, SMOOTH, TURNED, OURS)}
GOAL, LESS, HALF = 80.0, 0.2, 0.5
THRESHOLD = (
    "SmolLM2-135M on WikiText-2, inputs of all maps in the blocks rounded to 4 bits with a step for each token, in the "
    f"mean over three draws of signs and calibration text. With 8-bit weights, QuaRot's perplexity is below {GOAL:g}, "
    f"and it adds at most {LESS:g} times the loss that rounding to nearest adds, and that SmoothQuant adds. With 4-bit "
    f"weights, QuaRot with GPTQ adds less than with rounding to nearest, and at most {HALF:g} times what rounding to "
    "nearest without rotation adds, and what SmoothQuant adds."
)
SIZES: dict[str, dict[str, int]] = {
    "small": {"samples": 8, "length": 128, "windows": 16},
    "full": {"samples": 16, "length": 256, "windows": 8},
}
SCORED = 512  # tokens of a window that perplexity is measured on, in the full budget


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold.

    The small budget takes a decoder of bytes with planted outliers, one draw, and compares with rounding to nearest.
    """
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    jobs = [
        (scheme, method, seed)
        for scheme, methods in JOBS.items()
        for method in methods
        for seed in (seeds[:1] if method == RTN else seeds)  # in which nothing is drawn
    ]
    lab = _Lab(budget)
    rows: list[dict[str, Any]] = []
    for place, (scheme, method, seed) in enumerate(jobs):
        progress(f"{scheme}, {method}, seed {seed}", 0.9 * place / len(jobs))
        rows += lab.runs(scheme, method, seed)
    progress("what maps read", 0.9)
    shapes = lab.shapes()
    full = lab.loss()
    mean = _means(rows, full)
    added = {scheme: {row["method"]: row["added loss"] for row in mean if row["scheme"] == scheme} for scheme in JOBS}
    eight, four = added[EIGHT], added[FOUR]
    value = math.exp(full + eight[TURNED])
    parts = {
        f"perplexity {value:.4g} with 8-bit weights": value < GOAL,
        f"GPTQ adds {four[OURS]:.3g}, rounding to nearest {four[TURNED]:.3g}": four[OURS] < four[TURNED],
    }
    for scheme, ours, most in ((EIGHT, TURNED, LESS), (FOUR, OURS, HALF)):
        for other in (RTN, SMOOTH):
            ratio = added[scheme][ours] / added[scheme][other]
            said = f"adds {ratio:.3g} times the loss that {other} adds in {scheme}, and at most {most:g} were to be"
            parts[said] = ratio <= most
    if budget == "small":  # what is planted SmoothQuant can undo, and there is little for GPTQ to save
        parts = {part: fine for part, fine in parts.items() if f"that {RTN}" in part}
    failing = "; ".join(part for part, fine in parts.items() if not fine)
    return Claim(
        paper="QuaRot",
        published="Llama-2-7B with 4 bits for weights, inputs and cache: WikiText-2 perplexity 6.10, in FP16 5.47",
        measure=f"loss added with 4-bit inputs and 8-bit weights, nats a token ({lab.name})",
        ours=eight[TURNED],
        baseline=(RTN, eight[RTN]),
        peer=(SMOOTH, eight[SMOOTH]),
        threshold=THRESHOLD,
        holds=not failing,
        note=_note(lab.name, full, mean, shapes, failing),
        numbers={"Perplexity, mean over draws": mean, "What maps read": shapes, "By draw": rows},
        seeds=seeds,
        budget=budget,
    )


def _note(name: str, full: float, mean: Sequence[Mapping[str, Any]], shapes: list[dict[str, Any]], failing: str) -> str:
    """Say what was found."""
    said = []
    for scheme in JOBS:
        values = ", ".join(f"{row['method']} {row['perplexity']:.4g}" for row in mean if row["scheme"] == scheme)
        said.append(f"{scheme}: {values}")
    longest = max(shapes, key=lambda row: row["longest token, rotated"])
    return (
        f"{name} {verdict(not failing)}{f' ({failing})' if failing else ''}. Perplexity {math.exp(full):.4g} in full; "
        f"{'; '.join(said)}. What is left: a rotation makes no token shorter. The longest that '{longest['maps']}' "
        f"reads is {longest['longest token']:.3g} times the median before and "
        f"{longest['longest token, rotated']:.3g} times after it."
    )


def _means(rows: Sequence[Mapping[str, Any]], full: float) -> list[dict[str, Any]]:
    """Average losses over draws; the perplexity is that of the mean loss."""
    keys = dict.fromkeys((row["scheme"], row["method"]) for row in rows)
    out = []
    for scheme, method in keys:
        losses = [row["loss"] for row in rows if (row["scheme"], row["method"]) == (scheme, method)]
        loss = float(np.mean(losses))
        out.append({"scheme": scheme, "method": method, "perplexity": math.exp(loss), "added loss": loss - full,
                    "spread": float(np.ptp(losses))})  # fmt: skip
    return out


class _Lab:
    """A language model, and what its rounded copies are measured on; finished runs of the full budget are kept."""

    def __init__(self, budget: str) -> None:
        self.budget, self.size = budget, SIZES[budget]
        self.name = "a decoder of bytes with planted outliers" if budget == "small" else "SmolLM2-135M"
        self.opened: Any = None

    def kept(self, what: Any, make: Any) -> Any:
        """Return what a run gave, if it is kept, or run it."""
        if self.budget == "small":
            return make()
        from farout.io.files import writing

        name = hashlib.sha256(json.dumps([self.name, self.size, SCORED, what]).encode()).hexdigest()[:16]
        path = Path(RUNS) / f"{name}.json"
        if not path.is_file():
            found = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    def loss(self) -> float:
        """Return the loss of the full model."""
        return float(self.kept("full", lambda: self._loss(self._open().model)))

    def runs(self, scheme: str, method: str, seed: int) -> list[dict[str, Any]]:
        """Quantize and measure; a rotated model with 8-bit weights also with one step for all tokens."""

        def make() -> dict[str, float]:
            from farout.quantize._linear import Rounding
            from farout.quantize.grid import Grid

            quantized = self._quantized(scheme, method, seed)
            found = {method: self._loss(quantized.model)}
            if (scheme, method) == (EIGHT, TURNED):
                for module in quantized.maps.values():
                    module.rounding = Rounding(Grid(4, "tensor"))
                found[ONE_STEP] = self._loss(quantized.model)
            return found

        found = self.kept([scheme, METHODS[method], seed], make)
        return [{"scheme": scheme, "method": name, "seed": seed, "loss": loss} for name, loss in found.items()]

    def shapes(self) -> list[dict[str, Any]]:
        """Say how far the largest channel of a token stands out in what maps read, and how long tokens are."""

        def make() -> list[dict[str, Any]]:
            plain = _read(self._open().model, self._batches(0, 2)[0])
            turned = _read(self._quantized("w8a16", TURNED, 0).model, self._batches(0, 2)[0])
            return [
                {
                    "maps": maps,
                    "peak / rms": plain[maps]["peak"],
                    "rotated": turned[maps]["peak"],
                    "worst token": plain[maps]["worst"],
                    "worst token, rotated": turned[maps]["worst"],
                    "longest token": plain[maps]["longest"],
                    "longest token, rotated": turned[maps]["longest"],
                }
                for maps in plain
            ]

        found: list[dict[str, Any]] = self.kept("shapes", make)
        return found

    def _open(self) -> Any:
        if self.opened is None and self.budget == "small":
            from farout.claims._planted import plant
            from farout.claims._small_models import small_language_model

            self.opened = plant(small_language_model("llama", "small"), where=("norm", "middle", "values"))[0]
        elif self.opened is None:
            from farout.claims._passages import smollm2

            self.opened = smollm2()
        return self.opened

    def _batches(self, seed: int, samples: int) -> list[Any]:
        from farout.claims._small_models import parts
        from farout.data.calibration import calibration

        texts = [parts()[0]] if self.budget == "small" else "wikitext2-valid"
        return calibration(texts, self._open(), samples=samples, length=self.size["length"], seed=seed)

    def _quantized(self, scheme: str, method: str, seed: int) -> Any:
        from farout.quantize import quantize

        settings = METHODS[method] | ({"seed": seed} if "quarot" in METHODS[method].values() else {})
        batches = self._batches(seed, self.size["samples"] if method in CALIBRATED else 2)
        return quantize(copy.deepcopy(self._open().model), settings, scheme, batches)

    def _loss(self, model: Any) -> float:
        from dataclasses import replace

        from farout.bench.perplexity import perplexity
        from farout.claims._small_models import held_out

        windows = self.size["windows"]
        if self.budget == "small":
            return perplexity(model, held_out(windows=windows), batch_size=windows).loss
        opened = replace(self._open(), model=model)
        return perplexity(opened, "wikitext2", length=SCORED, windows=windows, batch_size=2).loss


def _read(model: Any, batch: Any) -> dict[str, dict[str, float]]:
    """Return by the last part of the names of maps what they read: of all blocks the median peak, and the worst."""
    import torch

    from farout.quantize._blocks import blocks_of
    from farout.quantize._linear import QuantLinear
    from farout.quantize._structure import maps_of

    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for block in blocks_of(model).values():
        for path in maps_of(block):
            maps = path.rpartition(".")[2]

            def enter(module: Any, args: tuple, maps: str = maps) -> None:
                x = module.enter(args[0]) if isinstance(module, QuantLinear) else args[0]
                x = x.flatten(0, -2).float()
                rms = x.square().mean(-1).sqrt()
                seen.setdefault(maps, []).append(torch.stack([x.abs().amax(-1) / rms, rms / rms.median()]))

            handles.append(block.get_submodule(path).register_forward_pre_hook(enter))
    try:
        with torch.no_grad():
            model(**batch) if isinstance(batch, dict) else model(batch)
    finally:
        for handle in handles:
            handle.remove()
    out = {}
    for maps, found in seen.items():
        facts = torch.stack(found)  # (blocks, 2, N)
        peaks, lengths = facts[:, 0], facts[:, 1]
        out[maps] = {"peak": float(peaks.median()), "worst": float(peaks.max()), "longest": float(lengths.max())}
    return out
