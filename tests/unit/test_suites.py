from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from farout.bench import adbench, suites
from farout.bench._published import MEASURED, PUBLISHED, beside, numbers_of_others
from farout.bench.suites import Limits, matrix, one_class_split, run
from farout.contract import Detector
from farout.data import DataMissing, Dataset, adbench_names, load
from farout.errors import BadInput, UnknownName
from farout.table import ECOD, IForest


class Farthest(Detector):
    """Scores by the distance to the mean of the rows it learned from; counts its calls, may fail, may draw."""

    calls, stop_at = 0, 0

    def __init__(self, fails_on=None, random_state=None):
        self.fails_on = fails_on
        self.random_state = random_state

    def fit_score(self, X, y=None):
        Farthest.calls += 1
        if self.fails_on is not None and len(X) == self.fails_on:
            raise ValueError(f"cannot learn from {len(X)} rows")
        if Farthest.calls == Farthest.stop_at:
            raise KeyboardInterrupt
        self.seen_, self.mean_ = X.copy(), X.mean(axis=0)
        return self.outlier_score(X)

    def outlier_score(self, X):
        return np.linalg.norm(X - self.mean_, axis=1)


class Fixed(Detector):
    """Scores by the first column, whatever it learned; keeps what it was given."""

    learned: ClassVar[list] = []
    scored: ClassVar[list] = []

    def fit_score(self, X, y=None):
        Fixed.learned.append(X)
        return X[:, 0]

    def outlier_score(self, X):
        Fixed.scored.append(X)
        return X[:, 0]


@pytest.fixture(autouse=True)
def fresh():
    Farthest.calls, Farthest.stop_at = 0, 0
    Fixed.learned, Fixed.scored = [], []


def made(name, n=60, anomalies=6, seed=0):
    """A set whose rows carry their number in column 1."""
    rng = np.random.default_rng(seed)
    y = np.zeros(n, np.int8)
    y[rng.permutation(n)[:anomalies]] = 1
    X = np.column_stack((rng.normal(size=n) + 1.5 * y, np.arange(n)))
    return Dataset(name, X, y, ("a", "number"), "made", "none")


def test_numbers_are_those_of_scikit_learn():
    data = made("one")
    row = run([data], {"fixed": Fixed()}).row(0, named=True)
    assert row["auroc"] == pytest.approx(roc_auc_score(data.y, data.X[:, 0]))
    assert row["ap"] == pytest.approx(average_precision_score(data.y, data.X[:, 0]))
    assert (row["rows"], row["fitted"], row["rows_in_set"], row["anomalies"], row["features"]) == (60, 60, 60, 6, 2)


@pytest.fixture
def as_they_are(monkeypatch):
    """Rows reach the method as they are, so that it can read their numbers in them."""
    monkeypatch.setattr("farout.bench._cells._standardized", lambda train, test: (train, test))


def test_columns_are_standardized_by_the_training_rows():
    data = made("one", n=101, anomalies=10)
    run([data], {"fixed": Fixed()}, "one-class", seeds=(3,))
    train, test = one_class_split(data.y, 3)
    mean, std = data.X[train].mean(axis=0), data.X[train].std(axis=0)
    np.testing.assert_allclose(Fixed.learned[0], (data.X[train] - mean) / std)
    np.testing.assert_allclose(Fixed.scored[0], (data.X[test] - mean) / std)


def test_one_class_trains_on_half_of_the_normal_rows_alone(as_they_are):
    data = made("one", n=101, anomalies=10)
    row = run([data], {"fixed": Fixed()}, "one-class", seeds=(3,)).row(0, named=True)
    learned, scored = (part[0][:, 1].astype(int) for part in (Fixed.learned, Fixed.scored))
    assert len(learned) == 45 and not data.y[learned].any()
    assert sorted([*learned, *scored]) == list(range(101))
    assert row["auroc"] == pytest.approx(roc_auc_score(data.y[scored], data.X[scored, 0]))
    assert (row["rows"], row["fitted"], row["anomalies"]) == (56, 45, 10)


def test_one_class_split_is_drawn_by_the_seed():
    y = made("one").y
    assert np.array_equal(one_class_split(y, 1)[0], one_class_split(y, 1)[0])
    assert not np.array_equal(one_class_split(y, 1)[0], one_class_split(y, 2)[0])


def test_seeds_are_run_where_something_is_drawn():
    methods = {"drawn": IForest(n_estimators=5), "fixed": ECOD()}
    table = run([made("one")], methods)
    assert table.select("method", "seed").rows() == [("drawn", 0), ("drawn", 1), ("drawn", 2), ("fixed", 0)]
    assert table["auroc"][0] != table["auroc"][1]
    assert len(run([made("one")], methods, "one-class")) == 6
    again = run([made("one")], methods)
    assert table["auroc"].to_list() == again["auroc"].to_list()


