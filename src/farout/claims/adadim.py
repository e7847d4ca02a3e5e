"""AdaDim: groups of weights that run along outputs keep outliers of inputs apart, and each map can choose."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._tables import SEEDS, Progress, verdict
from farout.io.files import writing

RUNS = "out/adadim"  # where finished runs of the full budget lie
METHODS: dict[str, dict[str, Any]] = {
    "RTN-oc": {"recipe": "adadim", "dimension": "oc"},
    "RTN-ic": {"recipe": "adadim", "dimension": "ic"},
    "RTN-ada": {"recipe": "adadim"},
    "GPTQ-oc": {"recipe": "adadim", "solver": "gptq", "dimension": "oc"},
    "GPTQ-ic": {"recipe": "adadim", "solver": "gptq", "dimension": "ic"},
    "GPTQ-ada": {"recipe": "adadim", "solver": "gptq"},
    "AWQ": {"recipe": "awq"},
}
NAMES = {"W3g32": "w3a16g32-clamped", "W2g32": "w2a16g32-clamped", "W4g64": "w4a16g64-clamped"}
CHANNELS, FACTOR = 4, 20.0  # of each norm, planted
BETTER = 0.5
THRESHOLD = (
    f"In decoders of bytes (LLaMA- and OPT-like) with {CHANNELS} channels of every norm planted {FACTOR:g} times as "
    "large, and in MiniLM as it is, at W3g32, W2g32 and W4g64, in the mean over three draws of calibration text: the "
    "divergence from the full model on held-out text (of decoders in nats a byte, of MiniLM the cosine distance of "
    "embeddings) is with RTN-ada no more than with RTN-oc, nor than with RTN-ic; and with GPTQ-ada no more than with "
    "GPTQ-oc. In the planted decoders at W3g32, the error of the module around a map that reads a planted norm is with "
    f"groups along outputs at most {BETTER:g} of that with groups along inputs, in the geometric mean."
)


@dataclass(frozen=True)
class Subject:
    """A model to quantize, and how.

    Attributes
    ----------
    model : {"llama", "opt", "MiniLM"}
        The first two are planted.
    schemes, methods : tuple of str
    samples : int
        Of calibration: windows of 128 tokens.
    held_out : int
        Windows that losses are measured on.
    """

    model: str
    schemes: tuple[str, ...]
    methods: tuple[str, ...]
    samples: int
    held_out: int


SUBJECTS = {
    "small": (Subject("llama", ("W3g32",), tuple(m for m in METHODS if m != "GPTQ-ic"), 8, 16),),
    "full": (
        Subject("llama", tuple(NAMES), tuple(METHODS), 16, 64),
        Subject("opt", tuple(NAMES), tuple(METHODS), 16, 64),
        Subject("MiniLM", tuple(NAMES), tuple(METHODS), 16, 64),
    ),
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: a decoder that is hardly trained, 3 bits and one draw."""
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    jobs = [(subject, seed) for subject in SUBJECTS[budget] for seed in seeds]
    for place, (subject, seed) in enumerate(jobs):
        progress(f"{subject.model}, seed {seed}", place / len(jobs))
        found = runs(subject, seed, budget)
        rows, errors = rows + found[0], errors + found[1]
    return _concluded(budget, rows, errors, seeds)


