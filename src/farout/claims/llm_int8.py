"""LLM.int8(): products in 8 bits cost nothing however large outliers are, where their columns are multiplied apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from farout.claims._claim import Claim
from farout.claims._planted_lab import CHANNELS, DECODERS, Lab
from farout.claims._rows import counted, means, pick
from farout.claims._tables import SEEDS, Progress, verdict

OURS, INT8 = "LLM.int8()", "LLM.int8(), 8-bit columns"
GROWING = ("absmax per tensor", "zeropoint per tensor", "vector-wise")
FACTORS = (1.0, 20.0, 50.0, 100.0)
LEVEL, COLUMNS, PERPLEXITY = 1.5, 0.05, 0.005
THRESHOLD = (
    f"In decoders of bytes (LLaMA- and OPT-like) with {CHANNELS} channels of every norm planted k times as large, k = "
    "1, 20, 50, 100, in the mean over three draws of channels and text: the divergence from the full model grows from "
    "each k to the next with absmax per tensor, zeropoint per tensor and vector-wise scales; with LLM.int8() as the "
    f"paper has it (weights of columns with outliers in 16 bits) it is at k = 100 at most {LEVEL:g} times what it is "
    f"at k = 1, with at most {100 * COLUMNS:g} % of columns in 16 bits. In MiniLM as it is, LLM.int8(), both so and as "
    "its code has it (these weights in 8 bits), turns embeddings less than the other three. The perplexity of "
    f"SmolLM2-135M is with LLM.int8() as its code has it within {100 * PERPLEXITY:g} % of that of the full model."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"models": ("llama",), "factors": (1.0, 100.0), "samples": 8, "windows": 16},
    "full": {"models": DECODERS, "factors": FACTORS, "samples": 8, "windows": 32},
}


def methods() -> dict[str, tuple[Any, Any]]:
    """Return recipe and scheme by name."""
    from farout.quantize.grid import Grid
    from farout.quantize.scheme import Scheme

    def plain(rule: str, *per: str) -> tuple[str, Any]:
        return "rtn", Scheme(*(Grid(8, one, rule=rule) for one in per))

    return {
        GROWING[0]: plain("narrow", "tensor", "tensor"),
        GROWING[1]: plain("asymmetric", "tensor", "tensor"),
        GROWING[2]: plain("narrow", "channel", "token"),
        OURS: ({"recipe": "llm_int8", "columns": "full"}, "w8a8"),
        INT8: ("llm_int8", "w8a8"),
        "SmoothQuant": ("smoothquant", plain("narrow", "channel", "token")[1]),
    }


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one decoder, hardly trained, k = 1 and 100, one draw."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    jobs: list[Any] = [(m, k, seed) for m in size["models"] for k in size["factors"] for seed in seeds]
    jobs += [("MiniLM", 1.0, seed) for seed in seeds] if budget == "full" else []
    rows = []
    for model, k, seed in counted(jobs, progress):
        lab = Lab(model, budget, seed, size["samples"], size["windows"], k)
        for name, (recipe, scheme) in methods().items():
            found = lab.quantized(recipe, scheme)
            with _columns(found) as share:
                lost = lab.lost(found.model)
            where = {"model": model, "k": k, "method": name, "seed": seed}
            rows.append(where | {"divergence": lost, "columns in 16 bits": share()})
    mean = means(rows, "model", "k", "method")
    holds, notes = _decoders(mean, size["models"], size["factors"])
    tables = {"Divergence, mean over draws": mean}
    if budget == "full":
        progress("SmolLM2", 0.99)
        told, small = _minilm(mean), _smollm2()
        tables["Perplexity of SmolLM2-135M on WikiText-2"] = small
        full, ours = (pick(small, "perplexity", method=name) for name in ("full precision", INT8))
        near = abs(ours / full - 1) <= PERPLEXITY
        holds = holds and told[0] and near
        notes += [told[1], f"SmolLM2 {verdict(near)}: perplexity {ours:.4f}, of the full model {full:.4f}."]
    first, most = size["models"][0], max(size["factors"])
    head = {name: pick(mean, "divergence", model=first, k=most, method=name) for name in methods()}
    return Claim(
        paper="LLM.int8()",
        published="C4 perplexity of a 13B model 12.45 as in full precision, vector-wise 16.48, absmax 19.08",
        measure=f"divergence at k = {most:g}, nats a byte, planted decoder ({first})",
        ours=head[OURS],
        baseline=("vector-wise", head["vector-wise"]),
        peer=("SmoothQuant", head["SmoothQuant"]),
        threshold=THRESHOLD,
        holds=bool(holds),
        note=" ".join(notes),
        numbers=tables | {"By draw": rows},
        seeds=seeds,
        budget=budget,
    )


def _decoders(mean: list[dict[str, Any]], models: Any, factors: Any) -> tuple[bool, list[str]]:
    """Compare what grows with k and what must not."""
    holds, notes = True, []
    for model in models:
        lost = {n: [pick(mean, "divergence", model=model, k=k, method=n) for k in factors] for n in methods()}
        share = max(pick(mean, "columns in 16 bits", model=model, k=k, method=OURS) for k in factors)
        grow = {name: all(a < b for a, b in zip(lost[name], lost[name][1:])) for name in GROWING}
        level, code = (lost[name][-1] / lost[name][0] for name in (OURS, INT8))
        fine = all(grow.values()) and level <= LEVEL and share <= COLUMNS
        holds &= fine
        times = ", ".join(f"{lost[name][-1] / lost[name][0]:.3g} times ({name})" for name in GROWING)
        still = [name for name, does in grow.items() if not does]
        notes.append(
            f"{model} {verdict(fine)}: from k = 1 to {max(factors):g} the divergence grows {times}, {level:.3g} times "
            f"with LLM.int8() and {code:.3g} times with its 8-bit columns, which are too small for the steps of their "
            f"rows; {100 * share:.1f} % of columns are in 16 bits."
            + (f" Not from each k to the next: {', '.join(still)}." if still else "")
        )
    return holds, notes


def _minilm(mean: list[dict[str, Any]]) -> tuple[bool, str]:
    """Compare what embeddings lose."""
    lost = {name: pick(mean, "divergence", model="MiniLM", k=1.0, method=name) for name in methods()}
    fine = max(lost[OURS], lost[INT8]) < min(lost[name] for name in GROWING)
    return fine, f"MiniLM {verdict(fine)}: " + ", ".join(f"{name} {value:.3g}" for name, value in lost.items()) + "."


def _smollm2() -> list[dict[str, Any]]:
    """Return perplexities of a real model."""
    from dataclasses import replace

    from farout.bench.perplexity import perplexity

    lab, rows = Lab("SmolLM2", "full", 0, samples=4, windows=1), []

    def measured(model: Any) -> float:
        return perplexity(replace(lab.opened, model=model), "wikitext2", length=512, windows=8).value

    rows.append({"method": "full precision", "perplexity": measured(lab.opened.model), "columns in 16 bits": None})
    for name in (GROWING[0], GROWING[2], INT8):
        found = lab.quantized(*methods()[name])
        with _columns(found) as share:
            value = measured(found.model)
        rows.append({"method": name, "perplexity": value, "columns in 16 bits": share()})
    return rows


@contextmanager
def _columns(found: Any) -> Iterator[Any]:
    """Count columns of inputs in all calls of all maps; gives what returns the share of those with outliers."""
    from farout.quantize.llm_int8 import Split

    counts = [0, 0]

    def count(module: Any, args: Any) -> None:
        split = module.columns(args[0])
        counts[0] += int(split.sum())
        counts[1] += len(split)

    with ExitStack() as stack:
        for module in found.maps.values():
            if isinstance(module.rounding, Split):
                stack.callback(module.rounding.register_forward_pre_hook(count).remove)
        yield lambda: counts[0] / max(counts[1], 1)
