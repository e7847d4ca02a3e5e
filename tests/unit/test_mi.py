"""Mutual information against scikit-learn, the slow version and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from farout.errors import BadInput, UnknownName
from farout.kit.mi import BACKGROUNDS, codes, mi, mi_corrected
from naive import outrank as naive


def drawn(n=500, levels=30, classes=3, seed=0):
    """A column with some say about labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return np.where(rng.random(n) < 0.4, y, rng.integers(0, levels, n)), y


SHAPES = [(500, 30, 3), (500, 2, 2), (300, 5000, 2), (400, 300, 200), (1, 1, 1), (7, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_is_scikit_learns(shape):
    x, y = drawn(*shape)
    assert mi(x, y) == pytest.approx(mutual_info_score(x, y), abs=1e-9)
    assert mi(x, y) == pytest.approx(naive.mi(x, y), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_corrected_is_the_slow_version(shape):
    x, y = drawn(*shape)
    assert mi_corrected(x, y) == pytest.approx(naive.mi_shifted(x, y), abs=1e-9)


def test_permutation_is_the_mean_over_orders():
    x, y = drawn()
    rng = np.random.default_rng(5)
    orders = [rng.permutation(len(y)) for _ in range(3)]
    expected = mi(x, y) - np.mean([mi(x, y[order]) for order in orders])
    assert mi_corrected(x, y, "permutation", draws=3, seed=5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_what_says_nothing_and_what_says_all(background):
    y = np.random.default_rng(0).integers(0, 3, 600)
    entropy = naive.entropy(y)
    assert mi_corrected(np.zeros(600), y, background) == pytest.approx(0, abs=1e-12)
    assert mi_corrected(np.arange(600), y, background) == pytest.approx(0, abs=1e-12)  # an identifier
    assert mi(np.arange(600), y) == pytest.approx(entropy)
    for copy in (y, y[:, None].ravel() * -7, np.array(["c", "a", "b"])[y]):
        assert mi_corrected(copy, y, background) == pytest.approx(entropy, abs=1e-12)
        assert mi_corrected(np.sort(copy), np.sort(copy), background) == pytest.approx(entropy, abs=1e-12)


def test_two_identifiers_are_not_taken_for_copies():
    first, second = np.arange(50), np.random.default_rng(0).permutation(50)
    assert mi(first, second) == pytest.approx(np.log(50))
    assert mi_corrected(first, second) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_other_names_for_values_change_nothing(background):
    x, y = drawn()
    rng = np.random.default_rng(1)
    renamed_x, renamed_y = rng.permutation(40)[x] * 10**12, np.array(["p", "q", "r"])[y]
    for change in ((renamed_x, y), (x, renamed_y), (x.astype(float), renamed_y)):
        assert mi_corrected(*change, background) == pytest.approx(mi_corrected(x, y, background), abs=1e-12)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_no_score_exceeds_the_entropy_of_the_label(background):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        y = (rng.random(60) < 0.2).astype(int)
        x = 3 * y + rng.integers(0, 3, 60)  # tells y, in more values: the shifted labels can be more even than y
        assert mi_corrected(x, y, background) <= naive.entropy(y) + 1e-12


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("levels", [2, 50, 1000])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_noise_scores_nothing_in_expectation(background, levels, ratio):
    rng = np.random.default_rng(levels)
    x, y = drawn(2000, levels, 2)
    scores = [mi_corrected(rng.permutation(x), y, background, 1, ratio, seed) for seed in range(200)]
    error = np.std(scores) / 200**0.5
    assert abs(np.mean(scores)) < 3 * error
    if levels == 1000 and ratio == 1:  # where plain scores are far from 0
        assert mi(rng.permutation(x), y) > 100 * error


def test_a_share_of_the_rows_is_drawn_evenly_and_not_from_the_top():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, 8000)
    y = np.where(np.arange(8000) < 4000, 0, x)  # the first rows say nothing
    whole, part = mi_corrected(x, y), mi_corrected(x, y, ratio=0.25) / 0.25
    assert part == pytest.approx(whole, rel=0.1)
    # 4 values: rows beyond each one's quota of 500 are not looked at, and which ones is drawn
    assert mi_corrected(x, y, ratio=0.25, seed=1) != mi_corrected(x, y, ratio=0.25, seed=2)
    # no row a value would be left: all are taken, and the ratio stays
    few = np.arange(100) // 2
    labels = rng.integers(0, 2, 100)
    assert mi_corrected(few, labels, ratio=0.01) == pytest.approx(0.01 * mi_corrected(few, labels))


def test_a_stratified_score_weighs_values_by_all_their_rows():
    rng = np.random.default_rng(3)
    x = np.repeat([0, 1], [900, 100])[rng.permutation(1000)]
    y = np.where(x == 1, 0, rng.integers(0, 2, 1000))
    # quota 250: of value 0 250 of 900 rows, of value 1 all 100; its labels are all alike
    expected = mi_corrected(x, y, "permutation", 50)
    assert mi_corrected(x, y, "permutation", 50, 0.5) / 0.5 == pytest.approx(expected, rel=0.15)


def test_sorted_rows_blind_the_shift_and_not_the_permutation():
    y = np.sort(np.random.default_rng(0).random(16_384) < 0.3)
    x = np.arange(16_384) // 64  # blocks of rows
    assert mi(x, y) > 0.6
    assert mi_corrected(x, y) < 0.02
    assert mi_corrected(x, y, "permutation") > 0.55


def test_codes():
    np.testing.assert_array_equal(codes(np.array([5, 3, 5], np.uint8)), [2, 0, 2])
    np.testing.assert_array_equal(codes([True, False]), [1, 0])
    np.testing.assert_array_equal(codes([10**15, -(10**15), 0]), [2, 0, 1])
    np.testing.assert_array_equal(codes([0.5, 0.25, 0.5]), [1, 0, 1])
    np.testing.assert_array_equal(codes(np.array([2**64 - 1, 2**64 - 2], np.uint64)), [1, 0])
    np.testing.assert_array_equal(codes(np.array([127, -128], np.int8)), [255, 0])
    with pytest.raises(BadInput, match="shape"):
        codes([])


def test_bad_wishes_are_refused():
    with pytest.raises(UnknownName, match="'shift'"):
        mi_corrected([0, 1], [0, 1], "shifted")
    for wish in ({"draws": 0}, {"ratio": 0.0}, {"ratio": 1.5}):
        with pytest.raises(BadInput, match="1 draw and a ratio"):
            mi_corrected([0, 1], [0, 1], **wish)
    with pytest.raises(BadInput, match="3 and 2"):
        mi([0, 1, 2], [0, 1])
