"""What is different between two recorded models: their sites, and what is found in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from farout.inside._finding import Finding
from farout.inside._recording import Recording

SAME = 0.01  # octaves, below which a number of a site counts as unchanged: 0.7 %
ALIKE = 0.14  # octaves, below which the size of a finding does: 10 %
_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("site", "kind"), pl.String),
    **dict.fromkeys(("peak", "other_peak", "peak_ratio"), pl.Float64),
    **dict.fromkeys(("kurtosis", "other_kurtosis", "kurtosis_ratio", "change"), pl.Float64),
}


@dataclass(frozen=True)
class Change:
    """A finding of two models.

    Attributes
    ----------
    what : {"new", "gone", "grown", "shrunk", "same"}
        Seen from the first model to the other.
    kind, where, says : str
        Of the finding, in the other model where it is there.
    size, other_size : float or None
        None in the model that has no such finding.
    """

    what: str
    kind: str
    where: str
    says: str
    size: float | None
    other_size: float | None


def site_changes(one: Recording, other: Recording) -> pl.DataFrame:
    """Compare the sites that both recordings have: ratios are of the other over the one.

    ``change`` is the larger of the two in octaves, up or down.
    """
    mine, theirs = (found.table().select("site", "kind", "peak", "kurtosis") for found in (one, other))
    both = mine.join(theirs, on=("site", "kind"), how="inner", suffix="_other", maintain_order="left")
    rows = []
    for row in both.iter_rows(named=True):
        ratios = [_ratio(row[f"{name}_other"], row[name]) for name in ("peak", "kurtosis")]
        change = max(_octaves(ratio) for ratio in ratios)
        peaks, tails = ((row[name], row[f"{name}_other"]) for name in ("peak", "kurtosis"))
        rows.append((row["site"], row["kind"], *peaks, ratios[0], *tails, ratios[1], change))
    return pl.DataFrame(rows, schema=_COLUMNS, orient="row").sort("change", descending=True, maintain_order=True)


def finding_changes(one: list[Finding], other: list[Finding]) -> list[Change]:
    """Pair findings of a kind: first those at the same place, then the others in their order.

    Those within their bounds are no findings here, so that one which shrinks below its bound is gone.
    """
    one, other = ([finding for finding in found if finding.size >= 1] for found in (one, other))
    pairs: list[tuple[Finding, Finding]] = []
    for same_place in (True, False):
        for mine in [mine for mine in one if not any(mine is pair[0] for pair in pairs)]:
            free = [theirs for theirs in other if not any(theirs is pair[1] for pair in pairs)]
            pairs += [(mine, theirs) for theirs in free if _alike(mine, theirs, same_place)][:1]
    new = [f for f in other if not any(f is theirs for _, theirs in pairs)]
    gone = [f for f in one if not any(f is mine for mine, _ in pairs)]
    changes = [Change("new", f.kind, f.where, f.says, None, f.size) for f in new]
    changes += [Change("gone", f.kind, f.where, f.says, f.size, None) for f in gone]
    for mine, theirs in pairs:
        ratio = _ratio(theirs.size, mine.size)
        what = "same" if _octaves(ratio) <= ALIKE else "grown" if ratio > 1 else "shrunk"
        changes.append(Change(what, theirs.kind, theirs.where, theirs.says, mine.size, theirs.size))
    return changes


def _alike(mine: Finding, theirs: Finding, same_place: bool) -> bool:
    """Whether two findings say the same thing of two models."""
    same = mine.kind == theirs.kind and mine.evidence.get("scheme") == theirs.evidence.get("scheme")
    return same and (mine.where == theirs.where or not same_place)


def sentence(one: Any, other: Any) -> str:
    """Say what changed from one inspection to the other."""
    sites, findings = one.changes(), one.finding_changes()
    names = {*one.frame()["site"]}, {*other.frame()["site"]}
    if not sites.height:
        return (
            f"'{one.name}' and '{other.name}' have no site of the same name ('{_first(names[0])}' and "
            f"'{_first(names[1])}', for example): their architectures differ, and only layers are compared, by their "
            "place."
        )
    moved = sites.filter(pl.col("change") > SAME)
    counts = {what: sum(change.what == what for change in findings) for what in ("new", "gone", "grown", "shrunk")}
    lone = len(names[0] ^ names[1])
    alone = f" {lone:,} sites are in one of the models only." if lone else ""
    if not moved.height and not any(counts.values()):
        return f"Nothing changed from '{one.name}' to '{other.name}': {sites.height:,} sites are the same.{alone}"
    words = [f"{count} {what}" for what, count in counts.items() if count]
    first = f"{', '.join(words) if words else 'the same'}" if findings else "none in either"
    said = f"From '{one.name}' to '{other.name}', findings: {first}."
    if moved.height:
        top = moved.row(0, named=True)
        peak, kurtosis = top["peak_ratio"], top["kurtosis_ratio"]
        by_peak = _octaves(peak) >= _octaves(kurtosis)
        what = f"largest value {_times(peak)}" if by_peak else f"kurtosis {_times(kurtosis)}"
        said += f" {moved.height:,} of {sites.height:,} sites changed, '{top['site']}' most: {what}."
    return said + alone


def _first(names: set[str]) -> str:
    return min(names, default="none")


def _times(ratio: float) -> str:
    """Say a ratio in words."""
    if not ratio:
        return "gone"
    times = max(ratio, 1 / ratio)
    said = f"{times:,.0f}" if times >= 1000 else f"{times:.3g}"
    return f"{said} times as {'large' if ratio >= 1 else 'small'}"


def _ratio(above: float, below: float) -> float:
    """Divide; equal numbers, also two that are none, give 1."""
    if above == below or ((above is None or np.isnan(above)) and (below is None or np.isnan(below))):
        return 1.0
    return float(above / below) if below else float("inf")


def _octaves(ratio: float) -> float:
    """Return how far a ratio is from 1; a number beside none is as far as can be."""
    with np.errstate(divide="ignore"):
        far = abs(float(np.log2(ratio)))
    return float("inf") if np.isnan(far) else far
