from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

import farout  # noqa: E402
from farout.bench.metrics import auroc  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image._defects import drawn_defects  # noqa: E402
from farout.image._inpainting import (  # noqa: E402
    FLOOR,
    Attenuation,
    Painter,
    UNet,
    fixed_masks,
    gradient_difference,
    painting_loss,
    structural_similarity,
)
from farout.image.fader import FADeR  # noqa: E402
from farout.kit.fitting import Cycle  # noqa: E402

WIDTHS = (8, 16, 24)


def images(n, seed=0, size=32):
    """Soft stripes of changing phase with a little noise (n, size, size, 3)."""
    generator = np.random.default_rng(seed)
    phase = generator.uniform(0, 6, (n, 1, 1, 1))
    wave = 128 + 60 * np.sin(np.arange(size)[None, :, None, None] / 3 + phase)
    return np.clip(wave + generator.normal(0, 4, (n, size, size, 3)), 0, 255).astype(np.uint8)


def pixels(arrays):
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet(WIDTHS)


def detector(**changes):
    return FADeR(**dict(widths=WIDTHS, hidden=8, cell=8, steps=6, size=32, batch_size=4, smoothing=1.0) | changes)


class Remembering(FADeR):
    """Keeps the base as it was before anything was put into it."""

    def _attenuation(self, net, gates, x_BCHW):
        self.before = copy.deepcopy(net)
        return super()._attenuation(net, gates, x_BCHW)


@pytest.fixture(scope="module")
def trained():
    """The same base with attenuation and without, trained for a while."""
    settings = detector(steps=100, base="reconstruction", widths=(8, 16), learning_rate=5e-3).get_params()
    return [kind(**settings | {"attenuate": on}).fit(images(16)) for kind, on in ((Remembering, True), (FADeR, False))]


def test_letting_all_through_is_the_base_bit_for_bit():
    net, x = unet(), drawn(2, 3, 32, 24)
    assert torch.equal(net(x, lambda skips: [torch.ones_like(f[:, :1]) for f in skips]), net(x))


def test_letting_nothing_through_is_a_net_without_skips():
    net, x = unet(), drawn(2, 3, 32, 24)
    found = net(x, lambda skips: [torch.zeros_like(f[:, :1]) for f in skips])
    hidden = net.encode(x)[-1]
    for block, skip in reversed(list(zip(net.up, WIDTHS))):
        first, *others = copy.deepcopy(block)
        hidden = F.interpolate(hidden, scale_factor=2.0)
        hidden = F.conv2d(hidden, first.weight[:, :-skip], first.bias, padding=1)
        for layer in others:
            hidden = layer(hidden)
    assert torch.allclose(found, torch.sigmoid(net.out(hidden)), atol=1e-6)
    assert not torch.allclose(found, net(x), atol=1e-3)


def test_each_skip_is_multiplied_by_its_own_share():
    net, x = unet(), drawn(1, 3, 16, 16)
    features = net.encode(x)
    shares = [drawn(1, 1, 16, 16, seed=1), drawn(1, 1, 8, 8, seed=2)]
    scaled = [share * f for share, f in zip(shares, features)] + features[-1:]
    assert torch.equal(net.decode(features, shares), net.decode(scaled))


def test_unet_halves_and_returns_pixels():
    net = unet()
    assert [tuple(f.shape) for f in net.encode(drawn(1, 3, 16, 24))] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 24, 4, 6)]
    painted = net(5 * drawn(1, 3, 16, 24) - 2).detach()
    assert painted.shape == (1, 3, 16, 24) and float(painted.min()) > 0 and float(painted.max()) < 1
    assert UNet().up[0][0].weight.shape == (32, 96, 3, 3)  # 32-64-128-256, with a skip at each of the finer three
    assert len(UNet().up) == 3


def test_shares_lie_between_the_floor_and_1_and_depend_on_their_patch_alone():
    torch.manual_seed(0)
    gates = Attenuation(WIDTHS[:-1], hidden=8)
    skips = [100 * (drawn(2, 8, 6, 6) - 0.5), 100 * (drawn(2, 16, 3, 3) - 0.5)]
    shares = gates(skips)
    assert [tuple(one.shape) for one in shares] == [(2, 1, 6, 6), (2, 1, 3, 3)]
    shares = [one.detach() for one in shares]
    assert all(float(one.min()) >= FLOOR and float(one.max()) <= 1 for one in shares)
    assert any(float(one.max() - one.min()) > 0.1 for one in shares)
    changed = [skips[0].clone(), skips[1].clone()]
    changed[0][1, :, 2, 3] += 7
    again = gates(changed)
    same = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    same[1, 0, 2, 3] = False
    assert torch.equal(again[0] == shares[0], same) and torch.equal(again[1], shares[1])


