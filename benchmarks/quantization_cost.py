"""Does the predicted cost rank layers as measured perplexity does, when each layer alone is rounded?

The cost is predicted on one text and the perplexity is measured on another, with each linear map in turn rounded while
the rest of the model stays as it is. Beside the prediction stands what is usually looked at, the relative error of the
map's own output.

python benchmarks/quantization_cost.py [model] [--tokens N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from farout.data import find
from farout.data.pretrained import pretrained
from farout.inside._sites import sites_of
from farout.inside.quantization_cost import SCHEMES, _Product, quantization_costs
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
    plain = loss(opened.model, judged, device)
    print(f"perplexity {np.exp(plain):.2f} on {chosen.tokens:,} other tokens")
    sites = sites_of(opened.model)
    rows: list[dict[str, Any]] = []
    for cost in costs:
        row: dict[str, Any] = {"layer": cost.layer}
        for scheme in SCHEMES:
            with rounded(sites[cost.layer], scheme):
                row[f"{scheme} measured"] = loss(opened.model, judged, device) - plain
            row |= {f"{scheme} predicted": cost.of(scheme), f"{scheme} error": cost.errors[scheme]}
        rows.append(row)
    found = {scheme: agreement(rows, scheme) for scheme in SCHEMES}
    for scheme, values in found.items():
        verdict = "ok" if values["predicted"] >= BAR else "BELOW THE BAR"
        words = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"{scheme:6} Spearman with the measured rise of the loss: {words} (bar {BAR}: {verdict})")
    if chosen.json:
        chosen.json.write_text(
            json.dumps({"perplexity": float(np.exp(plain)), "spearman": found, "maps": rows}, indent=1)
        )


def agreement(rows: list[dict[str, Any]], scheme: str) -> dict[str, float]:
    """Correlate what was measured with the prediction and with the output's error, over all maps; and over blocks."""
    measured, predicted, error = (
        np.array([row[f"{scheme} {what}"] for row in rows]) for what in ("measured", "predicted", "error")
    )
    block = np.array([".".join(part for part in row["layer"].split(".")[:3]) for row in rows])
    sums = [[values[block == name].sum() for name in np.unique(block)] for values in (measured, predicted)]
    return {
        "predicted": float(spearmanr(measured, predicted).statistic),
        "predicted, blocks": float(spearmanr(*sums).statistic),
        "output error": float(spearmanr(measured, error).statistic),
        "sum predicted": float(predicted.sum()),
        "sum measured": float(measured.sum()),
    }


def texts(name: str, many: int) -> list[str]:
    """Return passages of 300 words of a text of the data folder."""
    with lzma.open(find(name), "rt", encoding="utf-8") as file:
        words = file.read().split()
    return [" ".join(words[i * 300 : (i + 1) * 300]) for i in range(many)]


def loss(model: Any, batches: list[Any], device: str) -> float:
    """Return the mean negative log-likelihood of the next token."""
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = model(**batch).logits[:, :-1].float()
            goal = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
            total += float(F.cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="sum", ignore_index=-100))
            count += float((goal != -100).sum())
    return total / count


@contextmanager
def rounded(site: Any, scheme: str) -> Iterator[None]:
    """Round one map while the model runs."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        product = _Product(site, args[0].float(), None, 0)
        return output + (product.rounded(scheme, "") - product.plain).view_as(output).to(output.dtype)

    handle = site.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    main()
