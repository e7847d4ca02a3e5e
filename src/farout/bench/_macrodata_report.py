"""What many sets say of methods, as tables: means, ranks, Elo, strata, doubtful sets, and published numbers beside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from farout.bench._parts import compared, failures, short
from farout.bench._published import AS_PYOD
from farout.bench._tables import as_text
from farout.bench.metrics import auroc
from farout.bench.pairs import elo, win_rates
from farout.bench.stats import friedman, mean_ranks, wilcoxon_holm
from farout.data import DataMissing, Dataset, find, load, macrodata_manifest, split_facts

REFERENCE = "reference/oddbench790_methods.csv"
RIVAL = "IForest"  # against which win rates count
ALONE = 0.95  # a column that tells the anomalies so well makes a set doubtful
# What divides sets: a column of the table, and the edges between its levels.
EDGES = {
    "training rows": ("fitted", (1_000, 3_000)),
    "features": ("features", (6, 16)),
    "share of anomalies": ("share", (0.05, 0.2)),
    "isotropy": ("isotropy", (1 / 3, 2 / 3)),
    "best column alone": ("best_column", (0.8, 0.95)),
}
KNOWN: dict[str, Any] = {"domain": pl.String, "isotropy": pl.Float64, "iforest_auc": pl.Float64, "rf_auc": pl.Float64}


def described(cells: pl.DataFrame) -> pl.DataFrame:
    """Bring the cells of ``suites.run`` to a row for each set and method, with what is known of the set."""
    failed = pl.col("error").is_not_null().any()
    means = {name: pl.when(~failed).then(pl.col(name).mean()) for name in ("auroc", "ap", "seconds")}
    counts = ("fitted", "rows", "features", "anomalies")
    table = cells.group_by("set", "method", "protocol", maintain_order=True).agg(
        **means,
        auroc_std=pl.when(~failed).then(pl.col("auroc").std(ddof=0)),
        seeds=pl.len(),
        **{name: pl.col(name).drop_nulls().first() for name in counts},
        error=pl.col("error").drop_nulls().first(),
    )
    share = pl.col("anomalies") / pl.col("rows")
    table = table.with_columns(
        share=share, ap_normalized=(pl.col("ap") - share) / (1 - share), suite=pl.col("set").map_elements(_suite)
    )
    return table.join(_known(table), on="set", how="left").join(_facts(table), on="set", how="left")


def summary(table: pl.DataFrame) -> pl.DataFrame:
    """Judge the methods over the sets on which all of them ran; best mean rank first.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`described`.

    Returns
    -------
    polars.DataFrame
        ``method``, ``sets``, mean and median of AUROC, AP and normalised AP, ``rank`` by AUROC and ``rank_ap`` (ties
        share their mean), ``elo``, ``wins`` (share of sets on which the AUROC beats the isolation forest's, ties half)
        and ``seconds`` in all.
    """
    _, methods, values = compared(table)
    whole = ~np.isnan(values).any(axis=1)
    if not whole.any():
        methods, values, whole = [], np.empty((0, 0)), np.empty(0, bool)
    columns: dict[str, object] = {"method": methods, "sets": [int(whole.sum())] * len(methods)}
    if methods:
        for measure in ("auroc", "ap", "ap_normalized"):
            found = compared(table, measure)[2][whole]
            columns |= {f"{measure}_mean": found.mean(axis=0), f"{measure}_median": np.median(found, axis=0)}
        columns |= {
            "rank": mean_ranks(values[whole]),
            "rank_ap": mean_ranks(compared(table, "ap")[2][whole]),
            "elo": elo(values[whole]),
            "wins": win_rates(values[whole], methods.index(RIVAL)) if RIVAL in methods else [None] * len(methods),
            "seconds": compared(table, "seconds")[2][whole].sum(axis=0),
        }
    frame = pl.DataFrame(columns)
    return frame.sort("rank") if methods else frame


def strata(table: pl.DataFrame) -> pl.DataFrame:
    """Say how methods do on parts of the sets, over those on which all of them ran.

    Returns
    -------
    polars.DataFrame
        ``stratum``, ``level``, ``sets``, ``method``, mean ``auroc`` and mean ``rank``; sets of which the divider is not
        known are in no level of it.
    """
    sets, methods, values = compared(table)
    whole = ~np.isnan(values).any(axis=1)
    facts = pl.DataFrame({"set": sets}).join(table.unique("set", keep="first"), on="set", how="left")
    rows = []
    for stratum, level, there in _levels(facts):
        if (whole & there).any():
            chosen = values[whole & there]
            judged = zip(methods, chosen.mean(axis=0).tolist(), mean_ranks(chosen).tolist())
            rows += [(stratum, level, len(chosen), *one) for one in judged]
    schema = {"stratum": str, "level": str, "sets": int, "method": str, "auroc": float, "rank": float}
    return pl.DataFrame(rows, schema=schema, orient="row")


def beside(table: pl.DataFrame) -> pl.DataFrame:
    """Put the published means over all 790 OddBench sets beside ours over those that are here.

    Returns
    -------
    polars.DataFrame
        ``method``, ``sets`` and our ``auroc`` and ``ap``, then ``their_auroc``, ``their_ap``, ``their_elo``; empty
        where there is no reference, no set of OddBench or no method in both.
    """
    numbers = ("auroc", "ap", "their_auroc", "their_ap", "their_elo")
    nothing = pl.DataFrame(schema={"method": pl.String, "sets": pl.Int64, **dict.fromkeys(numbers, pl.Float64)})
    odd = table.filter(pl.col("suite") == "oddbench")
    try:
        reference = pl.read_csv(find(REFERENCE))
    except DataMissing:
        return nothing
    if not len(summary(odd)):
        return nothing
    ours = summary(odd).select("method", "sets", auroc="auroc_mean", ap="ap_mean")
    published = {variant: name for name, (variant, _) in AS_PYOD.items()}
    key = pl.col("method").replace(published).str.to_lowercase()
    theirs = reference.select(
        key=pl.col("method").str.to_lowercase(),
        their_auroc=pl.col("auroc_mean") / 100,
        their_ap=pl.col("ap_mean") / 100,
        their_elo="elo_auroc",
    )
    comparable = ours.filter(~pl.col("method").is_in(list(AS_PYOD))).with_columns(key=key)
    return comparable.join(theirs, on="key", how="inner", maintain_order="left").drop("key")


def as_words(table: pl.DataFrame) -> str:
    """Write the tables for the terminal."""
    parts = [
        "Means over the sets on which every method ran, in percent; ranks by AUROC and by AP; wins against the forest",
        as_text(*summary_rows(table)),
        tests(table),
        "Mean AUROC in percent by stratum, the best method last",
        as_text(*strata_rows(table)),
        *doubts(table),
    ]
    if len(beside(table)):
        parts += [
            "Published means over all 790 sets of OddBench, and ours over those here",
            as_text(*beside_rows(table)),
        ]
    parts += [f"failed: {line}" for line in failures(table)]
    return "\n\n".join(part for part in parts if part)


def summary_rows(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Arrange :func:`summary`."""
    head = ["method", "AUROC", "median", "AP", "median", "normalised AP", "median", "rank", "by AP", "Elo", "wins", "s"]
    names = ("auroc", "ap", "ap_normalized")
    rows = []
    for row in summary(table).iter_rows(named=True):
        means = [f"{100 * row[f'{name}_{of}']:.1f}" for name in names for of in ("mean", "median")]
        wins = "-" if row["wins"] is None or np.isnan(row["wins"]) else f"{100 * row['wins']:.0f} %"
        places = [f"{row['rank']:.2f}", f"{row['rank_ap']:.2f}", f"{row['elo']:.0f}", wins, f"{row['seconds']:.1f}"]
        rows.append([row["method"], *means, *places])
    return head, rows


def tests(table: pl.DataFrame) -> str:
    """Say in a sentence what Friedman's test and the pairs say."""
    _, methods, values = compared(table)
    n = int((~np.isnan(values)).all(axis=1).sum())
    if len(methods) < 3 or n == 0:
        return ""
    statistic, p = friedman(values)
    pairs = wilcoxon_holm(values, methods)
    apart = sum(pair.p_holm <= 0.05 for pair in pairs)
    return (
        f"Friedman over {n} sets: chi-squared {statistic:.1f}, p {p:.2g}. Wilcoxon with Holm's adjustment tells "
        f"{apart} of {len(pairs)} pairs apart at 5 %."
    )


def strata_rows(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Arrange the mean AUROC of :func:`strata`, and name the best method."""
    methods = compared(table)[1]
    rows = []
    for (stratum, level, sets), part in strata(table).group_by("stratum", "level", "sets", maintain_order=True):
        means = dict(part.select("method", "auroc").iter_rows())
        best = max(means, key=means.__getitem__)
        rows.append([f"{stratum}: {level}", str(sets), *(f"{100 * means[m]:.1f}" for m in methods), best])
    return ["stratum", "sets", *methods, "best"], rows


def beside_rows(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Arrange :func:`beside`, in percent."""
    rows = []
    for method, sets, auroc_, ap, their_auroc, their_ap, their_elo in beside(table).iter_rows():
        numbers = [f"{100 * value:.1f}" for value in (auroc_, their_auroc, ap, their_ap)]
        rows.append([method, str(sets), *numbers, f"{their_elo:.0f}"])
    head = ["method", "sets here", "AUROC here", "published", "AP here", "published", "published Elo"]
    return head, rows


def doubts(table: pl.DataFrame) -> list[str]:
    """Name the sets that say little about detectors, and say how far our forest is from the authors'."""
    sets, _, values = compared(table)
    worst = [
        short(sets[i])
        for i in np.flatnonzero(np.nanmax(np.nan_to_num(values, nan=-1), axis=1) < 0.5)
        if not np.isnan(values[i]).all()
    ]
    ran = table.unique("set", keep="first", maintain_order=True).drop_nulls("best_column")
    alone = [short(name) for name in ran.filter(pl.col("best_column") >= ALONE)["set"]]
    seen = [short(name) for name in ran.filter(pl.col("seen") > 0.5)["set"]]
    n = len(sets)
    said = [
        f"{len(worst)} of {n} sets ({len(worst) / n:.0%}) on which every method is below 0.5, as if the labels were "
        f"turned: {', '.join(worst) or 'none'}.",
        f"{len(alone)} sets where a single column, its better direction known, has an AUROC of {ALONE} or more: "
        f"{', '.join(alone) or 'none'}.",
        f"{len(seen)} sets where more than half of the anomalies equal a training row: {', '.join(seen) or 'none'}.",
    ]
    forest = table.filter(pl.col("method") == RIVAL).drop_nulls(["auroc", "iforest_auc"])
    if len(forest):
        here, there, ceiling = (forest[name].to_numpy() for name in ("auroc", "iforest_auc", "rf_auc"))
        said.append(
            f"Isolation forest on the {len(forest)} sets with the authors' number: mean AUROC {here.mean():.3f} here, "
            f"{there.mean():.3f} in the manifest (median absolute difference {np.median(np.abs(here - there)):.3f}). "
            f"The authors' supervised forest has {ceiling.mean():.3f}."
        )
    return said


def _suite(name: str) -> str:
    """Name the component of a set: a file's is its folder."""
    if name.endswith(".npz"):
        return Path(name).absolute().parent.name
    words = name.split("/")
    return words[1] if words[0] == "macrodata" else words[0]


def _known(table: pl.DataFrame) -> pl.DataFrame:
    """What the manifest says of the sets, if it is here, and what files say of themselves."""
    files = [name for name in table.drop_nulls("rows")["set"].unique(maintain_order=True) if name.endswith(".npz")]
    of_files = pl.DataFrame([{"set": name, **split_facts(name)} for name in files], schema={"set": pl.String, **KNOWN})
    try:
        listed = macrodata_manifest().select("set", *(pl.col(name).cast(kind) for name, kind in KNOWN.items()))
    except DataMissing:
        return of_files
    return pl.concat((listed, of_files))


def _facts(table: pl.DataFrame) -> pl.DataFrame:
    """What the rows themselves say of each set that could be loaded."""
    rows = []
    for name in table.drop_nulls("rows")["set"].unique(maintain_order=True):
        rows.append((name, *separable(load(name))))
    return pl.DataFrame(rows, schema={"set": pl.String, "best_column": float, "seen": float}, orient="row")


def separable(data: Dataset) -> tuple[float, float]:
    """Say how well the best single column tells the anomalies, in its better direction, and how many were seen.

    Parameters
    ----------
    data : Dataset
        With a split.

    Returns
    -------
    best : float
        The largest over columns of max(AUROC, 1 - AUROC), on the test rows; missing values count as the column's least.
    seen : float
        Share of the anomalies that equal a training row.

    Examples
    --------
    >>> X = np.array([[0.0, 1], [1, 0], [0, 5], [1, 0], [9, 1]])
    >>> separable(Dataset("toy", X, np.array([0, 0, 0, 1, 1]), ("a", "b"), "", "", n_train=2))
    (1.0, 0.5)
    """
    X, y, n = np.asarray(data.X, dtype=np.float64), data.y, data.n_train or 0
    test, label = np.nan_to_num(X[n:], nan=-np.inf), y[n:]
    found = [auroc(label, column) for column in test.T]
    rows = {row.tobytes() for row in np.ascontiguousarray(X[:n])}
    seen = [row.tobytes() in rows for row in np.ascontiguousarray(X[n:][label == 1])]
    return max(max(value, 1 - value) for value in found), float(np.mean(seen))


def _levels(facts: pl.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each level of each divider, and which sets are in it."""
    for stratum in ("suite", "domain"):
        for level in sorted(facts[stratum].drop_nulls().unique()):
            yield stratum, level, (facts[stratum] == level).fill_null(False).to_numpy()
    for stratum, (column, edges) in EDGES.items():
        values = facts[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
        number = [f"{edge:,.2g}" if edge < 1 else f"{edge:,}" for edge in edges]
        words = [f"under {number[0]}", *(f"{a} to {b}" for a, b in pairwise(number)), f"{number[-1]} or more"]
        for i, level in enumerate(words):
            yield stratum, level, (np.searchsorted(edges, values, side="right") == i) & ~np.isnan(values)