def test_share_is_two_linear_layers_a_relu_and_a_sigmoid_above_the_floor():
    torch.manual_seed(0)
    gates = Attenuation([8], hidden=5)
    features = drawn(1, 8, 2, 3)
    first, _, second = gates.perceptrons[0]
    for y in range(2):
        for x in range(3):
            inner = torch.relu(first.weight[:, :, 0, 0] @ features[0, :, y, x] + first.bias)
            logit = second.weight[0, :, 0, 0] @ inner + second.bias[0]
            share = float(gates([features])[0][0, 0, y, x].detach())
            assert share == pytest.approx(float((0.05 + 0.95 * torch.sigmoid(logit)).detach()), rel=1e-5)


def test_attenuation_is_small():
    weights = sum(weight.numel() for weight in Attenuation((32, 64, 128), 64).parameters())
    assert weights == sum(width * 64 + 2 * 64 + 1 for width in (32, 64, 128))
    assert weights < 0.01 * sum(weight.numel() for weight in UNet().parameters())


@pytest.mark.parametrize("base", ["checkerboard", "grating"])
def test_every_pixel_is_painted_by_the_pass_that_did_not_see_it(base):
    torch.manual_seed(0)
    net = Painter(base, 16, 4, (8, 16), 1.0)
    masks = fixed_masks(base, 16, 4)
    assert torch.equal(masks.sum(0), torch.ones(1, 16, 16)) and float(masks[0].mean()) == 0.5
    x = drawn(1, 3, 16, 16).requires_grad_()
    wanted = masks[0] * net.unet(x * (1 - masks[0])) + masks[1] * net.unet(x * (1 - masks[1]))
    painted = net.painted(x)
    assert torch.allclose(painted, wanted, atol=1e-6)
    for y, column in ((1, 1), (6, 9), (15, 2)):
        slope = torch.autograd.grad(painted[0, 0, y, column], x, retain_graph=True)[0][0].abs().sum(0)
        hidden = masks[:, 0, y, column].argmax()
        assert float((slope * masks[hidden, 0]).max()) == 0 and float(slope.max()) > 0


def test_in_training_each_image_is_half_seen():
    net = Painter("checkerboard", 16, 4, (8, 16), 1.0)
    x = drawn(32, 3, 16, 16) + 0.1
    seen = net.half_seen(x, torch.Generator().manual_seed(0))
    halves = [(seen[i] != 0).all(0) for i in range(32)]
    masks = fixed_masks("checkerboard", 16, 4)[:, 0] == 0
    which = [[bool((half == mask).all()) for mask in masks] for half in halves]
    assert all(sum(one) == 1 for one in which) and 5 < sum(one[0] for one in which) < 27
    assert torch.equal(seen[seen != 0], x[seen != 0])
    bare = Painter("reconstruction", 16, 4, (8, 16), 1.0)
    assert torch.equal(bare.half_seen(x, torch.Generator()), x)
    assert torch.equal(bare.painted(x), bare.unet(x))


def test_structural_similarity_is_that_of_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    x, y = drawn(2, 3, 40, 36), drawn(2, 3, 40, 36, seed=1)
    y = 0.6 * x + 0.4 * y
    grey = [one.mean(1, keepdim=True) for one in (y, x)]
    full = image.structural_similarity_index_measure(*grey, data_range=1.0, return_full_image=True)[1]
    assert float(structural_similarity(x, y)) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-5)


