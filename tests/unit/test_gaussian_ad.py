from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sklearn.covariance import LedoitWolf  # noqa: E402
from torch import nn  # noqa: E402

from farout import load  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.errors import BadInput, MissingExtra, NotFitted, UnknownName  # noqa: E402
from farout.image.backbones import Backbone  # noqa: E402
from farout.image.gaussian_ad import GaussianAD, _changed, whitening  # noqa: E402


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, 2, 1))


def noise(n, size=16, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (n, size, size, 3), dtype=np.uint8)


def detector(**settings):
    return GaussianAD(**{"backbone": small_net(), "layers": ["0", "2"], "size": 16, "batch_size": 7} | settings)


def rows_of(n, d, seed=0):
    """Rows whose columns depend on each other and differ in size."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) * np.geomspace(5, 0.05, d)) + rng.normal(size=d)


def distances(rows, fitted):
    mean, white = fitted
    return torch.linalg.vector_norm((torch.from_numpy(rows) - mean) @ white, dim=1).numpy()


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50)])
def test_the_distance_is_that_of_scikit_learn(n, d):
    rows, others = rows_of(n, d), rows_of(30, d, seed=1)
    expected = np.sqrt(LedoitWolf().fit(rows).mahalanobis(others))
    np.testing.assert_allclose(distances(others, whitening(torch.from_numpy(rows))), expected, rtol=1e-9)


def test_without_shrinkage_a_linear_map_changes_nothing():
    rows, others = rows_of(80, 6), rows_of(10, 6, seed=1)
    turned = np.random.default_rng(2).normal(size=(6, 6))
    before = distances(others, whitening(torch.from_numpy(rows), shrinkage=0.0))
    after = distances(others @ turned, whitening(torch.from_numpy(rows @ turned), shrinkage=0.0))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert not np.allclose(distances(others @ turned, whitening(torch.from_numpy(rows @ turned))), before, rtol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50)])
def test_principal_and_minor_components_add_up(n, d):
    rows, others = torch.from_numpy(rows_of(n, d)), rows_of(10, d, seed=1)
    squares = {part: distances(others, whitening(rows, part, 0.9)) ** 2 for part in ("all", "principal", "minor")}
    np.testing.assert_allclose(squares["principal"] + squares["minor"], squares["all"], rtol=1e-9)
    assert squares["principal"].min() > 0 and squares["minor"].min() > 0


def test_principal_components_are_the_fewest_with_the_share():
    rows = rows_of(200, 12)
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    explained = np.cumsum(variances) / variances.sum()
    for share in (0.5, 0.9, 0.99):
        kept = whitening(torch.from_numpy(rows), "principal", share)[1].shape[1]
        assert explained[kept - 1] >= share and (kept == 1 or explained[kept - 2] < share)
        assert whitening(torch.from_numpy(rows), "minor", share)[1].shape[1] == 12 - kept
    # one is left for the minor ones, whatever the share
    assert whitening(torch.from_numpy(rows), "minor", 1 - 1e-12)[1].shape[1] == 1


def test_what_varies_little_counts_most_in_the_minor_components():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(size=(400, 2)) * [10.0, 0.1])
    along, across = np.array([[20.0, 0.0]]), np.array([[0.0, 1.0]])
    minor, principal = (whitening(rows, part, 0.99, shrinkage=0.0) for part in ("minor", "principal"))
    assert distances(across, minor)[0] > 8 > 1 > distances(along, minor)[0]
    assert distances(along, principal)[0] > 1.5 > 0.2 > distances(across, principal)[0]


def test_squared_distances_of_gaussian_rows_have_mean_d():
    drawn = rows_of(40_000, 5)
    squares = distances(drawn[:20_000], whitening(torch.from_numpy(drawn[20_000:]), shrinkage=0.0)) ** 2
    assert abs(squares.mean() - 5) < 0.1 and abs(squares.var() - 10) < 0.6


def test_thresholds_alarm_at_the_rate_of_the_normal_distribution():
    """Images of one colour, whose channels are Gaussian: three features."""
    rng = np.random.default_rng(0)
    colours = (128 + rng.normal(size=(3000, 3)) @ np.diag([20.0, 10.0, 5.0])).clip(0, 255).round().astype(np.uint8)
    images = np.broadcast_to(colours[:, None, None], (3000, 4, 4, 3))
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    fitted = detector(backbone=net, layers=["0"], size=4, batch_size=500, shrinkage=0.0)
    fitted.fit(images[:1500])
    assert fitted.threshold(1.0).shape == (1,)
    for sigmas in (1.0, 2.0):
        rate = 1 - erf(sigmas / sqrt(2))
        seen = fitted.alarms(images[1500:], sigmas).mean()
        assert abs(seen - rate) < 4 * sqrt(rate * (1 - rate) / 1500)


def test_thresholds_follow_the_components_kept():
    whole, minor = detector().fit(noise(40)), detector(components="minor", share=0.5).fit(noise(40))
    assert (minor.threshold(3) < whole.threshold(3)).all() and (whole.threshold(2) < whole.threshold(3)).all()
    # erf(3 / sqrt(2)) of chi-square with 5 and with 8 degrees of freedom
    np.testing.assert_allclose(whole.threshold(3), np.sqrt([18.2051, 23.5746]), rtol=1e-4)


def test_thresholds_of_few_images_warn():
    with pytest.warns(UserWarning, match=r"8 components were fitted to 8 images.*Alarm"):
        detector().fit(noise(8)).threshold(3)


def test_the_score_is_the_sum_over_the_depths():
    images, others = noise(30), noise(9, seed=1)
    fitted = detector().fit(images)
    backbone = Backbone(small_net(), ["0", "2"])

    def pooled(x):
        x_BCHW = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
        return [level.mean((2, 3)).double().numpy() for level in backbone(x_BCHW)]

    expected = [np.sqrt(LedoitWolf().fit(usual).mahalanobis(new)) for usual, new in zip(pooled(images), pooled(others))]
    np.testing.assert_allclose(fitted.level_scores(others), np.stack(expected, 1), rtol=1e-4)
    np.testing.assert_allclose(fitted.outlier_score(others), np.sum(expected, 0), rtol=1e-4)


def test_each_image_is_scored_by_itself():
    fitted = detector().fit(noise(30))
    others = noise(9, seed=1)
    alone = np.concatenate([fitted.outlier_score(others[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(alone, fitted.outlier_score(others), rtol=1e-5)


def test_the_mean_is_nearer_than_any_training_image():
    fitted = detector().fit(noise(30))
    for place, level in enumerate(fitted.net_.levels):
        assert float(level(level.mean[None])) == 0 < fitted.level_scores(noise(30))[:, place].min()


def test_fitting_returns_what_scoring_does_and_reports_progress():
    shares = []
    fitted = detector()
    scores = fitted.fit_score(noise(30), progress=shares.append)
    np.testing.assert_allclose(fitted.outlier_score(noise(30)), scores, rtol=1e-6)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 6


def test_augmented_passes_are_drawn_by_the_seed():
    images, others = noise(20), noise(4, seed=1)
    state = torch.random.get_rng_state()
    one, same = (detector(passes=3).fit(images).outlier_score(others) for _ in range(2))
    assert np.array_equal(one, same) and torch.equal(torch.random.get_rng_state(), state)
    assert not np.allclose(one, detector(passes=3, random_state=1).fit(images).outlier_score(others), rtol=1e-4)
    assert not np.allclose(one, detector().fit(images).outlier_score(others), rtol=1e-3)
    with pytest.warns(UserWarning, match="6 images"):
        detector().fit(noise(6)).threshold(1)
    detector(passes=2).fit(noise(6)).threshold(1)  # 12 images


def test_augmentation_changes_half_of_the_images_a_little():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0.2, 0.6, 32).expand(400, 3, 32, 32).contiguous()
    changed = _changed(ramp, generator)
    assert changed.shape == ramp.shape and changed.min() >= 0 and changed.max() <= 1
    same = (changed - ramp).abs().amax((1, 2, 3)) < 1e-5
    assert 0.5 < same.float().mean() < 0.75  # half of all, and those of the others that nothing happens to
    mirrored = changed[:, 0, :, 0].mean(1) > changed[:, 0, :, -1].mean(1)
    assert 0.2 < mirrored.float().mean() < 0.3
    rough = changed[:, 0].diff(dim=1).abs().mean((1, 2)) > 0.005  # columns of a ramp do not vary
    assert 0.06 < rough.float().mean() < 0.14
    assert (changed.mean((1, 2, 3)) - 0.4).abs().max() < 0.25
    lit = (changed.mean((1, 2, 3)) - 0.4).abs() > 0.02
    assert 0.08 < lit.float().mean() < 0.25


def test_bad_input():
    with pytest.raises(BadInput, match="5 normal images"):
        detector().fit(noise(4))
    with pytest.raises(BadInput, match="6 training images have the same features"):
        detector().fit(np.repeat(noise(1), 6, axis=0))
    with pytest.raises(BadInput, match="8 training images do not vary"):
        detector(shrinkage=0.0).fit(noise(8))
    with pytest.raises(UnknownName, match="minor"):
        detector(components="minors").fit(noise(8))
    for wrong in ({"share": 1.0}, {"share": 0.0}, {"shrinkage": 1.5}, {"passes": -1}):
        with pytest.raises(BadInput, match="'share'"):
            detector(**wrong).fit(noise(8))
    fitted = detector().fit(noise(20))
    with pytest.raises(BadInput, match="0 sigma"):
        fitted.threshold(0)
    with pytest.raises(BadInput, match="no maps"):
        fitted.score_maps(noise(2))
    for ask in (lambda: detector().threshold(3), lambda: detector().level_scores(noise(2))):
        with pytest.raises(NotFitted):
            ask()


@pytest.mark.parametrize("components", ["all", "minor"])
def test_the_exported_graph_gives_the_same_scores(tmp_path, components):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    fitted = detector(components=components).fit(noise(30))
    fitted.export(tmp_path / "one.onnx")
    others = noise(5, seed=1)
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"))
    (score,) = session.run(None, {"images": others.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    np.testing.assert_allclose(score, fitted.outlier_score(others), rtol=2e-4)


def test_the_default_backbone_is_saved_by_its_name(tmp_path):
    try:
        fitted = GaussianAD(size=64, components="minor").fit(noise(10, 64))
    except (DataMissing, MissingExtra) as error:
        pytest.skip(str(error))
    assert [level.mean.shape[0] for level in fitted.net_.levels] == [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    fitted.save(tmp_path / "one.farout")
    assert (tmp_path / "one.farout").stat().st_size < 20e6
    again = load(tmp_path / "one.farout")
    others = noise(3, 64, seed=1)
    assert np.array_equal(again.outlier_score(others), fitted.outlier_score(others))
    with pytest.warns(UserWarning):
        assert np.array_equal(again.threshold(3), fitted.threshold(3))
