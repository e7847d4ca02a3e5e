"""What the claim on QuantEase measures: models that are quantized, and maps of some of their blocks, each alone."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RUNS = "out/quantease"  # where finished runs of the full budget lie
SHARE = 0.01  # of weights or inputs that stand beside the grid
FROM_GPTQ = {"recipe": "quantease", "start": "gptq"}
METHODS: dict[str, tuple[Any, str]] = {  # recipe, and groups that its scheme has
    "RTN": ("rtn", ""),
    "GPTQ": ({"recipe": "gptq", "order": False}, ""),
    "GPTQ, largest inputs first": ("gptq", ""),
    "QuantEase": ("quantease", ""),
    "QuantEase, never relaxed": ({"recipe": "quantease", "relax": False}, ""),
    "QuantEase from GPTQ, never relaxed": ({**FROM_GPTQ, "relax": False}, ""),
    "QuantEase from GPTQ": (FROM_GPTQ, ""),
    "QuantEase, groups of 64": ("quantease", "g64"),
    "1 % of inputs outside": ({"recipe": "quantease", "outliers": SHARE, "structured": True}, ""),
    "1 % of weights outside": ({"recipe": "quantease", "outliers": SHARE}, ""),
}
OUTSIDE = {"1 % of inputs outside": 16 * SHARE, "1 % of weights outside": 32 * SHARE}  # bits a weight; 16 say where
PLAIN = ("GPTQ", "GPTQ, largest inputs first", "QuantEase")


@dataclass(frozen=True)
class Subject:
    """A model to quantize, and how.

    Attributes
    ----------
    model : str
    samples, length : int
        Of calibration: windows of text, and tokens of each.
    held_out : int
        Windows of other text.
    four, three : tuple of str
        Methods that the model is quantized with, at 4 and at 3 bits.
    blocks : tuple of int
        Whose maps are rounded one by one, each on inputs of the full model.
    layers : tuple of str
        Methods that do it.
    bits : tuple of int
    """

    model: str
    samples: int
    length: int
    held_out: int
    four: tuple[str, ...] = tuple(METHODS)[:7]
    three: tuple[str, ...] = tuple(METHODS)
    blocks: tuple[int, ...] = ()
    layers: tuple[str, ...] = (*PLAIN, *tuple(METHODS)[5:7])
    bits: tuple[int, ...] = (4, 3)

    def methods(self, bits: int) -> tuple[str, ...]:
        """Return the methods that the model is quantized with."""
        return {4: self.four, 3: self.three}[bits]


class Lab:
    """A model with its calibration text, what it is measured on, and runs that were kept."""

    def __init__(self, subject: Subject, seed: int, kept: bool) -> None:
        self.subject, self.seed, self.kept = subject, seed, kept
        self.ready = False

    def _prepare(self) -> None:
        """Open the model and draw the texts, if nothing did so far."""
        if self.ready:
            return
        import torch

        from farout.data.calibration import calibration

        self.ready = True
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.opened = _opened(self.subject.model, "full" if self.kept else "small")
        self.opened.model.to(self.device)
        texts, others = _texts(self.subject.model)
        settings = {"length": self.subject.length, "batch_size": 8}
        self.batches = calibration(texts, self.opened, samples=self.subject.samples, seed=self.seed, **settings)
        self.held_out = calibration(others, self.opened, samples=self.subject.held_out, seed=0, **settings)
        self.loss = self._loss(self.opened.model) if self.opened.causal else 0.0
        self.hessians = [self._hessians(batches) for batches in (self.batches, self.held_out)]

    def whole(self, method: str, bits: int) -> dict[str, Any]:
        """Quantize the model and say what that takes from it."""
        return self._kept("whole", method, bits, self._whole)

    def maps(self, method: str, bits: int) -> dict[str, Any]:
        """Round the maps of some blocks, each alone, and say what that does to what they give."""
        return self._kept("maps", method, bits, self._maps)

    def _kept(self, kind: str, method: str, bits: int, run: Callable[[str, int], dict[str, Any]]) -> dict[str, Any]:
        """Take a run that was kept, from any machine, or make it."""
        s = self.subject
        what = [kind, s.model, s.samples, s.length, s.held_out, s.blocks, self.seed, bits, METHODS[method]]
        path = Path(RUNS) / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.json"
        row = {"model": s.model, "seed": self.seed, "bits": bits, "method": method}
        if self.kept and path.is_file():
            return row | json.loads(path.read_text(encoding="utf-8"))
        self._prepare()
        started = time.perf_counter()
        found = run(method, bits)
        found |= {"seconds": time.perf_counter() - started, "device": self.device}
        if self.kept:
            from farout.io.files import writing

            path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
        return row | found

    def _whole(self, method: str, bits: int) -> dict[str, Any]:
        from farout.bench.divergence import divergence
        from farout.quantize import quantize

        model = copy.deepcopy(self.opened.model)
        recipe, group = METHODS[method]
        quantized = quantize(model, recipe, f"w{bits}a16{group}-asym", self.batches)
        far = divergence(self.opened.model, model, self.held_out)
        lost = {"lost": self._loss(model) - self.loss, "divergence": far} if self.opened.causal else {"lost": far}
        return lost | {"bits a weight": quantized.bits_per_weight + OUTSIDE.get(method, 0.0)}

    def _maps(self, method: str, bits: int) -> dict[str, Any]:
        from farout.quantize.gptq import GPTQ
        from farout.quantize.recipe import recipe_of
        from farout.quantize.round._common import layer_error
        from farout.quantize.round.gptq import gptq
        from farout.quantize.scheme import Scheme

        named, group = METHODS[method]
        grid, recipe = Scheme.parse(f"w{bits}a16{group}-asym").weights, recipe_of(named)
        errors = []
        for name, hessian in self.hessians[0].items():
            weight = self.opened.model.get_submodule(name).weight.detach()
            if isinstance(recipe, GPTQ):
                found = gptq(weight, hessian, grid, damping=recipe.damping, order=recipe.order)
            else:
                found = recipe.solve(weight, hessian, grid)  # type: ignore[attr-defined]
            errors.append([layer_error(weight, found.weight, one[name]) for one in self.hessians])
        fitted, other = np.median(errors, axis=0).tolist()
        return {"fitted": fitted, "other text": other}

    def _hessians(self, batches: list[Any]) -> dict[str, Any]:
        """Return the Hessians of maps in the chosen blocks of the full model."""
        import torch

        from farout.quantize._blocks import blocks_of

        blocks = [name for at, name in enumerate(blocks_of(self.opened.model)) if at in self.subject.blocks]
        sums: dict[str, Any] = {}
        hooks = []
        for name, module in self.opened.model.named_modules():
            if isinstance(module, torch.nn.Linear) and any(name.startswith(f"{block}.") for block in blocks):

                def add(module: Any, args: Any, name: str = name) -> None:
                    x = args[0].detach().flatten(0, -2)
                    sums[name] = sums.get(name, 0) + 2 / len(batches) / len(x) * x.T @ x

                hooks.append(module.register_forward_pre_hook(add))
        with torch.no_grad():
            for batch in batches if hooks else ():
                self.opened.model(**{word: one.to(self.device) for word, one in batch.items()})
        for hook in hooks:
            hook.remove()
        return sums

    def _loss(self, model: Any) -> float:
        """Return the loss of a language model on other text, nats a token."""
        import torch

        losses = []
        with torch.no_grad():
            for batch in self.held_out:
                ids = batch["input_ids"].to(self.device)
                logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
                losses.append(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).double())
        return float(torch.stack(losses).mean())


def _opened(name: str, budget: str) -> Any:
    """Open a model by its name here."""
    from farout.claims._small_models import small_language_model
    from farout.data.pretrained import pretrained
    from farout.io.models import open_model

    if name == "small llama":
        return small_language_model("llama", budget)
    return open_model(pretrained({"SmolLM2-135M": "smollm2-135m", "MiniLM": "minilm-l6"}[name]))


def _texts(name: str) -> tuple[Any, Any]:
    """Return what a model is calibrated with, and what it is measured on."""
    from farout.claims._small_models import parts

    if name == "small llama":
        trained, held_out = parts()
        return [trained], [held_out]
    return "wikitext2-valid", "wikitext2"