def runs(subject: Subject, seed: int, budget: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Quantize a model with every method and measure it; of the full budget, what was kept is taken as it is.

    Parameters
    ----------
    subject : Subject
    seed : int
        For the calibration text.
    budget : {"small", "full"}

    Returns
    -------
    rows, errors : list of dict
        What is lost by method and scheme, and errors of modules by map.
    """
    lab, found = _Lab(subject, seed, budget), []
    for scheme, method in [*product(subject.schemes, subject.methods), ("W3g32", "errors")]:
        where = {"model": subject.model, "scheme": scheme, "seed": seed, "method": method}
        what = json.dumps([where, METHODS.get(method), subject.samples, subject.held_out, CHANNELS, FACTOR])
        path = Path(RUNS) / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
        if budget == "full" and path.is_file():
            found.append(json.loads(path.read_text(encoding="utf-8")))
            continue
        measured = [where | one for one in (lab.errors(scheme) if method == "errors" else [lab.run(method, scheme)])]
        found.append(measured)
        if budget == "full":
            path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path) as temporary:
                temporary.write_text(json.dumps(measured), encoding="utf-8")
    return [row for rows in found[:-1] for row in rows], found[-1]


def _concluded(budget: str, rows: list[dict[str, Any]], errors: list[dict[str, Any]], seeds: tuple[int, ...]) -> Claim:
    """Compare means with the threshold."""
    keeps, notes = True, []
    tables: dict[str, list[dict[str, Any]]] = {}
    for subject in SUBJECTS[budget]:
        for scheme in subject.schemes:
            mean = {
                method: _mean([r for r in rows if _is(r, model=subject.model, scheme=scheme, method=method)])
                for method in subject.methods
            }
            tables[f"{subject.model}, {scheme}"] = [{"method": method, **facts} for method, facts in mean.items()]
            lost = {method: facts["divergence"] for method, facts in mean.items()}
            parts = {
                "RTN-ada against oc": lost["RTN-ada"] <= lost["RTN-oc"],
                "RTN-ada against ic": lost["RTN-ada"] <= lost["RTN-ic"],
                "GPTQ-ada against oc": lost["GPTQ-ada"] <= lost["GPTQ-oc"],
            }
            keeps &= all(parts.values())
            failing = ", ".join(word for word, fine in parts.items() if not fine)
            told = ", ".join(f"{method} {value:.3g}" for method, value in lost.items())
            notes.append(
                f"{subject.model} {scheme} {verdict(not failing)}{f' ({failing})' if failing else ''}: {told}; "
                f"{100 * mean['RTN-ada']['share ic']:.0f} % of maps chose groups along outputs."
            )
    ratios: dict[str, float] = {}
    for model in dict.fromkeys(row["model"] for row in errors):
        own = [row for row in errors if row["model"] == model]
        tables[f"Error of modules at W3g32, {model}"] = _by_map(own)
        read = [row["ic / oc"] for row in own if row["reads a norm"]]
        ratios[model] = float(np.exp(np.mean(np.log(read))))
    planted = {model: ratio for model, ratio in ratios.items() if model != "MiniLM"}
    apart = all(ratio <= BETTER for ratio in planted.values())
    told = ", ".join(f"{ratio:.3f} in {model}" for model, ratio in ratios.items())
    notes.append(f"Errors of maps that read norms, ic over oc, {verdict(apart)} where planted: {told}.")
    first = SUBJECTS[budget][0]
    head = {row["method"]: row["divergence"] for row in tables[f"{first.model}, {first.schemes[0]}"]}
    return Claim(
        paper="AdaDim",
        published="up to 4.7 points of MMLU and 10 of HumanEval over RTN and GPTQ at 3 and 4 bits",
        measure=f"divergence at {first.schemes[0]}, nats a byte, planted decoder ({first.model})",
        ours=head["RTN-ada"],
        baseline=("RTN-oc", head["RTN-oc"]),
        peer=("AWQ", head["AWQ"]),
        threshold=THRESHOLD,
        holds=bool(keeps and apart),
        note=" ".join(notes),
        numbers=tables | {"By model, scheme and seed": rows},
        seeds=seeds,
        budget=budget,
    )


def _is(row: Mapping[str, Any], **wanted: Any) -> bool:
    return all(row[name] == value for name, value in wanted.items())


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        name: float(np.mean([row[name] for row in rows])) for name, value in rows[0].items() if type(value) is float
    }


def _by_map(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join blocks and seeds: geometric means by the map's place in its block."""
    found = []
    for name in dict.fromkeys(row["map"] for row in rows):
        ratios = [row["ic / oc"] for row in rows if row["map"] == name]
        found.append(
            {
                "map": name,
                "ic / oc": float(np.exp(np.mean(np.log(ratios)))),
                "ic is better in": float(np.mean([ratio < 1 for ratio in ratios])),
            }
        )
    return found


class _Lab:
    """A model with its calibration text and what it is measured on."""

    def __init__(self, subject: Subject, seed: int, budget: str) -> None:
        from farout.claims._small_models import parts, small_language_model
        from farout.data.calibration import calibration
        from farout.data.pretrained import pretrained
        from farout.io.models import open_model

        if subject.model == "MiniLM":
            self.opened: Any = open_model(pretrained("minilm-l6"))
            texts: tuple[Any, Any] = "wikitext2-valid", "wikitext2"
        else:
            from farout.claims._planted import plant

            self.opened = plant(small_language_model(subject.model, budget), CHANNELS, FACTOR)[0]
            read, others = parts()
            texts = [read], [others]
        settings = {"length": 128, "batch_size": 16}
        self.batches = calibration(texts[0], self.opened, samples=subject.samples, seed=seed, **settings)
        self.loss: float | None = None
        self.held_out = calibration(texts[1], self.opened, samples=subject.held_out, seed=0, **settings)

    def run(self, method: str, scheme: str) -> dict[str, Any]:
        """Quantize with a method and measure what is lost."""
        import torch

        from farout.bench.perplexity import divergence, perplexity
        from farout.claims._planted import loss_gap
        from farout.quantize import quantize
        from farout.quantize.adadim import along_outputs

        model = copy.deepcopy(self.opened.model)
        start = time.perf_counter()
        found = quantize(model, METHODS[method], NAMES[scheme], self.batches)
        seconds = time.perf_counter() - start
        lost = {"divergence": divergence(self.opened, model, self.held_out)}
        if self.opened.causal:
            windows = torch.cat([batch["input_ids"] for batch in self.held_out]).numpy()
            self.loss = self.loss or perplexity(self.opened, windows, batch_size=16).loss
            lost["loss gap"] = loss_gap(model, self.loss, windows)
        share = len(along_outputs(found)) / len(found.maps)
        return lost | {"share ic": share, "bits": found.bits_per_weight, "seconds": seconds}

    def errors(self, scheme: str) -> Iterator[dict[str, Any]]:
        """Return what each map alone, rounded to nearest, costs the module around it: ic over oc."""
        from dataclasses import replace

        from farout.quantize._blocks import Block, Calls, blocks_of
        from farout.quantize._search import Trials
        from farout.quantize.scheme import Scheme

        grid = Scheme.parse(NAMES[scheme]).weights
        blocks = blocks_of(self.opened.model)
        calls = Calls(self.opened.model, blocks, self.batches)
        states = calls.states
        for i, (name, module) in enumerate(blocks.items()):
            block = Block(name, i, module, calls, states)
            trials = Trials(block, 4096)
            for feed in block.feeds:
                for path in feed.maps:
                    weight = block.weight(path)
                    oc, ic = grid.fitted(weight.shape[1]), replace(grid, per="input").fitted(weight.shape[0])
                    losses = [trials.loss({path: one.rounded(weight)}) for one in (oc, ic)]
                    facts = {"map": path, "block": name, "reads a norm": feed.after_norm}
                    yield facts | {"ic / oc": losses[1] / losses[0]}
            states = block.outputs()