def test_gradient_difference_equals_a_slow_version():
    from scipy.ndimage import prewitt

    x, y = drawn(1, 3, 32, 16), drawn(1, 3, 32, 16, seed=1)
    a, b, parts = x.mean(1).numpy()[0].astype(float), y.mean(1).numpy()[0].astype(float), []
    for _ in range(4):
        ga, gb = (np.hypot(prewitt(one, 0, mode="nearest"), prewitt(one, 1, mode="nearest")) / 3 for one in (a, b))
        apart = 1 - (2 * ga * gb + 0.0026) / (ga**2 + gb**2 + 0.0026)
        parts.append(F.interpolate(torch.tensor(apart)[None, None], (32, 16), mode="bilinear")[0, 0])
        a, b = (one.reshape(one.shape[0] // 2, 2, -1, 2).mean((1, 3)) for one in (a, b))
    assert np.allclose(gradient_difference(x, y)[0].numpy(), torch.stack(parts).mean(0).numpy(), atol=1e-5)


def test_differences_are_0_for_equal_images_and_at_most_1():
    x = drawn(2, 3, 16, 16)
    assert float(gradient_difference(x, x).abs().max()) < 1e-6
    found = gradient_difference(x, torch.zeros_like(x))
    assert float(found.min()) > 0 and float(found.max()) < 1
    assert gradient_difference(drawn(1, 3, 3, 3), drawn(1, 3, 3, 3, seed=1)).shape == (1, 3, 3)  # no halving below 1
    flat = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    gradient_difference(flat, flat.detach()).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_loss_is_the_sum_of_its_three_parts():
    x, y = drawn(2, 3, 24, 24), drawn(2, 3, 24, 24, seed=1)
    wanted = (x - y).square().mean() + 1 - structural_similarity(x, y) + gradient_difference(x, y).mean()
    assert float(painting_loss(x, y)) == pytest.approx(float(wanted), rel=1e-6)
    assert abs(float(painting_loss(x, x))) < 1e-5


def test_what_attenuation_learns_is_how_badly_the_base_paints():
    found = detector(base="checkerboard", steps=4)
    x = torch.from_numpy(images(6)).permute(0, 3, 1, 2).contiguous()
    net = found._net()
    loss = found._attenuation(net, net.gates, x)
    value = loss()
    # again, step by step, with the same draws
    generator = torch.Generator().manual_seed(0)
    clean = x[torch.arange(64) % 6]
    defective, masks = drawn_defects(clean, generator)
    assert masks.flatten(1).any(1).all()
    with torch.no_grad():
        errors = [[], []]
        for part in (x[:4] / 255, x[4:] / 255):
            error = (net.unet(net.half_seen(part, generator)) - part).square().mean(1, keepdim=True)
            errors[0].append(error.flatten())
            errors[1].append(F.avg_pool2d(error, 2).flatten())
        large = [torch.cat(one).quantile(0.95) for one in errors]
        assert found.large_ == pytest.approx([float(one) for one in large])
        drawn_in = torch.cat([torch.zeros_like(masks), masks])[:, None]
        pairs = Cycle(torch.cat([clean, defective]), torch.cat([clean, clean]), drawn_in, batch_size=4)
        shown, wanted, drawn_in = next(pairs)
        shown, wanted = shown / 255, wanted / 255
        seen = net.half_seen(shown, generator)
        error = (net.unet(seen) - wanted).square().mean(1, keepdim=True)  # against the image without defect
        skips = net.unet.encode(seen)[:-1]
    naive, here = 0.0, drawn_in
    for gate, skip, e, q in zip(net.gates.perceptrons, skips, (error, F.avg_pool2d(error, 2)), large):
        share, target = torch.sigmoid(gate(skip)), torch.exp(-e / q)
        each = -(target * share.log() + (1 - target) * (1 - share).log())
        naive = naive + each[here].mean() / 2 + each[~here].mean() / 2
        here = here.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).any(5).any(3)
    assert float(value.detach()) == pytest.approx(float(naive.detach()), rel=1e-4)
    value.backward()
    assert all(float(weight.grad.abs().max()) > 0 for weight in net.gates.parameters())
    assert all(weight.grad is None for weight in net.unet.parameters())


def test_training_moves_what_it_should(trained):
    with_gates, base = trained
    for one, two in zip(with_gates.net_.unet.down.parameters(), base.net_.unet.down.parameters()):
        assert torch.equal(one, two)  # neither attenuation nor the last part touches the encoder
    assert not torch.equal(with_gates.net_.unet.out.weight, base.net_.unet.out.weight)
    assert with_gates.history_["base"] == base.history_["base"] and len(base.history_["base"]) == 10
    assert list(with_gates.history_) == ["base", "attenuation", "last"] and list(base.history_) == ["base", "last"]
    start = base._net().unet
    for name, weight in base.net_.unet.named_parameters():
        assert not torch.equal(weight, start.get_parameter(name)), name
    for name, weight in with_gates.net_.gates.named_parameters():
        assert not torch.equal(weight, with_gates._net().gates.get_parameter(name)), name


def test_attenuation_costs_a_hundredth_of_what_it_takes(monkeypatch):
    priced = detector().fit(images(6)).history_["last"]
    monkeypatch.setattr("farout.image.fader.PRICE", 0.0)
    free = detector().fit(images(6)).history_["last"]
    shares = detector().fit(images(6)).net_
    with torch.no_grad():
        taken = sum(float((1 - one).mean()) for one in shares.gates(shares.unet.encode(pixels(images(6)))[:-1]))
    assert priced[0] - free[0] == pytest.approx(0.01 * taken, rel=0.3)


def test_clean_images_are_painted_as_well_as_before(trained):
    x = pixels(images(16, seed=7))
    with torch.no_grad():
        before, after = (float(painting_loss(x, net.painted(x))) for net in (trained[0].before, trained[0].net_))
        assert torch.equal(trained[1].net_.painted(x), trained[1].net_.painted(x, gated=False))
        assert not torch.equal(trained[0].net_.painted(x), trained[0].net_.painted(x, gated=False))
    assert after < 1.01 * before


def test_defects_are_attenuated_more_than_normal_patches(trained):
    found = copy.deepcopy(trained[0])
    net = found.net_
    torch.manual_seed(0)
    net.gates = Attenuation((8,), hidden=32)
    loss = found._attenuation(net, net.gates, (255 * pixels(images(16))).to(torch.uint8))
    found._run("attenuation", loss, net.gates.parameters(), 200, 1e-2, lambda share: None, (0, 1))
    defective, masks = drawn_defects(pixels(images(32, seed=5)), torch.Generator().manual_seed(3), kinds=["scratch"])
    with torch.no_grad():
        share = net.gates(net.unet.encode(defective)[:-1])[0][:, 0]
    assert float(share[masks].mean()) < float(share[~masks].mean()) - 0.05
    assert auroc(masks.flatten().int().numpy(), -share.flatten().numpy()) > 0.7


def test_a_defect_is_found_where_it_is(trained):
    test = images(8, seed=1)
    test[:4, 10:20, 12:22] = np.random.default_rng(0).integers(0, 256, (4, 10, 10, 1))
    for found in trained:
        scores, maps = found.scores_and_maps(test)
        assert scores[:4].min() > scores[4:].max()
        places = np.stack([np.unravel_index(one.argmax(), one.shape) for one in maps[:4]])
        assert (np.abs(places - [15, 17]) <= 6).all()
        assert scores == pytest.approx(maps.max((1, 2)))


def test_map_is_the_smoothed_difference():
    from scipy.ndimage import gaussian_filter

    found = detector(steps=4, smoothing=2.0).fit(images(6))
    x = pixels(images(2, seed=3))
    with torch.no_grad():
        painted = found.net_.painted(x)
        wanted = gaussian_filter(gradient_difference(x, painted)[1].numpy(), 2)
        assert np.allclose(found.net_(x)[1][1].numpy(), wanted, atol=1e-5)


def test_a_seed_is_a_net_and_a_score_does_not_depend_on_the_others():
    usual, test = images(6), images(5, seed=3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (detector(random_state=seed).fit(usual).outlier_score(test) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert (one == two).all() and (one != other).all()
    assert detector().fit(usual).outlier_score(test[2:3])[0] == pytest.approx(one[2], rel=1e-4)


def test_identical_images_and_few_images():
    black = np.zeros((6, 32, 32, 3), np.uint8)
    assert np.isfinite(detector().fit(black).outlier_score(images(2))).all()
    with pytest.raises(BadInput, match="5 normal images"):
        detector().fit(images(4))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(base="attention"), UnknownName, "reconstruction"),
        (dict(size=30), BadInput, "multiple of 4"),
        (dict(size=8), BadInput, "11 pixels"),
        (dict(widths=(8,)), BadInput, "widths"),
        (dict(widths=(8, 12)), BadInput, "multiples of 8"),
        (dict(steps=0), BadInput, "steps"),
        (dict(cell=32), BadInput, "smaller"),
        (dict(learning_rate=float("nan")), BadInput, "learning_rate"),
        (dict(learning_rate=1e30), BadInput, "lower the learning rate"),
    ],
)
def test_bad_settings(changes, error, words):
    with pytest.raises(error, match=words):
        detector(**changes).fit(images(6))


@pytest.mark.parametrize(("base", "attenuate"), [("checkerboard", True), ("reconstruction", True), ("grating", False)])
def test_file_and_graph_give_the_same_scores(tmp_path, base, attenuate):
    found = detector(base=base, attenuate=attenuate).fit(images(6))
    test = images(3, seed=4)
    scores, maps = found.scores_and_maps(test)
    found.save(tmp_path / "fader.farout")
    again = farout.load(tmp_path / "fader.farout")
    for mine, theirs in zip((scores, maps), again.scores_and_maps(test)):
        assert (mine == theirs).all()
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    found.export(tmp_path / "fader.onnx")
    session = runtime.InferenceSession(str(tmp_path / "fader.onnx"))
    score, map_BHW = session.run(None, {"images": (test.transpose(0, 3, 1, 2) / 255).astype(np.float32)})
    assert np.allclose(score, scores, atol=2e-4) and np.allclose(map_BHW, maps, atol=2e-4)
