import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from farout.bench import _mad_bench_tables as tables
from farout.bench._mad_bench_files import Scored, names_of, published_counts, read_scored
from farout.bench.levels import multilevel_report
from farout.bench.mad_bench import domains, main, measured
from farout.cards import find
from farout.data import DataMissing
from farout.errors import BadInput, UnknownName

LEVELS = [0, 0, 0, 1, 1, 2, 2, 3]
SCORES = [1.0, 2.0, 3.0, 2.5, 6.0, 5.0, 4.0, 9.0]


def write(folder, name, levels=LEVELS, scores=SCORES, head="Path,Severity,Anomaly Score"):
    folder.mkdir(exist_ok=True, parents=True)
    lines = [f"{i}.png,{level},{score}" for i, (level, score) in enumerate(zip(levels, scores))]
    (folder / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "head", ["Path,Severity,Anomaly Score", "image_path_raw,severity,anomaly_score", "path,severity,score"]
)
def test_files_are_read_under_all_official_column_names(tmp_path, head):
    scored = read_scored(write(tmp_path, "RRD_visa_pcb1.csv", head=head))
    assert (scored.model, scored.domain, scored.subset) == ("RRD", "visa", "pcb1")
    np.testing.assert_array_equal(scored.severity, LEVELS)
    np.testing.assert_array_equal(scored.score, SCORES)


def test_a_file_without_the_columns_is_refused_by_name(tmp_path):
    path = write(tmp_path, "a.csv", head="Path,Severity,Confidence")
    with pytest.raises(BadInput, match=r"'a.csv' has no column of the anomaly score; its columns are"):
        read_scored(path)


def test_names_of_files(tmp_path):
    assert names_of(tmp_path / "gpt-4o_zero_multidog_golden_retriever.csv") == (
        "gpt-4o_zero",
        "multidog",
        "golden_retriever",
    )
    assert names_of(tmp_path / "RRD" / "RRD_covid19.csv") == ("RRD", "covid19", "covid19")
    assert names_of(tmp_path / "RRD" / "RRD_boilers.csv") == ("RRD", "boilers", "boilers")


def test_a_row_is_the_report(tmp_path):
    row = measured(read_scored(write(tmp_path, "RRD_visa_pcb1.csv")))
    report = multilevel_report(LEVELS, SCORES)
    assert row["auroc_1"] == report.auroc[1.0] and row["auroc_3"] == 1.0 and row["auroc_all"] == report.auroc_all
    assert (row["tau_b"], row["c_index"]) == (report.everything.tau_b, report.everything.c_index)
    assert row["anomalous_c_index"] == report.anomalous.c_index
    assert (row["samples"], row["normal"], row["levels"], row["refusals"], row["notes"]) == (8, 3, 3, 0, None)


def test_refusals_are_counted_and_not_scored_zero(tmp_path):
    scores = [*SCORES[:6], "I cannot rate this", ""]
    scored = read_scored(write(tmp_path, "gpt-4o_visa_pcb1.csv", scores=scores))
    left, zero = measured(scored), measured(scored, refused="zero")
    assert left["refusals"] == zero["refusals"] == 2
    assert left["auroc_all"] == multilevel_report(LEVELS[:6], SCORES[:6]).auroc_all
    assert zero["auroc_all"] == multilevel_report(LEVELS, [*SCORES[:6], 0, 0]).auroc_all < left["auroc_all"]
    assert "2 of 8 samples have no score and are left out" in left["notes"]
    assert "level 3 is empty" in left["notes"] and "count as 0" in zero["notes"]


@pytest.mark.parametrize(
    ("levels", "scores", "words"),
    [
        ([0, 0, 1, 3], [1, 2, 3, 4], "level 2 is empty"),
        ([1, 1, 2, 2], [1, 2, 3, 4], "no sample is normal"),
        ([0, 0, 1, 1], [1, 2, 3, 4], "one level alone is above 0"),
        ([0, 0, 1, 2], [5, 5, 5, 5], "all scores are equal, so that tau-b is undefined"),
        ([0, 1, "", 2], [1, 2, 3, 4], "1 samples have no severity"),
    ],
)
def test_what_is_wrong_with_a_subset_is_said(tmp_path, levels, scores, words):
    assert words in measured(read_scored(write(tmp_path, "a.csv", levels, scores)))["notes"]


def test_means_are_of_rounded_percents_and_missing_levels_stay_out():
    def one(subset, levels, scores):
        return measured(Scored("RRD", "visa", subset, np.array(levels, float), np.array(scores, float)))

    rows = [one("a", [0, 0, 0, 1, 2], [1, 2, 3, 2.5, 4]), one("b", [0, 0, 1, 1], [1, 2, 3, 4])]
    found = domains(pl.DataFrame(rows, infer_schema_length=None)).row(0, named=True)
    assert (found["subsets"], found["auroc_1"], found["auroc_2"]) == (2, round((66.67 + 100) / 2, 2), 100.0)
    assert found["anomalous_c_index"] == 100.0  # of subset a alone: b has no two levels of anomalies


