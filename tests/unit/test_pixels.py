"""Numbers of maps against loops over thresholds, scikit-learn, and what the closed forms say."""

import time
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from farout.bench.pixels import Pixels, aupro, pixel_ap, pixel_auroc, pixel_f1
from farout.errors import BadInput


def drawn(seed, values=None, n=4):
    """Masks with blocks and lone pixels, one empty, of several sizes; maps with ties where ``values`` are few."""
    rng = np.random.default_rng(seed)
    masks, maps = [], []
    for place in range(n):
        h, w = rng.integers(9, 16, 2)
        mask = rng.random((h, w)) < (0.12 if place else 0)
        if place == 1:
            mask[2:6, 3:7] = True
        x = rng.normal(size=(h, w)) + mask
        masks.append(mask)
        maps.append(np.round(x * values) / values if values else x)
    return masks, maps


def flat(parts):
    return np.concatenate([np.ravel(part) for part in parts])


def slow_aupro(masks, maps, limit):
    """All distinct values as thresholds, one region after the other."""
    regions = []
    for place, mask in enumerate(masks):
        numbers, count = label(mask, np.ones((3, 3)))
        regions += [(place, numbers == k) for k in range(1, count + 1)]
    outside = np.concatenate([x[~mask] for mask, x in zip(masks, maps)])
    points = [(0.0, 0.0)]
    for t in np.unique(flat(maps))[::-1]:
        points.append((np.mean(outside >= t), np.mean([np.mean(maps[i][region] >= t) for i, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("values", [None, 2, 1])
@pytest.mark.parametrize("seed", range(3))
def test_numbers_equal_loops_and_scikit_learn(seed, values):
    masks, maps = drawn(seed, values)
    y, s = flat(masks), flat(maps)
    pairs = s[y][:, None] - s[~y][None]
    assert pixel_auroc(masks, maps) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-12)
    assert pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert pixel_ap(masks, maps) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert pixel_f1(masks, maps, 0.5) == pytest.approx(f1_score(y, s > 0.5), abs=1e-12)
    for limit in (0.05, 0.3, 1.0):
        assert aupro(masks, maps, limit) == pytest.approx(slow_aupro(masks, maps, limit), abs=1e-12)


def test_perfect_constant_and_reversed_maps():
    masks, _ = drawn(0)
    perfect = [mask.astype(float) for mask in masks]
    share = flat(masks).mean()
    assert pixel_auroc(masks, perfect) == pixel_ap(masks, perfect) == aupro(masks, perfect) == 1
    constant = [np.full(mask.shape, 7.0) for mask in masks]
    assert pixel_auroc(masks, constant) == 0.5
    assert pixel_ap(masks, constant) == pytest.approx(share)
    assert aupro(masks, constant) == pytest.approx(0.15)
    opposite = [-x for x in perfect]
    assert pixel_auroc(masks, opposite) == aupro(masks, opposite) == 0


def test_small_regions_count_as_much_as_large_ones():
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    large, small = np.zeros((20, 20)), np.zeros((20, 20))
    large[:10, :10] = 1
    small[15, 15] = 1
    # the other region comes with all that is 0: a straight line from one half to 1 at a rate of 1
    assert aupro([mask], [large]) == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    assert aupro([mask], [small]) == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    assert pixel_ap([mask], [large]) > pixel_ap([mask], [small])


def test_pixels_that_touch_at_a_corner_are_one_region_and_images_are_pooled():
    assert Pixels([np.eye(4, dtype=bool)], [np.zeros((4, 4))]).regions == 1
    assert Pixels([np.eye(4, dtype=bool)] * 3, [np.zeros((4, 4))] * 3).regions == 3


def test_rising_transforms_and_the_order_of_images_change_nothing():
    masks, maps = drawn(1)
    expected = [f(masks, maps) for f in (pixel_auroc, pixel_ap, aupro)]
    np.testing.assert_allclose([f(masks, [np.exp(x) for x in maps]) for f in (pixel_auroc, pixel_ap, aupro)], expected)
    np.testing.assert_allclose([f(masks[::-1], maps[::-1]) for f in (pixel_auroc, pixel_ap, aupro)], expected)


def test_single_precision_gives_the_numbers_of_its_own_values():
    masks, maps = drawn(2)
    single = [x.astype(np.float32) for x in maps]
    assert aupro(masks, single) == aupro(masks, [x.astype(np.float64) for x in single])


def test_four_million_pixels_take_a_moment():
    rng = np.random.default_rng(0)
    mask = np.zeros((256, 256), bool)
    mask[100:130, 50:90] = True
    masks, maps = [mask] * 60, [rng.random((256, 256), dtype=np.float32) for _ in range(60)]
    start = time.perf_counter()
    pixels = Pixels(masks, maps)
    pixels.auroc(), pixels.ap(), pixels.aupro()
    assert time.perf_counter() - start < 5


def test_what_cannot_be_judged_is_refused():
    masks, maps = drawn(0)
    with pytest.raises(BadInput, match="4 masks and 3 maps"):
        pixel_auroc(masks, maps[:3])
    with pytest.raises(BadInput, match="image 0"):
        pixel_auroc(masks, [x.T[:5] for x in maps])
    with pytest.raises(BadInput, match="none marks a pixel"):
        pixel_ap([np.zeros((3, 3), bool)], [np.zeros((3, 3))])
    with pytest.raises(BadInput, match="every pixel"):
        pixel_ap([np.ones((3, 3), bool)], [np.zeros((3, 3))])
    with pytest.raises(BadInput, match="not finite"):
        aupro(masks, [np.full(x.shape, np.nan) for x in maps])
    with pytest.raises(BadInput, match="limit"):
        aupro(masks, maps, 0)
