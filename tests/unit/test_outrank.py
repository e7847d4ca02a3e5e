"""OutRank: its scores, its batches, its pairs, what it refuses, and ``farout rank``."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.metrics import mutual_info_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from farout.cards import find, list_cards
from farout.contract import Detector
from farout.errors import BadInput, NotFitted, UnknownName
from farout.kit.mi import mi_corrected
from farout.scoring.ranking import rank
from farout.table import OutRank
from farout.table import _quality as quality
from naive import outrank as naive


def clicks(n=4000, seed=0):
    """A table of noise of few and many values, a column that tells the target at times, a copy, and two for XOR."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    a = rng.integers(0, 2, n)
    frame = pl.DataFrame(
        {
            "few": rng.integers(0, 5, n),
            "many": rng.integers(0, 3000, n),
            "tells": np.where(rng.random(n) < 0.3, y, rng.integers(2, 100, n)),
            "copy": np.where(y, "yes", "no"),
            "left": a,
            "right": a ^ y,
            "row": np.arange(n),
            "same": np.zeros(n),
        }
    )
    return frame, y


@parametrize_with_checks([OutRank()])
def test_scikit_learns_own_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its labels come sorted
        check(estimator)


def test_scores_are_those_of_the_columns():
    frame, y = clicks(600)
    ranker = OutRank().fit(frame, y)
    for column, score, plain in zip(frame, ranker.scores_, ranker.plain_):
        expected = naive.entropy(y) if column.name == "copy" else naive.mi_shifted(column.to_numpy(), y)
        assert score == pytest.approx(min(expected, naive.entropy(y)), abs=1e-9)
        assert plain == pytest.approx(mutual_info_score(column.to_numpy(), y), abs=1e-9)
    assert ranker.entropy_ == pytest.approx(naive.entropy(y))
    assert [frame.columns[j] for j in ranker.ranking_[:2]] == ["copy", "tells"]


def test_high_cardinality_does_not_outrank_signal():
    frame, y = clicks(16_384)
    ranker = OutRank().fit(frame, y)
    place = dict(zip(frame.columns, ranker.scores_))
    plain = dict(zip(frame.columns, ranker.plain_))
    assert plain["row"] > plain["tells"] and place["row"] == pytest.approx(0, abs=1e-12)
    assert place["tells"] > 0.1 and abs(place["many"]) < 0.01 < plain["many"]
    assert place["same"] == plain["same"] == 0


def test_the_needle_and_the_xor():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 100, (4096, 100))
    ranker = OutRank(k=1).fit(X, X[:, 30] > 40)
    assert ranker.ranking_[0] == 30
    np.testing.assert_array_equal(ranker.get_support(indices=True), [30])
    np.testing.assert_array_equal(ranker.transform(X), X[:, [30]])
    a, b = rng.integers(0, 2, (2, 4096))
    ranker = OutRank(interaction_order=2).fit(np.column_stack((a, b)), a ^ b)
    assert np.abs(ranker.scores_).max() < 0.01 and ranker.joint_[0, 1] == ranker.joint_[1, 0] > 0.6
    assert abs(ranker.redundancy_[0, 1]) < 0.01


def test_scores_are_medians_over_batches_and_a_short_last_one_is_left_out():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 3 * 2048 + 1024), rng.integers(0, 2, 3 * 2048 + 1024)
    each = [mi_corrected(x[at : at + 2048], y[at : at + 2048]) for at in range(0, len(x), 2048)]
    for rows, used in ((len(x), 3), (3 * 2048, 3), (2 * 2048, 2), (1000, 0)):
        fitted = OutRank(batch=2048).fit(x[:rows, None], y[:rows])
        expected = np.median(each[:used]) if used else mi_corrected(x[:rows], y[:rows])
        assert fitted.scores_[0] == pytest.approx(expected, abs=1e-12)
    longer = np.append(x, 1), np.append(y, 0)
    last = mi_corrected(longer[0][3 * 2048 :], longer[1][3 * 2048 :])
    fitted = OutRank(batch=2048).fit(longer[0][:, None], longer[1])
    assert fitted.scores_[0] == pytest.approx(np.median([*each[:3], last]), abs=1e-12)


