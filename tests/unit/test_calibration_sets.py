"""The study of calibration sets: the effect of sets is told from that of draws."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from farout.bench.calibration_sets import calibration_sets, decomposed, spread


def test_planted_variances_are_found():
    rng = np.random.default_rng(0)
    losses = rng.normal(0, 2.0, (4000, 1)) + rng.normal(0, 0.5, (4000, 3))
    found = decomposed(losses)
    assert found["within"] == pytest.approx(0.25, rel=0.05)
    assert found["between"] - found["within"] / 3 == pytest.approx(4.0, rel=0.08)
    assert decomposed(rng.normal(0, 1, (4000, 3)))["F"] == pytest.approx(1.0, abs=0.08)


def test_nothing_that_differs_has_no_effect():
    assert decomposed(np.ones((3, 2))) == {"between": 0.0, "within": 0.0, "F": 0.0, "range": 0.0}
    assert decomposed(np.array([[1.0, 1.0], [2.0, 2.0]]))["F"] == np.inf


def test_a_row_for_each_model_and_arm():
    rows = [
        {"model": "m", "arm": "a", "set": c, "seed": s, "loss": loss}
        for (c, s), loss in {("x", 0): 1.0, ("x", 1): 3.0, ("y", 0): 5.0, ("y", 1): 7.0}.items()
    ]
    (found,) = spread(pl.DataFrame(rows)).to_dicts()
    assert found == {
        "model": "m",
        "arm": "a",
        "loss": 4.0,
        "worst": "y",
        "between": 8.0,
        "within": 2.0,
        "F": 8.0,
        "range": 4.0,
    }


def test_a_recipe_without_data_is_the_same_with_every_set_and_static_ranges_are_not():
    from farout.claims._small_models import small_language_model

    arms = {"static": ("rtn", "w8a8-tensor"), "dynamic": ("rtn", "w8a8")}
    models = {"opt": small_language_model("opt", "small")}
    table = calibration_sets(
        models, ["built-in", "ascii"], arms, test="built-in", samples=4, length=64, windows=4, seeds=[0, 1]
    )
    found = {row["arm"]: row for row in spread(table).to_dicts()}
    assert found["dynamic"]["between"] == 0 and found["dynamic"]["within"] == 0
    assert found["static"]["between"] > 0 and found["static"]["within"] > 0
    again = calibration_sets(models, ["ascii"], arms, test="built-in", samples=4, length=64, windows=4, seeds=[1])
    kept = table.filter((pl.col("set") == "ascii") & (pl.col("seed") == 1))
    assert again["loss"].to_list() == kept["loss"].to_list()
