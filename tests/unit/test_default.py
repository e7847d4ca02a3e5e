"""The default for tables: tails in closed form, views against slow versions, and what each view must see."""

import re

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from farout.errors import BadInput
from farout.table import Default
from farout.table._halvings import Halvings, _predicted
from farout.table._trees import Trees, short
from farout.table.default import Tail


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def tied(n, seed=0):
    """Three columns of which the third is the sum of the others."""
    X = normal(n, 3, seed)
    X[:, 2] = X[:, 0] + X[:, 1] + 0.01 * X[:, 2]
    return X


class TestTail:
    def test_it_is_the_share_of_values_at_least_as_large(self):
        tail = Tail(np.arange(10.0))
        shares = [10.5 / 11, 10 / 11, 1 / 11, 9.5 / 11]  # a tie counts half
        assert tail(np.array([-1.0, 0.0, 9.0, 0.5])) == pytest.approx(-np.log(shares), abs=1e-12)

    def test_beyond_the_largest_value_it_is_a_straight_line(self):
        tail = Tail(np.arange(10.0))  # median 4.5, ninth decile 8.1
        far = tail(np.array([9.0 + 1e-9, 9.0 + 3.6, 9.0 + 7.2]))
        assert np.diff(far) == pytest.approx(np.log(5), abs=1e-6)
        assert far[0] == pytest.approx(np.log(22), abs=1e-6)

    def test_it_never_falls(self):
        values = np.sort(np.random.default_rng(0).choice(50, 200).astype(float))
        assert (np.diff(Tail(values)(np.linspace(-5, 80, 3000))) >= 0).all()

    def test_constant_training_values(self):
        assert np.isfinite(Tail(np.zeros(5))(np.array([0.0, 1.0]))).all()


class TestHalvings:
    def test_a_forest_predicts_what_scikit_learn_predicts(self):
        X = tied(300)
        grown = ExtraTreesRegressor(4, random_state=0).fit(short(X[:, :2]), X[:, [2, 0]])
        trees = [tree.tree_ for tree in grown.estimators_]
        values = np.concatenate([tree.value[tree.children_left == -1, :, 0] for tree in trees]).astype(np.float32)
        new = short(normal(50, 2, 1))
        assert _predicted(Trees.of(trees, 2), values, new) == pytest.approx(grown.predict(new), abs=1e-5)

    def test_the_trees_are_those_of_scikit_learns_forest(self):
        X = tied(200)
        halving = Halvings.grow(X, np.arange(3), 1, 4, 1000, seed=3, n_jobs=None)[0].members[0]
        rng = np.random.default_rng(np.random.SeedSequence(3).spawn(1)[0])
        rng.permutation(3)
        side = rng.permutation(200) % 2
        for forest in (0, 1):
            some = side != forest
            wanted = X[:, halving.outputs]
            grown = ExtraTreesRegressor(4, random_state=int(rng.integers(2**31)))
            scaled = wanted[some] / wanted.std(axis=0)
            grown.fit(short(X[:, halving.inputs])[some], scaled if len(halving.outputs) > 1 else scaled[:, 0])
            expected = grown.predict(short(X[:, halving.inputs])).reshape(200, -1) * wanted.std(axis=0)
            np.testing.assert_allclose(halving.guess(X)[forest], expected, atol=1e-5)

    def test_training_rows_are_judged_by_the_forest_that_has_not_seen_them(self):
        X = normal(400, 4)  # nothing to learn: a forest that has seen a row repeats it, one that has not cannot
        halvings, _ = Halvings.grow(X, np.arange(4), 1, 1, 1000, seed=0, n_jobs=None)
        halving = halvings.members[0]
        sides = [halving.squared(X, np.full(400, forest)).sum(axis=1) for forest in (0, 1)]
        knows = np.minimum(*sides) < 1e-9
        assert knows.all()
        strange = np.maximum(*sides)
        assert strange.mean() > 1.5 * len(halving.outputs)  # two independent draws differ by a variance of 2

    def test_the_surprise_is_zero_for_no_error_and_log_two_for_the_usual_one(self):
        X = tied(200)
        halvings, surprise = Halvings.grow(X, np.arange(3), 6, 3, 1000, seed=0, n_jobs=None)
        halving = halvings.members[0]
        told = ~np.isnan(halving.usual)
        squared = halving.squared(X[:7], None)
        expected = np.log(1 + squared[:, told] / halving.usual[told])
        assert halving.surprise(X[:7])[:, told] == pytest.approx(expected, rel=1e-12)
        assert (halving.surprise(X[:7])[:, ~told] == 0).all()
        assert surprise.shape == X.shape and (surprise >= 0).all()

    def test_the_mean_is_over_the_halvings_that_predict_a_feature(self):
        X = tied(100)
        halvings, _ = Halvings.grow(X, np.arange(3), 5, 2, 1000, seed=1, n_jobs=None)
        total, times = np.zeros((100, 3)), np.zeros(3)
        for member in halvings.members:
            total += member.surprise(X)
            times += ~np.isnan(member.usual)
        assert halvings.surprise(X, None) == pytest.approx(total / np.maximum(times, 1), rel=1e-12)

    def test_columns_of_one_feature_stay_together(self):
        owner = np.array([0, 1, 1, 1, 2, 3])
        halvings, surprise = Halvings.grow(normal(80, 6), owner, 10, 2, 1000, seed=0, n_jobs=None)
        for member in halvings.members:
            assert not set(owner[member.inputs]) & set(member.owner)
            assert set(member.owner) | set(owner[member.inputs]) == {0, 1, 2, 3}
        assert surprise.shape == (80, 4)


