"""The robustness index: closed forms, the slow version, real data, what it refuses, its page, its claim."""

from __future__ import annotations

import json
import re

import numpy as np
import polars as pl
import pytest

from farout import claims
from farout.cards import find
from farout.data import DataMissing
from farout.errors import BadInput, MissingExtra, UnknownName
from farout.inside._performance_drop import correlated
from farout.inside.robustness_index import RobustnessIndex, performance_drop
from farout.report.robustness import write_page
from naive import robustness_index as naive


def crossed(classes, centres, each, seed=0):
    """Labels of a full design in drawn order."""
    rows = np.random.default_rng(seed).permutation(classes * centres * each)
    return rows % classes, rows // classes % centres


def noise(n, d=6, scale=1e-3, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=(n, d))


@pytest.fixture(scope="module")
def mixed():
    """A design with groups of unequal size, and an embedding that holds some of both labels."""
    kind, centre = crossed(3, 2, 12)
    group = np.random.default_rng(3).integers(25, size=len(kind))
    X = 0.6 * np.eye(6)[kind] + 0.6 * np.eye(6)[3 + centre] + noise(len(kind), scale=0.5)
    return X, kind, centre, group


@pytest.mark.parametrize("centres", [2, 4])
def test_an_embedding_of_the_class_has_share_1_and_as_many_times_more_class_as_centres(centres):
    kind, centre = crossed(2, centres, 400 // centres)
    found = RobustnessIndex(k=99).measure(np.eye(6)[kind] + noise(len(kind)), kind, centre)
    assert found.share == 1.0
    assert found.counts[-1, 2] == found.counts[-1, 3] == 0  # all neighbours have the class
    assert found.index == pytest.approx(centres, rel=0.06)  # and one in so many the centre


def test_an_embedding_of_the_centre_has_share_0_and_its_index_is_one_over_the_classes():
    kind, centre = crossed(4, 2, 100)
    found = RobustnessIndex(k=99).measure(np.eye(6)[centre] + noise(len(kind)), kind, centre)
    assert found.share == 0.0
    assert found.index == pytest.approx(1 / 4, rel=0.06)
    assert found.errors["confounder_accuracy"] == 1.0
    assert found.errors["confounded"] == 1.0 and found.errors["base_rate"] == pytest.approx(0.5)


def test_noise_is_balanced_and_its_errors_come_from_anywhere():
    kind, centre = crossed(2, 2, 500)
    found = RobustnessIndex(k=21).measure(noise(len(kind), 10), kind, centre)
    assert found.index == pytest.approx(1, abs=0.05) and found.share == pytest.approx(0.5, abs=0.03)
    assert found.errors["confounded"] == pytest.approx(found.errors["base_rate"], abs=0.03)
    low, high = found.intervals["index"]
    assert low < 1 < high and high - low < 0.2


def test_classes_that_are_split_by_centre_keep_the_index_near_1_and_take_the_share_to_0():
    kind, centre = crossed(2, 2, 60)
    # rows of a class and centre stand together; the next ones are of the same centre
    X = np.eye(6)[kind] + 2 * np.eye(6)[2 + centre] + noise(len(kind))
    found = RobustnessIndex(k=59, max_k=100).measure(X, kind, centre)
    assert (found.index, found.counts[58].tolist()) == (1.0, [240 * 59, 0, 0, 0])
    assert np.isnan(found.share)  # no neighbour yet that shares one of the two
    assert found.share_curve[99] == 0.0


def test_it_is_the_slow_version(mixed):
    X, kind, centre, group = mixed
    for groups in (None, group):
        own = np.arange(len(X)) if groups is None else groups
        found = RobustnessIndex(k=7, max_k=11, design="all").measure(X, kind, centre, groups)
        for k in (1, 4, 7, 11):
            assert found.counts[k - 1].tolist() == naive.counts(X, kind, centre, own, k)
        for place, k in enumerate(found.ks):
            assert found.accuracy[place] == pytest.approx(naive.balanced_accuracy(kind, own, X, k))
            assert found.confounder_accuracy[place] == pytest.approx(naive.balanced_accuracy(centre, own, X, k))
            same, expected = naive.errors(X, kind, centre, own, k)
            assert found.confounded[place] == pytest.approx(same)
            assert found.base_rate[place] == pytest.approx(expected)
        ss, so, os, _ = naive.counts(X, kind, centre, own, 7)
        assert (found.index, found.share) == pytest.approx(((ss + so) / (ss + os), so / (so + os)))
        assert found.by_group.sum(axis=0).tolist() == found.counts[6].tolist()


def test_all_neighbours_are_counted_and_a_rotation_or_a_scale_changes_nothing(mixed):
    X, kind, centre, group = mixed
    measure = RobustnessIndex(k=9, max_k=21)
    found = measure.measure(X, kind, centre, group)
    assert (found.counts.sum(axis=1) == len(X) * np.arange(1, 22)).all()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    scales = np.exp(np.random.default_rng(1).normal(size=(len(X), 1)))
    for other in (X @ turn, X * scales, X * 1e200):
        assert (measure.measure(other, kind, centre, group).counts == found.counts).all()


def test_blocks_of_rows_give_what_the_whole_gives(mixed, monkeypatch):
    X, kind, centre, group = mixed
    whole = RobustnessIndex().measure(X, kind, centre, group)
    monkeypatch.setattr("farout.inside._neighbour_labels.CELLS", 500)
    assert (RobustnessIndex().measure(X, kind, centre, group).counts == whole.counts).all()


def test_copies_within_a_group_make_the_index_look_good_until_they_are_left_out():
    kind, centre = crossed(2, 2, 30)
    X = noise(len(kind), 8, scale=1.0)
    X, kind, centre, slide = (np.repeat(a, 5, axis=0) for a in (X, kind, centre, np.arange(len(kind))))
    X = X + noise(len(X), 8)
    naive_accuracy = RobustnessIndex(k=3).measure(X, kind, centre).errors["accuracy"]
    honest = RobustnessIndex(k=3).measure(X, kind, centre, slide)
    assert naive_accuracy == 1.0
    assert honest.errors["accuracy"] < 0.75
    assert len(honest.by_group) == 120  # slides are drawn for intervals, not rows


def test_k_is_the_number_of_neighbours_whose_vote_is_best():
    kind, centre = crossed(2, 2, 20)
    X = np.c_[1.5 * kind - 0.75, np.zeros((len(kind), 2))] + noise(len(kind), 3, scale=1.0)
    found = RobustnessIndex(max_k=21).measure(X, kind, centre)
    right = {k: naive.balanced_accuracy(kind, np.arange(len(kind)), X, k) for k in (1, 3, 5, 7, 9, 11, 21)}
    assert found.ks.tolist() == list(right)
    assert found.k == max(right, key=right.get) > 1
    assert found.index == found.index_curve[found.k - 1]


def test_balanced_draws_as_many_of_each_cell():
    kind, centre = crossed(2, 3, 20)
    keep = np.ones(len(kind), bool)
    keep[np.flatnonzero((kind == 0) & (centre == 1))[:13]] = False
    kind, centre = kind[keep], centre[keep]
    found = RobustnessIndex(k=3).measure(noise(len(kind)), kind, centre)
    cells = {tuple(cell) for cell in np.c_[found.labels, found.confounders]}
    assert len(cells) == 6
    assert {((found.labels == b) & (found.confounders == c)).sum() for b, c in cells} == {7}
    assert len(RobustnessIndex(k=3, design="all").measure(noise(len(kind)), kind, centre).labels) == len(kind)


def test_pairs_pool_the_tables_of_two_by_two_that_are_whole():
    kind, centre = crossed(3, 3, 10)
    keep = ~((kind == 2) & (centre == 0))
    X, kind, centre = noise(keep.sum(), 4, scale=1.0), kind[keep], centre[keep]
    with pytest.raises(BadInput, match="1 of 9 pairs of a class and a confounder do not occur"):
        RobustnessIndex().measure(X, kind, centre)
    found = RobustnessIndex(k=5, max_k=9, design="pairs").measure(X, kind, centre)
    total = np.zeros(4, int)
    for few in ((0, 1), (0, 2), (1, 2)):
        for two in ((0, 1), (0, 2), (1, 2)):
            if 2 in few and 0 in two:
                continue
            rows = np.isin(kind, few) & np.isin(centre, two)
            total += naive.counts(X[rows], kind[rows], centre[rows], np.arange(rows.sum()), 5)
    assert found.counts[4].tolist() == total.tolist()


def test_the_k_of_pairs_is_the_median_of_what_is_best_for_each():
    kind, centre = crossed(3, 2, 12)
    X = np.eye(3)[kind] + noise(len(kind), 3, scale=0.8, seed=5)
    best = []
    for few in ((0, 1), (0, 2), (1, 2)):
        rows = np.isin(kind, few)
        best.append(RobustnessIndex(design="all", max_k=21).measure(X[rows], kind[rows], centre[rows]).k)
    found = RobustnessIndex(design="pairs", max_k=21).measure(X, kind, centre)
    assert len(set(best)) > 1 and found.k == np.median(best)


def test_labels_may_be_words_numbers_or_both():
    kind, centre = crossed(2, 2, 10)
    X = noise(len(kind))
    plain = RobustnessIndex(k=3).measure(X, kind, centre).counts.tolist()
    for labels in (kind == 1, kind.astype(float), np.array([1, "b"], dtype=object)[kind], pl.Series(kind)):
        assert RobustnessIndex(k=3).measure(X, labels, centre).counts.tolist() == plain


def test_intervals_are_those_of_drawing_groups_again(mixed):
    X, kind, centre, group = mixed
    found = RobustnessIndex(k=5, design="all", draws=400).measure(X, kind, centre, group)
    rng = np.random.default_rng(99)
    drawn = [
        found.by_group[rng.integers(len(found.by_group), size=len(found.by_group))].sum(axis=0) for _ in range(4000)
    ]
    index = [(ss + so) / (ss + os) for ss, so, os, _ in drawn]
    low, high = found.intervals["index"]
    assert low < found.index < high
    assert (low, high) == pytest.approx(np.quantile(index, (0.025, 0.975)), abs=0.03)


def test_on_digits_the_index_falls_with_a_shift_of_each_centre_and_rises_when_it_is_taken_away():
    from sklearn.datasets import load_digits

    images, kind = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    centre = rng.integers(4, size=len(kind))
    shifts = rng.normal(size=(4, 64)) * images.std()

    def measured(X):
        found = RobustnessIndex(k=20).measure(X, kind, centre)
        return found.index, found.share

    plain, far = measured(images), measured(images + 2 * shifts[centre])
    shifted = images + 2 * shifts[centre]
    means = np.stack([shifted[centre == c].mean(axis=0) for c in range(4)])
    mended = measured(shifted - means[centre] + shifted.mean(axis=0))
    assert plain[0] > 3.3 and plain[1] > 0.96
    assert far[0] < 0.9 and far[1] < 0.02
    assert mended[0] > 3.0 and mended[1] > 0.9


def test_frames_name_their_labels(mixed):
    X, kind, centre, group = mixed
    frame = pl.DataFrame(X).with_columns(kind=pl.Series(kind), centre=pl.Series(centre).cast(pl.String), slide=group)
    arrays = RobustnessIndex(k=5).measure(X, kind, centre, group)
    for table in (frame, frame.to_pandas()):
        named = RobustnessIndex(k=5).measure(table, "kind", "centre", "slide")
        assert (named.counts == arrays.counts).all()
    assert set(named.labels) == {"0", "1", "2"}


def test_what_cannot_be_measured_is_refused_by_name(mixed):
    X, kind, centre, _ = mixed
    frame = pl.DataFrame(X)
    bad = X.copy()
    bad[4, 0] = np.nan
    zero = X.copy()
    zero[7] = 0
    for problem, message in [
        ((bad, kind, centre), "row 4 of the embedding is not finite"),
        ((zero, kind, centre), "row 7 of the embedding is zero"),
        ((X, kind[:-1], centre), "'wanted' has labels of shape (71,) for 72 rows"),
        ((X, kind[:, None], centre), "'wanted' has labels of shape (72, 1) for 72 rows"),
        ((X, np.array(["a", None] * 36, dtype=object), centre), "'wanted' is missing in row 1"),
        ((X[:0], kind[:0], centre[:0]), "no rows"),
        ((X, kind, np.where(np.arange(72) == 3, np.nan, centre)), "'confounder' is missing in row 3"),
        ((X, kind, np.zeros(72)), "two classes and two confounders are needed, not 3 and 1"),
        ((X, kind, centre, np.zeros(72)), "0 neighbours outside of their group"),
        ((frame.with_columns(word=pl.lit("a")), kind, centre), "column 'word' is not"),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)):
            RobustnessIndex().measure(*problem)
    with pytest.raises(BadInput, match="k is 80"):
        RobustnessIndex(k=80).measure(X, kind, centre)
    with pytest.raises(BadInput, match="at least 1, not 0"):
        RobustnessIndex(k=0).measure(X, kind, centre)
    with pytest.raises(BadInput, match="no two classes"):
        RobustnessIndex(design="pairs").measure(X, kind, kind)
    with pytest.raises(UnknownName, match="'balanced'"):
        RobustnessIndex(design="balance").measure(X, kind, centre)
    with pytest.raises(UnknownName, match="no column is called 'centre'"):
        RobustnessIndex().measure(frame, kind, "centre")


