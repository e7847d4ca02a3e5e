from __future__ import annotations

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.errors import BadInput, NotFitted, UnknownName  # noqa: E402
from farout.kit.fitting import fit, predict  # noqa: E402
from farout.kit.nets import SmallCNN  # noqa: E402
from farout.ood.abet import AbetHead, AbetScore, ablated_energy  # noqa: E402
from farout.ood.energy import Energy  # noqa: E402
from farout.ood.views import Views, extract  # noqa: E402


def head_of(width=5, classes=3, seed=0):
    """A head whose batch norm is not the identity."""
    torch.manual_seed(seed)
    head = AbetHead(width, classes)
    norm = head.temperature[1]
    norm.weight.data.fill_(1.7)
    norm.bias.data.fill_(-0.4)
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(2.0)
    return head.eval()


def with_temperature(head, temperature):
    """Give a head one temperature for all inputs."""
    norm = head.temperature[1]
    norm.weight.data.zero_()
    norm.bias.data.fill_(math.log(temperature / (1 - temperature)))
    return head.eval()


def naive(head, rows, training=False):
    """Cosines and temperature by loops, in float64."""
    w = head.weight.detach().double().numpy()
    linear, norm = head.temperature[0], head.temperature[1]
    a, b = linear.weight.detach().double().numpy()[0], float(linear.bias.detach())
    raw = np.array([a @ row + b for row in rows])
    mean, var = (raw.mean(), raw.var()) if training else (float(norm.running_mean), float(norm.running_var))
    cosines, temperatures = [], []
    for row, value in zip(rows, raw):
        cosines.append([w_c @ row / ((np.linalg.norm(w_c) + 1e-4) * (np.linalg.norm(row) + 1e-4)) for w_c in w])
        scaled = (value - mean) / math.sqrt(var + norm.eps) * float(norm.weight.detach()) + float(norm.bias.detach())
        temperatures.append([1 / (1 + math.exp(-scaled)) + 1e-12])
    return np.array(cosines), np.array(temperatures)


