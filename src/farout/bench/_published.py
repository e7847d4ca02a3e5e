"""Numbers of others on the sets of ADBench, to stand beside ours."""

from __future__ import annotations

from typing import Any

import polars as pl

from farout.data import DataMissing, find

PUBLISHED = "reference/adbench57_dte.csv"
MEASURED = "reference/adbench_pyod_measured.csv"
SOURCES = {
    PUBLISHED: "published (Livernoche et al., ICLR 2024; means over 5 seeds)",
    MEASURED: "PyOD 3.6.7, defaults, measured on the same files",
}
# What others measured under these names is what PyOD computes, by the parameters here; nobody has numbers of the rule
# in the paper.
AS_PYOD: dict[str, tuple[str, dict[str, Any]]] = {
    "ECOD": ("ECOD per dimension", {"rule": "per_dimension"}),
    "HBOS": ("HBOS smoothed", {"smoothing": 0.1}),
}
# Where a column was constant, these scored NaN, which the source took for 0 and printed as exactly 50.0, std 0.
FAILED = ("ECOD", "COPOD", "DROCC")


def numbers_of_others(source: str) -> pl.DataFrame | None:
    """Read one of the two reference tables.

    Parameters
    ----------
    source : str
        ``PUBLISHED`` or ``MEASURED``, found through :func:`farout.data.find`.

    Returns
    -------
    polars.DataFrame or None
        ``set``, ``protocol``, ``key`` (the method in small letters), ``auroc`` and ``ap`` between 0 and 1; None where
        the file is absent.
    """
    try:
        table = pl.read_csv(find(source))
    except DataMissing:
        return None
    table = table.filter(pl.col("adbench_file").fill_null("") != "").with_columns(
        set=pl.format("adbench/{}", pl.col("adbench_file").str.replace(r"^\d+_", "")),
        key=pl.col("method").str.to_lowercase(),
    )
    if source == MEASURED:
        return table.select("set", pl.lit("unsupervised").alias("protocol"), "key", "auroc", "ap")
    return without_failures(table).select("set", "protocol", "key", pl.col("auroc") / 100, pl.col("ap") / 100)


def without_failures(table: pl.DataFrame) -> pl.DataFrame:
    """Bring the published table to a row a cell, and drop the cells that were failures and no results."""
    cells = table.rename({"setting": "protocol"}).pivot(
        on="metric", index=["set", "protocol", "method", "key"], values=["mean", "std"]
    )
    failed = pl.col("method").is_in(FAILED) & (pl.col("mean_AUROC") == 50.0) & (pl.col("std_AUROC") == 0.0)
    return cells.filter(~failed).rename({"mean_AUROC": "auroc", "mean_AP": "ap"})


def beside(table: pl.DataFrame, others: pl.DataFrame | None) -> pl.DataFrame:
    """Put the numbers of others beside ours, the mean over our seeds.

    Parameters
    ----------
    table : polars.DataFrame
        From :func:`farout.bench.suites.run`.
    others : polars.DataFrame or None
        From :func:`numbers_of_others`.

    Returns
    -------
    polars.DataFrame
        ``protocol``, ``set``, ``method``, ``auroc``, ``ap``, ``whole`` (no row was left out of the set or of the fit),
        ``their_auroc``, ``their_ap`` (null where there is none).
    """
    one_class = pl.col("protocol") == "one-class"
    used = pl.when(one_class).then(pl.col("rows") + pl.col("fitted")).otherwise("fitted")
    ours = (
        table.filter(pl.col("error").is_null())
        .with_columns(whole=used == pl.col("rows_in_set"))
        .group_by("protocol", "set", "method", maintain_order=True)
        .agg(pl.col("auroc").mean(), pl.col("ap").mean(), pl.col("whole").all())
    )
    if others is None:
        return ours.with_columns(their_auroc=pl.lit(None, pl.Float64), their_ap=pl.lit(None, pl.Float64))
    their_name = {variant: name for name, (variant, _) in AS_PYOD.items()}
    comparable = ~pl.col("method").is_in(list(AS_PYOD))
    key = pl.when(comparable).then(pl.col("method").replace(their_name).str.to_lowercase())
    theirs = others.rename({"auroc": "their_auroc", "ap": "their_ap"})
    joined = ours.with_columns(key=key).with_row_index().join(theirs, on=["protocol", "set", "key"], how="left")
    return joined.sort("index").drop("index", "key")