def slow_views(detector, X):
    """Both views of new rows, one by one."""
    rows = detector.neighbours_.rows
    distances = np.sort(np.linalg.norm(X[:, None] - rows, axis=2), axis=1)[:, detector.n_neighbors_ - 1]
    surprise = np.array([detector.halvings_.surprise(row[None], None).sum() for row in X])
    return distances, surprise


@pytest.mark.parametrize("novelty", [False, True])
def test_the_score_is_the_mean_of_two_tails(novelty):
    detector = Default(novelty=novelty, random_state=0).fit(tied(150))
    X = tied(20, seed=1) * 1.5
    views = slow_views(detector, detector.encoder_.transform(detector._features(X, reset=False)))
    expected = [(detector.tails_[0](a) + detector.tails_[1](b)) / 2 for a, b in zip(*views)]
    assert detector.outlier_score(X) == pytest.approx(expected, rel=1e-9)


def test_how_many_neighbours():
    X = normal(120, 2)
    assert Default(random_state=0).fit(X).n_neighbors_ == 12
    assert Default(random_state=0).fit(X[:20]).n_neighbors_ == 5
    assert Default(novelty=True, random_state=0).fit(X).n_neighbors_ == 1


def test_training_rows_are_not_their_own_neighbours():
    X = normal(100, 2)
    X[3] = [9.0, -9.0]
    scores = Default(novelty=True, random_state=0).fit_score(X)
    assert scores.argmax() == 3 and scores[3] > np.sort(scores)[-2] + 1


def test_a_broken_tie_between_usual_values_is_found_and_named():
    X = tied(600)
    row = np.array([[1.5, 1.5, -1.5]])  # each value is usual, the sum is not
    for novelty in (False, True):
        detector = Default(novelty=novelty, random_state=0).fit(X)
        alone = [np.mean(np.abs(X[:, j]) >= 1.5) for j in range(3)]
        assert min(alone) > 0.1
        assert detector.outlier_score(row)[0] > np.quantile(detector.outlier_score(tied(500, 2)), 0.99)


def test_a_crowd_of_outliers_does_not_hide_itself():
    X = normal(500, 4)
    X[:25] = 6 + 0.01 * X[:25]
    crowd = np.arange(500) < 25
    careful = Default(random_state=0).fit_score(X)
    trusting = Default(novelty=True, random_state=0).fit_score(X)
    assert careful[crowd].min() > careful[~crowd].max()
    assert trusting[crowd].min() < np.median(trusting[~crowd])


def test_reasons_add_up_to_the_score():
    for novelty in (False, True):
        detector = Default(novelty=novelty, random_state=0).fit(tied(200))
        X = tied(50, seed=3) * 2
        assert detector.reasons(X).sum(axis=1) == pytest.approx(detector.outlier_score(X), rel=1e-9)


