import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from farout.bench.levels import count_pairs, multilevel_report
from farout.bench.metrics import auroc
from farout.errors import BadInput
from naive import levels as naive


def tied(seed, n=120, levels=4, scores=15):
    """Random levels and scores with many ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, n).astype(float), rng.integers(0, scores, n).astype(float)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40))
def test_pairs_are_those_of_the_loop_over_pairs(samples):
    level, score = zip(*samples)
    counted = count_pairs(level, score)
    assert tuple(counted) == naive.pairs(level, score)
    assert sum(counted) == len(samples) * (len(samples) - 1) // 2


@pytest.mark.parametrize("n", [2, 3, 31, 32, 33, 1000])
def test_pairs_of_distinct_scores_at_sizes_around_powers_of_two(n):
    rng = np.random.default_rng(n)
    level, score = rng.integers(0, 3, n), rng.normal(size=n)
    level[:2] = 0, 1
    assert tuple(count_pairs(level, score)) == naive.pairs(level.tolist(), score.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_tau_b_is_scipys_and_c_index_that_of_the_loop(seed):
    level, score = tied(seed)
    report = multilevel_report(level, score)
    assert report.everything.tau_b == pytest.approx(kendalltau(level, score).statistic, abs=1e-14)
    assert report.everything.tau_b == pytest.approx(naive.tau_b(level, score), abs=1e-14)
    assert report.everything.c_index == pytest.approx(naive.c_index(level, score), abs=1e-15)
    high = level > 0
    assert report.anomalous.tau_b == pytest.approx(kendalltau(level[high], score[high]).statistic, abs=1e-14)
    assert report.anomalous.c_index == pytest.approx(naive.c_index(level[high], score[high]), abs=1e-15)


def test_c_index_is_that_of_lifelines():
    concordance_index = pytest.importorskip("lifelines.utils").concordance_index
    for seed in range(5):
        level, score = tied(seed)
        assert multilevel_report(level, score).everything.c_index == pytest.approx(concordance_index(level, score))


def test_perfect_and_reversed_order():
    level = np.repeat([0.0, 1.0, 2.0, 3.0], 5)
    score = np.arange(20.0)
    right, wrong = multilevel_report(level, score), multilevel_report(level, -score)
    assert right.everything.c_index == right.anomalous.c_index == 1.0
    assert wrong.everything.c_index == wrong.anomalous.c_index == 0.0
    assert right.everything.tau_b == pytest.approx(right.everything.tau_b_max) and right.everything.tau_b < 1
    assert right.everything.tau_b_max == pytest.approx(np.sqrt(150 / 190))
    assert right.anomalous.tau_b_max == pytest.approx(np.sqrt(75 / 105))
    assert wrong.everything.tau_b == -right.everything.tau_b
    assert multilevel_report(level, level).everything.tau_b == pytest.approx(1.0)  # a score with the ties of the levels


def test_a_constant_score_orders_by_chance_and_has_no_tau():
    report = multilevel_report([0, 0, 1, 2, 2], np.full(5, 7.0))
    assert report.everything.c_index == report.anomalous.c_index == report.auroc_all == 0.5
    assert np.isnan(report.everything.tau_b) and np.isnan(report.anomalous.tau_b)


@pytest.mark.parametrize("seed", range(4))
def test_with_two_levels_c_is_the_auroc_and_tau_follows_from_it(seed):
    level, score = tied(seed, levels=2)
    report = multilevel_report(level, score)
    assert report.everything.c_index == report.auroc_all == auroc(level.astype(int), score)
    pairs = count_pairs(level, score)
    cross = (level == 0).sum() * (level == 1).sum()
    spread = pairs.concordant + pairs.discordant + pairs.tied_level
    assert report.everything.tau_b == pytest.approx((2 * report.auroc_all - 1) * np.sqrt(cross / spread), abs=1e-14)
    assert np.isnan(report.anomalous.c_index) and report.anomalous.pairs == 0


def test_without_ties_c_is_half_of_one_plus_goodman_kruskals_gamma():
    rng = np.random.default_rng(0)
    level, score = rng.integers(0, 4, 200), rng.normal(size=200)
    pairs = count_pairs(level, score)
    gamma = (pairs.concordant - pairs.discordant) / (pairs.concordant + pairs.discordant)
    assert multilevel_report(level, score).everything.c_index == pytest.approx((1 + gamma) / 2)


def test_monotone_transforms_and_the_order_of_samples_change_nothing():
    level, score = tied(3)
    report = multilevel_report(level, score)
    assert multilevel_report(level, np.exp(score / 3) - 50) == report
    order = np.random.default_rng(0).permutation(len(level))
    assert multilevel_report(level[order], score[order]) == report
    infinite = np.where(score == score.max(), np.inf, score)
    assert multilevel_report(level, infinite) == report


def test_aurocs_are_those_of_level_0_against_each():
    level, score = tied(1)
    report = multilevel_report(level, score)
    assert list(report.auroc) == [1.0, 2.0, 3.0]
    for one, value in report.auroc.items():
        used = np.isin(level, (0, one))
        assert value == auroc((level[used] > 0).astype(int), score[used])
    assert report.auroc_all == auroc((level > 0).astype(int), score)


def test_half_levels_are_rounded_up_where_asked():
    level, score = [0.0, 0.5, 1.0, 1.5], [1.0, 3.0, 2.0, 4.0]
    whole, half = multilevel_report(level, score), multilevel_report(level, score, round_up=False)
    assert whole.counts == {0.0: 1, 1.0: 2, 2.0: 1} and half.counts == {0.0: 1, 0.5: 1, 1.0: 1, 1.5: 1}
    assert whole.everything.c_index == 1.0  # 0.5 and 1 are one level, so that their order is no error
    assert half.everything.c_index == pytest.approx(5 / 6)


def test_without_normal_samples_there_is_an_order_and_no_auroc():
    report = multilevel_report([1, 2, 3], [1, 2, 3])
    assert np.isnan(report.auroc_all) and all(np.isnan(value) for value in report.auroc.values())
    assert report.everything == report.anomalous and report.anomalous.c_index == 1.0


def test_a_strong_detector_can_be_blind_to_severity():
    level = np.repeat([0.0, 1.0, 2.0, 3.0], 50)
    rng = np.random.default_rng(0)
    report = multilevel_report(level, np.where(level > 0, 10.0, 0.0) + rng.normal(size=200))
    assert report.auroc_all == 1.0
    assert abs(report.anomalous.tau_b) < 0.1 and abs(report.anomalous.c_index - 0.5) < 0.06
    # half of all pairs have a normal sample, and these are all in order
    assert report.everything.c_index == pytest.approx((1 + report.anomalous.c_index) / 2)


@pytest.mark.parametrize(
    ("level", "score", "words"),
    [
        ([0, 0], [1, 2], "all 2 samples have level 0"),
        ([0, -1], [1, 2], "1 of 2 are not, the first in row 1: '-1.0'"),
        ([0, np.nan], [1, 2], "first in row 1: 'nan'"),
        ([0, 1], [np.nan, 2], "1 of 2 scores are NaN, the first in row 0"),
        ([0, 1], [1, 2, 3], "shapes are"),
        ([], [], "not empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(level, score, words):
    with pytest.raises(BadInput, match=words):
        multilevel_report(level, score)


def test_time_grows_little_faster_than_the_samples():
    seconds = []
    for n in (100_000, 200_000):
        rng = np.random.default_rng(0)
        level, score = rng.integers(0, 5, n), rng.normal(size=n)
        times = []
        for _ in range(3):
            start = time.process_time()
            count_pairs(level, score)
            times.append(time.process_time() - start)
        seconds.append(min(times))
    assert seconds[1] < 3.2 * seconds[0]
