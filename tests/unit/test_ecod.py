"""ECOD against its definition, against PyOD, and against the exact properties that follow from the definition."""

from __future__ import annotations

import functools
import time

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

import farout
from farout.data import DataMissing
from farout.data import load as load_data
from farout.errors import BadInput, NotFitted
from farout.kit.sketch import RankTable
from farout.table import ECOD
from naive.ecod import ecod as naive_ecod

RULES = ["paper", "per_dimension"]


def mixed(n=50, seed=0):
    """Columns of every sort: symmetric, skewed both ways, tied, constant, partly and wholly missing, infinite."""
    r = np.random.default_rng(seed)
    x = r.normal(size=n)
    gaps = np.where(r.random(n) < 0.3, np.nan, r.gamma(2, size=n))
    ends = r.normal(size=n)
    ends[:3] = [np.inf, -np.inf, np.inf]
    tied = r.integers(0, 4, n).astype(float)
    return np.column_stack(
        (x, r.exponential(size=n), -r.exponential(size=n), tied, np.full(n, 7.0), gaps, ends, gaps * np.nan)
    )


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_definition(rule):
    X = mixed()
    made = ECOD(rule)
    assert made.fit_score(X) == pytest.approx(naive_ecod(X.tolist(), X.tolist(), rule), rel=1e-12)
    new = np.vstack((mixed(seed=1), np.full((1, 8), -1e9), np.full((1, 8), 1e9), np.full((1, 8), np.nan)))
    assert made.outlier_score(new) == pytest.approx(naive_ecod(new.tolist(), X.tolist(), rule), rel=1e-12)


@pytest.mark.parametrize("name", ["cardio", "wine", "thyroid", "breastw", "pendigits", "a tied table"])
def test_the_rule_per_dimension_equals_pyod(name):
    pyod = pytest.importorskip("pyod.models.ecod", reason="needs PyOD")
    if name == "a tied table":
        X = np.random.default_rng(0).poisson([1, 3, 8], size=(400, 3)).astype(float)
    else:
        try:
            X = load_data(f"adbench/{name}").X
        except DataMissing as error:
            pytest.skip(str(error))
        X = np.asarray(X, float)
    theirs = pyod.ECOD().fit(X).decision_scores_
    np.testing.assert_allclose(ECOD("per_dimension").fit_score(X), theirs, rtol=0, atol=1e-10 * X.shape[1])
    assert (ECOD().fit_score(X) <= theirs + 1e-9).all()  # a maximum of sums is no more than the sum of maxima


def test_the_two_rules_are_different_detectors():
    X = np.random.default_rng(2).gamma(1.0, size=(500, 6))
    assert spearmanr(ECOD().fit_score(X), ECOD("per_dimension").fit_score(X))[0] < 0.95


def test_distinct_values_get_the_closed_form_and_the_extremes_log_n():
    n = 101
    x = np.random.default_rng(3).permutation(np.exp(np.linspace(0, 3, n)))
    k = np.argsort(np.argsort(x)) + 1
    expected = -np.log(np.minimum(k, n + 1 - k) / n)
    for rule in RULES:  # with one column both rules are the same
        np.testing.assert_allclose(ECOD(rule).fit_score(x[:, None]), expected, atol=1e-12)
    assert expected.max() == pytest.approx(np.log(n))


def test_monotone_transforms_leave_the_scores():
    X = np.random.default_rng(4).gamma(2.0, size=(200, 4))
    scores = ECOD("per_dimension").fit_score(X)
    assert np.array_equal(ECOD("per_dimension").fit_score(np.log(X) * 3 + 1), scores)
    assert np.array_equal(ECOD("per_dimension").fit_score(1 / X), scores)  # decreasing: the tails change sides
    assert np.array_equal(ECOD().fit_score(2 * X - 5), ECOD().fit_score(X))
    np.testing.assert_allclose(ECOD().fit_score(-X), ECOD().fit_score(X), rtol=1e-12)


