"""Causal paths: the graph of a class holds the filters of a planted shortcut, and stays the same under noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from farout.claims._claim import Claim
from farout.claims._shortcut import RELUS, Planted, accuracy, attributions, captum_maps, planted, rises
from farout.claims._tables import SEEDS, Progress, verdict
from farout.inside.causal_paths import CausalGraph, CausalPaths, faithfulness, jaccard

LAYERS = ("conv1", "conv2", "conv3")
SIGMAS, DRAWS, RANDOM = (0.05, 0.1), 3, 10
HELD, GAIN, COST = 0.5, 0.1, 0.02
THRESHOLD = (
    "Networks that learned a corner patch as a shortcut to a class; patch filters are the eighth of the last "
    "convolution whose activation rises most with the patch. In the mean over the seeds: the causal graph of the class "
    f"holds at least {HELD:.0%} of the patch filters, and more than as many filters drawn at random do; ablating those "
    f"that it holds raises the accuracy on patched images of other classes by at least {100 * GAIN:.0f} points and "
    f"costs at most {100 * COST:.0f} points on images without patch; and under noise of 0.05 and 0.1 the units of the "
    "graph overlap more (Jaccard) than as many by gradient x activation."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all four parts must hold. The small budget trains one network on digits of 8x8 pixels."""
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    found: dict[str, list[dict[str, Any]]] = {}
    for place, seed in enumerate(seeds):
        progress(f"training, seed {seed}", place / len(seeds))
        one = planted(budget, target=seed, seed=seed)
        progress(f"measuring, seed {seed}", (place + 0.6) / len(seeds))
        for title, rows in _measured(one, seed, DRAWS if budget == "full" else 1).items():
            found.setdefault(title, []).extend({"seed": seed} | row for row in rows)
        progress(f"seed {seed}", (place + 1) / len(seeds))
    mean = {title: _means(rows) for title, rows in found.items()}
    filters, overlap = mean["Patch filters"], mean["Overlap under noise"]
    ours, chance = filters["causal paths"], filters["drawn at random"]
    holds_them = ours["patch filters held"] >= HELD and ours["patch filters held"] > chance["patch filters held"]
    plain = mean["Networks"]["as trained"]
    gain, cost = ours["conflicting"] - plain["conflicting"], plain["clean"] - ours["clean"]
    removes, spares = gain >= GAIN, cost <= COST
    stable = overlap["causal paths"]["jaccard"] > overlap["gradient x activation"]["jaccard"]
    repaired, maps = filters["blamed on held-out images"], mean["Maps"]
    note = (
        f"Held {verdict(holds_them)}: {ours['patch filters held']:.0%} of the patch filters, where chance has "
        f"{chance['patch filters held']:.0%} and gradient x activation "
        f"{filters['gradient x activation']['patch filters held']:.0%}. Shortcut removed {verdict(removes)}: accuracy "
        f"on patched images of other classes from {plain['conflicting']:.1%} to {ours['conflicting']:.1%}; "
        f"{filters['all of them']['conflicting']:.1%} with all patch filters gone, so that much of the shortcut lies "
        f"outside of them. Cost {verdict(spares)}: {100 * cost:.1f} points without patch. Stability {verdict(stable)}: "
        f"overlap of {overlap['causal paths']['jaccard']:.3f} against "
        f"{overlap['gradient x activation']['jaccard']:.3f}. In these networks a mean and a linear map follow the last "
        "convolution, where gradient x activation is itself the exact effect on the logit (with zero as reference), "
        "and a fixed number of units flips less than one that is decided by effects. Maps: rank correlation under "
        f"noise {maps['causal paths']['rank correlation under noise']:.2f} (gradient x input "
        f"{maps['gradient x input']['rank correlation under noise']:.2f}, Grad-CAM "
        f"{maps['Grad-CAM']['rank correlation under noise']:.2f}), insertion {maps['causal paths']['insertion']:.3f} "
        f"(integrated gradients {maps['integrated gradients']['insertion']:.3f}), deletion "
        f"{maps['causal paths']['deletion']:.3f} ({maps['integrated gradients']['deletion']:.3f}). Repair: as many "
        f"filters that blame finds on held-out patched images, without knowing of a patch, bring "
        f"{repaired['conflicting']:.1%} at {100 * (plain['clean'] - repaired['clean']):.1f} points."
    )
    return Claim(
        paper="Causal paths",
        published="causal graphs give more stable and faithful explanations than attributions, and serve model repair",
        measure="Jaccard overlap of a class's units with those under noise",
        ours=overlap["causal paths"]["jaccard"],
        baseline=("gradient x activation", overlap["gradient x activation"]["jaccard"]),
        peer=("conductance (captum)", overlap["conductance"]["jaccard"]),
        threshold=THRESHOLD,
        holds=bool(holds_them and removes and spares and stable),
        note=note,
        numbers=_tables(mean) | {f"{title}, by seed": rows for title, rows in found.items()},
        seeds=seeds,
        budget=budget,
    )