def test_the_seed_reaches_the_method():
    data = made("one")
    direct = IForest(n_estimators=5, random_state=2).fit_score(data.X)
    table = run([data], {"forest": IForest(n_estimators=5)})
    assert table["auroc"][2] == pytest.approx(roc_auc_score(data.y, direct))


def test_a_failing_cell_is_named_and_the_rest_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("FAROUT_DATA", str(tmp_path))
    monkeypatch.setattr("farout.bench._cells.load", _nothing_there)
    bad = Dataset("one class only", np.ones((5, 2)), np.zeros(5, np.int8), ("a", "b"), "made", "none")
    methods = {"m": Farthest(fails_on=40), "fixed": Fixed()}
    table = run([made("small", n=40), "adbench/glass", bad, made("large")], methods, seeds=(0,))
    by_cell = {(name, method): error for name, method, error in table.select("set", "method", "error").iter_rows()}
    assert by_cell["small", "m"] == "ValueError: cannot learn from 40 rows"
    assert "no file" in by_cell["adbench/glass", "fixed"]
    assert "'one class only'" in by_cell["one class only", "fixed"]
    assert by_cell["small", "fixed"] is by_cell["large", "m"] is by_cell["large", "fixed"] is None
    assert table["auroc"].is_null().to_list() == table["error"].is_not_null().to_list()
    assert np.isnan(matrix(table)[2]).tolist() == [[True, False], [True, True], [True, True], [False, False]]


