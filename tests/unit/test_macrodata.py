"""MacrOData: its file format, the split protocol, the report's numbers, and a run that fails in part or is stopped."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from plotly.graph_objects import Figure
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from farout import claims, data, score
from farout.bench import _macrodata_report as report
from farout.bench import macrodata
from farout.bench._cells import TOGETHER, Cell, batches
from farout.bench._macrodata_figures import scatter_rivals, time_against_accuracy
from farout.bench.suites import Limits, matrix, run
from farout.cards import find
from farout.cli import app
from farout.contract import Detector
from farout.data import DataMissing, Dataset, load, macrodata_manifest, macrodata_names, read_split
from farout.errors import BadInput, UnknownName

HERE = macrodata_names()


class Kept(Detector):
    """Scores by the first column, or by nothing; keeps what it was given."""

    def __init__(self, constant=False):
        self.constant = constant

    def fit_score(self, X, y=None):
        Kept.learned = X
        return self.outlier_score(X)

    def outlier_score(self, X):
        Kept.scored = X
        return np.zeros(len(X)) if self.constant else X[:, 0]


def arrays(n=40, m=30, d=3, anomalies=8, seed=0):
    """What an archive holds; column 0 tells the anomalies, not perfectly."""
    rng = np.random.default_rng(seed)
    label = (np.arange(m) < anomalies).astype(np.uint8)
    test = rng.normal(size=(m, d)) + 1.5 * label[:, None] * (np.arange(d) == 0)
    return {"train": rng.normal(size=(n, d)), "train_labels": np.zeros(n, np.uint8), "test": test, "test_labels": label}


def written(path, **changed):
    """An archive with some of its arrays changed, or left out where None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: value for name, value in (arrays() | changed).items() if value is not None})
    return path


