"""What detectors of images share: precision and scores that overflow."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from farout.errors import BadInput  # noqa: E402
from farout.image import PatchCore  # noqa: E402


def fitted(device="cpu"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1))
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    settings = {"size": 32, "batch_size": 5, "blur": 1.0, "coreset": 0.2, "device": device}
    return PatchCore(backbone=net, layers=["0", "2"], **settings).fit(images), images


def test_half_precision_changes_nothing_on_a_cpu():
    detector, images = fitted()
    scores, maps = detector.scores_and_maps(images)
    assert detector.half() is detector
    np.testing.assert_array_equal(detector.outlier_score(images), scores)
    np.testing.assert_array_equal(detector.score_maps(images), maps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_half_precision_is_near_on_a_gpu():
    detector, images = fitted("cuda")
    new = images[::-1] // 2
    scores = detector.outlier_score(new)
    halved = detector.half().outlier_score(new)
    assert (halved != scores).any()
    np.testing.assert_allclose(halved, scores, rtol=1e-2)
    np.testing.assert_array_equal(detector.half(False).outlier_score(new), scores)


def test_scores_that_overflow_are_refused():
    detector, images = fitted()
    detector.net_.bank[:] = torch.inf
    with pytest.raises(BadInput, match="a score is not finite"):
        detector.outlier_score(images)
