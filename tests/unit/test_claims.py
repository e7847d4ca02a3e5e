from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest

from farout import claims
from farout.bench import suites
from farout.cards import list_cards
from farout.claims import Claim
from farout.claims._tables import exponent, sweep, times
from farout.data import DataMissing, Dataset, load
from farout.errors import BadInput, UnknownName
from farout.table import ECOD, HBOS, IForest

TOY = Claim(
    paper="ECOD",
    published="the best of all",
    measure="mean AUROC over two sets",
    ours=0.6,
    baseline=("COPOD", 0.8),
    peer=("IForest", 0.75),
    threshold="ours is the best",
    holds=False,
    note="It is not: <b>tails</b> miss what is odd jointly.",
    numbers={
        "AUROC by set": [{"set": "glass", "ECOD": 0.61234, "rank": None}, {"set": "wine", "ECOD": 0.5, "rank": 3}]
    },
    seeds=(0, 1, 2),
    budget="full",
    seconds=1.25,
)
ROOMS = [*list_cards("table"), *list_cards("events")]
TABLE = [card.slug for card in ROOMS if find_spec(f"farout.claims.{card.slug}")]


def test_a_claim_survives_writing_and_reading(tmp_path):
    path = claims.save(TOY, tmp_path / "results")
    assert path == tmp_path / "results" / "ecod.json"
    assert claims.read(path) == TOY
    written = json.loads(path.read_text())
    assert written["ratio"] == pytest.approx(0.75)
    assert set(written["machine"]) == {"cpu", "cores"}
    assert written["versions"]["farout"] and written["versions"]["python"] and written["date"][:2] == "20"
    assert sorted(file.name for file in path.parent.iterdir()) == ["ecod.html", "ecod.json"]


def test_what_does_not_hold_is_said_plainly(tmp_path):
    assert "ECOD: DOES NOT HOLD" in claims.as_text(TOY)
    assert "ECOD: HOLDS" in claims.as_text(replace(TOY, holds=True))
    assert TOY.note in claims.as_text(TOY) and TOY.threshold in claims.as_text(TOY)
    page = claims.save(TOY, tmp_path).with_suffix(".html").read_text()
    assert "The claim <strong>does not hold</strong>" in page
    assert "&lt;b&gt;tails" in page and "<b>tails" not in page
    assert "0.6123" in page and len(page) < 50_000


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = claims.save(TOY, tmp_path)
    with pytest.raises(TypeError):
        claims.save(replace(TOY, numbers={"bad": [{"x": object()}]}), tmp_path)
    assert claims.read(path) == TOY


def test_what_is_no_claim_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"paper": "ECOD"}')
    for name in ("x.json", "absent.json"):
        with pytest.raises(BadInput, match="holds no claim"):
            claims.read(tmp_path / name)


def test_run_calls_the_file_of_the_paper(monkeypatch):
    asked, told = [], []

    def claim(budget, progress):
        asked.append(budget)
        progress("half", 0.5)
        return TOY

    module = ModuleType("farout.claims.ecod")
    vars(module)["claim"] = claim
    monkeypatch.setitem(sys.modules, "farout.claims.ecod", module)
    monkeypatch.setattr("farout.claims._claim.find_spec", lambda name: name)
    done = claims.run("ECOD", "full", lambda what, share: told.append((what, share)))
    assert asked == ["full"] and told == [("half", 0.5)]
    assert 0 <= done.seconds < 1 and replace(done, seconds=TOY.seconds) == TOY