def test_files_of_two_models_to_a_folder_of_results(tmp_path, capsys):
    for model in ("RRD", "PNI"):
        for subset in ("pcb1", "pcb2"):
            write(tmp_path / model, f"{model}_visa_{subset}.csv", scores=SCORES if model == "RRD" else SCORES[::-1])
    write(tmp_path / "RRD", "RRD_visa_broken.csv", head="a,b,c")
    write(tmp_path / "RRD", "RRD_visa_flat.csv", levels=[0] * 8)
    table = main([tmp_path], out=tmp_path / "out")
    said = capsys.readouterr().out
    assert table.select("model", "subset").rows() == [(m, s) for m in ("PNI", "RRD") for s in ("pcb1", "pcb2")]
    assert "RRD_visa_broken.csv: 'RRD_visa_broken.csv' has no column of the severity" in said
    assert "RRD on visa, flat: all 8 samples have level 0" in said
    assert pl.read_parquet(tmp_path / "out/mad_bench.parquet").equals(table)
    means = pl.read_csv(tmp_path / "out/domains.csv").filter(pl.col("model") == "RRD").row(0, named=True)
    assert means["auroc_all"] == round(100 * multilevel_report(LEVELS, SCORES).auroc_all, 2)
    assert len(json.loads((tmp_path / "out/settings.json").read_text())["problems"]) == 2
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert "AUROC by level of 2 models on visa" in page and "has no column of the severity" in page


def test_nothing_to_measure_is_refused(tmp_path):
    with pytest.raises(BadInput, match="there is no csv file below"):
        main([tmp_path], out=tmp_path / "out")
    write(tmp_path, "a.csv", head="a,b,c")
    with pytest.raises(BadInput, match=r"the first reason is: a\.csv: 'a.csv' has no column of the severity"):
        main([tmp_path / "a.csv"], out=tmp_path / "out")
    for words in ({"budget": "huge"}, {"refused": "guess"}, {"sets": ["defect/nowhere"]}, {"methods": ["knnn"]}):
        with pytest.raises(UnknownName):
            main(**words, out=tmp_path / "out")


def test_counts_are_held_against_the_published_ones(tmp_path):
    counts = published_counts()
    if counts is None:
        pytest.skip("'reference/madbench_levels.csv' is not here")
    assert len(counts) == 31 and sum(counts["covid19", "covid19"].values()) == 661
    assert counts["mvtec", "bottle"] == {0.0: 20, 1.0: 21, 2.0: 22, 3.0: 20}
    levels = np.repeat([0.0, 1.0, 2.0, 3.0], [20, 21, 22, 20])
    score = np.random.default_rng(0).normal(size=83)
    assert measured(Scored("RRD", "mvtec", "bottle", levels, score), counts)["as_published"] is True
    short = measured(Scored("RRD", "mvtec", "bottle", levels[1:], score[1:]), counts)
    assert short["as_published"] is False and "0: 19, 1: 21" in short["notes"]
    assert measured(Scored("RRD", "mvtec", "boiler", levels, score), counts)["as_published"] is None


def test_painted_rows_are_the_same_rows_moved_along_one_line():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 8))
    scales = np.arange(8.0)  # column 0 never varies
    rows, severity = tables.painted(X, scales, rng, (2.0, 5.0))
    np.testing.assert_array_equal(severity, np.repeat([1.0, 2.0], 30))
    weak, strong = rows[:30] - X, rows[30:] - X
    np.testing.assert_allclose(strong, 2.5 * weak, atol=1e-12)
    assert ((weak != 0).sum(axis=1) == 2).all() and not weak[:, 0].any()  # 7 columns vary: a quarter, rounded up
    np.testing.assert_allclose(np.abs(weak).sum(axis=0) % (2 * scales.clip(1)), 0, atol=1e-9)
    assert (weak > 0).any() and (weak < 0).any()


def test_attacks_have_two_orders_and_normal_rows_level_0():
    try:
        agreement, harm = (tables.graded(name, 0, 100) for name in tables.NSL_KDD)
    except DataMissing:
        pytest.skip("NSL-KDD is not here")
    assert len(agreement.normal) == 100 and agreement.X.width == 41
    assert np.bincount(agreement.severity.astype(int)).tolist() == [9711, 1171, 4570, 3957, 3135]
    assert np.bincount(harm.severity.astype(int)).tolist() == [9711, 2421, 7460, 2885, 67]


def test_detectors_on_a_graded_table_and_the_command_line(tmp_path):
    from farout.cli import app
    from farout.data import load

    try:
        load("adbench/wine")
    except DataMissing:
        pytest.skip("ADBench is not here")
    words = ["bench", "mad_bench", "--methods", "knn,ecod", "--sets", "defect/wine", "-o", str(tmp_path), "-q"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    table = pl.read_parquet(tmp_path / "mad_bench.parquet")
    assert table.select("model", "domain", "subset", "seed").rows() == [
        (model, "defect", "wine", seed) for seed in range(3) for model in ("KNN", "ECOD")
    ]
    assert (table["levels"] == 5).all()
    means = {row["model"]: row for row in domains(table).to_dicts()}
    assert means["KNN"]["anomalous_tau_b"] > means["ECOD"]["anomalous_tau_b"] + 20  # tails end at the last training row
    for wrong in (["adbench", "file.csv"], ["mad_bench", "--protocol", "both"]):
        assert CliRunner().invoke(app, ["bench", *wrong, "-o", str(tmp_path)]).exit_code != 0


def test_the_card_is_a_benchmark():
    card = find("mad_bench")
    assert (card.name, card.room, card.kind, card.load()) == ("MAD-Bench", "bench", "benchmark", main)
