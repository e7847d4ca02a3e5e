from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as referee

from farout.bench.metrics import (
    auroc,
    average_precision,
    bootstrap_ci,
    detection_accuracy,
    fpr_at_tpr,
    normalized_ap,
    ood_metrics,
    partial_auroc,
    precision_at_n,
)
from farout.errors import BadInput

METRICS = [
    detection_accuracy,
    auroc,
    average_precision,
    normalized_ap,
    fpr_at_tpr,
    precision_at_n,
    lambda y, s: partial_auroc(y, s, 0.3),
]


@st.composite
def rankings(draw, most=25):
    """Labels of both classes, and scores with few distinct values, so that ties abound within and across classes."""
    label = draw(st.lists(st.integers(0, 1), min_size=2, max_size=most).filter(lambda y: 0 < sum(y) < len(y)))
    score = draw(st.lists(st.integers(-3, 4), min_size=len(label), max_size=len(label)))
    return np.array(label), np.array(score, dtype=float)


def at_thresholds(label, score):
    """(tpr, fpr, precision) of flagging every row at or above each distinct score, from the highest down."""
    for threshold in sorted(set(score), reverse=True):
        flagged = score >= threshold
        yield label[flagged].sum() / label.sum(), (1 - label)[flagged].sum() / (1 - label).sum(), label[flagged].mean()


@given(rankings())
def test_auroc_is_the_share_of_pairs_ranked_right(ranking):
    label, score = ranking
    gap = score[label == 1][:, None] - score[label == 0]
    assert auroc(label, score) == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean(), abs=1e-12)
    assert auroc(label, score) == pytest.approx(referee.roc_auc_score(label, score), abs=1e-12)


@given(rankings())
def test_average_precision_sums_steps_over_distinct_thresholds(ranking):
    label, score = ranking
    slow, reached = 0.0, 0.0
    for tpr, _, precision in at_thresholds(label, score):
        slow, reached = slow + (tpr - reached) * precision, tpr
    assert average_precision(label, score) == pytest.approx(slow, abs=1e-12)
    assert average_precision(label, score) == pytest.approx(referee.average_precision_score(label, score), abs=1e-12)
    rate = label.mean()
    assert normalized_ap(label, score) == pytest.approx((slow - rate) / (1 - rate), abs=1e-12)


@given(rankings(), st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.75, 1.0]))
def test_partial_auroc_agrees_with_scikit_learn(ranking, max_fpr):
    label, score = ranking
    assert partial_auroc(label, score, max_fpr) == pytest.approx(
        referee.roc_auc_score(label, score, max_fpr=max_fpr), abs=1e-12
    )


def test_partial_auroc_closed_form():
    # ROC: up to 1/2 at fpr 0, right to fpr 1/3, up to 1. To a = 1/2: A = 1/2 * 1/3 + 1 * 1/6 = 1/3.
    area, a = 1 / 3, 1 / 2
    label, score = [0, 0, 0, 1, 1], [1, 2, 5, 4, 6]
    assert partial_auroc(label, score, a) == pytest.approx(0.5 * (1 + (area - a * a / 2) / (a - a * a / 2)))
    assert partial_auroc(label, score, 1.0) == pytest.approx(auroc(label, score))


@given(rankings(), st.sampled_from([0.2, 0.5, 0.8, 0.95, 1.0]))
def test_fpr_at_tpr_takes_the_highest_threshold_that_reaches_the_recall(ranking, tpr):
    label, score = ranking
    assert fpr_at_tpr(label, score, tpr) == next(fpr for got, fpr, _ in at_thresholds(label, score) if got >= tpr)


def test_fpr95_reaches_nineteen_of_twenty_outliers_and_no_more():
    label = np.array([1] * 19 + [0] * 3 + [1] + [0])
    score = -np.arange(24.0)
    assert fpr_at_tpr(label, score) == 0
    assert fpr_at_tpr(label, score, 0.951) == 0.75


def test_fpr95_of_the_other_convention_is_the_flipped_call():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [300, 200])
    score = rng.normal(size=500) + 1.5 * label
    accepted = score <= np.sort(score[label == 0])[int(np.ceil(0.95 * 300)) - 1]  # 95% of the normal rows pass
    assert fpr_at_tpr(1 - label, -score) == pytest.approx(accepted[label == 1].mean())


@given(rankings(most=6))
def test_precision_at_n_is_the_mean_over_all_ways_to_break_ties(ranking):
    label, score = ranking
    n = label.sum()
    orders = [order for order in map(list, permutations(range(label.size))) if (np.diff(score[order]) <= 0).all()]
    slow = np.mean([label[order[:n]].mean() for order in orders])
    assert precision_at_n(label, score) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_depend_on_the_ranking_alone(metric):
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, 200)
    score = rng.integers(0, 30, 200) + 0.5 * label
    order = rng.permutation(200)
    assert metric(label, score) == metric(label[order], score[order]) == metric(label == 1, np.exp(score / 9))
    ends = np.where(score == score.max(), np.inf, np.where(score == score.min(), -np.inf, score))
    assert metric(label, score) == metric(label, ends)


@pytest.mark.parametrize(
    ("metric", "perfect", "constant"), list(zip(METRICS, [1, 1, 1, 1, 0, 1, 1], [0.5, 0.5, 0.2, 0, 1, 0.2, 0.5]))
)
def test_perfect_and_constant_scores(metric, perfect, constant):
    label = np.array([0] * 8 + [1] * 2)
    assert metric(label, label) == pytest.approx(perfect)
    assert metric(label, np.full(10, 7.0)) == pytest.approx(constant)