def test_columns_add_up():
    X = mixed()[:, :4]
    alone = sum(ECOD("per_dimension").fit_score(X[:, [j]]) for j in range(4))
    np.testing.assert_allclose(ECOD("per_dimension").fit_score(X), alone, rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_reasons_add_up_to_the_score(rule):
    X = mixed()
    made = ECOD(rule).fit(X)
    reasons = made.reasons(X)
    assert reasons.shape == X.shape and (reasons >= 0).all()
    np.testing.assert_allclose(reasons.sum(axis=1), made.outlier_score(X), rtol=1e-12)
    assert (reasons[:, [4, 7]] == 0).all()  # a constant column and an empty one say nothing


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("d", [3, 8, 41])
def test_training_rows_get_their_scores_again_bit_for_bit_with_any_threads(rule, d):
    r = np.random.default_rng(5)
    X = r.normal(size=(5000, d)).round(2)
    X[r.random(X.shape) < 0.1] = np.nan
    made = ECOD(rule)
    scores = made.fit_score(X)
    assert np.array_equal(made.outlier_score(X), scores)
    assert np.array_equal(ECOD(rule, n_jobs=3).fit_score(X), scores)
    assert np.array_equal(made.set_params(n_jobs=2).outlier_score(X), scores)
    assert np.array_equal(ECOD(rule).fit_score(np.asfortranarray(X)), scores)


def test_a_new_row_beyond_the_training_rows_has_the_tail_one_in_n_plus_one():
    X = np.arange(1.0, 100.0)[:, None] ** 2
    made = ECOD().fit(X)
    assert made.outlier_score([[-1.0], [1e9]]) == pytest.approx([np.log(100), np.log(100)], abs=1e-12)
    assert made.outlier_score([[9801.0]]) == pytest.approx([np.log(99)], abs=1e-12)


def test_a_row_does_not_depend_on_the_others_of_the_call():
    made, new = ECOD().fit(mixed()), mixed(5000, seed=6)  # many rows take another path than few
    together = made.outlier_score(new)
    for rows in ([0], [17, 3], np.arange(100, 200)):
        assert np.array_equal(made.outlier_score(new[rows]), together[rows])


def test_a_missing_cell_has_the_mean_part_of_its_column():
    X = np.random.default_rng(7).exponential(size=(300, 3))
    made = ECOD().fit(X)
    left = [-np.log(np.arange(1, 301) / 300).mean()] * 3
    assert made.outlier_score(np.full((1, 3), np.nan)) == pytest.approx([sum(left)], rel=1e-12)
    gaps = X.copy()
    gaps[:100, 0] = np.nan
    made = ECOD().fit(gaps)
    assert made.reasons(gaps)[0, 0] == pytest.approx(-np.log(np.arange(1, 201) / 200).mean(), rel=1e-12)


def test_a_missing_cell_has_the_mean_part_of_a_sketched_column():
    # kept values crowd at the ends, so a plain mean over them would be far too large
    X = np.random.default_rng(8).normal(size=(20_000, 1))
    exact, sketched = ECOD().fit(X), ECOD(sketch=0.05).fit(X)
    gap = np.full((1, 1), np.nan)
    assert sketched.outlier_score(gap) == pytest.approx(exact.outlier_score(gap), abs=0.05)


@pytest.mark.parametrize("rule", RULES)
def test_a_category_counts_by_how_rare_its_level_is(rule):
    frame = pl.DataFrame({"c": ["a"] * 6 + ["b"] * 3 + ["z"] * 1 + [None]})
    made = ECOD(rule)
    scores = made.fit_score(frame)
    entropy = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1))
    assert scores[[0, 6, 9, 10]] == pytest.approx([-np.log(0.6), -np.log(0.3), -np.log(0.1), entropy], abs=1e-12)
    assert made.outlier_score(pl.DataFrame({"c": ["new"]})) == pytest.approx([np.log(11)], abs=1e-12)


def table_of(n, seed):
    r = np.random.default_rng(seed)
    level = r.choice(["a", "b", "c", None], n).tolist()
    return pl.DataFrame({"x": r.normal(size=n), "e": r.exponential(size=n), "k": r.integers(0, 5, n), "c": level})


@pytest.mark.parametrize("chunk", [1, 7, 16])
@pytest.mark.parametrize("sketch", [0.0, 0.02])
def test_pieces_equal_the_whole(chunk, sketch):
    frame, new = table_of(200 if chunk == 1 else 3000, 8), table_of(500, 9)
    whole, pieces = ECOD().fit(frame), ECOD(sketch=sketch)
    for start in range(0, frame.height, chunk):
        pieces.partial_fit(frame.slice(start, chunk))
    got, expected = pieces.outlier_score(new), whole.outlier_score(new)
    if sketch == 0:
        assert np.array_equal(got, expected)
        assert np.array_equal(pieces.reasons(new), whole.reasons(new))
    else:
        depth = max(t.depth for t in pieces.profile_.columns if isinstance(t, RankTable))
        assert depth <= 2 + np.log2(frame.height / chunk)
        # the median lies between kept ranks; a kept value's tail can also fall to 1 / (n + 1)
        assert np.abs(got - expected).max() <= max(depth, 1) * sketch * 3
    assert pieces.predict(new).shape == (500,)


