"""Maps of anomalies: smoothing and scaling against scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

torch = pytest.importorskip("torch")

from farout.image._maps import blurred, scaled  # noqa: E402


@pytest.mark.parametrize(("shape", "deviation"), [((31, 20), 1.0), ((64, 64), 4.0), ((5, 7), 4.0), ((1, 9), 2.0)])
def test_smoothing_is_that_of_scipy(shape, deviation):
    x = np.random.default_rng(0).normal(size=(2, *shape))
    expected = np.stack([gaussian_filter(one, deviation, mode="reflect", truncate=4.0) for one in x])
    np.testing.assert_allclose(blurred(torch.from_numpy(x), deviation).numpy(), expected, atol=1e-12)
    single = blurred(torch.from_numpy(x).float(), deviation)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-5)


def test_smoothing_keeps_what_there_is_in_all():
    x = torch.rand(1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(blurred(x, 3.0).sum(), x.sum())
    assert blurred(x, 0.0) is x


def test_scaling_keeps_a_slope():
    x = torch.arange(8.0)[None, None].expand(1, 4, 8)
    inner = scaled(x, (4, 16))[0, 0, 1:-1]  # corners are not aligned: edges are flat
    torch.testing.assert_close(inner, torch.linspace(0.25, 6.75, 14))
