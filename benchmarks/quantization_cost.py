"""Does the predicted cost rank layers as measurement does, when each layer alone is rounded?

The cost is predicted on one text and measured on another: first with each linear map in turn rounded while the rest
of the model stays as it is, then with all maps of a block. Two things are measured, the rise of the loss on the text
(the logarithm of perplexity) and the divergence of the model's predictions from those before. The rise is noisy:
rounding may happen to help on a text, by as much as the square root of what it costs, so that small costs need very
many tokens.
Beside the prediction stands what is usually looked at, the relative error of the map's own output.

python benchmarks/quantization_cost.py [model] [--tokens N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from farout.data import find
from farout.data.pretrained import pretrained
from farout.inside._rounded_map import RoundedMap
from farout.inside._sites import sites_of
from farout.inside.quantization_cost import SCHEMES, Cost, quantization_costs
from farout.io.models import open_model

BAR = 0.8  # Spearman's correlation
LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", help="as for farout inspect; SmolLM2-135M where none is given")
    parser.add_argument("--tokens", type=int, default=4096, help="on which perplexity is measured")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = open_model(chosen.model or pretrained("smollm2-135m"), device=device)
    learned = opened.batches(texts("text/wikitext2/valid.txt.xz", 8), length=LENGTH, batch_size=2)
    judged = opened.batches(texts("text/wikitext2/test.txt.xz", chosen.tokens // LENGTH), length=LENGTH, batch_size=16)
    started = time.perf_counter()
    costs = quantization_costs(opened.model, learned)
    print(f"predicted on 512 tokens in {time.perf_counter() - started:.1f} s ({device})")
    judge = Judge(opened.model, judged, device)
    print(f"perplexity {np.exp(judge.plain):.2f} on {judge.count:,.0f} other tokens")
    sites = sites_of(opened.model)
    blocks: dict[str, list[Cost]] = {}
    for cost in costs:
        blocks.setdefault(".".join(cost.layer.split(".")[:3]), []).append(cost)
    found, tables = {}, {}
    for what, groups in (("map", {cost.layer: [cost] for cost in costs}), ("block", blocks)):
        rows = []
        for name, group in groups.items():
            row: dict[str, Any] = {what: name}
            for scheme in SCHEMES:
                with ExitStack() as stack:
                    for cost in group:
                        stack.enter_context(rounded(sites[cost.layer], scheme))
                    rise, divergence = judge()
                row |= {f"{scheme} rise": rise, f"{scheme} divergence": divergence}
                row[f"{scheme} predicted"] = sum(cost.of(scheme) for cost in group)
                row[f"{scheme} error"] = sum(cost.errors[scheme] for cost in group)
            rows.append(row)
        tables[what] = rows
        found[what] = {scheme: agreement(rows, scheme) for scheme in SCHEMES}
        for scheme, values in found[what].items():
            words = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            print(f"{what:6} {scheme:6} Spearman of {words}; bar {BAR}")
    if chosen.json:
        facts = {"model": opened.name, "perplexity": float(np.exp(judge.plain)), "tokens": judge.count}
        chosen.json.write_text(json.dumps(facts | {"agreement": found, "measured": tables}, indent=1) + "\n")


def agreement(rows: list[dict[str, Any]], scheme: str) -> dict[str, float]:
    """Correlate the prediction, and the output's error, with what was measured."""
    rise, divergence, predicted, error = (
        np.array([row[f"{scheme} {what}"] for row in rows]) for what in ("rise", "divergence", "predicted", "error")
    )
    return {
        "prediction and rise": float(spearmanr(predicted, rise).statistic),
        "prediction and divergence": float(spearmanr(predicted, divergence).statistic),
        "error and rise": float(spearmanr(error, rise).statistic),
        "error and divergence": float(spearmanr(error, divergence).statistic),
        "sums predicted": float(predicted.sum()),
        "sums rise": float(rise.sum()),
        "sums divergence": float(divergence.sum()),
    }


def texts(name: str, many: int) -> list[str]:
    """Return passages of 300 words of a text of the data folder."""
    with lzma.open(find(name), "rt", encoding="utf-8") as file:
        words = file.read().split()
    return [" ".join(words[i * 300 : (i + 1) * 300]) for i in range(many)]


class Judge:
    """The loss of a model on a text, and how far its predictions go from what they were at first."""

    def __init__(self, model: Any, batches: list[Any], device: str) -> None:
        self.model = model
        self.batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
        self.before = [self._logs(batch) for batch in self.batches]
        self.plain, self.count = 0.0, 0
        self.plain, _ = self()

    @torch.no_grad()
    def _logs(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logs_BTV = self.model(**batch).logits[:, :-1].float().log_softmax(-1)
        return logs_BTV[batch["attention_mask"][:, 1:] != 0]

    def __call__(self) -> tuple[float, float]:
        """Return the rise of the loss and the divergence, in nats a token."""
        loss = divergence = 0.0
        self.count = 0
        for batch, before_NV in zip(self.batches, self.before):
            now_NV = self._logs(batch)
            goal_N = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:] != 0]
            loss -= float(now_NV.gather(1, goal_N[:, None]).double().sum())
            divergence += float((before_NV.exp() * (before_NV - now_NV)).sum(1).double().sum())
            self.count += len(goal_N)
        return loss / self.count - self.plain, divergence / self.count


@contextmanager
def rounded(site: Any, scheme: str) -> Iterator[None]:
    """Round one map while the model runs."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        product = RoundedMap(site, args[0].float(), None, 0)
        return output + (product.rounded(scheme, "") - product.plain).view_as(output).to(output.dtype)

    handle = site.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    main()