def _nothing_there(name):
    raise DataMissing(f"no file of '{name}'")


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    sets = [made(f"set {i}", seed=i) for i in range(4)]
    Farthest.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run(sets, {"m": Farthest()}, seeds=(0,), out=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    Farthest.calls, Farthest.stop_at = 0, 0
    table = run(sets, {"m": Farthest()}, seeds=(0,), out=tmp_path)
    assert Farthest.calls == 2
    whole = run(sets, {"m": Farthest()}, seeds=(0,))
    assert table.drop("seconds").equals(whole.drop("seconds"))


def test_kept_cells_are_told_apart(tmp_path):
    data = made("one")
    run([data], {"m": Farthest()}, seeds=(0,), out=tmp_path)
    for other in (
        lambda: run([data], {"m": Farthest(fails_on=1)}, seeds=(0,), out=tmp_path),
        lambda: run([made("one", seed=1)], {"m": Farthest()}, seeds=(0,), out=tmp_path),
        lambda: run([data], {"m": Farthest()}, seeds=(1,), out=tmp_path),
        lambda: run([data], {"m": Farthest()}, "one-class", seeds=(0,), out=tmp_path),
        lambda: run([data], {"m": Farthest()}, seeds=(0,), out=tmp_path, limits=Limits(rows=50)),
    ):
        before = Farthest.calls
        other()
        assert Farthest.calls == before + 1


def test_failed_cells_are_tried_again(tmp_path):
    data = made("one")
    assert run([data], {"m": Farthest(fails_on=60)}, seeds=(0,), out=tmp_path)["error"][0]
    before = Farthest.calls
    run([data], {"m": Farthest(fails_on=60)}, seeds=(0,), out=tmp_path)
    assert Farthest.calls == before + 1


def test_cuts_stand_in_the_table(as_they_are):
    data = made("one", n=200, anomalies=40)
    limits = Limits(rows=100, fit_rows={"Fixed": 30})
    table = run([data], {"fixed": Fixed(), "m": Farthest()}, seeds=(0,), limits=limits)
    assert table.select("rows", "fitted", "rows_in_set").rows() == [(100, 30, 200), (100, 100, 200)]
    seen = np.concatenate((Fixed.learned[0], Fixed.scored[0]))[:, 1].astype(int)
    assert len(set(seen)) == 100
    assert table["auroc"][0] == pytest.approx(roc_auc_score(data.y[seen], data.X[seen, 0]))


def test_too_many_columns_are_named_and_not_run():
    limits = Limits(columns={"Fixed": 1})
    table = run([made("one")], {"fixed": Fixed(), "m": Farthest()}, seeds=(0,), limits=limits)
    assert table["error"].to_list() == [f"{suites.OVER}: 2 columns, and 'Fixed' is given at most 1", None]
    assert not Fixed.learned


def test_processes_give_the_same_table_and_tell_of_every_cell():
    told = []
    sets = [made("one"), "breast_cancer"]
    one = run(sets, ["ecod", "copod"])
    two = run(sets, ["ecod", "copod"], n_jobs=2, progress=lambda what, done: told.append((what, done)))
    assert one.drop("seconds").equals(two.drop("seconds"))
    assert [done for _, done in told] == [0.25, 0.5, 0.75, 1.0]
    assert {what for what, _ in told} == {f"{m} on {s}" for m in ("ECOD", "COPOD") for s in ("one", "breast_cancer")}


def test_unknown_names_are_refused_before_anything_runs():
    with pytest.raises(UnknownName, match="protocol"):
        run(["breast_cancer"], ["ecod"], "transductive")
    with pytest.raises(UnknownName, match="method"):
        run(["breast_cancer"], ["ecodd"])
    for wrong in ({"sets": ["nowhere"]}, {"methods": ["nothing"]}, {"protocol": "x"}, {"budget": "x"}):
        with pytest.raises(UnknownName):
            adbench.main(**wrong)


REFERENCE = """setting,metric,dataset,adbench_file,method,mean,std
unsupervised,AUROC,glass,14_glass,ECOD,70.0,0.0
unsupervised,AP,glass,14_glass,ECOD,20.0,0.0
unsupervised,AUROC,wine,45_wine,ECOD,50.0,0.0
unsupervised,AP,wine,45_wine,ECOD,7.0,0.0
unsupervised,AUROC,wine,45_wine,kNN,50.0,0.0
unsupervised,AP,wine,45_wine,kNN,8.0,0.0
unsupervised,AUROC,cifar,,ECOD,60.0,0.0
"""


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A data folder with a published table of three sets, two of them of ADBench, and no other."""
    (tmp_path / "reference").mkdir()
    (tmp_path / PUBLISHED).write_text(REFERENCE)
    monkeypatch.setenv("FAROUT_DATA", str(tmp_path))
    return tmp_path


def test_failures_in_the_published_table_are_left_out(reference):
    table = numbers_of_others(PUBLISHED)
    assert table is not None
    assert sorted(table.select("set", "key", "auroc", "ap").rows()) == [
        ("adbench/glass", "ecod", pytest.approx(0.7), pytest.approx(0.2)),
        ("adbench/wine", "knn", pytest.approx(0.5), pytest.approx(0.08)),
    ]
    assert numbers_of_others(MEASURED) is None


def test_published_ecod_stands_beside_the_rule_it_was_measured_with(reference):
    cells = [
        ("adbench/glass", method, "unsupervised", seed, auroc, 0.1, 214, 214, 214, None)
        for method, seed, auroc in (("ECOD", 0, 0.6), ("ECOD per dimension", 0, 0.5), ("ECOD per dimension", 1, 0.7))
    ]
    names = ["set", "method", "protocol", "seed", "auroc", "ap", "rows", "fitted", "rows_in_set", "error"]
    table = pl.DataFrame(cells, schema=names, orient="row")
    both = beside(table, numbers_of_others(PUBLISHED))
    assert both.select("method", "their_auroc").rows() == [("ECOD", None), ("ECOD per dimension", pytest.approx(0.7))]
    agreed = adbench.agreement(table)
    assert len(agreed) == 1
    assert agreed["median"][0] == pytest.approx(0.1)  # the mean of both seeds is 0.6
    assert agreed["within"][0] is None


def _has_data():
    try:
        load("adbench/glass"), load("adbench/wine")
    except DataMissing:
        return False
    return True


@pytest.mark.skipif(not _has_data(), reason="the sets of ADBench are not here")
def test_the_benchmark_writes_its_folder(tmp_path, capsys):
    table = adbench.main(["ecod", "hbos"], ["glass", "adbench/wine"], "both", out=tmp_path / "run", seeds=(0, 1))
    printed = capsys.readouterr().out
    ours = table.filter(set="adbench/glass", method="HBOS", protocol="unsupervised")["auroc"][0]
    assert f"{100 * ours:.1f}" in next(line for line in printed.splitlines() if line.startswith("glass"))
    assert pl.read_csv(tmp_path / "run" / "adbench.csv")["auroc"].to_list() == pytest.approx(table["auroc"].to_list())
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["sets"] == ["adbench/glass", "adbench/wine"]
    page = (tmp_path / "run" / "page.html").read_text()
    assert "Ranks, unsupervised" in page and "Every set, one-class" in page
    assert len(list((tmp_path / "run" / "cells").iterdir())) == len(table) == 2 * 4 * (1 + 2)


def test_nothing_that_runs_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("farout.bench._cells.load", _nothing_there)
    with pytest.raises(BadInput, match=r"none of the 3 cells.*no file"):
        adbench.main(["hbos", "copod"], ["glass"], "unsupervised", out=tmp_path / "run")


def test_budgets_name_sets_that_exist():
    assert set(suites.PROTOCOLS) == {*adbench.PROTOCOLS, "split"}
    assert set(adbench.SMALL) < set(adbench_names()) == set(adbench.BUDGETS["full"])


@pytest.mark.parametrize("protocol", ["unsupervised", "one-class"])
def test_a_detector_is_told_whether_its_training_rows_are_normal(protocol):
    told = []

    class Told(ECOD):
        def __init__(self, novelty=False, rule="paper", sketch=0.0, n_jobs=None):
            super().__init__(rule=rule, sketch=sketch, n_jobs=n_jobs)
            self.novelty = novelty

        def fit_score(self, X, y=None):
            told.append(self.novelty)
            return super().fit_score(X, y)

    run(["breast_cancer"], {"Told": Told()}, protocol, seeds=(0,))
    assert told == [protocol == "one-class"]
