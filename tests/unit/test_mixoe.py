"""MixOE: what mixtures hold, what is asked of them, and the losses at both ends of the share."""

import math

import numpy as np
import pytest
from scipy.stats import beta, kstest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy, kl_div  # noqa: E402

from farout.claims._drawn_images import PLACES, marked_bodies  # noqa: E402
from farout.claims._exposure_lab import told  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.ood.mixoe import EnergyExposure, MixOE, OutlierExposure, cutmix, exposed_targets, mixup  # noqa: E402

CLASSES = 5


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=6, size=8, seed=0):
    generator = drawn(seed)
    x, outliers = torch.rand(2, n, 3, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator), outliers


def net(norm=False, seed=0):
    torch.manual_seed(seed)
    parts = [torch.nn.Conv2d(3, 4, 3), *([torch.nn.BatchNorm2d(4)] if norm else []), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts, torch.nn.Flatten(), torch.nn.LazyLinear(CLASSES)).double()


def at(monkeypatch, share):
    monkeypatch.setattr(MixOE, "share", lambda self, generator: share)


@pytest.mark.parametrize("weight", [1.0, 5.0])
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_of_whole_images_the_loss_is_cross_entropy_once_and_weight_times(monkeypatch, mix, weight):
    at(monkeypatch, 1.0)
    model, (x, y, outliers) = net(), batch()
    losses = MixOE(mix, weight=weight).losses(model, x, y, outliers, drawn())
    torch.testing.assert_close(sum(losses.values()), (1 + weight) * cross_entropy(model(x), y))


def test_of_outliers_alone_the_loss_is_outlier_exposure(monkeypatch):
    at(monkeypatch, 0.0)
    model, (x, y, outliers) = net(), batch()
    ours = MixOE(weight=3.0).losses(model, x, y, outliers, drawn())
    exposure = OutlierExposure(weight=3.0).losses(model, x, y, outliers)
    torch.testing.assert_close(ours["classes"], exposure["classes"])
    torch.testing.assert_close(ours["mixtures"], exposure["outliers"])
    uniform = torch.full((6, CLASSES), 1 / CLASSES, dtype=torch.float64)
    torch.testing.assert_close(exposure["outliers"], 3 * cross_entropy(model(outliers), uniform))


def test_the_loss_is_that_of_a_loop_over_images():
    model, (x, y, outliers) = net(), batch()
    method = MixOE(weight=2.0)
    losses = method.losses(model, x, y, outliers, drawn(3))
    share, logs = method.share(drawn(3)), []
    for image, label, outlier in zip(x, y, outliers):
        p = model((share * image + (1 - share) * outlier)[None]).detach().softmax(1)[0]
        wanted = [(1 - share) / CLASSES + share * (k == label) for k in range(CLASSES)]
        logs.append(-sum(w * math.log(float(q)) for w, q in zip(wanted, p)))
    assert 0.05 < share < 0.95
    assert float(losses["mixtures"].detach()) == pytest.approx(2 * float(np.mean(logs)), rel=1e-6)


def test_least_loss_is_reached_where_confidence_is_what_is_asked_for():
    targets = exposed_targets(torch.tensor([0, 2]), CLASSES, 0.6).double()
    torch.testing.assert_close(targets.sum(1), torch.ones(2, dtype=torch.float64))
    assert targets[1].tolist() == pytest.approx([0.08, 0.08, 0.68, 0.08, 0.08])
    logits = targets.log().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(logits, targets), logits)
    assert float(gradient.abs().max()) < 1e-7
    assert float(kl_div(logits.detach().log_softmax(1), targets, reduction="sum")) == pytest.approx(0, abs=1e-6)


def test_mixup_is_a_weighted_mean():
    x, _, outliers = batch()
    torch.testing.assert_close(mixup(x, outliers, 0.3), torch.lerp(outliers, x, 0.3))
    assert torch.equal(mixup(x, outliers, 1.0), x) and torch.equal(mixup(x, outliers, 0.0), outliers)


