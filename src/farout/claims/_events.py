"""What the claims of event detectors share: swapped copies of authentication events, and labelled tables of categories.

The default method of events was chosen on the first six tables of ``CHOSEN_ON`` and on swapped events of the second
day; the claims measure on the other tables and on the third day.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from farout.claims._tables import SEEDS
from farout.data import Dataset, find

CHOSEN_ON = ("aid362", "bank", "chess", "covertype", "r10", "u2r")
CATEGORICAL = ("apascal", "census", "cmc", "probe", "solar_flare", "w7a")
TYPES = ("src_user", "dst_user", "src_pc", "dst_pc", "auth_type", "logon_type", "orientation", "outcome")
TASKS = [(drawn, swapped) for drawn in ("uniform", "unigram") for swapped in (1, 2)]
SHARE = 10  # a copy for every so many true events


def categorical(names: tuple[str, ...] = CATEGORICAL) -> list[Dataset]:
    """Read labelled tables of categories, each a table of events whose anomalies are those of a rare kind."""
    sets = []
    for name in names:
        table = pl.read_parquet(find(f"events/categorical/{name}.parquet"))
        X = table.drop("anomaly").select(pl.all().cast(pl.String))
        y = table["anomaly"].to_numpy().astype(np.int8)
        source = "Pang, Cao, Chen, Outlier detection in complex categorical data, IJCAI 2016 (ADRepository)"
        sets.append(Dataset(name, X, y, tuple(X.columns), source, "that of the source; collection GPL-3.0"))
    return sets


def authentication() -> tuple[pl.DataFrame, pl.DataFrame, set[tuple[Any, ...]]]:
    """Read the authentication events: days 0 and 1, those of day 2 whose entities all occur before, and all rows."""
    table = pl.read_parquet(find("events/lanl/auth_sample.parquet"))
    events = table.select("day", *(pl.col(name).cast(pl.String) for name in TYPES))
    known = events.filter(pl.col("day") < 2).drop("day")
    new = events.filter(day=2).drop("day")
    new = new.filter(pl.all_horizontal(pl.col(name).is_in(known[name].unique().to_list()) for name in TYPES))
    return known, new, set(events.drop("day").rows())


def with_swaps(
    known: pl.DataFrame, new: pl.DataFrame, seen: set[tuple[Any, ...]], drawn: str, swapped: int, seed: int
) -> tuple[pl.DataFrame, np.ndarray]:
    """Add to true events copies in which entities are replaced by others of their type, so that none was ever seen.

    Parameters
    ----------
    known : polars.DataFrame
        Where entities are drawn from.
    new : polars.DataFrame
        The true events.
    seen : set of tuple
        Events that no copy may equal.
    drawn : {"uniform", "unigram"}
        Whether every entity of a type is as likely, or as likely as it is frequent.
    swapped : int
        Types that are replaced in each copy.
    seed : int

    Returns
    -------
    polars.DataFrame
    int8 array
        1 for the copies.
    """
    rng = np.random.default_rng(seed)
    columns = [known[name].unique().sort() if drawn == "uniform" else known[name] for name in known.columns]
    pools = [column.to_list() for column in columns]
    rows = new.rows()
    copies: list[tuple[Any, ...]] = []
    for place in rng.choice(len(rows), len(rows) // SHARE, replace=False):
        copy = rows[place]
        while copy in seen:
            copy = rows[place]
            for t in rng.choice(len(pools), swapped, replace=False):
                other = copy[t]
                while other == copy[t]:
                    other = pools[t][rng.integers(len(pools[t]))]
                copy = (*copy[:t], other, *copy[t + 1 :])
        copies.append(copy)
    table = pl.concat([new, pl.DataFrame(copies, schema=new.schema, orient="row")])
    return table, np.repeat(np.array([0, 1], np.int8), (len(rows), len(copies)))


def swap_tables(small: bool, seeds: tuple[int, ...] = SEEDS) -> tuple[pl.DataFrame, dict[tuple[str, int, int], Any]]:
    """Return the events to learn from, and tables with labels by task and seed; the small budget takes fewer events."""
    known, new, seen = authentication()
    if small:
        new = new.sample(1_000, seed=0)
    return known, {
        (drawn, swapped, seed): with_swaps(known, new, seen, drawn, swapped, seed)
        for drawn, swapped in TASKS
        for seed in seeds
    }
