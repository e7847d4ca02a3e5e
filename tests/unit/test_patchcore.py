from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy.ndimage import gaussian_filter  # noqa: E402
from torch import nn  # noqa: E402

from farout import load  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.errors import BadInput, MissingExtra  # noqa: E402
from farout.image import patchcore  # noqa: E402
from farout.image._patches import at_strides, patches  # noqa: E402
from farout.image.backbones import Backbone  # noqa: E402
from farout.image.patchcore import PatchCore, greedy_coreset  # noqa: E402


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 8, 3, 2, 1))


def noise(n, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def detector(**settings):
    ours = {"coreset": 0.1, "backbone": small_net(), "layers": ["0", "2"], "size": 16, "batch_size": 7, "blur": 1.5}
    return PatchCore(**ours | settings)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_coreset(x, count, start):
    x, chosen = x.numpy(), [start]
    while len(chosen) < count:
        apart = np.linalg.norm(x[:, None] - x[chosen][None], axis=2).min(1)
        apart[chosen] = -1
        chosen.append(int(apart.argmax()))
    return chosen


def naive_patches(levels, pool):
    """Means over the neighbourhood by loops, with zeros beyond the edge; brought to the first level's grid."""
    found = []
    for level in levels:
        half = pool // 2
        padded = np.pad(level, ((0, 0), (0, 0), (half, half), (half, half)))
        mean = np.zeros_like(level)
        for i in range(level.shape[2]):
            for j in range(level.shape[3]):
                mean[:, :, i, j] = padded[:, :, i : i + pool, j : j + pool].mean((2, 3))
        size = levels[0].shape[2:]
        found.append(nn.functional.interpolate(torch.from_numpy(mean), size, mode="bilinear").numpy())
    return np.concatenate(found, 1)


def embedded(images, pool=3):
    """Patch features (n, 64, D) in float64."""
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    levels = [f.double().numpy() for f in Backbone(small_net(), ["0", "2"])(x_BCHW)]
    return naive_patches(levels, pool).reshape(len(images), 13, 64).transpose(0, 2, 1)


def naive_scores(x_BPD, bank, neighbours):
    """Scores and distances of patches, image by image, as the paper writes them."""
    scores, distances = [], []
    for x in x_BPD:
        apart = np.linalg.norm(x[:, None] - bank[None], axis=2)
        nearest = apart.min(1)
        distances.append(nearest)
        worst = nearest.argmax()
        own = apart[worst].argmin()
        kin = np.argsort(np.linalg.norm(bank - bank[own], axis=1), kind="stable")[:neighbours]
        weight = 1 - np.exp(nearest[worst]) / np.exp(np.linalg.norm(x[worst] - bank[kin], axis=1)).sum()
        scores.append(weight * nearest[worst])
    return np.array(scores), np.array(distances)


def test_patches_are_means_over_the_neighbourhood():
    levels = [drawn(2, 3, 8, 8), drawn(2, 4, 4, 4, seed=1)]
    for pool in (1, 3, 5):
        expected = naive_patches([level.numpy() for level in levels], pool)
        np.testing.assert_allclose(patches(levels, pool), expected, rtol=1e-12, atol=1e-12)
    assert patches(levels, grid=(4, 4)).shape == (2, 7, 4, 4)
    with pytest.raises(BadInput, match="odd number above 0, not 2"):
        patches(levels, 2)
    with pytest.raises(BadInput, match="a level"):
        patches([])
    with pytest.raises(BadInput, match=r"stride \[4\]"):
        at_strides((2, 8, 8), (4, 8))


@pytest.mark.parametrize("at_once", [4096, 40, 16])
@pytest.mark.parametrize("start", [0, 17])
def test_the_coreset_is_that_of_the_naive_version(at_once, start, monkeypatch):
    monkeypatch.setattr(patchcore, "AT_ONCE", at_once)
    x = drawn(230, 5, seed=start) * torch.linspace(0.1, 3, 230, dtype=torch.float64)[:, None] + 50
    assert greedy_coreset(x, 60, start).tolist() == naive_coreset(x, 60, start)


def test_the_coreset_chooses_many_rows_a_round():
    """Comparing with all rows once for each that is chosen would take as many rounds as there are choices."""
    x = drawn(6000, 3).float()
    calls = []
    chosen = greedy_coreset(x, 500, progress=calls.append)
    assert len(chosen) == len(set(chosen.tolist())) == 500 and len(calls) < 10 and calls[-1] == 1.0
    radius = [float(torch.cdist(x, x[chosen[:count]]).amin(1).max()) for count in (50, 500)]
    at_random = float(torch.cdist(x, x[:500]).amin(1).max())
    assert radius[1] < 0.6 * radius[0] and radius[1] < 0.5 * at_random


def test_equal_rows_are_chosen_once_each():
    x = torch.zeros(30, 2, dtype=torch.float64)
    assert sorted(greedy_coreset(x, 30, 4).tolist()) == list(range(30))
    assert greedy_coreset(drawn(3, 2), 3, 1).tolist()[0] == 1
    for count, start in ((0, 0), (4, 0), (1, 3)):
        with pytest.raises(BadInput, match="cannot be chosen among 3"):
            greedy_coreset(drawn(3, 2), count, start)


@pytest.mark.parametrize("neighbours", [9, 3])
def test_scores_and_maps_are_those_of_the_naive_version(neighbours, monkeypatch):
    monkeypatch.setattr(patchcore, "COMPARED", 50)
    others = noise(4, seed=1)
    fitted = detector(neighbours=neighbours, blur=2.0).fit(noise(20))
    bank = fitted.net_.bank.double().numpy()
    assert bank.shape == (128, 13)
    scores, distances = naive_scores(embedded(others), bank, neighbours)
    assert (scores < 0.95 * distances.max(1)).all()  # the weight matters
    raw = torch.from_numpy(distances.reshape(4, 1, 8, 8))
    wide = nn.functional.interpolate(raw, (16, 16), mode="bilinear")[:, 0].numpy()
    ours = fitted.scores_and_maps(others)
    np.testing.assert_allclose(ours[0], scores, rtol=1e-4)
    np.testing.assert_allclose(ours[1], np.stack([gaussian_filter(one, 2.0) for one in wide]), rtol=1e-4)


def test_one_neighbour_is_no_weighting():
    others = noise(4, seed=1)
    fitted = detector(neighbours=1).fit(noise(20))
    distances = naive_scores(embedded(others), fitted.net_.bank.double().numpy(), 1)[1]
    np.testing.assert_allclose(fitted.outlier_score(others), distances.max(1), rtol=1e-4)


def test_a_neighbour_in_a_sparse_region_weighs_less():
    """Two patches are equally far from their neighbours; one neighbour is in a crowd, whose others are farther off."""
    net = detector(neighbours=3)._net()
    crowd, lonely = torch.zeros(3, 13), torch.zeros(1, 13)
    crowd[:, 0] = torch.tensor([0.0, -0.1, -0.2])
    lonely[0, 1] = 50.0
    net.bank = torch.cat([crowd, lonely])
    x_BPD = torch.zeros(2, 1, 13)
    x_BPD[0, 0, 0], x_BPD[1, 0, 1] = 1.0, 51.0
    near, far = net._weighted(x_BPD, torch.tensor([[0], [3]]), torch.ones(2, 1)).tolist()
    assert near == pytest.approx(1 - 1 / (1 + np.exp(0.1) + np.exp(0.2))) and far == pytest.approx(1.0)


def test_the_neighbour_itself_counts_even_beside_its_double():
    net = detector(neighbours=2)._net()
    net.bank = torch.zeros(3, 13)
    net.bank[2] = 1.0
    x_BPD = torch.full((1, 1, 13), -1.0)
    score = net._weighted(x_BPD, torch.tensor([[1]]), torch.full((1, 1), 13**0.5))
    assert float(score) == pytest.approx(13**0.5 / 2)


def test_the_whole_bank_knows_its_images():
    fitted = detector(coreset=1.0)
    scores = fitted.fit_score(noise(6))
    assert fitted.net_.bank.shape == (6 * 64, 13) and scores.max() < 1e-4
    np.testing.assert_allclose(fitted.net_.bank.numpy(), embedded(noise(6)).reshape(-1, 13), rtol=1e-4, atol=1e-6)
    lone = detector(coreset=1e-4).fit(noise(6))
    assert lone.net_.bank.shape == (1, 13) and lone.outlier_score(noise(1, seed=1))[0] > 0


def test_the_bank_is_chosen_in_the_projection():
    images = noise(12)
    banks = {p: detector(projection=p).fit(images).net_.bank for p in (None, 13, 128, 2)}
    assert torch.equal(banks[None], banks[13]) and torch.equal(banks[None], banks[128])
    assert banks[2].shape == banks[None].shape and not torch.equal(banks[2], banks[None])
    rows = torch.from_numpy(embedded(images)).flatten(0, 1).float()
    generator = torch.Generator().manual_seed(0)
    start = int(torch.randint(768, (1,), generator=generator))
    seen = rows @ torch.randn(13, 2, generator=generator)
    same = (banks[2][:20] - rows[greedy_coreset(seen, 20, start)]).abs().amax(1) < 1e-4
    assert same.float().mean() > 0.8  # ties of rounding apart
    bank = rows[greedy_coreset(rows, 76, start)]
    assert ((banks[None] - bank).abs().amax(1) < 1e-4).float().mean() > 0.8


def test_seeds_and_the_state_of_the_caller():
    state = torch.random.get_rng_state()
    one, same, other = (detector(random_state=seed).fit(noise(6)).net_.bank for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_each_image_is_scored_by_itself():
    fitted = detector().fit(noise(12))
    others = noise(5, seed=1)
    alone = np.concatenate([fitted.outlier_score(others[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, fitted.outlier_score(others), rtol=1e-5)


def test_images_that_are_alike_give_finite_scores():
    fitted = detector(coreset=0.5).fit(np.repeat(noise(1), 6, axis=0))
    scores = fitted.outlier_score(np.concatenate([noise(1), noise(1, seed=1)]))
    assert scores[0] < 1e-4 < scores[1] < 10
    black = detector(coreset=0.5).fit(np.zeros((6, 16, 16, 3), np.uint8))
    assert black.outlier_score(np.zeros((1, 16, 16, 3), np.uint8))[0] < 1e-4


def test_bad_input():
    with pytest.raises(BadInput, match="5 normal images"):
        detector().fit(noise(4))
    for wrong in ({"coreset": 0.0}, {"coreset": 1.5}, {"neighbours": 0}, {"blur": -1.0}, {"projection": 0}):
        with pytest.raises(BadInput, match="'coreset'"):
            detector(**wrong).fit(noise(6))


def test_progress_is_reported():
    shares = []
    detector().fit(noise(20), progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0


@pytest.mark.parametrize("neighbours", [9, 1])
def test_the_exported_graph_gives_the_same_scores_and_maps(tmp_path, neighbours, monkeypatch):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(patchcore, "COMPARED", 50)
    fitted = detector(neighbours=neighbours).fit(noise(20))
    fitted.export(tmp_path / "one.onnx")
    others = noise(5, seed=1)
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"))
    score, maps = session.run(None, {"images": others.transpose(0, 3, 1, 2).astype(np.float32) / 255})
    expected = fitted.scores_and_maps(others)
    np.testing.assert_allclose(score, expected[0], rtol=2e-4)
    np.testing.assert_allclose(maps, expected[1], rtol=2e-4)


def test_the_default_backbone_is_saved_by_its_name(tmp_path):
    try:
        fitted = PatchCore(size=64).fit(noise(8, 64))
    except (DataMissing, MissingExtra) as error:
        pytest.skip(str(error))
    assert fitted.net_.levels == (3, 5) and fitted.net_.bank.shape == (5, 152)
    fitted.save(tmp_path / "one.farout")
    again = load(tmp_path / "one.farout")
    others = noise(3, 64, seed=1)
    for one, other in zip(again.scores_and_maps(others), fitted.scores_and_maps(others)):
        assert np.array_equal(one, other)
