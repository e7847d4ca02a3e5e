"""ASCOOD: what tampering changes and what it leaves, the head, and that making outliers leaves the model as it was."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import cross_entropy  # noqa: E402

from farout.claims._drawn_images import agreeing, objects_on_textures  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.ood.ascood import (  # noqa: E402
    ASCOOD,
    StandardizedHead,
    largest_coordinate_step,
    saliency,
    standardized,
    strength_for,
    tamper,
)

CLASSES = 4


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=5, size=8, seed=0):
    generator = drawn(seed)
    x = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def gradients(n=5, size=8, seed=1):
    return torch.randn(n, 3, size, size, generator=drawn(seed), dtype=torch.float64)


def net(seed=0):
    torch.manual_seed(seed)
    trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten())
    return torch.nn.Sequential(trunk, StandardizedHead(torch.nn.Linear(216, CLASSES))).double()


def linear(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, CLASSES)).double()


def tampered(x, gradient, how, share, strength=2.0, places="salient", seed=0):
    return tamper(x, gradient, how=how, share=share, strength=strength, generator=drawn(seed), places=places)


@pytest.mark.parametrize("share", [0.1, 0.33, 1.0])
@pytest.mark.parametrize("places", ["salient", "random"])
def test_shuffling_keeps_the_pixels_and_what_lies_outside(share, places):
    x, gradient = batch()[0], gradients()
    out = tampered(x, gradient, "shuffle", share, places=places)
    k, count = round(share * 64), 0
    for image, made, slope in zip(x.flatten(2), out.flatten(2), gradient.flatten(2)):
        assert sorted(map(tuple, made.T.tolist())) == sorted(map(tuple, image.T.tolist()))  # whole pixels
        moved = (made != image).any(0).nonzero().flatten()
        assert len(moved) <= k
        count += len(moved)
        if places == "salient":
            order = slope.exp().sum(0).argsort(descending=True)
            assert set(moved.tolist()) <= set(order[:k].tolist())
    assert count > 5 * k / 2
    if places == "random" and share < 1:
        assert not torch.equal(out, tampered(x, gradient, "shuffle", share))


def test_shuffling_permutes_each_image_by_itself():
    x = batch(1)[0].expand(6, -1, -1, -1)
    out = tampered(x, gradients(1).expand(6, -1, -1, -1), "shuffle", 0.5)
    assert len({tuple(image.flatten().tolist()) for image in out}) == 6


def test_shuffling_takes_what_speaks_for_the_class_however_steep():
    x, gradient = batch()[0], gradients()
    assert torch.equal(
        tampered(x, gradient, "shuffle", 0.2), tampered(x, gradient + 5000, "shuffle", 0.2)
    )  # exp would overflow
    against = -gradient.abs()
    against[:, :, 0, :4] *= -1
    changed = (tampered(x, against, "shuffle", 1 / 16) != x).any(1).flatten(1)
    assert not changed[:, 4:].any() and changed[:, :4].any()


@pytest.mark.parametrize("share", [0.1, 0.255, 1.0])
def test_the_gradient_is_added_at_just_so_many_places_and_the_largest(share):
    x, gradient = batch()[0], gradients()
    out = tampered(x, gradient, "gradient", share, 2.5)
    k = round(share * 192)
    for image, made, slope in zip(x.flatten(1), out.flatten(1), gradient.flatten(1)):
        rows = slope.abs().argsort(descending=True)[:k]
        expected = image.clone()
        expected[rows] += 2.5 * slope[rows]
        assert torch.equal(made, expected) and int((made != image).sum()) == k


@pytest.mark.parametrize("sign", [1, -1])
def test_a_linear_logit_moves_by_the_strength_times_the_chosen_squares(sign):
    model, (x, y) = linear(), batch()
    method = ASCOOD(sign=sign)
    out = method.outliers(model, x, y, 3.0, drawn())
    weights = model[1].weight[y]
    squares = weights.square().topk(round(0.1 * 192)).values.sum(1)
    moved = (model(out) - model(x)).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(moved, sign * 3.0 * squares)


def test_noise_is_added_at_the_same_places_with_the_strength_as_its_spread():
    x, gradient = batch(60)[0], gradients(60)
    change = tampered(x, gradient, "gaussian", 0.1, 0.5) - x
    assert torch.equal(change != 0, tampered(x, gradient, "gradient", 0.1) != x)
    noise = change[change != 0]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.1) and abs(float(noise.mean())) < 0.05


def test_random_places_are_changed_by_the_same_amounts():
    x, gradient = batch()[0], gradients()
    salient, anywhere = (tampered(x, gradient, "gradient", 0.1, places=p) - x for p in ("salient", "random"))
    for one, other in zip(salient.flatten(1), anywhere.flatten(1)):
        assert float((one != 0).double().mul((other != 0).double()).sum()) < 12  # of 19 each, by chance 2
        torch.testing.assert_close(one[one != 0].sort().values, other[other != 0].sort().values)


def test_saliency_is_the_gradient_of_the_true_logit_by_differences():
    model, (x, y) = net().eval(), batch(2)
    found = saliency(model, x, y)
    step = torch.zeros_like(x)
    for place in [(0, 0, 2, 3), (0, 2, 5, 5), (1, 1, 4, 1)]:
        step.zero_()[place] = 1e-6
        with torch.no_grad():
            slope = (model(x + step) - model(x - step))[place[0], y[place[0]]] / 2e-6
        assert float(found[place]) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


def test_saliency_is_taken_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model, (x, y) = net().train(), batch()
    model[0][0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (cross_entropy(model.eval()(x), y)).backward()
    model.train()
    model[0][0].eval()
    slopes = [p.grad.clone() for p in model.parameters()]
    alone = torch.cat([saliency(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(saliency(model, x, y), alone)  # no batch statistics
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, slope) for p, slope in zip(model.parameters(), slopes))
    assert model.training and model[0][1].training and not model[0][0].training
    with torch.no_grad():
        assert not saliency(model, x, y).requires_grad


def test_the_mode_comes_back_after_an_error():
    model = net().train()
    with pytest.raises(RuntimeError):
        saliency(model, torch.zeros(1, 2, 8, 8, dtype=torch.float64), torch.tensor([0]))
    assert all(part.training for part in model.modules())


def test_standardized_features_have_mean_zero_and_the_spread_asked_for():
    h = 5 * torch.randn(7, 30, generator=drawn(), dtype=torch.float64) + 3
    z = standardized(h)
    torch.testing.assert_close(z.mean(1), torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(z.std(1), torch.full((7,), 0.5, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(standardized(2.5 * h - 4), z, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(standardized(h, 2.0), 4 * z)
    assert torch.equal(standardized(torch.ones(1, 4)), torch.zeros(1, 4))


def test_the_head_is_the_linear_map_on_standardized_features():
    plain = torch.nn.Linear(30, 3)
    head, h = StandardizedHead(plain, scale=0.7), torch.randn(5, 30, generator=drawn())
    torch.testing.assert_close(head(h), plain(standardized(h, 0.7)))
    assert head.linear is plain


def test_losses_are_cross_entropy_and_the_divergence_in_one_pass():
    x, y = batch()
    method = ASCOOD(weight=0.3, share=0.2)
    model, same = net().train(), net().train()
    losses = method.losses(model, x, y, 2.0, drawn())
    outliers = method.outliers(same, x, y, 2.0, drawn())
    logits = same(torch.cat([x, outliers]))
    torch.testing.assert_close(losses["classes"], cross_entropy(logits[:5], y))
    p = logits[5:].detach().softmax(1).numpy()
    expected = -math.log(CLASSES) - np.log(p).mean()
    assert float(losses["outliers"].detach()) == pytest.approx(0.3 * expected, rel=1e-10)
    for term in losses.values():
        slopes = torch.autograd.grad(term, list(model.parameters()), retain_graph=True)
        assert all(float(slope.abs().max()) > 0 for slope in slopes[:1] + slopes[2:])
    assert all(p.grad is None for p in model.parameters())


def test_the_strength_falls_in_a_line():
    method = ASCOOD(strongest=300, weakest=30)
    assert [method.strength(done) for done in (0, 0.25, 1)] == [300, 232.5, 30]


def test_the_strength_is_found_that_makes_the_change_as_long_as_asked_for():
    model, (x, y) = net(), batch(20)
    for ratio in (1.0, 0.1):
        strength = strength_for(model, x, y, 0.1, ratio)
        change = ASCOOD().outliers(model, x, y, strength, drawn()) - x
        lengths = change.flatten(1).norm(dim=1).mean() / x.flatten(1).norm(dim=1).mean()
        assert float(lengths) == pytest.approx(ratio, rel=1e-6)
    torch.nn.init.zeros_(model[1].linear.weight)
    with pytest.raises(BadInput, match="does not depend on the images"):
        strength_for(model, x, y)


def test_one_coordinate_alone_is_stepped_on():
    gradient = gradients()
    step = largest_coordinate_step(gradient)
    assert step.shape == gradient.shape and torch.equal((step != 0).flatten(1).sum(1), torch.ones(5, dtype=torch.long))
    torch.testing.assert_close((step * gradient).flatten(1).sum(1), gradient.flatten(1).abs().amax(1))
    assert float(largest_coordinate_step(torch.zeros(1, 4)).sum()) == 1


def test_training_on_tampered_images_makes_a_background_alone_unsure():
    """Pictures whose class is a mark and, mostly, a colour: the colour without a mark is taken for no class."""
    torch.manual_seed(0)
    y = torch.randint(2, (200,), generator=drawn())
    colour = torch.where(torch.rand(200, generator=drawn(1)) < 0.9, y, 1 - y)
    x = 0.3 * torch.randn(200, 1, 6, 6, generator=drawn(2)) + (2.0 * colour - 1)[:, None, None, None]
    bare = x[:100].clone()
    for i in range(200):
        x[i, 0, 1:3, 1 + 2 * int(y[i])] += 4
    sure = {}
    for method in (None, ASCOOD(weight=1.0, share=0.1)):
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(36, 24), torch.nn.ReLU(), StandardizedHead(torch.nn.Linear(24, 2))
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        generator = drawn(3)
        for step in range(60):
            if method is None:
                loss = cross_entropy(model(x), y)
            else:
                if step % 10 == 0:
                    strength = strength_for(model, x, y, 0.1, 1 - 0.9 * step / 60)
                loss = sum(method.losses(model, x, y, strength, generator).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float((model(x).argmax(1) == y).double().mean()) > 0.95
        sure[method] = float(model(bare).detach().softmax(1).amax(1).mean())
    plain, ours = sure.values()
    assert ours < plain - 0.05


@pytest.mark.parametrize("how", ["gradient", "shuffle", "gaussian"])
def test_how_images_lie_in_memory_makes_no_difference(how):
    x, gradient = batch()[0], gradients()
    strided = [part.contiguous(memory_format=torch.channels_last) for part in (x, gradient)]
    assert torch.equal(tampered(*strided, how, 0.2), tampered(x, gradient, how, 0.2))


def test_what_cannot_be_is_said():
    for wrong in ({"how": "blur"}, {"places": "some"}):
        with pytest.raises(UnknownName, match="is called"):
            ASCOOD(**wrong)
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"share": math.nan}):
        with pytest.raises(BadInput, match="share of places"):
            ASCOOD(**wrong)
    for wrong in ({"weight": -1.0}, {"sign": 0}):
        with pytest.raises(BadInput, match="sign is 1 or -1"):
            ASCOOD(**wrong)
    with pytest.raises(UnknownName, match="way to tamper"):
        tampered(*batch()[:1], gradients(), "blr", 0.1)


def test_drawn_objects_cover_a_part_of_their_texture():
    textures, objects = np.repeat([0, 1], 8), np.tile(np.arange(4), 4)
    bare, covered = (objects_on_textures(o, textures, 32, seed=0) for o in (None, objects))
    changed = np.abs(bare - covered).max(1) > 1.2  # more than noise, whose deviation is 0.16 here
    assert changed.mean((1, 2)).min() > 0.04 and changed.mean((1, 2)).max() < 0.5
    steep_down, steep_across = (np.abs(np.diff(bare, axis=axis)).mean((1, 2, 3)) for axis in (2, 3))
    assert ((steep_down > steep_across) == (textures == 0)).all()  # waves change downwards, strokes across


def test_textures_agree_with_objects_at_a_rate():
    objects = np.random.default_rng(0).integers(2, size=4000)
    assert np.mean(agreeing(objects, 0.9, seed=1) == objects) == pytest.approx(0.9, abs=0.02)