@pytest.mark.parametrize("background", ["shift", "permutation"])
@pytest.mark.parametrize("keep_every", [1, 10])
def test_pieces_equal_the_whole(background, keep_every):
    frame, y = clicks(9000)
    ranker = OutRank(background=background, batch=512, keep_every=keep_every, interaction_order=2)
    whole = clone(ranker).fit(frame, y)
    cuts = [0, 7, 300, 2900, 2901, 9000]
    pieces = clone(ranker)
    for start, stop in pairwise(cuts):
        pieces.partial_fit(frame[start:stop], y[start:stop])
    np.testing.assert_array_equal(pieces.scores_, whole.scores_)
    np.testing.assert_array_equal(pieces.redundancy_, whole.redundancy_)
    np.testing.assert_array_equal(OutRank(batch=512, keep_every=10).fit(frame, y).scores_,
                                  OutRank(batch=512).fit(frame[::10], y[::10]).scores_)  # fmt: skip
    assert pieces.fit(frame, y).scores_.tolist() == whole.scores_.tolist()  # and forgets the pieces


def test_new_values_in_a_later_piece_are_values():
    y = np.tile([0, 1], 600)
    first, later = (
        pl.DataFrame({"a": np.where(y, "p", "q")}),
        pl.DataFrame({"a": [("r" if one else None) for one in y]}),
    )
    fitted = OutRank(batch=1200).partial_fit(first, y).partial_fit(later, y)
    assert fitted.scores_[0] == pytest.approx(np.log(2), abs=1e-12)  # missing is a value as well


def test_the_content_counts_and_not_its_type():
    frame, y = clicks(500)
    frame = frame.with_columns(few=pl.when(pl.col("few") == 0).then(None).otherwise(pl.col("few")))
    expected = OutRank().fit(frame, y).scores_
    words = frame.with_columns(pl.all().cast(pl.String))
    categories = words.with_columns(pl.all().cast(pl.Categorical))
    numbers = frame.drop("copy").cast(pl.Float64).with_columns(pl.col("few").fill_null(float("nan")))
    for table in (words, categories, frame.to_pandas(), words.to_numpy()):
        np.testing.assert_allclose(OutRank().fit(table, y).scores_, expected, atol=1e-12)
    np.testing.assert_allclose(OutRank().fit(numbers, y).scores_, np.delete(expected, 3), atol=1e-12)


def test_3mr_sets_back_what_was_said_and_forward_what_tells_together():
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 4, (3, 8000))
    y = 4 * a + b
    noisy = np.where(rng.random(8000) < 0.95, a, rng.integers(0, 4, 8000))
    X = np.column_stack((a, noisy, np.where(rng.random(8000) < 0.8, b, 9), c))
    ranker = OutRank(interaction_order=2).fit(X, y)
    np.testing.assert_array_equal(ranker.ranking_, [0, 1, 2, 3])
    np.testing.assert_array_equal(ranker.rank_3mr(alpha=0, beta=0), [0, 1, 2, 3])
    np.testing.assert_array_equal(ranker.rank_3mr()[:2], [0, 2])
    left, right = rng.integers(0, 2, (2, 8000))
    weak = np.where(rng.random(8000) < 0.1, left ^ right, 2)
    X = np.column_stack((left, weak, right, rng.integers(0, 2, 8000)))
    X[:, 0] = np.where(rng.random(8000) < 0.3, 3 + (left ^ right), left)
    ranker = OutRank(interaction_order=2).fit(X, left ^ right)
    assert ranker.ranking_[0] == 0 and ranker.ranking_[1] == 1
    np.testing.assert_array_equal(ranker.rank_3mr(alpha=0)[:2], [0, 2])


