"""What the claim on activation patterns is made on: networks for digits and for MNIST, and their patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from farout.bench.metrics import auroc

DELTAS = (1.0, 0.99, 0.95, 0.9)
DELTA = 0.95
OURS, BASELINE, PEER = "NAP", "plain ball", "as many of its own states, drawn"
MNIST_EPOCHS, MNIST_INPUTS, MNIST_EPS, FAR_IMAGES = 20, 30, (0.05, 0.1, 0.2, 0.3), 1_000
TRAINED = 1_200  # of 1,797 digits


class Lab:
    """A network of 4 layers of 64 that was trained on digits, its patterns, and test inputs."""

    def __init__(self, seed: int, epochs: int) -> None:
        import torch
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        x, y = torch.from_numpy(pixels[order] / 16).float(), torch.from_numpy(labels[order])
        self.seed = seed
        self.net = trained([64, 64, 64, 64, 64, 10], x[:TRAINED], y[:TRAINED], epochs, seed)
        self.x, self.y = x[TRAINED:], y[TRAINED:]
        self.patterns, self.states, self.right = mined(self.net, x[:TRAINED], y[:TRAINED], self.x, self.y)

    def facts(self) -> list[dict[str, Any]]:
        """Return what the patterns say of the test inputs, by delta."""
        return facts_of("digits", self.patterns, self.states, self.y, self.right)

    def inputs(self, most: int) -> list[int]:
        """Return test inputs that are predicted rightly and follow their pattern: the first of each class in turn."""
        follows = self.right.clone()
        for c, pattern in self.patterns[DELTA].items():
            follows &= (self.y != c) | pattern.follows(self.states)
        firsts = [np.flatnonzero((follows & (self.y == c)).numpy()) for c in range(10)]
        in_turn = [int(rows[turn]) for turn in range(most) for rows in firsts if turn < len(rows)]
        return in_turn[:most]

    def specified(self, inputs: Sequence[int]) -> list[dict[str, Any]]:
        """Return each input with no pattern, with that of its class, and with as many of its own states, drawn."""
        import torch

        from farout.ood.nap_specs import Pattern

        drawn, found = np.random.default_rng(self.seed), []
        for i in inputs:
            label = int(self.y[i])
            pattern, states = self.patterns[DELTA][label], self.states[i]
            chosen = torch.zeros_like(states)
            chosen[drawn.choice(len(states), pattern.size, replace=False)] = True
            control = Pattern(states & chosen, ~states & chosen)
            for spec, one in ((BASELINE, None), (OURS, pattern), (PEER, control)):
                row = {"seed": self.seed, "input": i, "spec": spec}
                share = 1.0 if one is None else float(one.follows(self.states[self.y == label]).double().mean())
                found.append({"row": row | {"followed": share}, **self._task(i, one)})
        return found

    def specified_by_delta(self, inputs: Sequence[int]) -> list[dict[str, Any]]:
        """Return each input with no pattern, and with that of its class for each delta at which it follows it."""
        found = []
        for i in inputs:
            found.append({"row": {"seed": self.seed, "spec": BASELINE}, **self._task(i, None)})
            for delta in DELTAS:
                pattern = self.patterns[delta][int(self.y[i])]
                if bool(pattern.follows(self.states[i : i + 1])):
                    found.append({"row": {"seed": self.seed, "spec": f"NAP {delta:g}"}, **self._task(i, pattern)})
        return found

    def _task(self, i: int, pattern: Any) -> dict[str, Any]:
        return {"net": self.net, "x": self.x[i], "label": int(self.y[i]), "pattern": pattern}


def trained(sizes: Sequence[int], x: Any, y: Any, epochs: int, seed: int) -> Any:
    """Train a multilayer perceptron with the settings that are usual here."""
    from farout.kit.fitting import cross_entropy_step, fit
    from farout.kit.nets import mlp

    net = mlp(sizes, seed=seed).to(x.device)
    fit(net, cross_entropy_step, (x, y), epochs=epochs, seed=seed)
    return net


def mined(net: Any, x: Any, y: Any, fresh: Any, of_fresh: Any) -> tuple[dict[float, Any], Any, Any]:
    """Return patterns by delta and class, and of other inputs the states and whether they are predicted rightly."""
    from farout.ood._bounds import ReluNet
    from farout.ood.nap_specs import class_patterns

    z, logits = ReluNet.of(net).run(fresh.double())
    return {delta: class_patterns(net, x, y, delta) for delta in DELTAS}, z > 0, logits.argmax(1) == of_fresh


def facts_of(data: str, patterns: dict[float, Any], states: Any, labels: Any, right: Any) -> list[dict[str, Any]]:
    """Return recall, leakage, size, coverage and ambiguity by delta, means over the classes."""
    from farout.ood.nap_specs import pattern_facts

    accuracy = float(right.double().mean())
    return [
        {"data": data, "delta": delta, "accuracy": accuracy} | pattern_facts(of, states, labels).means()
        for delta, of in patterns.items()
    ]


def on_mnist(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Mine patterns of a network of 4 layers of 256, look for counterexamples, and score images of far sets."""
    from farout.claims._far_images import FAR, known, unknown
    from farout.ood.mahalanobis import Mahalanobis
    from farout.ood.msp import MSP
    from farout.ood.nap_specs import NAP, counterexamples
    from farout.ood.views import extract

    def flat(x_BCHW: Any) -> Any:
        return x_BCHW.mean(dim=1).flatten(1)

    (x, y), (test, labels) = (known("mnist", part, None, "cpu") for part in ("train", "test"))
    x, test = flat(x), flat(test)
    net = trained([784, 256, 256, 256, 256, 10], x, y, MNIST_EPOCHS, seed)
    patterns, states, right = mined(net, x, y, test, labels)
    searched = []
    for i in np.flatnonzero(right.numpy())[:MNIST_INPUTS].tolist():
        label = int(labels[i])
        by_delta = {f"NAP {delta:g}": of[label] for delta, of in patterns.items() if delta in (0.99, DELTA)}
        for spec, pattern in {BASELINE: None, **by_delta}.items():
            if pattern is None or bool(pattern.follows(states[i : i + 1])):
                for eps in MNIST_EPS:
                    found = float(len(counterexamples(net, test[i], label, eps, pattern)) > 0)
                    searched.append({"seed": seed, "spec": spec, "eps": eps, "falsified": found})
    needs = ("logits", "features", "stages")
    views, usual = extract(net, x, needs=needs), extract(net, test, needs=needs)
    strangers = unknown("mnist", FAR["mnist"], FAR_IMAGES, "cpu")
    far = {name: extract(net, flat(images), needs=needs) for name, images in strangers.items()}
    named = {f"NAP {delta:g}": NAP(delta) for delta in DELTAS} | {"MSP": MSP(), "Mahalanobis": Mahalanobis()}
    judged = []
    for name, score in named.items():
        inside = score.fit(views, y).score(usual)
        row = {"seed": seed, "score": name}
        for one, strange in far.items():
            outside = score.score(strange)
            row[one] = auroc(np.repeat([0, 1], [len(inside), len(outside)]), np.append(inside.numpy(), outside.numpy()))
        judged.append(row)
    return facts_of("MNIST", patterns, states, labels, right), searched, judged
