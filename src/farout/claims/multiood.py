"""MultiOOD: written and spoken digits in pairs; other digits are near, other alphabets and other words are far."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.bench.metrics import auroc
from farout.claims._claim import Claim
from farout.claims._rows import counted, means, pick
from farout.claims._spoken import spoken
from farout.claims._tables import SEEDS, Progress, verdict
from farout.data.images import image_set

CLASSES = 6  # the digits 0 to 5 are familiar
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh")
PLAIN, BOTH, A2D = "no loss beside", "A2D + NP-Mix", "A2D"
METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {"agree_to_disagree": 0, "outlier_disagreement": 0, "outlier_entropy": 0},
    A2D: {"agree_to_disagree": 1, "outlier_disagreement": 0, "outlier_entropy": 0},
    "NP-Mix": {"agree_to_disagree": 0},
    BOTH: {},
}
SINGLE = ("image alone", "sound alone")
WITHIN = 0.01
THRESHOLD = (
    "In the mean over three seeds, on near outliers: the AUROC (mean of MSP, energy and 10 nearest neighbours) of both "
    "modalities together, plainly trained, is above that of a network of either modality alone; with A2D + NP-Mix it "
    "is above that without; modalities disagree more on near outliers than on familiar inputs, with A2D by more than "
    f"without; and A2D + NP-Mix costs at most {WITHIN:.0%} of accuracy."
)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"train": 2000, "test": 800, "every": 3, "epochs": 12, "batch": 32, "halves": True},
    "full": {"train": 10_000, "test": 10_000, "every": 1, "epochs": 20, "batch": 128, "halves": False},
}


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all parts must hold. The small budget: one seed, part of the images at half size, perceptrons."""
    size, seeds = SIZES[budget], SEEDS[:1] if budget == "small" else SEEDS
    data = _Pairs(size)
    found, facts = [], []
    methods = [one for one in (*SINGLE, *METHODS) if budget == "full" or one != "NP-Mix"]
    for seed, method in counted([(seed, method) for seed in seeds for method in methods], progress):
        run = _Run(data, method, seed, size)
        found += run.scores()
        facts.append(run.facts())
    mean, fact = means(found, "outliers", "method"), means(facts, "method")

    def near(method: str) -> float:
        return pick(mean, "AUROC", outliers="near", method=method)

    def gap(method: str) -> float:
        return pick(fact, "apart, near", method=method) - pick(fact, "apart, familiar", method=method)

    lost = pick(fact, "accuracy", method=PLAIN) - pick(fact, "accuracy", method=BOTH)
    parts = {
        "together above either alone": near(PLAIN) > max(near(one) for one in SINGLE),
        "with both losses above without": near(BOTH) > near(PLAIN),
        "A2D widens the gap in disagreement": gap(A2D) > max(gap(PLAIN), 0),
        "accuracy kept": lost <= WITHIN,
    }
    told = ", ".join(f"{method} {near(method):.3f}" for method in methods)
    return Claim(
        paper="MultiOOD",
        published="A2D and NP-Mix improve scores of many kinds by a large margin over five video sets",
        measure="AUROC on near outliers, mean of MSP, energy and nearest neighbours",
        ours=near(BOTH),
        baseline=(PLAIN, near(PLAIN)),
        peer=(f"ViM, {PLAIN}", pick(mean, "ViM", outliers="near", method=PLAIN)),
        threshold=THRESHOLD,
        holds=all(parts.values()),
        note=f"AUROC near: {told}. Gap in disagreement: {gap(PLAIN):.3f}, with A2D {gap(A2D):.3f}. Accuracy lost: "
        f"{lost:+.3f}. " + " ".join(f"{part[0].upper()}{part[1:]}: {verdict(fine)}." for part, fine in parts.items()),
        numbers={"AUROC, mean over seeds": mean, "How far modalities are apart": fact, "By seed": found},
        seeds=seeds,
        budget=budget,
    )


class _Pairs:
    """Images and recordings: familiar ones to learn from, and what is tested."""

    def __init__(self, size: dict[str, Any]) -> None:
        import torch

        from farout.kit.training import device_named, seeded

        self.device = device_named("auto")

        def images(name: str, rows: int) -> tuple[Any, Any]:
            stored = image_set(name, rows)
            x_BCHW = torch.tensor(stored.images[:, None, :, :, 0]).float().to(self.device) / 255
            return _halved(x_BCHW, size["halves"]), torch.tensor(stored.labels)

        def recordings(name: str, every: int = 1) -> tuple[Any, Any]:
            mels, about = spoken(name, every)
            return _halved(torch.from_numpy(mels)[:, None], size["halves"]).numpy(), about

        mels, about = recordings("fsdd", size["every"])
        digit, learned = np.array([int(row["digit"]) for row in about]), [row["split"] == "train" for row in about]
        self.sounds = _Bank(mels[learned], digit[learned], self.device)
        x_BCHW, y = images("mnist-train", size["train"])
        self.train = x_BCHW[y < CLASSES], y[y < CLASSES].to(self.device)
        x_BCHW, y = images("mnist-test", size["test"])
        tested = _Bank(mels[np.logical_not(learned)], digit[np.logical_not(learned)], self.device)
        words, about = recordings("prompt_words")
        others = [row["text"] not in DIGITS for row in about]
        far, _ = images("omniglot", size["test"])
        known, new = y < CLASSES, y >= CLASSES
        self.labels = y[known].numpy()
        with seeded(0):
            wrong = (y[known] + torch.randint(1, CLASSES, (len(self.labels),))) % CLASSES
            self.tests = {
                "familiar": (x_BCHW[known], tested.of(y[known])),
                "near": (x_BCHW[new], tested.of(y[new])),
                "far": (far, _Bank(words[others], np.zeros(sum(others), int), self.device).of(torch.zeros(len(far)))),
                "mismatched": (x_BCHW[known], tested.of(wrong)),
            }