def test_bootstrap_interval_is_as_wide_as_delongs():
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], [400, 150])
    score = rng.normal(size=550) + 1.0 * label
    wins = score[label == 1][:, None] > score[label == 0]
    variance = wins.mean(axis=1).var(ddof=1) / 150 + wins.mean(axis=0).var(ddof=1) / 400  # DeLong et al. 1988
    low, high = bootstrap_ci(auroc, label, score, n=2000)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.08)
    assert low < wins.mean() < high


def test_bootstrap_draws_each_class_from_itself_and_takes_the_middle_share():
    # Two outliers with scores 0 and 1: their mean in a draw is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    def mean_of_outliers(label, score):
        assert label.sum() == 2 and label.size == 52
        return score[label == 1].mean()

    label, score = [1, 1] + [0] * 50, [0.0, 1.0] + [9.0] * 50
    assert bootstrap_ci(mean_of_outliers, label, score, level=0.95) == (0, 1)
    assert bootstrap_ci(mean_of_outliers, label, score, level=0.40) == (0.5, 0.5)
    assert bootstrap_ci(mean_of_outliers, label, np.arange(52), seed=3) == bootstrap_ci(
        mean_of_outliers, label, np.arange(52), seed=3
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("label", "score", "says"),
    [
        ([0, 0, 0], [1, 2, 3], "0 outliers .* 3 normal"),
        ([1, 1], [1, 2], "2 outliers .* 0 normal"),
        ([], [], "0 outliers"),
        ([-1, 1, 1], [1, 2, 3], "1 of 3 are not, such as '-1'"),
        ([0, 1, np.nan], [1, 2, 3], "'nan'"),
        (["in", "out"], [1, 2], "'in', 'out'"),
        ([0, 1, 1], [1, np.nan, np.nan], "2 of 3 scores are NaN, the first at row 1"),
        ([0, 1, 1], [1, 2], r"\(3,\) and \(2,\)"),
        ([[0, 1]], [[1, 2]], r"\(1, 2\)"),
    ],
)
def test_unusable_input_is_named(metric, label, score, says):
    with pytest.raises(BadInput, match=says):
        metric(label, score)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, np.nan])
def test_shares_out_of_range_are_named(share):
    label, score = [0, 1], [1, 2]
    with pytest.raises(BadInput, match="'tpr'"):
        fpr_at_tpr(label, score, share)
    with pytest.raises(BadInput, match="'max_fpr'"):
        partial_auroc(label, score, share)
    with pytest.raises(BadInput, match="'level'"):
        bootstrap_ci(auroc, label, score, level=share)
    with pytest.raises(BadInput, match="must be at least 1; it is 0"):
        bootstrap_ci(auroc, label, score, n=0)


@given(rankings(), st.sampled_from([0.2, 0.5, 0.8, 0.95, 1.0]))
def test_fpr_of_both_conventions_is_what_scikit_learn_counts(ranking, tpr):
    label, score = ranking
    for positive, side, sign in (("out", label, 1), ("in", 1 - label, -1)):
        false, true, _ = referee.roc_curve(side, sign * score, drop_intermediate=False)
        expected = false[np.flatnonzero(true >= tpr)[0]]
        assert fpr_at_tpr(label, score, tpr, positive=positive) == pytest.approx(expected, abs=1e-12)


@given(rankings())
def test_numbers_for_inputs_from_elsewhere_equal_counting_by_hand(ranking):
    label, score = ranking
    inside, outside = score[label == 0], score[label == 1]
    found = ood_metrics(inside, outside)
    cuts = np.unique(score)
    passing = [cut for cut in cuts if (inside <= cut).mean() >= 0.95]
    flagging = [cut for cut in cuts if (outside >= cut).mean() >= 0.95]
    assert found["fpr95_in"] == pytest.approx((outside <= min(passing)).mean())
    assert found["fpr95_out"] == pytest.approx((inside >= max(flagging)).mean())
    pairs = outside[:, None] - inside
    assert found["auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert found["aupr_in"] == pytest.approx(referee.average_precision_score(1 - label, -score))
    assert found["aupr_out"] == pytest.approx(referee.average_precision_score(label, score))
    each = [((outside >= cut).mean() + (inside < cut).mean()) / 2 for cut in [*cuts, np.inf]]
    assert found["detection_accuracy"] == pytest.approx(max(each)) == detection_accuracy(label, score)


def test_only_fpr_and_aupr_tell_which_side_is_positive():
    # 20 that belong, one of them far out; 4 from elsewhere, one of them in the midst of the others.
    inside, outside = [*range(19), 100.0], [9.5, 50, 51, 52]
    found = ood_metrics(inside, outside)
    assert found["fpr95_in"] == 1 / 4  # 19 of 20 pass up to 18, and with them the one at 9.5
    assert found["fpr95_out"] == 10 / 20  # to catch all four, 10 to 18 and 100 are flagged
    other = ood_metrics(-np.array(outside), -np.array(inside))  # the sides change places
    assert (other["fpr95_in"], other["fpr95_out"]) == (found["fpr95_out"], found["fpr95_in"])
    assert (other["aupr_in"], other["aupr_out"]) == (found["aupr_out"], found["aupr_in"]) != (found["aupr_in"],) * 2
    for name in ("auroc", "detection_accuracy"):
        assert other[name] == pytest.approx(found[name], abs=1e-15)


@pytest.mark.parametrize(
    ("inside", "outside", "says"),
    [([], [1], r"\(0,\) and \(1,\)"), ([1], [[1]], r"\(1, 1\)"), ([1, 2], [np.nan], "NaN, the first at row 2")],
)
def test_unusable_scores_of_two_sides_are_named(inside, outside, says):
    with pytest.raises(BadInput, match=says):
        ood_metrics(inside, outside)


def test_a_side_is_in_or_out():
    with pytest.raises(BadInput, match="not 'id'"):
        fpr_at_tpr([0, 1], [1, 2], positive="id")