@pytest.mark.parametrize("training", [False, True])
def test_cosines_and_temperature_are_those_of_a_loop(training):
    head = head_of().train(training)
    rows = 1e-3 * np.random.default_rng(0).normal(size=(20, 5))  # short rows, so that what is added to norms shows
    cosines, temperature = head.parts(torch.tensor(rows, dtype=torch.float32))
    expected, expected_temperature = naive(head_of(), rows, training)
    np.testing.assert_allclose(cosines.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(temperature.detach().numpy(), expected_temperature, rtol=1e-5)
    logits = head_of().train(training)(torch.tensor(rows, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(logits, expected / expected_temperature, rtol=1e-5, atol=1e-5)


def test_the_temperature_head_has_a_linear_map_and_a_batch_norm():
    head = AbetHead(width=7, classes=4)
    assert sum(part.numel() for part in head.temperature.parameters()) == 7 + 1 + 2
    assert {name for name, _ in head.named_parameters()} == {
        "weight",
        "temperature.0.weight",
        "temperature.0.bias",
        "temperature.1.weight",
        "temperature.1.bias",
    }  # the cosine head has no bias
    spread = AbetHead(200, 300).weight.detach().std()
    assert float(spread) == pytest.approx(math.sqrt(2 / 200), rel=0.02)  # He's, by fan-in


@pytest.mark.parametrize(("temperature", "ablated", "forefront"), [(0.5, 1.863, 0.932), (0.1, 8.002, 0.800)])
@torch.no_grad()
def test_the_factor_before_the_logarithm_turns_the_order(temperature, ablated, forefront):
    head = with_temperature(AbetHead(2, 2), temperature)
    head.weight.data = torch.tensor([[0.8, 0.6], [0.2, math.sqrt(0.96)]])  # rows of length 1
    views = Views(torch.zeros(1, 2), torch.tensor([[1e6, 0.0]]))  # cosines .8 and .2
    views = Views(head(views.features), views.features)
    assert -float(AbetScore(head).score(views)) == pytest.approx(ablated, abs=1e-3)
    assert -float(AbetScore(head, "forefront").score(views)) == pytest.approx(forefront, abs=1e-3)
    assert float(AbetScore(head, "temperature").score(views)) == pytest.approx(temperature, rel=1e-6)
    assert float(AbetScore(head, "cosine").score(views)) == pytest.approx(-0.8, abs=2e-4)


def test_length_of_features_leaves_cosines_and_temperature_leaves_classes():
    head, rows = head_of(), torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    cosines, temperature = head.parts(1e4 * rows)
    torch.testing.assert_close(head.parts(3e6 * rows)[0], cosines, rtol=1e-6, atol=1e-7)
    logits = head(1e4 * rows)
    assert torch.equal(logits.argmax(1), cosines.argmax(1))
    assert len(logits.argmax(1).unique()) == 3 and float(temperature.std()) > 0.1
    assert torch.isfinite(head(torch.zeros(1, 5))).all()  # and a zero row has some


def test_pixels_are_rows():
    x_BDHW = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    rows = x_BDHW.permute(0, 2, 3, 1).reshape(-1, 5)
    maps, flat = head_of().train(), head_of().train()  # a batch norm over all pixels
    logits_BCHW, logits = maps(x_BDHW), flat(rows)
    assert logits_BCHW.shape == (2, 3, 3, 4)
    torch.testing.assert_close(logits_BCHW.permute(0, 2, 3, 1).reshape(-1, 3), logits)
    torch.testing.assert_close(ablated_energy(logits_BCHW).flatten(), ablated_energy(logits))
    assert ablated_energy(logits_BCHW).shape == (2, 3, 4)
    torch.testing.assert_close(maps.temperature[1].running_mean, flat.temperature[1].running_mean)
    labels = torch.randint(3, (2, 3, 4), generator=torch.Generator().manual_seed(3))
    expected = flat.losses(rows, labels.flatten())["cross_entropy"]
    torch.testing.assert_close(maps.losses(x_BDHW, labels)["cross_entropy"], expected)


def test_the_background_counts_for_nothing():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    others = -torch.log(torch.exp(logits[:, :3]).sum(1))
    torch.testing.assert_close(ablated_energy(logits, background=-1), others)
    assert torch.equal(ablated_energy(logits, background=3), ablated_energy(logits, background=-1))
    changed = logits.clone()
    changed[:, 1] += 100
    assert torch.equal(ablated_energy(changed, background=1), ablated_energy(logits, background=1))
    pixels_BCHW = logits.T.reshape(1, 4, 2, 3)
    torch.testing.assert_close(ablated_energy(pixels_BCHW, background=3).flatten(), others)
    for background in (4, -5):
        with pytest.raises(BadInput, match="cannot be left out of logits of 4 classes"):
            ablated_energy(logits, background=background)
    with pytest.raises(BadInput, match="of 1 classes"):
        ablated_energy(logits[:, :1], background=0)


def test_no_temperature_overflows():
    head = head_of()
    head.temperature[1].bias.data.fill_(-1e4)
    rows = torch.randn(10, 5, generator=torch.Generator().manual_seed(5))
    cosines, temperature = head.parts(rows)
    torch.testing.assert_close(temperature, torch.full((10, 1), 1e-12))
    torch.testing.assert_close(ablated_energy(head(rows)), -1e12 * cosines.amax(1))
    loss = head.losses(rows, cosines.argmax(1))["cross_entropy"]
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_half_precision_is_raised():
    rows = torch.randn(10, 5, generator=torch.Generator().manual_seed(6)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head_of()(rows)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head_of()(rows.float()))
    assert head_of().double()(rows.double()).dtype == torch.float64


def test_the_loss_is_the_cross_entropy_of_the_logits_and_reaches_every_weight():
    head = head_of().train()
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(7)).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, -100])
    losses = head.losses(rows, labels)
    assert set(losses) == {"cross_entropy"}
    cosines, temperature = naive(head_of(), rows.detach().double().numpy(), training=True)
    z = cosines / temperature
    each = [np.log(np.exp(z[i]).sum()) - z[i, label] for i, label in enumerate(labels[:7])]
    assert float(losses["cross_entropy"]) == pytest.approx(np.mean(each), rel=1e-5)
    losses["cross_entropy"].backward()
    for name in ("weight", "temperature.0.weight", "temperature.1.weight", "temperature.1.bias"):
        assert float(head.get_parameter(name).grad.abs().min()) > 1e-5, name
    assert float(rows.grad[:7].abs().max(1).values.min()) > 1e-5