class _Bank:
    """Recordings of each word, from which those of a batch are drawn."""

    def __init__(self, mels: np.ndarray, word: np.ndarray, device: Any) -> None:
        import torch

        self.sounds = torch.from_numpy(mels[np.argsort(word, kind="stable")]).to(device)
        self.counts = torch.from_numpy(np.bincount(word))
        self.starts = self.counts.cumsum(0) - self.counts

    def of(self, labels: Any) -> Any:
        """Draw a recording of each word, from torch's generator of the CPU."""
        import torch

        labels = labels.long().cpu()
        rows = self.starts[labels] + (torch.rand(len(labels)) * self.counts[labels]).long()
        return self.sounds[rows.to(self.sounds.device)]


def _halved(x_BCHW: Any, really: bool) -> Any:
    """Return pictures as they are, or as rows of pixels of pictures of half the size."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(x_BCHW, 2).flatten(1) if really else x_BCHW


def _net(example: Any) -> Any:
    """Return a convolutional network for pictures, or a perceptron for rows."""
    from farout.kit.nets import SmallCNN, mlp

    return SmallCNN(CLASSES, channels=1) if example.ndim == 4 else mlp([example.shape[1], 128, 64, CLASSES])


class _Run:
    """One trained model, of both modalities or of one, and what it says of the tests."""

    def __init__(self, data: _Pairs, method: str, seed: int, size: dict[str, Any]) -> None:
        from torch import nn

        from farout.kit.fitting import fit
        from farout.kit.training import seeded
        from farout.ood.multiood import JointHead, MultiOOD

        self.data, self.method, self.seed = data, method, seed
        epochs = size["epochs"]
        with seeded(seed):
            nets = [_net(example) for example in (data.train[0], data.sounds.sounds)]
            head = JointHead([net.width for net in nets], CLASSES)
        self.model: Any = nn.ModuleList([*nets, head]).to(data.device)
        self.used = [SINGLE.index(method)] if method in SINGLE else [0, 1]
        losses = MultiOOD(head, start_epoch=epochs // 5, seed=seed, **METHODS.get(method, METHODS[PLAIN]))
        steps_of_epoch, steps = -(-len(data.train[0]) // size["batch"]), 0

        def step(model: Any, image: Any, label: Any) -> dict[str, Any]:
            nonlocal steps
            epoch, steps = steps // steps_of_epoch, steps + 1
            sound = data.sounds.of(label)
            if method in SINGLE:
                logits = nets[self.used[0]]((image, sound)[self.used[0]])
                return {"classes": nn.functional.cross_entropy(logits, label)}
            return losses.losses([net.features(x) for net, x in zip(nets, (image, sound))], label, epoch)

        fit(self.model, step, data.train, epochs=epochs, batch_size=size["batch"], learning_rate=0.05, seed=seed)
        # what scores learn from: each image of the training set beside one recording
        with seeded(seed):
            self.learned = self.views(data.train[0], data.sounds.of(data.train[1]))[0]
        self.seen = {name: self.views(*pair) for name, pair in data.tests.items()}

    def views(self, image: Any, sound: Any) -> tuple[Any, Any]:
        """Return the views of pairs, and how far their modalities are apart (n,)."""
        import torch

        from farout.ood.multiood import disagreement
        from farout.ood.views import Views

        *nets, head = self.model
        parts: list[list[Any]] = [[], []]
        with torch.no_grad():
            for batch in zip(image.split(512), sound.split(512)):
                for place, net in enumerate(nets):
                    parts[place].append(net.features(batch[place]))
            features = [torch.cat(part) for part in parts]
            if self.method in SINGLE:
                (place,) = self.used
                linear, seen, apart = nets[place].linear, features[place], torch.zeros(len(image))
            else:
                linear, seen, apart = head.linear, torch.cat(features, 1), disagreement(head(features)[1])
            found = Views(linear(seen), seen, {}, linear.weight.detach(), linear.bias.detach())
        return found, apart.cpu().numpy()

    def scores(self) -> list[dict[str, Any]]:
        """Return a row for each kind of outliers: AUROC of each score, and the mean of the first three."""
        from farout.ood.deep_knn import DeepKNN
        from farout.ood.energy import Energy
        from farout.ood.msp import MSP
        from farout.ood.multiood import ModalityReAct
        from farout.ood.vim import ViM

        widths = [self.model[place].width for place in self.used]
        scores = {"MSP": MSP(), "energy": Energy(), "kNN": DeepKNN(k=10), "ReAct": ModalityReAct(widths), "ViM": ViM()}
        rows = []
        for name in list(self.seen)[1:]:
            row: dict[str, Any] = {"outliers": name, "method": self.method, "seed": self.seed}
            pair = self.seen["familiar"][0], self.seen[name][0]
            label = np.repeat([0, 1], [len(one) for one in pair])
            for what, score in scores.items():
                fitted = score.fit(self.learned)
                row[what] = auroc(label, np.concatenate([fitted.score(one).cpu().numpy() for one in pair]))
            row["AUROC"] = (row["MSP"] + row["energy"] + row["kNN"]) / 3
            rows.append(row)
        return rows

    def facts(self) -> dict[str, Any]:
        """Return the accuracy, and the mean Hellinger distance between modalities for each kind of input."""
        right = self.seen["familiar"][0].logits.argmax(1).cpu().numpy() == self.data.labels
        apart = {f"apart, {name}": float(found[1].mean()) for name, found in self.seen.items()}
        return {"method": self.method, "seed": self.seed, "accuracy": float(right.mean())} | apart