@pytest.mark.parametrize("sketch", [0.0, 0.02])
def test_states_of_partitions_merge(sketch):
    frame, new = table_of(4000, 10), table_of(500, 11)
    whole = ECOD().fit(frame)
    states = [ECOD(sketch=sketch).partial_fit(frame.slice(start, 500)) for start in range(0, 4000, 500)]
    for order in (states, states[::-1]):
        copies = [farout.contract.from_state(farout.contract.state_of(state)) for state in order]
        for copy in copies:
            copy._ladder = list(copy._ladder)
        made = functools.reduce(lambda a, b: a.merge(b), copies)
        assert made.profile_.n == 4000
        assert np.abs(made.outlier_score(new) - whole.outlier_score(new)).max() <= 6 * sketch * 3
    with pytest.raises(BadInput, match="columns and sketch"):
        ECOD(sketch=0.1).partial_fit(frame).merge(states[0])


def test_fit_forgets_what_came_before_and_partial_fit_does_not():
    one, other = table_of(100, 12), table_of(150, 13)
    made = ECOD().partial_fit(other).fit(one)
    assert np.array_equal(made.outlier_score(one), ECOD().fit(one).outlier_score(one))
    assert made.partial_fit(other).profile_.n == 250
    assert np.array_equal(made.outlier_score(one), ECOD().fit(pl.concat((one, other))).outlier_score(one))


def test_predict_marks_one_percent_of_the_training_rows_also_after_pieces():
    X = np.random.default_rng(14).normal(size=(2000, 3))
    assert (ECOD().fit(X).predict(X) == -1).sum() == 20
    pieces = ECOD().partial_fit(X[:900]).partial_fit(X[900:])
    assert pieces.offset_ == ECOD().fit(X).offset_  # fewer rows than the sample holds


def test_values_near_the_end_of_the_floats_do_not_break_it():
    X = np.array([[1.7e308], [-1.7e308], [1e308], [5e-324], [0.0]])
    assert np.isfinite(ECOD().fit_score(X)).all()
    assert ECOD("per_dimension").fit_score(X)[0] == pytest.approx(np.log(5))


def test_save_and_load(tmp_path):
    frame, new = table_of(300, 15), table_of(50, 16)
    made = ECOD("per_dimension", sketch=0.01).fit(frame)
    made.save(tmp_path / "s.farout")
    again = farout.load(tmp_path / "s.farout")
    assert again.get_params() == made.get_params()
    assert np.array_equal(again.outlier_score(new), made.outlier_score(new))
    assert np.array_equal(again.predict(new), made.predict(new))
    assert again.partial_fit(new).profile_.n == 350


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_errors_name_what_is_wrong():
    X = np.zeros((5, 2)) + np.arange(5)[:, None]
    with pytest.raises(BadInput, match="'paper' or 'per_dimension', not 'mean'"):
        ECOD("mean").fit(X)
    with pytest.raises(BadInput, match=r"\[0, 0.5\), not 0.7"):
        ECOD(sketch=0.7).fit(X)
    with pytest.raises(NotFitted, match="'ECOD' is not fitted yet"):
        ECOD().outlier_score(X)
    with pytest.raises(ValueError, match="features"):
        ECOD().fit(X).outlier_score(X[:, :1])
    with pytest.raises(BadInput, match="'x1' is no number, but 'ECOD' was fitted on an array"):
        ECOD().fit(X).outlier_score(pl.DataFrame({"x0": [1.0], "x1": ["a"]}))


def test_work_grows_no_faster_than_a_sort():
    def seconds(n):
        X = np.random.default_rng(0).normal(size=(n, 4))
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            ECOD().fit_score(X)
            best = min(best, time.process_time() - start)
        return best

    seconds(10_000)  # loads what is loaded once
    assert seconds(160_000) / seconds(20_000) < 24  # 9.7 by the card; 64 if something were quadratic