def test_pairs_beyond_the_most_are_measured_in_turns(monkeypatch):
    monkeypatch.setattr("farout.table.outrank.PAIRS", 2)
    X = np.random.default_rng(0).integers(0, 3, (3 * 64, 4))
    y = X.sum(axis=1) % 2
    known = [np.isfinite(OutRank(interaction_order=2, batch=64).fit(X[:n], y[:n]).redundancy_) for n in (64, 128, 192)]
    assert [int(part.sum()) // 2 for part in known] == [2, 4, 6]


def test_sorted_rows_are_warned_of():
    frame, y = clicks()
    order = np.argsort(y, kind="stable")
    with pytest.warns(UserWarning, match=r"sorted: 100% of neighbouring rows share their label, 5\d% would"):
        OutRank().fit(frame[order], y[order])
    with pytest.warns(UserWarning, match="sorted"):
        OutRank(background="permutation", batch=1100).fit(frame[order], y[order])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OutRank().fit(frame, y)
        assert OutRank(background="permutation").fit(frame[order], y[order]).scores_[2] > 0.1


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (np.zeros(9), "one class only, '0.0', in 9 rows"),
        (np.arange(9), "9 values, each in one row"),
        ([1, 0, None, 1, 0, 1, 0, 1, 0], "missing in 1 rows, the first of them row 2"),
        (np.arange(8), "X has 9 rows and y has 8"),
        (None, "requires y to be passed"),
    ],
)
def test_labels_that_cannot_rank_are_refused(y, match):
    with pytest.raises(BadInput, match=match):
        OutRank().fit(np.arange(9)[:, None] % 2, y)


def test_bad_settings_are_refused():
    frame, y = clicks(50)
    for wish in ({"interaction_order": 3}, {"batch": 1}, {"keep_every": 0}, {"ratio": 2.0}):
        with pytest.raises(BadInput):
            OutRank(**wish).fit(frame, y)
    with pytest.raises(UnknownName, match="'permutation'"):
        OutRank(background="permuted").fit(frame, y)
    with pytest.raises(BadInput, match="interaction_order=2"):
        OutRank().fit(frame, y).rank_3mr()
    with pytest.raises(BadInput, match="at least 1, not 0"):
        OutRank(k=0).fit(frame, y).transform(frame)
    with pytest.raises(NotFitted):
        OutRank().scores_  # noqa: B018
    with pytest.raises(BadInput, match="'tags'"):
        OutRank().fit(pl.DataFrame({"tags": [["a"], ["b"]] * 25}), y)


def test_its_card_is_no_detectors():
    card = find("outrank")
    assert card.kind == "ranker" and card in list_cards("table", "ranker") and card in list_cards("table")
    assert card not in list_cards("table", "detector")
    assert all(issubclass(other.load(), Detector) for other in list_cards("table", "detector"))


def test_quality_in_pieces_and_beyond_exact_counts(monkeypatch):
    words = pl.Series("w", ["a", "bb", "", "{}", None, "a", "ccc"])
    known = quality.Quality()
    for at in (0, 3, 5):
        known.add(words[at : {0: 3, 3: 5, 5: 7}[at]])
    facts = known.row()
    assert (facts["coverage"], facts["cardinality"], facts["bytes"]) == (4 / 7, 3, 7 / 4)
    assert facts["rare_share"] == pytest.approx(2 / 3) and facts["min"] is None
    numbers = quality.Quality()
    numbers.add(pl.Series([1.0, float("nan"), None, 4.0, -2.0]))
    assert [numbers.row()[name] for name in ("coverage", "min", "max", "mean")] == [0.6, -2.0, 4.0, 1.0]
    monkeypatch.setattr(quality, "EXACT", 1000)
    for n in (300_000, 1_000_000):
        many, values = quality.Quality(), np.random.default_rng(n).permutation(n)
        for part in np.array_split(np.append(values, values[:1000]), 5):
            many.add(pl.Series(part))
        assert many.cardinality == pytest.approx(n, rel=0.02) and many.row()["rare_share"] is None


def test_an_empty_row_is_the_oddest():
    frame, _ = clicks(50)
    frame = frame.with_columns(pl.all().cast(pl.String))
    frame = frame.with_columns(pl.when(pl.int_range(pl.len()) != 17).then(pl.all()))
    frame[9, "copy"], frame[9, "many"], frame[9, "few"] = "{}", "x" * 300, "0"
    odd = quality.odd_rows(frame)
    first = odd.row(0, named=True)
    assert (first["row"], first["score"], first["entropy"]) == (17, 1.0, 0.0)
    row = odd.filter(row=9).row(0, named=True)
    zeros = sum(frame.row(9)[j] in ("0", "0.0") for j in range(frame.width))
    assert (row["braces"], row["long"], row["zero"]) == (1 / 8, 1 / 8, zeros / 8)
    entropies = [naive.entropy(np.array(list(word))) for word in frame.row(9)]
    assert row["entropy"] == pytest.approx(sum(entropies))


