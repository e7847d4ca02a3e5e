"""Min-K% Prob tells documents that a small language model has read from those that it has not."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from farout.bench.metrics import auroc
from farout.bench.wikimia import tpr_at_fpr
from farout.claims._claim import Claim
from farout.claims._memorised import PLANTED, Documents, Setting, documents, reader, reference
from farout.claims._tables import SEEDS, Progress, verdict
from farout.text.min_k_prob import MinKProb

SETTINGS = {
    "small": Setting("text/classics/valid.txt.xz", (16, 32), (1, 20), 12, "G0", "G0", 4, 20_000, 3e-3),
    "full": Setting("text/classics/train.txt.xz", (32, 64, 128, 256), (1, 2, 5, 10), 400, "G1", "G0", 128, 20_000_000),
}
OURS = "min_k"
STATISTICS = ("min_k", "min_k++", "loss", "zlib", "lowercase", "reference")
SLACK = 0.01
THRESHOLD = (
    "A language model of bytes reads documents of 32, 64, 128 and 256 words once, twice, five or ten times; others of "
    "the same books, drawn at random, never. In the mean over the seeds, the AUC of Min-20% Prob on plain documents "
    "rises with each step of how often they are read (mean over the lengths), and with each step of the length (at ten "
    "times); its mean over lengths and times is at least that of the loss (log perplexity), less "
    f"{SLACK}, on plain documents, and above it on documents with one or two planted random strings."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all four parts must hold. The small budget has one seed, a smaller model and few documents."""
    setting = SETTINGS[budget]
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        drawn = documents(setting, seed)
        model, other = reader(setting, drawn, seed, progress), reference(setting, drawn, seed, progress)
        detector = MinKProb(model, tokenizer="bytes", reference=other)
        tell = lambda done, seed=seed: progress(f"seed {seed}, scored", done)  # noqa: E731
        rows += _judged(setting, drawn, detector.statistics(drawn.texts, STATISTICS, tell), seed)
    return _concluded(setting, rows, seeds, budget)


def _concluded(setting: Setting, rows: list[dict[str, Any]], seeds: tuple[int, ...], budget: str) -> Claim:
    """Compare means with the threshold."""
    # (seed, planted, words, times, statistic)
    shape = (len(seeds), len(PLANTED), len(setting.lengths), len(setting.times), len(STATISTICS))
    auc = np.array([[row[name] for name in STATISTICS] for row in rows]).reshape(shape).mean(axis=0)
    ours, loss = STATISTICS.index(OURS), STATISTICS.index("loss")
    by_times, by_length = auc[0, :, :, ours].mean(axis=0), auc[0, :, -1, ours]
    plain, planted = auc.mean(axis=(1, 2))
    rises, longer = bool((np.diff(by_times) > 0).all()), bool((np.diff(by_length) > 0).all())
    keeps, gains = bool(plain[ours] >= plain[loss] - SLACK), bool(planted[ours] > planted[loss])
    best = max((name for name in STATISTICS if not name.startswith("min_k")), key=lambda n: plain[STATISTICS.index(n)])
    top = plain[STATISTICS.index(best)]
    note = (
        f"Rises with how often documents are read: {verdict(rises)} ({_arrow(by_times)}). Rises with length: "
        f"{verdict(longer)} ({_arrow(by_length)} at {setting.times[-1]} times). As good as the loss on plain "
        f"documents: {verdict(keeps)} ({plain[ours]:.3f} against {plain[loss]:.3f}). Better than it with planted "
        f"strings: {verdict(gains)} ({planted[ours]:.3f} against {planted[loss]:.3f}). The paper's order, Min-K% Prob "
        f"before every baseline, {'is found' if plain[ours] > top else 'is not found'}: the best baseline on plain "
        f"documents is {best} ({top:.3f}), and Min-K%++ has {plain[STATISTICS.index('min_k++')]:.3f}. The reference "
        "model has read other paragraphs of the same books; the paper's, a smaller one of a family, may be farther off."
    )
    return Claim(
        paper="Min-K% Prob",
        published="AUC 0.72 on average on WikiMIA, where the best earlier method has 0.67",
        measure="AUC on plain documents, mean over lengths and times read",
        ours=float(plain[ours]),
        baseline=("loss (log perplexity)", float(plain[loss])),
        peer=("Min-K%++", float(plain[STATISTICS.index("min_k++")])),
        threshold=THRESHOLD,
        holds=rises and longer and keeps and gains,
        note=note,
        numbers={
            "AUC by statistic": [
                {"statistic": name, "plain": float(plain[i]), "with planted strings": float(planted[i])}
                for i, name in enumerate(STATISTICS)
            ],
            "AUC of Min-20% Prob on plain documents": [
                {"words": words} | {f"read {n} times": float(value) for n, value in zip(setting.times, line)}
                for words, line in zip(setting.lengths, auc[0, :, :, ours])
            ],
            "AUC by seed": rows,
        },
        seeds=seeds,
        budget=budget,
    )


def _judged(setting: Setting, drawn: Documents, scores: dict[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """Tell documents that were read so often from those of their kind that never were."""
    rows = []
    for (plant, kind), words, times in product(enumerate(PLANTED), setting.lengths, setting.times):
        alike = (drawn.words == words) & (drawn.planted == bool(plant))
        these = np.flatnonzero(alike & np.isin(drawn.times, (0, times)))
        never = (drawn.times[these] == 0).astype(int)
        row: dict[str, Any] = {"seed": seed, "documents": kind, "words": words, "times": times}
        row |= {name: auroc(never, values[these]) for name, values in scores.items()}
        rows.append(row | {"TPR of Min-20% at 5 % FPR": tpr_at_fpr(never, scores[OURS][these])})
    return rows


def _arrow(values: np.ndarray) -> str:
    return " → ".join(f"{value:.3f}" for value in values)
