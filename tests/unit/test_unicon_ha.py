"""UniCon-HA: its losses in closed form and by loops, what it draws, trains and keeps, and its scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import normalize  # noqa: E402

import farout  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image import unicon_ha  # noqa: E402
from farout.image._unicon_ha_net import Nearest, Stages  # noqa: E402
from farout.image.unicon_ha import UniConHA, inlier_loss, outlier_loss, soft_weights  # noqa: E402
from farout.kit.augment import colour_jitter, cut_and_paste, quarter_turns, shuffled_quarters, two_views  # noqa: E402

NONE = torch.zeros(0, 8)
TINY = {"width": 2, "epochs": 1, "size": 16, "batch_size": 8}


def directions(n, seed=0, D=8):
    return normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n, seed=0, size=16):
    """Images with a bright upper half, so that up is up."""
    x = np.random.default_rng(seed).integers(0, 120, (n, size, size, 3)).astype(np.uint8)
    x[:, : size // 2] += 120
    return x


def naive(z_in, z_out, labels, tau, weights=None):
    """L_in and L_out as the paper writes them, by loops; outliers are first views, then second ones."""
    z = np.concatenate([z_in, z_out])
    count, n = len(z_in), len(z)
    similar = np.exp(z @ z.T / tau)
    inside, outside = [], []
    for i in range(count):
        P = [p for p in range(count) if p != i and labels[p] == labels[i]]
        w = np.array([1.0 if weights is None else weights[p] for p in P])
        below = sum(similar[i, a] for a in range(n) if a != i)
        inside.append(-sum(w[k] / w.sum() * np.log(similar[i, p] / below) for k, p in enumerate(P)))
    for o in range(count, n):
        twin = count + (o - count + (n - count) // 2) % (n - count)
        below = sum(similar[o, a] for a in range(n) if a != o)
        outside.append(-np.log(similar[o, twin] / below))
    return np.array(inside), np.array(outside)


@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 0, 1, 2]])
@pytest.mark.parametrize("tau", [0.5, 0.07])
def test_losses_are_those_of_a_loop(labels, tau):
    z, o = directions(6), directions(10, seed=1)
    weights = soft_weights(z, torch.tensor(labels), tau)
    for w in (None, weights):
        expected = naive(z.double().numpy(), o.double().numpy(), labels, tau, None if w is None else w.numpy())
        np.testing.assert_allclose(inlier_loss(z, o, torch.tensor(labels), w, tau).numpy(), expected[0], rtol=1e-4)
        np.testing.assert_allclose(outlier_loss(z, o, tau).numpy(), expected[1], rtol=1e-4)


def test_a_pair_alone_is_nt_xent_and_costs_nothing():
    pair = directions(2)
    torch.testing.assert_close(inlier_loss(pair, NONE), torch.zeros(2))
    torch.testing.assert_close(outlier_loss(NONE, pair), torch.zeros(2))
    others = directions(6, seed=1)  # beside outliers too, a pair of inliers is a pair
    both = torch.cat([pair[:1], others[:3], pair[1:], others[3:]])
    torch.testing.assert_close(inlier_loss(pair, others), outlier_loss(NONE, both)[[0, 4]])


@pytest.mark.parametrize("B", [1, 4])
def test_equal_views_cost_the_log_of_their_number(B):
    same = torch.tensor([[0.6, 0.8]])
    z, o = same.expand(2 * B, 2), same.expand(6 * B, 2)
    torch.testing.assert_close(inlier_loss(z, o), torch.full((2 * B,), math.log(8 * B - 1)))
    torch.testing.assert_close(outlier_loss(z, o), torch.full((6 * B,), math.log(8 * B - 1)))


def test_order_does_not_matter():
    z, o, labels = directions(8), directions(6, seed=1), torch.arange(8) % 2
    turn, swap = torch.randperm(8, generator=drawn()), torch.tensor([2, 0, 1, 5, 3, 4])
    torch.testing.assert_close(inlier_loss(z[turn], o[swap], labels[turn]), inlier_loss(z, o, labels)[turn])
    torch.testing.assert_close(outlier_loss(z[turn], o[swap]), outlier_loss(z, o)[swap])
    torch.testing.assert_close(soft_weights(z[turn], labels[turn]), soft_weights(z, labels)[turn])


def test_equal_weights_are_none():
    z, o = directions(8), directions(6, seed=1)
    torch.testing.assert_close(inlier_loss(z, o, weights=torch.full((8,), 1 / 8)), inlier_loss(z, o))


def test_one_more_outlier_never_makes_it_cheaper():
    z, o = directions(8), directions(30, seed=1)
    costs = torch.stack([inlier_loss(z, o[:count]) for count in range(0, 31, 5)])
    assert (costs.diff(dim=0) > 0).all()


def test_weights_are_shares_of_nearness_and_of_each_class():
    z, labels = directions(9), torch.arange(9) % 3
    similar = np.exp(z.double().numpy() @ z.double().numpy().T / 0.3)
    np.fill_diagonal(similar, 0)
    np.testing.assert_allclose(soft_weights(z, temperature=0.3).numpy(), similar.sum(1) / similar.sum(), rtol=1e-5)
    weights = soft_weights(z, labels)
    for one in range(3):
        assert float(weights[labels == one].sum()) == pytest.approx(1, rel=1e-6)
        torch.testing.assert_close(weights[labels == one], soft_weights(z[labels == one]))
    strayed = normalize(torch.cat([torch.ones(5, 8) + 0.1 * directions(5), -torch.ones(1, 8)]), dim=1)
    assert soft_weights(strayed).argmin() == 5 and float(soft_weights(strayed)[5]) < 0.01


def test_no_gradient_flows_through_weights():
    z = directions(6).requires_grad_(True)
    weights = soft_weights(z)
    assert not weights.requires_grad and weights.grad_fn is None
    (slope,) = torch.autograd.grad(inlier_loss(z, NONE, weights=weights).sum(), z)
    (fixed,) = torch.autograd.grad(inlier_loss(z, NONE, weights=weights.clone()).sum(), z)
    assert torch.equal(slope, fixed)


def test_inliers_are_drawn_together_and_outliers_driven_apart():
    """Descent by the loss: a concentrated cluster of inliers, and outliers in other directions."""
    points = torch.randn(40, 3, generator=drawn()).requires_grad_(True)
    optimizer = torch.optim.Adam([points], 0.05)
    for _ in range(300):
        z = normalize(points, dim=1)
        usual, strange = z[:10], z[10:]
        loss = torch.cat([inlier_loss(usual, strange), outlier_loss(usual, strange)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = normalize(points.detach(), dim=1)
    assert float((z[:10] @ z[:10].T).min()) > 0.98
    assert float((z[:10] @ z[10:].T).max()) < 0.9
    twins = (z[10:25] * z[25:]).sum(1)
    assert float(twins.min()) > 0.95 and float((z[10:25] @ z[10:25].T).mean()) < 0.3


def test_half_precision_is_raised():
    z, o = directions(6), directions(6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = inlier_loss(z, o), outlier_loss(z, o), soft_weights(z)
    for one, expected in zip(found, (inlier_loss(z, o), outlier_loss(z, o), soft_weights(z))):
        assert one.dtype == torch.float32 and torch.equal(one, expected)


def test_a_view_alone_in_its_class_is_refused():
    with pytest.raises(BadInput, match="two views of each"):
        inlier_loss(directions(3), NONE, torch.tensor([0, 0, 1]))


def test_views_come_in_pairs_of_images_and_three_outliers_each():
    detector = UniConHA(**TINY)
    x = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=drawn())
    views = detector._views(x, drawn(3))
    assert views.shape == (4, 40, 3, 16, 16) and float(views.min()) >= 0 and float(views.max()) <= 1
    both = torch.cat([x / 255, quarter_turns(x / 255)])
    generator = drawn(3)
    for strength, found in zip(unicon_ha.STRENGTHS, views):
        assert torch.equal(found, torch.cat(two_views(both, generator, **strength)))
    last = UniConHA(hierarchical=False, **TINY)._views(x, drawn(3))
    assert torch.equal(last[0], torch.cat(two_views(both, drawn(3), **unicon_ha.STRENGTHS[3])))


def test_strengths_grow_with_depth():
    x = torch.rand(64, 3, 16, 16, generator=drawn())
    changes = [
        sum(float((view - x).abs().mean()) for view in two_views(x, drawn(1), **strength))
        for strength in unicon_ha.STRENGTHS
    ]
    assert changes == sorted(changes)
    assert all(a["least_area"] > b["least_area"] for a, b in zip(unicon_ha.STRENGTHS, unicon_ha.STRENGTHS[1:]))


def test_the_loss_of_a_strength_is_unilateral():
    labels = torch.zeros(3, dtype=torch.int64)
    z = torch.randn(24, unicon_ha.DIMENSIONS, generator=drawn())
    on = normalize(z, dim=1)
    usual, strange = on[[0, 1, 2, 12, 13, 14]], on[[*range(3, 12), *range(15, 24)]]
    plain = torch.cat([inlier_loss(usual, strange), outlier_loss(usual, strange)]).mean()
    soft = torch.cat([inlier_loss(usual, strange, weights=soft_weights(usual)), outlier_loss(usual, strange)]).mean()
    torch.testing.assert_close(UniConHA(soft=False)._loss(z, labels), plain)
    torch.testing.assert_close(UniConHA()._loss(z, labels), soft)
    assert abs(float(plain - soft)) > 1e-5
    torch.testing.assert_close(UniConHA(pulled="none")._loss(z, labels), outlier_loss(on[:0], on).mean())
    two = torch.tensor(([0] * 3 + [1] * 9) * 2)
    torch.testing.assert_close(UniConHA(pulled="both")._loss(z, labels), inlier_loss(on, on[:0], two).mean())
    classes = torch.tensor([0, 1, 1])
    weights = soft_weights(usual, classes.repeat(2), 0.3)
    own = torch.cat([inlier_loss(usual, strange, classes.repeat(2), weights, 0.2), outlier_loss(usual, strange, 0.2)])
    torch.testing.assert_close(UniConHA(temperature=0.2, soft_temperature=0.3)._loss(z, classes), own.mean())


def test_each_strength_passes_to_its_stage_and_moves_the_weights_before_it():
    net = Nearest(2, seed=0)
    stages = Stages(net.encoder, hierarchical=True)
    assert [head[0].in_features for head in stages.heads.values()] == [2, 4, 8, 16]
    x = torch.rand(4, 6, 3, 16, 16, generator=drawn())
    found = stages(x)
    assert list(found) == ["1", "2", "3", "4"] and {z.shape for z in found.values()} == {(6, 128)}
    found["2"].square().sum().backward()
    for name, reached in (("layer1", True), ("layer2", True), ("layer3", False), ("layer4", False)):
        layer = getattr(net.encoder, name)
        assert all((weight.grad is not None) == reached for weight in layer.parameters())
    assert list(Stages(net.encoder, hierarchical=False)(x[:1])) == ["4"]
    losses = UniConHA(soft=False)._step(stages, torch.rand(4, 16, 3, 16, 16), torch.zeros(2, dtype=torch.int64))
    assert len(losses) == 4 and all(
        float(loss.detach()) < math.log(15) / 2 for loss in losses.values()
    )  # each a quarter


def test_the_score_is_the_cosine_to_the_nearest_training_image():
    usual, new = photos(12), photos(5, seed=1)
    detector = UniConHA(**TINY)
    trained = detector.fit_score(usual)
    bank, query = (
        detector.net_.encoder.features(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1) for x in (usual, new)
    )
    bank, query = normalize(bank, dim=1), normalize(query, dim=1)
    np.testing.assert_allclose(detector.outlier_score(new), -(query @ bank.T).max(1).values.numpy(), atol=1e-5)
    np.testing.assert_allclose(detector.outlier_score(usual), -1, atol=1e-5)
    near = (bank @ bank.T).fill_diagonal_(-2)
    np.testing.assert_allclose(trained, -near.max(1).values.numpy(), atol=1e-5)
    assert detector.offset_ == -np.quantile(trained, 0.99)
    with pytest.raises(BadInput, match="gives no maps"):
        detector.score_maps(new)


def test_the_bank_is_compared_in_parts(monkeypatch):
    net = Nearest(1, 0)
    net.bank = directions(11)
    whole = net.apart()
    monkeypatch.setattr("farout.image._unicon_ha_net.PART", 4)
    torch.testing.assert_close(net.apart(), whole)


def test_a_seed_means_the_same_net_and_leaves_the_callers_draws_alone():
    usual, new = photos(8), photos(4, seed=1)
    torch.manual_seed(5)
    first = UniConHA(**TINY).fit(usual).outlier_score(new)
    after = torch.rand(3)
    torch.manual_seed(9)
    assert np.array_equal(UniConHA(**TINY).fit(usual).outlier_score(new), first)
    assert not np.array_equal(UniConHA(random_state=1, **TINY).fit(usual).outlier_score(new), first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_labels_count_if_they_are_meant_to():
    usual, y, new = photos(12), np.array(["b", "a"] * 6), photos(4, seed=1)
    ignored = UniConHA(**TINY).fit(usual, y).outlier_score(new)
    assert np.array_equal(ignored, UniConHA(**TINY).fit(usual).outlier_score(new))
    labelled = UniConHA(labelled=True, **TINY).fit(usual, y)
    assert not np.array_equal(labelled.outlier_score(new), ignored)
    one = UniConHA(labelled=True, **TINY).fit(usual, np.zeros(12)).outlier_score(new)
    assert np.array_equal(one, ignored)
    assert not hasattr(labelled, "_classes")
    with pytest.raises(BadInput, match=r"fit\(X, y\)"):
        UniConHA(labelled=True, **TINY).fit(usual)
    with pytest.raises(BadInput, match="12 images and 5 classes"):
        UniConHA(labelled=True, **TINY).fit(usual, y[:5])


@pytest.mark.parametrize("outliers", ["cutpaste", "permute"])
def test_other_outliers_train_other_nets(outliers):
    usual, new = photos(8), photos(4, seed=1)
    detector = UniConHA(outliers=outliers, **TINY).fit(usual)
    assert not np.array_equal(detector.outlier_score(new), UniConHA(**TINY).fit(usual).outlier_score(new))
    x = torch.from_numpy(usual).permute(0, 3, 1, 2)
    views = detector._views(x, drawn())
    change = cut_and_paste if outliers == "cutpaste" else shuffled_quarters
    generator = drawn()
    both = torch.cat([x / 255, change((x / 255).repeat(3, 1, 1, 1), generator)])
    assert torch.equal(views[0], torch.cat(two_views(both, generator, **unicon_ha.STRENGTHS[0])))


def test_turned_images_are_far_out():
    """Of images that have an upper side, those upside down are what the method is trained to tell apart."""
    usual, new = photos(32), photos(40, seed=1)
    turned = np.ascontiguousarray(new[:, ::-1])
    detector = UniConHA(**{**TINY, "width": 4, "epochs": 6}, learning_rate=0.05).fit(usual)
    assert detector.outlier_score(turned).min() > np.median(detector.outlier_score(new))


def test_saved_and_loaded_it_gives_equal_scores(tmp_path):
    new = photos(4, seed=1)
    detector = UniConHA(**TINY).fit(photos(8))
    detector.save(tmp_path / "one.farout")
    loaded = farout.load(tmp_path / "one.farout")
    assert np.array_equal(loaded.outlier_score(new), detector.outlier_score(new))
    assert set(loaded.net_.state_dict()) == set(detector.net_.state_dict())
    assert not any("heads" in name for name in loaded.net_.state_dict())


def test_one_graph_gives_the_same_scores(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    new = photos(3, seed=1)
    detector = UniConHA(**TINY).fit(photos(8))
    detector.export(tmp_path / "one.onnx")
    session = runtime.InferenceSession(str(tmp_path / "one.onnx"))
    x = (new.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    (score,) = session.run(None, {"images": x})
    np.testing.assert_allclose(score, detector.outlier_score(new), atol=2e-4)


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="5 normal images at least"):
        UniConHA(**TINY).fit(photos(4))
    with pytest.raises(UnknownName, match="'outliers'"):
        UniConHA(outliers="flip", **TINY).fit(photos(8))
    with pytest.raises(UnknownName, match="'pulled'"):
        UniConHA(pulled="all", **TINY).fit(photos(8))
    with pytest.raises(BadInput, match="even height"):
        UniConHA(outliers="permute", **{**TINY, "size": 15}).fit(photos(8))


def test_equal_images_give_finite_scores():
    grey = np.full((6, 16, 16, 3), 128, np.uint8)
    detector = UniConHA(**TINY)
    np.testing.assert_allclose(detector.fit_score(grey), -1, atol=1e-5)
    assert np.isfinite(detector.outlier_score(photos(3))).all()


def test_parts_are_pasted_within_an_image():
    x = torch.arange(64.0 * 20 * 30).view(64, 1, 20, 30)
    changed = cut_and_paste(x, drawn())
    where = changed != x
    for before, after, moved in zip(x[:, 0], changed[:, 0], where[:, 0]):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
        if moved.any():  # a rectangle, all of it shifted alike
            rows, columns = moved.any(1).nonzero()[:, 0], moved.any(0).nonzero()[:, 0]
            block = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            assert moved[block].all() and len((after - before)[block].unique()) == 1
    shares = where.float().mean((1, 2, 3))
    assert float(shares[shares > 0].min()) > 0.01 and float(shares.max()) < 0.18


def test_quarters_move_whole_and_never_stay():
    x = torch.arange(4.0).view(1, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(2, 3).expand(500, 2, 6, 4)
    found = shuffled_quarters(x, drawn())
    corners = found[:, 0, [0, 0, 5, 5], [0, 3, 0, 3]]
    assert torch.equal(corners.sort(1).values, torch.arange(4.0).expand(500, 4))
    assert len({tuple(row) for row in corners.tolist()}) == 23 and not (corners == torch.arange(4.0)).all(1).any()
    assert torch.equal(found, corners.view(500, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(2, 3).expand_as(x))


def test_turns_are_those_of_numpy():
    x = torch.rand(2, 3, 5, 5, generator=drawn())
    expected = np.concatenate([np.rot90(x.numpy(), k, (2, 3)) for k in (1, 2, 3)])
    assert np.array_equal(quarter_turns(x).numpy(), expected)


def test_chances_of_colours_are_kept():
    x = torch.rand(400, 3, 4, 4, generator=drawn())
    still, _ = two_views(x, drawn(1), least_area=1.0, jitter=0.0, grey=1.0)
    assert torch.equal(still[:, 0], still[:, 2])
    assert float((colour_jitter(x, drawn(), chance=0.3) != x).any(1).flatten(1).any(1).float().mean()) == (
        pytest.approx(0.3, abs=0.07)
    )
    torch.testing.assert_close(colour_jitter(x, drawn(), strength=0.0, chance=1.0), x)
