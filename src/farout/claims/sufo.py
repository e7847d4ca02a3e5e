"""SUFO: what fine-tuning does to the layers of an encoder, and whether planted outliers lie far out in its plane."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from farout.claims._claim import Claim, Progress
from farout.claims._sufo_training import LAYERS, measured, partly, validated
from farout.claims._tables import SEEDS, verdict
from farout.io.files import writing

RATES = {"small": (1e-3,), "full": (7.6e-6, 2.4e-5, 7.6e-5)}  # the paper's, and others for an encoder half as deep
RATE_DRAW = 9  # the draw whose validation rows choose the rate; it is in no number
FROZEN = {"small": (3,), "full": (2, 4, 6)}
CELLS = Path("out/sufo")  # where the full budget keeps finished runs, which take hours without a GPU
SPARSE, FALLS = 0.9, -0.8
WAYS = ("distance in the plane", "distance in all dimensions", "maximum softmax", "loss")
THRESHOLD = (
    "A pre-trained encoder is fine-tuned on questions of three classes at 80, 15 and 5 %, of which 3 % are spoilt "
    "(truncated, mixed with another class, wrong label). After it the first five principal components of the last "
    f"layer's first-token vectors explain more than {SPARSE:.0%} of their variance in the mean over the seeds, and for "
    "every seed more than before; RSA with the untuned encoder falls over the layers (Spearman's correlation of its "
    f"mean over the seeds with depth at most {FALLS}); macro-F1 on clean questions is, in the mean, higher than that "
    "of a linear probe of the untuned last layer and than with all layers frozen; and among the k training questions "
    "that lie farthest from their class in the plane of the first two components, where k is the number of outliers "
    "planted, there are in the mean at least as many outliers as by the distance in all dimensions, maximum softmax "
    "and the loss."
)


def claim(budget: str, progress: Progress) -> Claim:
    """Run the claim; all four parts must hold. The small budget trains an encoder of 3 layers from nothing, once."""
    seeds = SEEDS[:1] if budget == "small" else SEEDS
    rate, tried = _rate(budget, progress)
    tasks = [(seed, frozen) for seed in seeds for frozen in (None, *FROZEN[budget])]
    cells = dict(zip(tasks, _all(budget, [("run", rate, seed, frozen) for seed, frozen in tasks], progress)))
    rows = [cells[seed, None] for seed in seeds]
    stop = LAYERS[budget]

    before, after = (np.array([row["explained by 5"][at] for row in rows]) for at in (0, -1))
    sparse = bool(after.mean() > SPARSE and (after > before).all())
    alike = np.mean([np.array(row["similarity"]["first"])[-1, 1:, 0] for row in rows], axis=0)
    fall = _spearman(np.arange(len(alike)), alike)
    falls = fall <= FALLS
    tuned = float(np.mean([row["tuned F1"] for row in rows]))
    probe = float(np.mean([row["probe F1"]["first"][0][-1] for row in rows]))
    best_probe = max(
        float(np.mean([row["probe F1"][how][0] for row in rows], axis=0).max()) for how in ("first", "mean")
    )
    all_frozen = float(np.mean([cells[seed, stop] for seed in seeds]))
    gains = tuned > max(probe, all_frozen)
    precision = {way: float(np.mean([row["precision"][way] for row in rows])) for way in WAYS}
    finds = precision[WAYS[0]] >= max(precision[way] for way in WAYS[1:])
    kinds = {
        kind: {way: float(np.mean([row["found"][way][kind] for row in rows])) for way in WAYS}
        for kind in rows[0]["found"][WAYS[0]]
    }
    found = ", ".join(f"{kinds[kind][WAYS[0]]:.0%} of the {kind}" for kind in kinds)
    right = {
        kind: float(np.mean([row["told as labelled"][kind] for row in rows])) for kind in rows[0]["told as labelled"]
    }
    learnt = ", ".join(f"{share:.0%} of the {kind}" for kind, share in right.items())
    note = (
        f"Sparser {verdict(sparse)}: five components explain {after.mean():.1%}, before {before.mean():.1%}. Falling "
        f"similarity {verdict(falls)}: RSA from {alike[0]:.2f} at the first layer to {alike[-1]:.2f} at the last, "
        f"correlation {fall:.2f}. Better than frozen {verdict(gains)}: macro-F1 {tuned:.3f}, {probe:.3f} by the probe "
        f"(the best of all untuned layers, of first tokens or means: {best_probe:.3f}), "
        f"{all_frozen:.3f} with all layers frozen. Outliers in the plane {verdict(finds)}: precision at k "
        + ", ".join(f"{precision[way]:.2f} by {way}" for way in WAYS)
        + f"; chance is 0.03. The plane finds {found} questions. The model tells {learnt} training questions as they "
        f"are labelled: what it has learnt by heart lies with its label. Peak rate {rate:g}"
        + (", chosen on the validation questions of a draw that is in no number." if len(RATES[budget]) > 1 else ".")
    )
    return Claim(
        paper="SUFO",
        published="fine-tuning sparsifies the feature space strongly; outliers fall into a few modes that experts read",
        measure="precision at k of planted outliers among the training questions",
        ours=precision[WAYS[0]],
        baseline=("distance in all dimensions", precision[WAYS[1]]),
        peer=("loss", precision["loss"]),
        threshold=THRESHOLD,
        holds=sparse and falls and gains and finds,
        note=note,
        numbers=_tables(rows, cells, seeds, FROZEN[budget])
        | tried
        | {
            "Outliers found, by kind": [
                {"kind": kind} | ways | {"told as labelled": right[kind]} for kind, ways in kinds.items()
            ],
        },
        seeds=seeds,
        budget=budget,
    )


def _rate(budget: str, progress: Progress) -> tuple[float, dict[str, list[dict[str, Any]]]]:
    """Choose the peak rate on the validation rows of a draw of its own, where there are several; and tell how."""
    rates = RATES[budget]
    if len(rates) == 1:
        return rates[0], {}
    scores = _all(budget, [("rate", rate, RATE_DRAW, None) for rate in rates], progress)
    rows = [{"rate": rate, "validation F1": score} for rate, score in zip(rates, scores)]
    return rates[int(np.argmax(scores))], {"Rates tried": rows}


def _all(budget: str, tasks: list[tuple[str, float, int, int | None]], progress: Progress) -> list[Any]:
    """Do tasks, side by side where there is a GPU, which one small model leaves idle for most of the time."""
    from joblib import Parallel, delayed
    from torch import cuda

    jobs = min(len(tasks), os.cpu_count() or 1) if cuda.is_available() and budget == "full" else 1
    done = []
    for place, cell in enumerate(
        Parallel(jobs, return_as="generator")(delayed(_cell)(budget, *task) for task in tasks)
    ):
        done.append(cell)
        progress(f"{tasks[place][0]} {place + 1} of {len(tasks)}", (place + 1) / len(tasks))
    return done


def _cell(budget: str, what: str, rate: float, seed: int, frozen: int | None) -> Any:
    """Do one task; the full budget reads it where it was done before."""
    path = CELLS / f"{what}_{rate:g}_{seed}_{frozen}.json"
    if budget == "full" and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if what == "rate":
        cell: Any = validated(budget, rate, seed)
    else:
        cell = measured(budget, rate, seed) if frozen is None else partly(budget, rate, seed, frozen)
    if budget == "full":
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as temporary:
            temporary.write_text(json.dumps(cell) + "\n", encoding="utf-8")
    return cell


def _tables(
    rows: list[dict[str, Any]], cells: Any, seeds: Any, frozen: tuple[int, ...]
) -> dict[str, list[dict[str, Any]]]:
    """Lay out what was measured: by seed, by layer (means over the seeds), and by stage."""
    layers = rows[0]["layers"]

    def mean(of: Any) -> list[float]:
        return np.mean([of(row) for row in rows], axis=0).tolist()

    columns: dict[str, list[float]] = {}
    for how in ("first", "mean"):
        columns |= {
            f"RSA, {how}": mean(lambda row, how=how: np.array(row["similarity"][how])[-1, :, 0]),
            f"RSA low, {how}": mean(lambda row, how=how: np.array(row["bounds"][how])[:, 0, 0]),
            f"RSA high, {how}": mean(lambda row, how=how: np.array(row["bounds"][how])[:, 0, 1]),
            f"CKA, {how}": mean(lambda row, how=how: np.array(row["similarity"][how])[-1, :, 1]),
            f"probe F1 untuned, {how}": mean(lambda row, how=how: row["probe F1"][how][0]),
            f"probe F1 tuned, {how}": mean(lambda row, how=how: row["probe F1"][how][-1]),
        }
    by_seed = [
        {name: row[name] for name in ("seed", "trained on", "best epoch", "validation F1", "tuned F1")}
        | {f"F1 with {k} frozen": cells[seed, k] for k in frozen}
        | {f"F1 {name}": value for name, value in row["tuned F1 by class"].items()}
        | {f"probe F1 {name}": value for name, value in row["probe F1 by class"].items()}
        | {f"precision, {way}": value for way, value in row["precision"].items()}
        | {"flagged": row["flagged"], "flagged and planted": row["flagged and planted"]}
        for seed, row in zip(seeds, rows)
    ]
    by_stage = [
        {"seed": row["seed"], "stage": stage, "explained by 5": row["explained by 5"][at]}
        | {"silhouette": row["silhouette"][at]}
        | {"balanced accuracy in the plane": row["balanced accuracy in the plane"][at]}
        | {"precision, distance in the plane": row["precision by stage"][at]}
        for row in rows
        for at, stage in enumerate(row["stages"])
    ]
    axes = [
        {"seed": row["seed"], "axis": k, "F1 without it and those before": row["F1 without axes"][k]}
        | {f"told {name} by it alone": share for name, share in zip(row["tuned F1 by class"], told)}
        for row in rows
        for k, told in enumerate(row["told by one axis"], start=1)
    ]
    return {
        "By seed": by_seed,
        "By layer, mean over the seeds": [
            {"layer": name}
            | {what: values[at] if np.isfinite(values[at]) else None for what, values in columns.items()}
            for at, name in enumerate(layers)
        ],
        "By stage": by_stage,
        "Axes shown to the head": axes,
    }


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)