def test_the_share_of_a_box_is_that_of_the_pixels_that_stay():
    x, _, outliers = batch(2, 9)
    shares = []
    for seed in range(200):
        wanted = float(drawn_share(seed))
        mixed, share = cutmix(x, outliers, wanted, drawn(seed))
        kept = (mixed == x).double()
        assert share == pytest.approx(float(kept.mean()), abs=1e-12)
        assert torch.equal(torch.where(kept.bool(), x, outliers), mixed)
        assert torch.equal(kept[0], kept[1]) and torch.equal(kept[:, :1].expand_as(kept), kept)
        rows, columns = (1 - kept[0, 0]).amax(1), (1 - kept[0, 0]).amax(0)
        torch.testing.assert_close(rows[:, None] * columns, 1 - kept[0, 0])  # one box
        half = int(9 * math.sqrt(1 - wanted)) // 2
        assert max(rows.sum(), columns.sum()) <= 2 * half
        shares.append(share - wanted)
    assert max(shares) > 0.3  # boxes at the border were cut off, and the share says so


def drawn_share(seed):
    return np.random.default_rng(seed).uniform()


def test_boxes_lie_anywhere():
    x, outliers = torch.ones(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    kept = sum(cutmix(x, outliers, 0.8, drawn(seed))[0] for seed in range(300))[0, 0] / 300
    assert bool((kept < 1).all()) and float(kept.min()) > 0.7


def test_a_box_within_the_image_has_the_size_that_is_asked_for():
    x, outliers = torch.ones(1, 1, 40, 40), torch.zeros(1, 1, 40, 40)
    sizes = [cutmix(x, outliers, 0.75, drawn(seed))[1] for seed in range(60)]
    assert min(sizes) == pytest.approx(0.75)  # 20 of 40 each way


@pytest.mark.parametrize(("mix", "alpha"), [("mixup", 1.0), ("cutmix", 2.0)])
def test_shares_have_the_distribution_of_the_official_runs(mix, alpha):
    generator = drawn()
    shares = [MixOE(mix).share(generator) for _ in range(800)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 0.01
    sharp = [MixOE(mix, concentration=0.1).share(generator) for _ in range(400)]
    assert np.mean([0.1 < s < 0.9 for s in sharp]) < 0.35
    assert MixOE(mix).share(drawn(4)) == MixOE(mix).share(drawn(4))


def test_boxes_correct_the_share_that_the_targets_have():
    model, (x, y, outliers) = net(), batch()
    method = MixOE("cutmix", weight=1.0)
    mixed, share = method.mixed(x, outliers, drawn(1))
    assert share != method.share(drawn(1))
    losses = method.losses(model, x, y, outliers, drawn(1))
    targets = exposed_targets(y, CLASSES, share)
    torch.testing.assert_close(losses["mixtures"], cross_entropy(model(mixed), targets.double()))


@pytest.mark.parametrize("method", [MixOE(), MixOE("cutmix"), OutlierExposure(), EnergyExposure(inside=-40, outside=9)])
def test_each_term_reaches_the_weights(method):
    model, (x, y, outliers) = net(), batch()
    losses = method.losses(model, x, y, outliers, drawn())
    for term in losses.values():
        gradients = torch.autograd.grad(term, list(model.parameters()), retain_graph=True)
        assert all(float(g.abs().max()) > 0 for g in gradients)


def test_one_pass_or_two_is_told_by_batch_normalization_alone():
    x, y, outliers = batch()
    for method in (MixOE, OutlierExposure):
        plain = [sum(method(joint=j).losses(net(), x, y, outliers, drawn()).values()) for j in (False, True)]
        torch.testing.assert_close(plain[0], plain[1])
        normed = [sum(method(joint=j).losses(net(True), x, y, outliers, drawn()).values()) for j in (False, True)]
        assert abs(float(normed[0] - normed[1])) > 1e-3
    assert not MixOE().joint and OutlierExposure().joint  # as in the official code


def test_energies_are_pushed_to_their_sides():
    x, y, outliers = torch.eye(2), torch.tensor([0, 1]), torch.eye(2)[[0, 0]]
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
        model.bias.zero_()
    energy = -math.log(math.exp(3) + 1)
    found = EnergyExposure(0.5, inside=-4.0, outside=-2.0).losses(model, x, y, outliers)["outliers"]
    assert float(found) == pytest.approx(0.5 * ((energy + 4) ** 2 + (-2 - energy) ** 2), rel=1e-5)
    assert float(EnergyExposure(0.5, inside=-3.0, outside=-4.0).losses(model, x, y, outliers)["outliers"]) == 0


def test_outliers_may_be_more_than_images_for_exposure_but_not_for_mixtures():
    model, (x, y, outliers) = net(), batch()
    more = torch.cat([outliers, outliers])
    losses = OutlierExposure().losses(model, x, y, more)
    torch.testing.assert_close(losses["outliers"], OutlierExposure().losses(model, x, y, outliers)["outliers"])
    with pytest.raises(BadInput, match=r"\(6, 3, 8, 8\) cannot be mixed with \(12, 3, 8, 8\)"):
        MixOE().losses(model, x, y, more, drawn())
    with pytest.raises(BadInput, match="draw as many outliers"):
        cutmix(x, more, 0.5, drawn())


def test_what_cannot_be_is_said():
    with pytest.raises(UnknownName, match="no mixture is called 'cutmx'; nearest: 'cutmix'"):
        MixOE("cutmx")
    for wrong in ({"concentration": 0.0}, {"weight": -1.0}, {"weight": math.nan}):
        with pytest.raises(BadInput, match="concentration is above zero"):
            MixOE(**wrong)
    with pytest.raises(BadInput, match="boxes are cut from images"):
        cutmix(torch.zeros(2, 4), torch.zeros(2, 4), 0.5, drawn())


def test_marks_of_drawn_bodies_sit_at_their_places():
    x_BCHW = marked_bodies(np.arange(15), 64, seed=0, spread=0.0)
    assert x_BCHW.shape == (15, 3, 64, 64) and x_BCHW.dtype == np.float32
    grid = np.arange(64) - 31.5
    for places, image in zip(PLACES, x_BCHW.mean(1)):
        dark = image < -0.8  # pixels of marks are below 0.3 of 1
        rows, columns = np.nonzero(dark)
        angles = np.arctan2(grid[rows], grid[columns]) % (2 * np.pi)
        count = np.bincount(np.rint(angles / (np.pi / 3)).astype(int) % 6, minlength=6)
        assert sorted(count.argsort()[-2:]) == sorted(places)  # by far, though bodies are off the middle
    moved = marked_bodies(np.arange(15), 64, seed=0)
    assert not np.array_equal(moved, x_BCHW) and np.array_equal(moved, marked_bodies(np.arange(15), 64, seed=0))


def test_both_rates_of_unknown_images_are_told():
    """A model whose logits are its inputs: confidences are known."""
    p = torch.tensor([0.95, 0.9, 0.8, 0.6])
    usual, unknown = (torch.stack([q, 1 - q], 1).log() for q in (p, torch.tensor([0.99, 0.55, 0.7])))
    (row,) = told(torch.nn.Identity(), usual, np.array([0, 0, 0, 1]), {"odd": unknown}, seed=3)
    assert row["accuracy"] == 0.75 and row["seed"] == 3 and row["unknown"] == "odd"
    assert row["TNR95"] == pytest.approx(1 / 3)  # below .6
    assert row["FPR95"] == 1.0  # to catch .99 all are flagged
    assert row["AUROC"] == pytest.approx((0 + 4 + 3) / 12)