def test_react_cuts_the_features_of_the_cosines_alone():
    head = head_of()
    usual = torch.rand(100, 5, generator=torch.Generator().manual_seed(8))
    rows = 3 * torch.rand(30, 5, generator=torch.Generator().manual_seed(9))
    views = Views(head(rows), rows)
    score = AbetScore(head, react=80).fit(Views(head(usual), usual))
    assert score.height_ == pytest.approx(np.percentile(usual.numpy(), 80))
    cut = rows.clamp(max=score.height_)
    cosines, temperature = head.parts(cut)[0], head.parts(rows)[1]
    torch.testing.assert_close(score.score(views), -(cosines / temperature).logsumexp(1))
    assert not torch.allclose(head.parts(cut)[1], temperature, rtol=0.01)
    assert not torch.allclose(score.score(views), AbetScore(head).score(views), rtol=0.01)
    with pytest.raises(NotFitted):
        AbetScore(head, react=80).score(views)
    with pytest.raises(BadInput, match="percentile"):
        AbetScore(head, react=101).fit(views)


def test_a_head_drops_into_a_network():
    net = SmallCNN(3, channels=1, width=4, seed=0)
    net.linear = AbetHead(net.width, 3)
    x = torch.rand(20, 1, 12, 12, generator=torch.Generator().manual_seed(10))
    net(x)  # moves the statistics of batch norms
    views = extract(net.eval(), x, needs=("logits", "features"), features="layer3")
    torch.testing.assert_close(views.features, net.features(x).detach())
    torch.testing.assert_close(views.logits, predict(net, x))
    ours = AbetScore(net.linear).fit(views).score(views)
    torch.testing.assert_close(ours, Energy().score(views))
    again = AbetScore(net.linear, react=100).fit(views).score(views)  # by the features, and cut nowhere
    torch.testing.assert_close(ours, again.detach())
    other = SmallCNN(3, channels=1, width=4)
    other.linear = AbetHead(other.width, 3)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert torch.equal(predict(other, x), predict(net, x))


def test_errors_in_training_teach_the_temperature():
    """Rows near 0 have random labels; features are such that the temperature can tell how near."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(4000, generator=generator) - 1
    near = x.abs() < 0.2
    coin = torch.randint(2, (4000,), generator=generator)
    clean = (x > 0).long()
    rows = torch.stack([x, x.abs(), torch.full_like(x, 0.3)], 1)

    def temperatures(labels):
        torch.manual_seed(0)
        net = torch.nn.Sequential(AbetHead(3, 2))
        fit(net, lambda net, x, y: net[0].losses(x, y), (rows, labels), epochs=15, weight_decay=1e-4)
        return net[0].parts(rows)[1][:, 0].detach()

    noisy = temperatures(torch.where(near, coin, clean))
    assert float(noisy[x.abs() < 0.1].mean()) > 3 * float(noisy[x.abs() > 0.5].mean())
    learned = temperatures(clean)
    assert float(learned[x.abs() < 0.1].mean()) < 0.3 * float(noisy[x.abs() < 0.1].mean())  # and without, nothing does


def test_what_cannot_be_done_is_said():
    for width, classes in ((0, 2), (3, 0)):
        with pytest.raises(BadInput, match="at least one feature and one class"):
            AbetHead(width, classes)
    with pytest.raises(BadInput, match=r"reads 5 features on axis 1; their shape is \(2, 4\)"):
        head_of()(torch.zeros(2, 4))
    with pytest.raises(BadInput, match="reads 5 features"):
        head_of()(torch.zeros(5))
    with pytest.raises(UnknownName, match="part of AbeT"):
        AbetScore(head_of(), "energy").score(Views(torch.zeros(1, 3), torch.zeros(1, 5)))
    with pytest.raises(BadInput, match="hold no features"):
        AbetScore(head_of(), "cosine").score(Views(torch.zeros(1, 3)))