def test_reasons_point_at_the_value_that_is_far_out():
    detector = Default(novelty=True, random_state=0).fit(normal(300, 5))
    odd = np.zeros((5, 5)) + 12 * np.eye(5)
    assert (detector.reasons(odd).argmax(axis=1) == np.arange(5)).all()


def test_larger_tables_are_learned_from_a_sample():
    X = normal(500, 3)
    detector = Default(max_rows=100, random_state=0)
    scores = detector.fit_score(X)
    rows = {tuple(row) for row in detector.neighbours_.rows}
    matrix = detector.encoder_.transform(detector._features(X, reset=False))
    outside = np.array([tuple(row) not in rows for row in matrix])
    assert outside.sum() == 400
    np.testing.assert_allclose(scores[outside], detector.outlier_score(X[outside]), rtol=1e-12)


def test_a_value_that_was_constant_is_surprising_when_it_changes():
    X = np.column_stack([normal(200, 2), np.full(200, 3.0)])
    detector = Default(novelty=True, random_state=0).fit(X)
    row = np.array([[0.1, 0.1, 3.0]])
    assert detector.outlier_score(row + np.array([0, 0, 1]))[0] > detector.outlier_score(row)[0] + 2


def test_levels_that_do_not_go_together():
    town = np.array(["Oslo", "Lima"] * 150)
    country = np.where(town == "Oslo", "Norway", "Peru")
    frame = pl.DataFrame({"town": town, "country": country, "x": normal(300, 1)[:, 0]})
    detector = Default(novelty=True, random_state=0).fit(frame)
    odd = frame[:1].with_columns(country=pl.lit("Peru"))
    assert detector.outlier_score(odd)[0] > detector.outlier_score(frame[1:]).max()
    assert detector.reasons(odd)[0].argmax() in (0, 1)


@pytest.mark.parametrize("wrong", [{"max_rows": 1}, {"halvings": 0}, {"n_trees": 0}])
def test_parameters_out_of_range(wrong):
    with pytest.raises(BadInput, match="at least"):
        Default(**wrong).fit(normal(20, 2))


def test_words_say_what_the_other_columns_let_expect():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 10, 400)
    town = np.array(["Oslo", "Lima"] * 200)
    country = np.where(town == "Oslo", "Norway", "Peru")
    frame = pl.DataFrame({"x": x, "y": 3 * x + rng.normal(size=400), "town": town, "country": country})
    detector = Default(novelty=True, random_state=0).fit(frame)
    odd = pl.DataFrame({"x": [5.0, 5.0], "y": [28.0, 15.0], "town": ["Oslo"] * 2, "country": ["Norway", "Peru"]})
    numbers, levels = (" ".join(words) for words in detector.words(odd))
    found = re.search(r"y = 28: above .* %.* of rows, other columns say ([\d.]+)", numbers)
    assert found and float(found[1]) < 24
    assert "country = Peru: in 50 % of rows (200), other columns say Norway" in levels


def test_words_of_a_value_beyond_all_others():
    detector = Default(novelty=True, random_state=0).fit(pl.DataFrame({"a": normal(50, 1)[:, 0]}))
    assert detector.words(pl.DataFrame({"a": [99.0]})) == [["a = 99: above every row seen"]]


def test_infinite_values_are_far_out_and_stay_on_their_side():
    X = normal(200, 2)
    detector = Default(random_state=0).fit(np.vstack([X, [[np.inf, 0.0]]]))
    scores = detector.outlier_score([[np.inf, 0.0], [-np.inf, 0.0], [0.0, 0.0]])
    assert np.isfinite(scores).all() and scores[:2].min() > scores[2] + 2
    assert detector.words(np.array([[-np.inf, 0.0]]))[0][0].startswith("x0 = -inf: below every row seen")


def test_what_is_expected_is_told_to_three_digits_and_zero_as_zero():
    X = np.column_stack([np.zeros(100), normal(100, 2)])
    X[:2, 0] = 1.0
    detector = Default(novelty=True, random_state=0).fit(X)
    assert detector._shown(0, np.array([-detector.encoder_.means[0] / detector.encoder_.scales[0] + 1e-9, 0, 0])) == "0"
    assert (
        detector._shown(1, np.array([0, (1234.56 - detector.encoder_.means[1]) / detector.encoder_.scales[1], 0]))
        == "1,230"
    )
