"""What rounding costs, by linear map and by recipe, and the sentences that say so."""

from __future__ import annotations

from typing import Any

import polars as pl

from farout.inside._finding import Finding

PLAIN = "plain"
ENERGY = "of the output's energy"  # the unit where a model has no logits
BREAKS = 3.0  # nats, beyond which a prediction to first order says only that much
SCHEMES = {
    "w8a8": "8 bits, one scale for each activation tensor",
    "w4a16": "4-bit weights",
    "w4a4": "4 bits, one scale for each token",
}
_ROUNDING: dict[str, Any] = {
    **dict.fromkeys(("layer", "weight", "scheme", "recipe"), pl.String),
    **dict.fromkeys(("error", "loss"), pl.Float64),
}


def rounding_table(costs: list[Any]) -> pl.DataFrame:
    """Lay costs out in rows.

    A remedy that has no place in a scheme, so that it changes no map, has no row. Where it changes some maps, the
    others stay as they are: a sum over some of the maps would look like a gain.
    """
    helps = {
        (scheme, remedy)
        for cost in costs
        for remedy, left in cost.remedies.items()
        for scheme, error in left.items()
        if error != cost.errors[scheme]
    }
    rows = []
    for cost in costs:
        for scheme, error in cost.errors.items():
            rows.append((cost.layer, cost.weight, scheme, PLAIN, error, cost.loss.get(scheme)))
            for remedy, left in cost.remedies.items():
                if (scheme, remedy) in helps:
                    kept = cost.remedy_loss.get(remedy, {}).get(scheme)
                    rows.append((cost.layer, cost.weight, scheme, remedy, left[scheme], kept))
    return pl.DataFrame(rows, schema=_ROUNDING, orient="row").with_columns(pl.col("error", "loss").fill_nan(None))


def recipe_table(rounding: pl.DataFrame) -> pl.DataFrame:
    """Sum up each scheme and recipe: median, mean and worst error, the worst map, and the predicted loss."""
    worst = pl.col("error").fill_null(-1.0).arg_max()
    summed = rounding.group_by("scheme", "recipe", maintain_order=True).agg(
        pl.len().alias("maps"),
        pl.col("error").median().alias("median"),
        pl.col("error").mean().alias("mean"),
        pl.col("error").max().alias("worst"),
        pl.col("layer").get(worst).alias("worst_layer"),
        # of some of the maps only it would look like a gain
        pl.when(pl.col("loss").null_count() == 0).then(pl.col("loss").sum()).alias("loss"),
    )
    order = {scheme: place for place, scheme in enumerate(SCHEMES)}
    return summed.sort(pl.col("scheme").replace_strict(order, default=len(order)), maintain_order=True)


def best_recipe(recipes: pl.DataFrame, scheme: str) -> dict[str, Any] | None:
    """Return the recipe that leaves the smallest loss (or mean error) of a scheme; None where none beats plain."""
    these = recipes.filter(pl.col("scheme") == scheme)
    by = "loss" if these.height and these["loss"].null_count() == 0 else "mean"
    these = these.filter(pl.col(by).is_not_null()).sort(by, maintain_order=True)
    return None if not these.height or these["recipe"][0] == PLAIN else these.row(0, named=True)


def verdict(name: str, findings: list[Finding], recipes: pl.DataFrame, unit: str) -> list[str]:
    """Say what stands out, what rounding costs, and what to do first."""
    numbers = [finding for finding in findings if finding.kind != "rounding cost"]
    said = [_whole(numbers[0].says) if numbers else f"Nothing stands out among the numbers inside '{name}'."]
    for scheme in ("w8a8", "w4a4"):
        plain = recipes.filter((pl.col("scheme") == scheme) & (pl.col("recipe") == PLAIN))
        if plain.height:
            said.append(_cost_sentence(scheme, plain.row(0, named=True), best_recipe(recipes, scheme), unit))
    remedy = next((finding.remedy for finding in [*numbers, *findings] if finding.remedy), "")
    return [*said, *([_whole(remedy)] if remedy else [])]


def _cost_sentence(scheme: str, plain: dict[str, Any], best: dict[str, Any] | None, unit: str) -> str:
    """Say what plain rounding costs, and what the best remedy leaves of it."""
    what = f"Plain rounding to {SCHEMES[scheme]} ({scheme})"
    by = "loss" if plain["loss"] is not None else "mean"
    if plain[by] is None:
        return f"{what} has no cost that can be told."
    saved = best is not None and best[by] <= BREAKS
    if by == "mean":
        said = f"changes the output of a linear map by {_amount(plain[by], ENERGY)} of its energy on average"
    elif plain[by] > BREAKS:
        said = "is predicted to break the model"
    elif unit == ENERGY:
        said = f"is predicted to change the model's output by {_amount(plain[by], unit)} of its energy"
    else:
        said = f"is predicted to cost {_amount(plain[by], unit)}"
    left = f"; with {best['recipe']} {_amount(best[by], ENERGY if by == 'mean' else unit)}" if best and saved else ""
    return f"{what} {said}{left}."


def _amount(value: float, unit: str) -> str:
    return f"{100 * value:.2g} %" if unit == ENERGY else f"{value:.2g} {unit}"


def _whole(sentence: str) -> str:
    """End a sentence with one full stop."""
    return sentence.rstrip(".") + "."