def _measured(one: Planted, seed: int, draws: int) -> dict[str, list[dict[str, Any]]]:
    """Measure one network in all ways; the rows of each table have a method and numbers."""
    import torch

    paths = CausalPaths()
    graph = paths.measure(one.model, one.X, one.y, one.target)
    patched, classes = one.conflicting
    half = len(classes) // 2  # the first half is for blame

    def accuracies() -> dict[str, float]:
        return {
            "clean": accuracy(one.model, one.test_X[half:], one.test_y[half:]),
            "conflicting": accuracy(one.model, patched[half:], classes[half:]),
        }

    own = one.test_y == one.target
    networks = {"method": "as trained"} | accuracies()
    networks |= {"class without patch": accuracy(one.model, one.test_X[own], one.test_y[own])}
    networks |= {f"units of {layer} in the graph": len(graph.units(layer)) for layer in LAYERS}

    rose = rises(one)
    responding = set(np.argsort(-rose, kind="stable")[: len(rose) // 8].tolist())
    of_class = one.X[one.y == one.target]
    size = len(graph.units(LAYERS[-1]))
    chosen = {"causal paths": {unit.number for unit in graph.units(LAYERS[-1])}}
    for method, values in attributions(one.model, of_class, one.target, RELUS[-1]).items():
        chosen[method] = _top(values, size)
    errors = torch.cat([one.test_X[:half], patched[:half]])
    truth = torch.cat([one.test_y[:half], classes[:half]])
    few = slice(None, None, max(1, len(errors) // 1000))
    blamed = [b.unit.number for b in paths.blame(one.model, errors[few], truth[few]) if b.unit.layer == LAYERS[-1]]

    def row(method: str, held: set[int], ablated: set[int]) -> dict[str, Any]:
        with graph.ablated([(LAYERS[-1], unit) for unit in ablated]):
            told = accuracies()
        share = len(held & responding) / len(responding)
        return {"method": method, "patch filters held": share, "ablated": len(ablated)} | told

    filters = [row(method, units, units & responding) for method, units in chosen.items()]
    rng = np.random.default_rng(seed)
    drawn = [set(rng.permutation(len(rose))[:size].tolist()) for _ in range(RANDOM)]
    random = [row("drawn at random", units, units & responding) for units in drawn]
    filters.append({"method": "drawn at random"} | _means(random)["drawn at random"])
    for method, units in (("blamed on held-out images", set(blamed[: len(responding)])), ("all of them", responding)):
        filters.append(row(method, units, units))
    return {
        "Networks": [networks],
        "Patch filters": filters,
        "Overlap under noise": _overlaps(one, graph, seed, draws),
        "Maps": _maps(one, graph, seed),
    }


def _overlaps(one: Planted, graph: CausalGraph, seed: int, draws: int) -> list[dict[str, Any]]:
    """Compare the units of the graph, and as many in each layer by other methods, with those found under noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    before = _chosen(one, graph, one.X)
    overlaps: dict[str, list[float]] = {}
    for sigma in SIGMAS:
        for _ in range(draws):
            noisy = one.X + sigma * torch.randn(one.X.shape, generator=generator)
            after = _chosen(one, graph, noisy)
            after["causal paths"] = set(CausalPaths().measure(one.model, noisy, one.y, one.target).paths)
            for method, units in before.items():
                overlaps.setdefault(method, []).append(jaccard(units, after[method]))
    size, total = len(graph.paths), sum(layer.units for layer in graph.network.layers[:-1])
    rows = [{"method": method, "jaccard": float(np.mean(values))} for method, values in overlaps.items()]
    return [*rows, {"method": "drawn at random", "jaccard": size / (2 * total - size)}]


def _chosen(one: Planted, graph: CausalGraph, X: Any) -> dict[str, set[Any]]:
    """Return the units of the graph and, by each other method, as many of each layer."""
    chosen: dict[str, set[Any]] = {"causal paths": set(graph.paths)}
    of_class = X[one.y == one.target]
    for layer, relu in zip(LAYERS, RELUS):
        for method, values in attributions(one.model, of_class, one.target, relu).items():
            top = _top(values, len(graph.units(layer)))
            chosen.setdefault(method, set()).update((layer, unit) for unit in top)
    return chosen


def _maps(one: Planted, graph: CausalGraph, seed: int) -> list[dict[str, Any]]:
    """Compare saliency maps: deletion, insertion, and their own correlation under noise."""
    import torch
    from scipy.stats import spearmanr

    X = one.X[one.y == one.target][:100]
    noisy = X + SIGMAS[-1] * torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
    maps, again = ({"causal paths": graph.map(x)} | captum_maps(one.model, x, one.target) for x in (X, noisy))
    fill = one.X.mean(0)
    rows = []
    for method in maps:
        deletion, insertion = faithfulness(one.model, X, maps[method], one.target, fill=fill)
        kept = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps[method], again[method])]
        facts = {"deletion": deletion, "insertion": insertion, "rank correlation under noise": float(np.nanmean(kept))}
        rows.append({"method": method} | facts)
    return rows


def _top(values: np.ndarray, size: int) -> set[int]:
    return set(np.argsort(-values, kind="stable")[:size].tolist())


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Average the numbers of each method over the seeds."""
    methods = dict.fromkeys(row["method"] for row in rows)
    names = [name for name in rows[0] if name not in ("seed", "method")]
    return {
        m: {name: float(np.mean([row[name] for row in rows if row["method"] == m])) for name in names} for m in methods
    }


def _tables(means: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[dict[str, Any]]]:
    return {title: [{"method": m} | numbers for m, numbers in rows.items()] for title, rows in means.items()}