@pytest.mark.skipif("FAROUT_DATA" not in os.environ, reason="claims read sets of ADBench; set FAROUT_DATA")
def test_several_claims_run_in_processes_and_come_in_order(monkeypatch, tmp_path, capsys):
    from farout.cards import find
    from farout.cli.claim import claim

    monkeypatch.setattr("farout.cards.list_cards", lambda: [find("hbos"), find("pca")])
    claim("all", "small", jobs=2, output=tmp_path, quiet=True)
    told = capsys.readouterr().out
    assert told.index("HBOS:") < told.index("PCA:")
    alone, there = claims.run("hbos", "small"), claims.read(tmp_path / "hbos.json")
    assert (there.ours, there.baseline, there.peer) == (alone.ours, alone.baseline, alone.peer)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownName, match="'ecod'"):
        claims.run("ecodd")
    with pytest.raises(UnknownName, match="budget"):
        claims.run("ecod", "medium")


def made(name, n=60, width=2):
    rng = np.random.default_rng(len(name))
    y = (np.arange(n) < 10).astype(np.int8)
    columns = tuple(f"x{j}" for j in range(width))
    return Dataset(name, rng.normal(size=(n, width)) + y[:, None], y, columns, "made", "none")


def test_a_sweep_is_the_mean_over_sets_and_seeds():
    sets = [made("a"), made("bb")]
    methods = {"ECOD": ECOD(), "IForest": IForest(n_estimators=5)}
    found = sweep(sets, methods, "small", lambda what, done: None)
    table = suites.run(sets, methods)
    forest = table.filter(method="IForest")["auroc"]
    assert found.mean("IForest") == pytest.approx(forest.mean())
    assert found.per_set()[1] == {
        "set": "bb",
        "ECOD": pytest.approx(table.filter(method="ECOD", set="bb")["auroc"].item()),
        "IForest": pytest.approx(table.filter(method="IForest", set="bb")["auroc"].mean()),
    }
    assert sum(found.ranks(["ECOD", "IForest"]).values()) == 3
    assert found.total("ECOD") == pytest.approx(found.seconds[:, 0].sum())


def test_a_sweep_says_what_it_cut_and_what_it_left_out(monkeypatch):
    limits = suites.Limits(rows=80, columns={"HBOS": 2})
    monkeypatch.setattr("farout.claims._tables.suites.Limits", lambda rows: limits)
    sets = [made("a", n=60), made("bb", n=100), made("wide", width=3)]
    found = sweep(sets, {"ECOD": ECOD(), "HBOS": HBOS()}, "small", lambda what, done: None, rows=80)
    assert found.sets == ["a", "bb"]
    assert found.tables()["Sets that were cut"] == [
        {"set": "bb", "methods": "ECOD, HBOS", "learned from": 80, "rows in the set": 100}
    ]
    (left_out,) = found.tables()["Sets that were left out"]
    assert (left_out["set"], left_out["method"]) == ("wide", "HBOS")


def test_a_sweep_with_a_failure_is_no_result():
    with pytest.raises(BadInput, match="'ECOD' failed on 'adbench/nowhere'"):
        sweep([made("a"), "adbench/nowhere"], {"ECOD": ECOD()}, "small", lambda what, done: None)


def test_growth_is_the_exponent():
    assert exponent([100, 200, 400], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([100, 200, 400], [1.0, 8.0, 64.0]) == pytest.approx(3)


def test_times_keep_the_best_of_all_turns(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 22, 30, 34])  # two runs take turns: 5 and 1, then 2 and 4 seconds
    monkeypatch.setattr("farout.claims._tables.time.perf_counter", lambda: next(clock))
    assert times({0: lambda: None, 1: lambda: None}, repeats=2) == [2, 1]


def _has_data():
    try:
        load("adbench/glass"), load("nsl_kdd/train")
    except DataMissing:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not _has_data(), reason="the sets of ADBench and NSL-KDD are not here")
@pytest.mark.parametrize("slug", TABLE)
def test_the_small_budget_runs(slug):
    claim = claims.run(slug, "small")
    module = sys.modules[f"farout.claims.{slug}"]
    assert claim.threshold == module.THRESHOLD
    assert claim.paper in {card.name for card in ROOMS}
    assert claim.numbers and 0 <= claim.ours <= 1
    assert ("does not hold" in claim.note) != claim.holds
