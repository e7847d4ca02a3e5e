from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.ndimage import gaussian_filter  # noqa: E402
from torch import nn  # noqa: E402

from farout import load  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.errors import BadInput, MissingExtra  # noqa: E402
from farout.image import padim  # noqa: E402
from farout.image.backbones import Backbone  # noqa: E402
from farout.image.padim import PaDiM  # noqa: E402


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, 2, 1))


def noise(n, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def detector(**settings):
    ours = {"dimensions": 6, "backbone": small_net(), "layers": ["0", "2"], "size": 16, "batch_size": 7, "blur": 1.5}
    return PaDiM(**ours | settings)


def embedded(images, chosen, net=None):
    """Features (n, 8, 8, D) by repeating the coarse ones, in float64."""
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    fine, coarse = (f.double().numpy() for f in Backbone(net or small_net(), ["0", "2"])(x_BCHW))
    coarse = coarse.repeat(2, axis=2).repeat(2, axis=3)
    return np.concatenate([fine, coarse], 1).transpose(0, 2, 3, 1)[..., chosen]


def naive(images, others, chosen, ridge=0.01, net=None):
    """Distances (n, 8, 8), place by place."""
    usual, new = embedded(images, chosen, net), embedded(others, chosen, net)
    found = np.zeros(new.shape[:3])
    for i in range(8):
        for j in range(8):
            covariance = np.cov(usual[:, i, j].T) + ridge * np.eye(len(chosen))
            z = new[:, i, j] - usual[:, i, j].mean(0)
            found[:, i, j] = np.sqrt(np.einsum("nd,de,ne->n", z, np.linalg.inv(covariance), z))
    return found


def unblurred(fitted, others):
    """Distances (n, 8, 8) of the network."""
    x_BCHW = torch.from_numpy(others).permute(0, 3, 1, 2).float() / 255
    x_PBD, grid = fitted.net_.embedded(x_BCHW)
    distance_PB = torch.linalg.vector_norm((x_PBD - fitted.net_.mean[:, None]) @ fitted.net_.whitening, dim=2)
    return distance_PB.T.unflatten(1, grid).numpy()


@pytest.mark.parametrize("n", [40, 5])
def test_each_place_has_a_gaussian_of_its_own(n, monkeypatch):
    monkeypatch.setattr(padim, "AT_ONCE", 10)  # the last part is smaller
    fitted = detector().fit(noise(n))
    others = noise(4, seed=1)
    expected = naive(noise(n), others, fitted.net_.chosen.numpy())
    np.testing.assert_allclose(unblurred(fitted, others), expected, rtol=2e-4)


def test_maps_are_scaled_and_smoothed_and_the_score_is_their_largest():
    fitted = detector(blur=2.0).fit(noise(30))
    others = noise(4, seed=1)
    scores, maps = fitted.scores_and_maps(others)
    raw = torch.from_numpy(naive(noise(30), others, fitted.net_.chosen.numpy()))[:, None]
    wide = nn.functional.interpolate(raw, (16, 16), mode="bilinear", align_corners=False)[:, 0].numpy()
    smooth = np.stack([gaussian_filter(one, 2.0) for one in wide])
    np.testing.assert_allclose(maps, smooth, rtol=3e-4)
    np.testing.assert_allclose(scores, smooth.max((1, 2)), rtol=3e-4)
    assert maps.shape == (4, 16, 16) and maps.dtype == np.float32


def test_batches_change_nothing():
    others = noise(4, seed=1)
    one, other = (detector(batch_size=size).fit(noise(20)).outlier_score(others) for size in (3, 64))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_large_mean_does_not_hide_the_variance():
    net = small_net()
    net[0].bias.data += 300.0
    net[2].bias.data += 300.0
    fitted = detector(backbone=net).fit(noise(30))
    others = noise(3, seed=1)
    expected = naive(noise(30), others, fitted.net_.chosen.numpy(), net=net)
    np.testing.assert_allclose(unblurred(fitted, others), expected, rtol=5e-3)


def test_channels_are_drawn_by_the_seed_and_none_twice():
    state = torch.random.get_rng_state()
    chosen = [detector(random_state=seed)._net().chosen.tolist() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert chosen[0] == chosen[1] != chosen[2] and len(set(chosen[0])) == 6 and max(chosen[0]) < 13
    assert detector(dimensions=13)._net().chosen.tolist() == list(range(13))


def test_a_place_is_judged_by_what_is_usual_there():
    rng = np.random.default_rng(0)
    images = rng.integers(100, 110, (30, 32, 32, 3), dtype=np.uint8)
    images[:, :, :16] += 100  # the left half is bright
    fitted = detector(size=32, blur=0).fit(images)
    dark = images[:1].copy()
    dark[0, 12:20, 4:12] -= 100  # as the right half is
    map_HW = fitted.score_maps(dark)[0]
    assert map_HW[12:20, 4:12].min() > 3 * map_HW[:, 20:].max()


def test_the_ridge_is_a_floor_where_images_are_alike():
    fitted = detector().fit(np.repeat(noise(1), 6, axis=0))
    scores = fitted.outlier_score(np.concatenate([noise(1), noise(1, seed=1)]))
    assert scores[0] < 1e-3 < 1 < scores[1] < 100
    z = np.linalg.norm(
        embedded(noise(1, seed=1), fitted.net_.chosen.numpy()) - embedded(noise(1), fitted.net_.chosen.numpy()), axis=-1
    )
    np.testing.assert_allclose(unblurred(fitted, noise(1, seed=1)), z / 0.1, rtol=1e-4)


def test_bad_input():
    with pytest.raises(BadInput, match="13 channels, of which 14"):
        detector(dimensions=14).fit(noise(6))
    with pytest.raises(BadInput, match="5 normal images"):
        detector().fit(noise(4))
    for wrong in ({"ridge": 0.0}, {"blur": -1.0}):
        with pytest.raises(BadInput, match="'ridge'"):
            detector(**wrong).fit(noise(6))
    with pytest.raises(BadInput, match=r"stride \[8, 16\]"):
        nets = nn.Sequential()
        nets.layer1, nets.layer2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        PaDiM(backbone=nets, size=16, dimensions=4).fit(noise(6))


def test_progress_is_reported():
    shares = []
    detector().fit(noise(20), progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 4


def test_the_exported_graph_gives_the_same_scores_and_maps(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    fitted = detector().fit(noise(30))
    fitted.export(tmp_path / "one.onnx")
    others = noise(5, seed=1)
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"))
    score, maps = session.run(None, {"images": others.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    expected = fitted.scores_and_maps(others)
    np.testing.assert_allclose(score, expected[0], rtol=2e-4)
    np.testing.assert_allclose(maps, expected[1], rtol=2e-4)


def test_the_default_backbone_is_saved_by_its_name(tmp_path):
    try:
        fitted = PaDiM(size=64).fit(noise(8, 64))
    except (DataMissing, MissingExtra) as error:
        pytest.skip(str(error))
    assert fitted.net_.levels == (2, 3, 5) and fitted.net_.whitening.shape == (256, 100, 100)
    fitted.save(tmp_path / "one.farout")
    again = load(tmp_path / "one.farout")
    others = noise(3, 64, seed=1)
    for one, other in zip(again.scores_and_maps(others), fitted.scores_and_maps(others)):
        assert np.array_equal(one, other)