def test_an_archive_is_read_with_its_split(tmp_path):
    held = arrays()
    names = np.array(["a", "b", "c"])
    one = read_split(
        written(tmp_path / "boilers.npz", feature_names=names, anomaly_count=8, feature_count=3, normal_count=62)
    )
    np.testing.assert_array_equal(one.X, np.concatenate((held["train"], held["test"])))
    assert one.n_train == 40 and not one.y[:40].any()
    np.testing.assert_array_equal(one.y[40:], held["test_labels"])
    assert (one.name, one.columns) == ("boilers", ("a", "b", "c"))
    pickled = read_split(written(tmp_path / "pickled.npz", feature_names=np.array(["a", "b", "c"], dtype=object)))
    assert pickled.columns == ("x0", "x1", "x2")
    assert load(str(tmp_path / "boilers.npz")).name == "boilers"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test": None}, "has no 'test'; it holds 'train'"),
        ({"train_labels": np.eye(40)[3]}, "1 of 40 training rows are not labelled 0"),
        ({"test": np.zeros((30, 4))}, r"equal columns; their shapes are \(40, 3\) and \(30, 4\)"),
        ({"test_labels": np.arange(30) % 3}, "must be 0 and 1, both; they are '0', '1', '2'"),
        ({"test_labels": np.zeros(30)}, "must be 0 and 1, both; they are '0.0'"),
        ({"test_labels": np.ones(29)}, "29 labels for 30 test rows"),
        ({"anomaly_count": 9}, "holds anomalies 8 where the file says 9"),
        ({"feature_count": 4}, "holds features 3 where the file says 4"),
        ({"normal_count": 70}, "holds normal rows 62 where the file says 70"),
        ({"train": np.array([object()])}, "no readable npz archive"),
    ],
)
def test_what_is_wrong_with_an_archive_is_said(changed, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        read_split(written(tmp_path / "bad.npz", **changed))


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    for name in ("text.npz", "absent.npz"):
        with pytest.raises(BadInput, match=f"'{name}' is no readable npz archive"):
            read_split(tmp_path / name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with two sets, one of which holds other counts than the manifest says."""
    root = tmp_path / "data" / "tabular" / "macrodata"
    written(root / "oddbench" / "Boilers.npz")
    written(root / "ovrbench" / "wine.npz", **arrays(seed=1))
    rows = [("oddbench", "Boilers", 40, 30, 3, 8, "Engineering"), ("ovrbench", "wine", 41, 30, 3, 8, None)]
    names = ["bench", "name", "rows_train", "rows_test", "features", "anomalies", "domain"]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        file=pl.format("{}/{}.npz", "bench", "name"), isotropy=0.4, iforest_auc=0.7, rf_auc=0.9
    )
    table.write_csv(root / "manifest.csv")
    monkeypatch.setenv("FAROUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def test_sets_have_names_and_the_manifest_is_checked(folder):
    assert macrodata_names() == ["macrodata/oddbench/Boilers", "macrodata/ovrbench/wine"]
    assert "macrodata/ovrbench/wine" in data.names("macro")
    assert load("MacroData/OddBench/boilers").name == "macrodata/oddbench/Boilers"
    with pytest.raises(BadInput, match="holds rows_train 40 where the manifest says 41"):
        load("macrodata/ovrbench/wine")
    with pytest.raises(UnknownName, match="nearest: 'macrodata/oddbench/Boilers'"):
        load("macrodata/oddbench/Boiler")
    (folder / "manifest.csv").unlink()
    assert macrodata_names() == []
    with pytest.raises(DataMissing, match="no set of MacrOData is here"):
        macrodata.main(["ecod"])


@pytest.mark.skipif(not HERE, reason="the sets of MacrOData are not here")
def test_every_set_holds_what_its_manifest_says():
    facts = {row["set"]: row for row in macrodata_manifest().iter_rows(named=True)}
    assert len(facts) == 95
    for name in HERE:
        one = load(name)
        assert one.n_train == facts[name]["rows_train"] and not one.y[: one.n_train].any()
        assert one.X.shape == (one.n_train + facts[name]["rows_test"], facts[name]["features"])
        assert one.y.sum() == facts[name]["anomalies"] and np.isfinite(one.X).all()
    assert set(macrodata.SMALL) < set(HERE)


def split(n=40, m=30, seed=0, name="one"):
    held = arrays(n, m, seed=seed)
    y = np.concatenate((held["train_labels"], held["test_labels"])).astype(np.int8)
    X = np.concatenate((held["train"], held["test"]))
    return Dataset(name, X, y, ("a", "b", "c"), "made", "none", n_train=n)


def test_the_split_is_the_sets_own():
    one = split()
    row = run([one], {"kept": Kept()}, "split", seeds=(7,)).row(0, named=True)
    train, test = one.X[:40], one.X[40:]
    np.testing.assert_allclose(Kept.learned, (train - train.mean(axis=0)) / train.std(axis=0))
    np.testing.assert_allclose(Kept.scored, (test - train.mean(axis=0)) / train.std(axis=0))
    assert row["auroc"] == pytest.approx(roc_auc_score(one.y[40:], test[:, 0]))
    assert row["ap"] == pytest.approx(average_precision_score(one.y[40:], test[:, 0]))
    assert (row["rows"], row["fitted"], row["anomalies"], row["protocol"]) == (30, 40, 8, "split")
    assert len(run([one], {"kept": Kept()}, "split")) == 1  # nothing is drawn, so one seed is all


def test_a_cut_keeps_the_split():
    row = run([split(n=400, m=300)], {"kept": Kept()}, "split", limits=Limits(rows=100)).row(0, named=True)
    assert row["fitted"] + row["rows"] == 100 and row["rows_in_set"] == 700
    assert len(Kept.learned) == row["fitted"] and 40 < row["fitted"] < 75
    row = run([split()], {"kept": Kept()}, "split", limits=Limits(fit_rows={"Kept": 10})).row(0, named=True)
    assert (row["fitted"], row["rows"]) == (10, 30)


def test_a_set_without_a_split_is_an_error_of_that_set():
    table = run(["breast_cancer", split()], {"kept": Kept()}, "split")
    assert "'breast_cancer' has no split of its own" in table["error"][0]
    assert table["error"][1] is None


def test_missing_values_stay_and_spoil_no_column():
    one = split()
    one.X[3, 1] = np.nan
    run([one], {"kept": Kept()}, "split")
    seen = one.X[:40]
    np.testing.assert_allclose(Kept.learned, (seen - np.nanmean(seen, axis=0)) / np.nanstd(seen, axis=0))
    assert np.isnan(Kept.learned).sum() == 1


def test_cells_of_a_small_set_travel_together():
    def cell(name, rows, method):
        return Cell(name, name, rows, split(rows, 30, name=name), method, Kept(), "split", 0, Limits())

    n_large = TOGETHER // 3
    cells = [cell(name, n, m) for name, n in (("small", 40), ("large", n_large), ("middle", 90)) for m in ("a", "b")]
    laid = [[(one.set, one.method) for one in batch] for batch in batches(cells)]
    assert laid == [
        [("large", "a")],
        [("large", "b")],
        [("middle", "a"), ("middle", "b")],
        [("small", "a"), ("small", "b")],
    ]


def test_a_constant_score_has_the_numbers_of_chance():
    table = report.described(
        run([split(), split(m=90, name="two")], {"kept": Kept(constant=True)}, "split").pipe(named)
    )
    assert table["auroc"].to_list() == [0.5, 0.5]
    assert table["ap"].to_list() == pytest.approx([8 / 30, 8 / 90]) == table["share"].to_list()
    assert table["ap_normalized"].to_list() == pytest.approx([0.0, 0.0], abs=1e-15)


def named(cells):
    """Cells of made sets under the names of drawn ones, so that the report can load them."""
    return cells.with_columns(set=pl.format("synbench/gmm-local-{}", pl.col("set").rank("dense") - 1))


@pytest.fixture(scope="module")
def table():
    """Three methods on twelve drawn sets."""
    sets = [f"synbench/{prior}-{kind}-0" for prior in ("gmm", "tree", "copula") for kind in data.synbench.ARCHETYPES]
    return report.described(run(sets, ["ecod", "hbos", "iforest"], "split", (0, 1)))


def test_means_over_seeds_and_normalised_precision(table):
    assert len(table) == 36 and table["seeds"].to_list() == [1, 1, 2] * 12
    cells = run(["synbench/gmm-local-0"], ["iforest"], "split", (0, 1))
    row = table.filter(set="synbench/gmm-local-0", method="IForest").row(0, named=True)
    assert row["auroc"] == pytest.approx(cells["auroc"].mean())
    assert row["auroc_std"] == pytest.approx(abs(cells["auroc"][0] - cells["auroc"][1]) / 2)
    r = row["anomalies"] / row["rows"]
    assert row["ap_normalized"] == pytest.approx((row["ap"] - r) / (1 - r))
    assert row["suite"] == "synbench" and row["domain"] is None


def test_the_summary_is_what_loops_say(table):
    _, methods, auroc = matrix(table)
    ap = matrix(table, "ap")[2]
    ranks = np.array([rankdata(-row) for row in auroc])
    assert (ranks.sum(axis=1) == 6).all()  # k (k + 1) / 2
    summary = report.summary(table)
    assert summary["rank"].to_list() == sorted(ranks.mean(axis=0))
    for row in summary.iter_rows(named=True):
        j = methods.index(row["method"])
        forest = auroc[:, methods.index("IForest")]
        assert row["auroc_mean"] == pytest.approx(auroc[:, j].mean())
        assert row["ap_median"] == pytest.approx(np.median(ap[:, j]))
        assert row["rank_ap"] == pytest.approx(np.mean([rankdata(-one)[j] for one in ap]))
        if row["method"] != "IForest":
            assert row["wins"] == pytest.approx(np.mean((auroc[:, j] > forest) + (auroc[:, j] == forest) / 2))
    assert summary["sets"].to_list() == [12] * 3


def test_a_set_with_a_failure_is_in_no_mean(table):
    first = table["set"][0]
    gone = (pl.col("set") == first) & (pl.col("method") == "ECOD")
    holed = table.with_columns(auroc=pl.when(~gone).then("auroc"))
    judged = report.summary(holed)
    expected = table.filter((pl.col("set") != first) & (pl.col("method") == "HBOS"))["auroc"].mean()
    assert judged["sets"].to_list() == [11] * 3
    assert judged.filter(method="HBOS")["auroc_mean"].item() == pytest.approx(expected)


def test_strata_divide_at_their_edges(table):
    strata = report.strata(table)
    n = table.filter(method="ECOD")["fitted"].to_numpy()
    auroc = table.filter(method="ECOD")["auroc"].to_numpy()
    levels = {"under 1,000": n < 1_000, "1,000 to 3,000": (n >= 1_000) & (n < 3_000)}
    found = strata.filter(stratum="training rows", method="ECOD")
    assert found["level"].to_list() == list(levels)
    for level, there in levels.items():
        row = found.filter(level=level).row(0, named=True)
        assert row["sets"] == there.sum() and row["auroc"] == pytest.approx(auroc[there].mean())
    per_stratum = strata.filter(method="ECOD").group_by("stratum").agg(pl.col("sets").sum())
    assert set(per_stratum.iter_rows()) == {
        ("suite", 12),
        ("training rows", 12),
        ("features", 12),
        ("share of anomalies", 12),
        ("best column alone", 12),  # domain and isotropy are not known of drawn sets
    }
    for _, part in strata.group_by("stratum", "level"):
        assert part["rank"].sum() == pytest.approx(6)


def test_an_edge_belongs_to_the_level_above(table):
    edge = table.with_columns(fitted=pl.lit(1_000), features=pl.lit(5), share=pl.lit(0.2))
    levels = report.strata(edge).select("stratum", "level").unique(maintain_order=True).rows()
    assert ("training rows", "1,000 to 3,000") in levels and ("features", "under 6") in levels
    assert ("share of anomalies", "0.2 or more") in levels
    assert len(levels) == 4 + len({level for stratum, level in levels if stratum == "best column alone"})


def test_doubtful_sets_are_named(table):
    first, second = table["set"].unique(maintain_order=True)[:2]
    turned = table.with_columns(
        auroc=pl.when(pl.col("set") == first).then(0.4).otherwise(pl.col("auroc").clip(0.5)),
        best_column=pl.when(pl.col("set") == second).then(0.97).otherwise(0.6),
        seen=pl.when(pl.col("set") == second).then(0.75).otherwise(0.0),
    )
    below, alone, seen = report.doubts(turned)
    assert below.startswith("1 of 12 sets (8%)") and below.endswith(f": {first}.")
    assert alone.startswith("1 sets") and alone.endswith(f": {second}.")
    assert seen.startswith("1 sets") and seen.endswith(f": {second}.")


def test_published_numbers_stand_beside_the_rule_they_were_measured_with(table, tmp_path, monkeypatch):
    monkeypatch.setenv("FAROUT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    odd = table.with_columns(suite=pl.lit("oddbench"))
    assert len(report.beside(odd)) == 0
    (tmp_path / "reference").mkdir()
    (tmp_path / report.REFERENCE).write_text(
        "method,auroc_mean,ap_mean,elo_auroc\nECOD,68.1,28.25,938.2\nIForest,71,31,1021\n"
    )
    assert len(report.beside(table)) == 0  # no set of OddBench among them
    by_pyod = odd.with_columns(method=pl.col("method").replace("HBOS", "ECOD per dimension"))
    both = report.beside(by_pyod)
    theirs = dict(both.select("method", "their_auroc").iter_rows())
    assert theirs == {"ECOD per dimension": pytest.approx(0.681), "IForest": pytest.approx(0.71)}
    assert both["sets"].to_list() == [12, 12]
    assert report.beside_rows(by_pyod)[1][both["method"].to_list().index("IForest")][:2] == ["IForest", "12"]


def test_a_run_goes_on_past_failures_and_does_not_repeat_itself(tmp_path, capsys, monkeypatch):
    mine = tmp_path / "mine"
    for i in range(3):
        written(mine / f"set{i}.npz", **arrays(seed=i), origin="Human", ifor_auc=0.8, rf_auc=0.9)
    written(mine / "bad.npz", test_labels=np.arange(30) % 3)
    told = []

    def go():
        told.clear()
        return macrodata.main(
            ["hbos", "knn"], [str(mine)], out=tmp_path / "run", progress=lambda what, done: told.append(what)
        )

    table = go()
    printed = capsys.readouterr().out
    assert len(table) == 4 * 3  # HBOS also smoothed
    bad = table.filter(pl.col("error").is_not_null())
    assert set(bad["set"]) == {str(mine / "bad.npz")} and len(bad) == 3
    assert "failed: HBOS on bad, split: BadInput: 'bad': the labels of the test rows must be 0 and 1" in printed
    assert "Friedman over 3 sets" in printed and set(table["suite"]) == {"mine"}
    assert table["domain"].to_list() == [None] * 3 + ["Human"] * 9 and table["iforest_auc"][-1] == 0.8
    assert pl.read_parquet(tmp_path / "run" / "macrodata.parquet").equals(table)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["protocol"] == "split" and len(settings["sets"]) == 4
    page = (tmp_path / "run" / "page.html").read_text()
    for title in ("Means", "Ranks", "Pairs", "Set by set", "Time", "Strata", "Doubtful sets", "What failed"):
        assert f">{title}</h2>" in page
    assert len(told) == 12 and len(list((tmp_path / "run" / "cells").iterdir())) == 9
    again = go()
    assert len(told) == 3  # the failed ones are tried again
    assert again.equals(table)  # the seconds too: nothing else was run
    written(mine / "set1.npz", **arrays(seed=9))  # a file with other contents is another set
    changed = go()
    assert len(told) == 6
    assert changed.filter(method="KNN")["auroc"].to_list() != table.filter(method="KNN")["auroc"].to_list()


def test_names_of_sets_and_options_are_checked(folder, tmp_path):
    for wrong in ({"protocol": "unsupervised"}, {"budget": "x"}, {"sets": ["nowhere"]}, {"methods": ["nothing"]}):
        with pytest.raises(UnknownName):
            macrodata.main(**({"methods": ["ecod"], "sets": ["synbench"], "out": tmp_path / "run"} | wrong))
    chosen = macrodata._sets(["oddbench", "Ovrbench/WINE", "synbench/GMM-local-7", "oddbench/boilers"], "small")
    assert chosen == ["macrodata/oddbench/Boilers", "macrodata/ovrbench/wine", "synbench/gmm-local-7"]
    assert macrodata._sets(None, "full") == macrodata_names()
    assert len(macrodata._sets(["synbench"], "small")) == 16
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no '.npz' in the folder"):
        macrodata._sets([str(tmp_path / "empty")], "small")
    with pytest.raises(BadInput, match=r"none of the 1 cells.*where the manifest says 41"):
        macrodata.main(["knn"], ["ovrbench/wine"], out=tmp_path / "run")


def test_the_rival_is_chosen_from_a_list():
    sets, ours = ["a", "b", "c"], [0.9, 0.6, np.nan]
    rivals = {"LOF": [0.8, 0.7, 0.5], "ECOD": [0.95, np.nan, 0.5]}
    fig = scatter_rivals(sets, ours, rivals, "KNN")
    Figure(json.loads(json.dumps(fig).replace('"var(--card)"', '"white"').replace('"var(--rule)"', '"grey"')))
    lof, ecod = fig["layout"]["updatemenus"][0]["buttons"]
    assert lof["args"][0]["visible"] == [True] * 3 + [False] * 3 == [not one for one in ecod["args"][0]["visible"]]
    assert "LOF" in lof["args"][1]["xaxis.title"]["text"] and "ECOD" in ecod["args"][1]["xaxis.title"]["text"]
    assert fig["layout"]["title"]["text"] == "KNN is better on 1, equal on 0, worse on 1 sets"
    assert ecod["args"][1]["title"]["text"] == "KNN is better on 0, equal on 0, worse on 1 sets"
    assert fig["data"][5]["text"] == ["a"] and fig["data"][5]["y"] == [0.9] and fig["data"][5]["x"] == [0.95]
    with pytest.raises(BadInput, match="no rival"):
        scatter_rivals(sets, ours, {}, "KNN")


def test_methods_that_no_other_beats_in_time_and_accuracy_stand_out():
    fig = time_against_accuracy(["a", "b", "c", "d"], [1, 2, 3, 2], [0.7, 0.8, 0.75, 0.8])
    Figure(fig)
    assert [trace["text"] for trace in fig["data"]] == [["a", "b", "d"], ["c"]]
    assert fig["layout"]["xaxis"]["type"] == "log"


def test_a_benchmark_is_in_the_catalogue_and_is_no_detector(capsys):
    card = find("macrodata")
    assert (card.kind, card.room, card.load()) == ("benchmark", "bench", macrodata.main)
    app(["card", "macrodata"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "benchmark, no detector" in said and "takes" not in said
    with pytest.raises(BadInput, match="'macrodata' does not score tables"):
        score([[1.0], [2.0], [3.0]], method="macrodata")


def test_the_command_line_runs_it(tmp_path, capsys):
    words = ["bench", "macrodata", "--methods", "ecod,hbos", "--sets", "synbench/gmm-local-1,synbench/tree-cluster-1"]
    app([*words, "-o", str(tmp_path / "run"), "--jobs", "2", "-q"], standalone_mode=False)
    assert "ECOD per dimension" in capsys.readouterr().out
    assert len(pl.read_parquet(tmp_path / "run" / "macrodata.parquet")) == 2 * 4


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="the sets of MacrOData are not here")
def test_the_small_budget_of_the_claim_runs():
    claim = claims.run("macrodata", "small")
    assert 0.5 < claim.ours < 1 and ("does not hold" in claim.note) != claim.holds
    (row,) = claim.numbers["Mean ranks with 95 % intervals"]
    assert row["sets"] == "12 real sets"
    assert sum(row["rank"] for row in claim.numbers["Real sets"]) == pytest.approx(36)