def test_a_ranking_says_what_scores_mean():
    frame, y = clicks()
    found = rank(frame.with_columns(y=pl.Series(y)), "y", name="clicks")
    remarks = dict(found.table.select("feature", "remark").iter_rows())
    assert remarks["copy"].startswith("leak?") and remarks["tells"] == ""
    assert remarks["row"].startswith("a value a row") and remarks["same"] == "constant"
    known = dict(found.controls.select("feature", "score").iter_rows())
    assert known["target"] == pytest.approx(found.entropy, abs=1e-9)
    assert [known[name] for name in ("constant", "Gaussian", "sequence", "row hash")] == pytest.approx([0] * 4)
    assert found.noise == max(abs(score) for name, score in known.items() if name != "target") < 0.02
    assert found.together[0] == "copy" and found.redundancy.shape == (8, 8)
    order = np.argsort(y, kind="stable")
    again = rank(frame.with_columns(y=pl.Series(y))[order], "y")
    assert again.table["feature"][0] == "copy" and not again.warnings  # rows are read in drawn order


def test_a_large_table_streams(tmp_path, monkeypatch):
    frame, y = clicks(40_000)
    frame.with_columns(y=pl.Series(y)).write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr("farout.scoring.ranking.IN_MEMORY", 0)
    found = rank(tmp_path / "t.parquet", "y")
    expected = OutRank().fit(frame, y)
    scores = dict(found.table.select("feature", "score").iter_rows())
    np.testing.assert_allclose([scores[name] for name in frame.columns], expected.scores_, atol=1e-12)
    assert found.rows == 40_000


def farout(*words, cwd):
    return subprocess.run([sys.executable, "-m", "farout", *words], cwd=cwd, capture_output=True, text=True)


def test_farout_rank(tmp_path):
    frame, y = clicks()
    frame.with_columns(y=pl.Series(y)).write_csv(tmp_path / "clicks.csv")
    outputs = ("-o", "o.parquet", "-o", "o.html")
    done = farout("rank", "clicks.csv", "--target", "y", "--k", "3", *outputs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, names, first, *rest = done.stdout.splitlines()
    assert head.startswith("OutRank: 8 columns against 'y', 4,000 rows") and names.split()[:2] == [
        "column",
        "corrected",
    ]
    assert first.split()[0] == "copy" and "leak?" in first and rest[-1].startswith("and 5 more")
    assert pl.read_parquet(tmp_path / "o.parquet")["feature"][1] == "tells"
    page = (tmp_path / "o.html").read_text()
    assert "<strong>copy</strong> tells most about 'y'" in page and "noise: 50,000 levels" in page
    assert json.loads((tmp_path / "o.farout.json").read_text())["command"][:3] == ["farout", "rank", "clicks.csv"]
    done = farout("rank", "clicks.csv", "--target", "y", "-o", "-", "--set", "background=permutation", cwd=tmp_path)
    assert done.stdout.startswith("feature,score,plain") and done.stdout.count("\n") == 9


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--target", "clik"), "no column 'clik' to rank against; nearest: 'click'"),
        (("--target", "shop"), "one class only, 'web'"),
        (("--target", "id"), "30 values, each in one row"),
        (("--target", "gap"), "missing in 3 rows"),
        (("--target", "click", "--set", "bakground=shift"), "'background'"),
    ],
)
def test_farout_rank_refuses_in_one_line(words, match, tmp_path):
    table = {"id": range(30), "shop": ["web"] * 30, "click": [0, 1] * 15, "gap": [None] * 3 + [0] * 13 + [1] * 14}
    pl.DataFrame(table).write_csv(tmp_path / "t.csv")
    done = farout("rank", "t.csv", *words, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and match in done.stderr
    assert done.stderr.startswith("farout: ") and done.stderr.count("\n") == 1


def test_a_million_values_in_a_column(tmp_path):
    n = 1_000_000
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"id": rng.permutation(n), "seen": rng.integers(0, 9, n), "y": rng.integers(0, 2, n)})
    found = rank(frame, "y").table
    row = found.filter(feature="id").row(0, named=True)
    assert row["cardinality"] == pytest.approx(n, rel=0.02)
    assert row["score"] == pytest.approx(0, abs=1e-12) and row["plain"] == pytest.approx(np.log(2), abs=1e-3)