@pytest.mark.parametrize("degree", [0.0, 0.5, 1.0])
def test_training_rows_have_the_correlation_that_was_asked_for(degree):
    cells = np.arange(4 * 2 * 40).reshape(4, 2, 40)
    rows = correlated(cells, np.array([0, 1, 1, 0]), degree)
    assert len(np.unique(rows)) == len(rows) == 4 * 40
    table = np.zeros((4, 2))
    np.add.at(table, (rows // 80, rows // 40 % 2), 1)
    assert (table.sum(axis=1) == 40).all() and (table.sum(axis=0) == 80).all()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    assert np.sqrt(chi2 / table.sum()) == pytest.approx(degree)  # Cramer's V of a table with two columns


def test_a_classifier_pays_for_the_confounder_only_where_the_embedding_holds_it():
    kind, centre = crossed(2, 2, 150)
    signal = np.c_[kind * 1.5] + noise(len(kind), 1, scale=1.0, seed=1)
    deaf = np.hstack([signal, noise(len(kind), 2, scale=1.0, seed=2)])
    hears = np.hstack([signal, 10.0 * centre[:, None]])
    unmoved, _ = performance_drop(deaf, kind, centre)
    paid, accuracies = performance_drop(hears, kind, centre)
    assert abs(unmoved) < 0.03
    assert paid < unmoved - 0.1
    assert accuracies[0] == pytest.approx(0.77, abs=0.06)  # of a threshold between two normals 1.5 apart
    assert accuracies[-1] == pytest.approx(0.5, abs=0.08)  # class and confounder are one in training
    again = performance_drop(hears, kind, centre)
    assert again[0] == paid


def test_a_drop_that_cannot_be_measured_is_refused():
    kind, centre = crossed(3, 2, 4)
    with pytest.raises(BadInput, match="3 classes are no multiple of 2 confounders"):
        performance_drop(noise(24), kind, centre)
    kind, centre = crossed(2, 2, 6)
    with pytest.raises(BadInput, match="degrees begin with 0"):
        performance_drop(noise(24), kind, centre, degrees=(0.5, 1.0))
    with pytest.raises(BadInput, match="occur together in 2 rows"):
        performance_drop(noise(8), *crossed(2, 2, 2))


def figures(html):
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in found]


@pytest.mark.parametrize("view", ["pca", "tsne"])
def test_the_page_colours_one_map_twice_and_draws_the_curve(tmp_path, mixed, view):
    X, kind, centre, group = mixed
    names = np.array(["<b>lung</b>", "liver", "skin"])[kind]
    found = RobustnessIndex(k=7).measure(X, names, centre, group)
    write_page(found, tmp_path / "page.html", name="toy", view=view)
    html = (tmp_path / "page.html").read_text()
    assert f"{found.index:.2f}" in html and "<b>lung" not in html
    by_class, by_centre, curves, *_ = figures(html)
    assert [len(figure["data"]) for figure in (by_class, by_centre)] == [3, 2]
    places = [
        sorted((x, y) for t in figure["data"] for x, y in zip(t["x"], t["y"])) for figure in (by_class, by_centre)
    ]
    assert places[0] == places[1] and len(places[0]) == 72  # the same points, in other colours
    assert curves["data"][0]["y"] == pytest.approx(found.index_curve, abs=1e-3)
    assert curves["data"][1]["y"] == pytest.approx(found.share_curve, abs=1e-3)


def test_of_many_labels_the_rarest_share_a_colour(tmp_path):
    kind = np.concatenate([np.arange(12) % 12] * 8 + [np.arange(9)] * 4)
    found = RobustnessIndex(k=3, design="all").measure(noise(len(kind)), kind, np.arange(len(kind)) // 12 % 2)
    write_page(found, tmp_path / "page.html", view="pca")
    by_class, *_ = figures((tmp_path / "page.html").read_text())
    assert [len(trace["x"]) for trace in by_class["data"]] == [12] * 9 + [24]
    assert by_class["data"][-1]["name"] == "3 others"


def test_a_page_is_written_where_the_share_is_not_defined(tmp_path):
    kind, centre = crossed(2, 2, 20)
    X = np.eye(4)[kind] + 2 * np.eye(4)[2 + centre] + noise(len(kind), 4)
    found = RobustnessIndex(k=3, max_k=15).measure(X, kind, centre)
    assert np.isnan(found.share) and np.isnan(found.errors["confounded"])
    write_page(found, tmp_path / "page.html", view="pca")
    assert "None shares just one of the two" in (tmp_path / "page.html").read_text()


def test_the_first_directions_of_a_map_are_those_of_the_embedding(tmp_path):
    kind, centre = crossed(2, 2, 40)
    X = 5 * np.eye(4)[centre] + np.eye(4)[2 + kind] + noise(160, 4)
    found = RobustnessIndex(k=3).measure(X, kind, centre)
    write_page(found, tmp_path / "page.html", view="pca")
    _, by_centre, *_ = figures((tmp_path / "page.html").read_text())
    first, second = (np.sign(trace["x"]) for trace in by_centre["data"])
    assert set(first) == {-1.0 * second[0]} and set(second) == {second[0]}
    with pytest.raises(UnknownName, match="'umap'"):
        write_page(found, tmp_path / "page.html", view="umap")


def test_the_card_says_that_it_measures():
    card = find("robustness_index")
    assert (card.kind, card.room, card.load()) == ("measure", "inside", RobustnessIndex)


def test_the_claim_runs_in_small():
    try:
        found = claims.run("robustness_index")
    except (DataMissing, MissingExtra) as error:
        pytest.skip(str(error))
    assert len(found.numbers["Embeddings at full strength"]) == 10
    assert all(-1 <= row["drop"] < 0.5 for row in found.numbers["By seed"])
    assert -1 <= found.ours <= 1
