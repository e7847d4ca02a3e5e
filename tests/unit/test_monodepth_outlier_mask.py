"""Depth from video: warping and errors in closed form and by loops, the four masks, training, and drawn drives."""

from __future__ import annotations

import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from farout.data import DataMissing  # noqa: E402
from farout.data.driving import FOCAL, HEIGHT, camera_path, drawn_drive, triplets  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image._monodepth_net import _mirrored  # noqa: E402
from farout.image._warping import photometric_error, ssim_error, warped  # noqa: E402
from farout.image.monodepth_outlier_mask import (  # noqa: E402
    DepthNet,
    OutlierMaskedLoss,
    depth_errors,
    depth_of,
    fit_depth,
    garg_crop,
    outlier_mask,
    smoothness,
)

H, W = 32, 64
OPEN = {"boundary": False, "minimum": False, "stationary": False, "outliers": False}


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def camera(H=H, W=W, B=1):
    return torch.tensor([[0.6 * W, 0, W / 2], [0, 0.6 * W, H / 2], [0, 0, 1]]).expand(B, 3, 3)


def pose(x=0.0, y=0.0, z=0.0, B=1):
    found = torch.eye(4).repeat(B, 1, 1)
    found[:, :3, 3] = torch.tensor([x, y, z])
    return found


def waves(H=H, W=W, shift=0.0):
    """A smooth image, moved to the left by pixels."""
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5 + shift, indexing="ij")
    return torch.stack([0.5 + 0.3 * torch.sin(x / p) * torch.cos(y / (p + 1)) for p in (3.0, 4.0, 5.0)])[None]


@pytest.fixture(scope="module")
def scenes():
    return triplets([drawn_drive(3, (H, W), oncoming=1, seed=seed) for seed in range(4)])


def tensors(found):
    return [torch.from_numpy(x) for x in (found.targets, found.sources, found.intrinsics, found.poses)]


def test_no_motion_leaves_the_image_as_it_is():
    image, depth = drawn(2, 3, H, W), 1 + 50 * drawn(2, 1, H, W, seed=1)
    same, inside = warped(image, depth, camera(B=2), pose(B=2))
    torch.testing.assert_close(same, image, atol=2e-4, rtol=0)
    assert inside.all() and float(photometric_error(same, image).max()) < 1e-3
    assert (
        torch.equal(photometric_error(image, image), torch.zeros(2, H, W))
        or float(photometric_error(image, image).abs().max()) < 1e-6
    )


@pytest.mark.parametrize(("depth", "step"), [(8.0, 0.5), (4.0, -0.25), (20.0, 1.0)])
def test_a_plane_shifts_by_focal_length_times_step_over_depth(depth, step):
    shift = 0.6 * W * step / depth
    seen, inside = warped(waves(), torch.full((1, 1, H, W), depth), camera(), pose(x=step))
    away = 4
    torch.testing.assert_close(seen[..., away:-away], waves(shift=shift)[..., away:-away], atol=0.02, rtol=0)
    left = torch.arange(W) + 0.5 + shift
    assert torch.equal(inside[0, 0], (left >= 0) & (left <= W))


def test_points_turn_move_and_are_projected_as_a_loop_says():
    depth = 2 + 10 * drawn(1, 1, 6, 8, seed=2)
    K, T = camera(6, 8), pose(0.3, -0.2, 0.5)
    angle = 0.1
    T[0, :3, :3] = torch.tensor([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    places = torch.stack(torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij"))[None]
    seen, inside = warped(places, depth, K, T)  # an image that says where it is read
    for y in range(6):
        for x in range(8):
            point = depth[0, 0, y, x] * torch.linalg.inv(K[0]) @ torch.tensor([x + 0.5, y + 0.5, 1.0])
            u, v, z = K[0] @ (T[0, :3, :3] @ point + T[0, :3, 3])
            u, v = float(u / z), float(v / z)
            assert bool(inside[0, y, x]) == (0 <= u <= 8 and 0 <= v <= 6)
            expected = [min(max(v, 0.5), 5.5), min(max(u, 0.5), 7.5)]
            assert seen[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-3)


def test_what_lies_behind_the_neighbour_is_outside():
    _, inside = warped(waves(), torch.full((1, 1, H, W), 2.0), camera(), pose(z=-3.0))
    assert not inside.any()


def test_ssim_is_that_of_a_loop():
    a, b = drawn(1, 3, 7, 9), drawn(1, 3, 7, 9, seed=1)
    found = ssim_error(a, b)
    A, B = (np.pad(x[0].double().numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect") for x in (a, b))
    for c in range(3):
        for y in range(7):
            for x in range(9):
                p, q = (image[c, y : y + 3, x : x + 3] for image in (A, B))
                cov = ((p - p.mean()) * (q - q.mean())).mean()
                above = (2 * p.mean() * q.mean() + 0.01**2) * (2 * cov + 0.03**2)
                ssim = above / ((p.mean() ** 2 + q.mean() ** 2 + 0.01**2) * (p.var() + q.var() + 0.03**2))
                assert float(found[0, c, y, x]) == pytest.approx(min(max((1 - ssim) / 2, 0), 1), abs=1e-4)
    expected = (0.85 * found + 0.15 * (a - b).abs()).mean(1)
    torch.testing.assert_close(photometric_error(a, b), expected)


def test_disparity_is_linear_between_the_inverses_of_the_limits():
    d = torch.linspace(0, 1, 5)
    torch.testing.assert_close(1 / depth_of(d), 0.01 + 9.99 * d)
    torch.testing.assert_close(1 / depth_of(d, 1.0, 50.0), 0.02 + 0.98 * d)


def test_smoothness_forgives_where_the_image_has_edges():
    d = 0.2 + drawn(2, 1, 6, 8)
    image = drawn(2, 3, 6, 8, seed=1)
    n = d / d.mean((2, 3), keepdim=True)
    across = (n[..., 1:] - n[..., :-1]).abs() * torch.exp(-(image[..., 1:] - image[..., :-1]).abs().mean(1, True))
    down = (n[..., 1:, :] - n[..., :-1, :]).abs() * torch.exp(
        -(image[..., 1:, :] - image[..., :-1, :]).abs().mean(1, True)
    )
    torch.testing.assert_close(smoothness(d, image), across.mean() + down.mean())
    torch.testing.assert_close(smoothness(7 * d, image), smoothness(d, image))
    assert float(smoothness(d, image)) < float(smoothness(d, torch.zeros_like(image)))


def test_the_mask_keeps_a_part_of_a_gaussian():
    errors = torch.randn(4, 2, 100, 100, generator=torch.Generator().manual_seed(0))
    for one in outlier_mask(errors):
        assert float(one.float().mean()) == pytest.approx(0.533, abs=0.01)
    assert float(outlier_mask(errors, 2.0, 1.0).float().mean()) == pytest.approx(0.8186, abs=0.01)


def test_the_mask_knows_no_scale():
    errors = drawn(2, 2, 20, 20)
    assert torch.equal(outlier_mask(3.5 * errors + 0.7), outlier_mask(errors))
    assert not torch.equal(outlier_mask(-errors), outlier_mask(errors))


def test_the_mask_is_of_all_neighbours_of_a_frame_together_and_of_no_other_frame():
    errors = drawn(2, 2, 20, 20)
    errors[0, 1] += 5
    errors[1] *= 9
    for b in range(2):
        values = errors[b].double().numpy()
        mean, deviation = values.mean(), values.std(ddof=1)
        expected = (values > mean - deviation) & (values < mean + 0.5 * deviation)
        assert np.array_equal(outlier_mask(errors)[b].numpy(), expected)
    assert not outlier_mask(errors)[0, 1].any() and outlier_mask(errors)[0, 0].any()


def test_no_gradient_flows_through_mean_and_deviation():
    errors = drawn(1, 2, 8, 8).requires_grad_(True)
    mask = outlier_mask(errors)
    assert not mask.requires_grad
    ((mask * errors).sum() / mask.sum()).backward()
    torch.testing.assert_close(errors.grad, mask / mask.sum())


def parts_of(scenes, disparities, trusted=None, **settings):
    loss = OutlierMaskedLoss(**settings)
    return loss.losses(disparities, *tensors(scenes), trusted), loss


def naive_loss(scenes, disparities, trusted=None, own_scale=True, low=1.0, high=0.5, **masks):
    """The photometric part, scale by scale and neighbour by neighbour."""
    target, sources, K, T = tensors(scenes)
    total = 0
    for k, d in enumerate(disparities):
        scale = k if own_scale else 0
        t, s = F.avg_pool2d(target, 2**scale), [F.avg_pool2d(sources[:, i], 2**scale) for i in range(2)]
        size = t.shape[2:]
        d = d if d.shape[2:] == size else F.interpolate(d, size, mode="bilinear", align_corners=False)
        small = K.clone()
        small[:, :2] /= 2**scale
        seen = [warped(s[i], depth_of(d), small, T[:, i]) for i in range(2)]
        errors = torch.stack([photometric_error(image, t) for image, _ in seen], 1)
        for i in range(2):
            mask = torch.ones_like(errors[:, i])
            if masks.get("boundary", True):
                mask = mask * seen[i][1]
            if masks.get("minimum", True):
                mask = mask * (errors[:, i] <= errors.min(1).values + 1e-7)
            if masks.get("stationary", True):
                mask = mask * (errors[:, i] < photometric_error(s[i], t))
            if masks.get("outliers", True):
                for b in range(len(mask)):
                    mean, deviation = errors[b].mean(), errors[b].std()
                    mask[b] *= (errors[b, i] > mean - low * deviation) * (errors[b, i] < mean + high * deviation)
            if trusted is not None:
                mask = mask * (F.avg_pool2d(trusted[:, None].float(), 2**scale) == 1)[:, 0]
            total = total + (mask * errors[:, i]).sum() / (mask.sum() + 1e-7) * 0.25**scale
    return total / len(disparities)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        OPEN,
        {"own_scale": False},
        {"outliers": False},
        {"boundary": False},
        {"minimum": False},
        {"stationary": False},
        {"low": 0.5, "high": 2.0},
    ],
)
def test_the_loss_is_that_of_a_loop(scenes, settings):
    disparities = [0.02 + 0.1 * drawn(4, 1, H // 2**k, W // 2**k, seed=k) for k in range(4)]
    found, loss = parts_of(scenes, disparities, **settings)
    torch.testing.assert_close(found["photometric"], naive_loss(scenes, disparities, **settings), rtol=1e-4, atol=1e-6)
    images = [F.avg_pool2d(torch.from_numpy(scenes.targets), 2**k) for k in range(4)]
    even = sum(smoothness(d, image) / 2**k for k, (d, image) in enumerate(zip(disparities, images))) * 1e-3 / 4
    torch.testing.assert_close(found["smoothness"], even)
    assert 0 < float(loss.kept) <= 1 and (float(loss.kept) == 1) == (settings == OPEN)


def test_pixels_that_are_not_trusted_do_not_count(scenes):
    disparities = [0.02 + 0.1 * drawn(4, 1, H // 2**k, W // 2**k, seed=k) for k in range(4)]
    trusted = torch.from_numpy(~scenes.moving)
    found, _ = parts_of(scenes, disparities, trusted)
    torch.testing.assert_close(found["photometric"], naive_loss(scenes, disparities, trusted), rtol=1e-4, atol=1e-6)
    assert float(found["photometric"]) != float(parts_of(scenes, disparities)[0]["photometric"])


def test_true_depth_costs_less_than_wrong_depth():
    still = triplets([drawn_drive(3, (64, 128), oncoming=0, seed=seed) for seed in range(3)])
    costs = []
    for factor in (0.7, 0.9, 1.0, 1.15, 1.5):
        depth = torch.from_numpy(still.depths).clamp(max=99)[:, None] * factor
        disparity = ((1 / depth - 1 / 100) / (1 / 0.1 - 1 / 100)).clamp(0, 1)
        costs.append(float(parts_of(still, [disparity], **OPEN)[0]["photometric"]))
    assert min(costs) == costs[2]
    assert costs[2] < 0.6 * costs[0] and costs[2] < 0.6 * costs[4]


def test_boxes_that_move_are_outliers_at_their_true_depth():
    found = triplets([drawn_drive(3, (64, 128), oncoming=1, seed=seed) for seed in range(6)])
    target, sources, K, T = tensors(found)
    depth = torch.from_numpy(found.depths).clamp(max=99)[:, None]
    errors = torch.stack([photometric_error(warped(sources[:, i], depth, K, T[:, i])[0], target) for i in (0, 1)], 1)
    moving = torch.from_numpy(found.moving)[:, None].expand_as(errors)
    solid = torch.from_numpy(np.isfinite(found.depths))[:, None].expand_as(errors)
    assert float(errors[moving].mean()) > 3 * float(errors[~moving & solid].mean())
    kept = outlier_mask(errors)
    assert float(kept[moving].float().mean()) < 0.5 < 0.8 < float(kept[~moving & solid].float().mean())


def test_gradients_reach_every_scale_and_only_by_pixels_that_count(scenes):
    disparities = [(0.02 + 0.1 * drawn(4, 1, H // 2**k, W // 2**k, seed=k)).requires_grad_(True) for k in range(4)]
    found, _ = parts_of(scenes, disparities, smooth=0.0, least=1.0)
    sum(found.values()).backward()
    assert all(float(d.grad.abs().max()) > 0 for d in disparities)
    nothing = torch.zeros(4, H, W, dtype=torch.bool)
    for d in disparities:
        d.grad = None
    dark, _ = parts_of(scenes, disparities, nothing, smooth=0.0)
    sum(dark.values()).backward()
    assert float(dark["photometric"].detach()) == 0 and all(float(d.grad.abs().max()) == 0 for d in disparities)


def test_losses_that_cannot_be_are_named(scenes):
    target, sources, K, T = tensors(scenes)
    with pytest.raises(BadInput, match="the shapes are"):
        OutlierMaskedLoss().losses([drawn(4, 1, H, W)], target, sources, K, T[:, :1])
    with pytest.raises(BadInput, match="'least' is 5"):
        OutlierMaskedLoss(least=5.0, most=2.0)


def test_errors_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    true, predicted = rng.uniform(2, 90, (3, 6, 8)), rng.uniform(2, 60, (3, 6, 8))
    part = rng.random((3, 6, 8)) < 0.3
    found = depth_errors(predicted, true, {"part": part}, scaled_on=~part)
    each = []
    for p, t, m in zip(predicted, true, part):
        valid = t < 80
        p = np.clip(p * np.median(t[valid & ~m]) / np.median(p[valid & ~m]), 1e-3, 80)[valid & m]
        t = t[valid & m]
        ratio = np.maximum(p / t, t / p)
        each.append(
            [
                len(t),
                np.mean(abs(p - t) / t),
                np.mean((p - t) ** 2 / t),
                np.sqrt(np.mean((p - t) ** 2)),
                np.sqrt(np.mean((np.log(p) - np.log(t)) ** 2)),
                *(np.mean(ratio < 1.25**k) for k in (1, 2, 3)),
                np.mean((p - t) / t),
            ]
        )
    counts, *values = np.array(each).T
    assert list(found["part"].values()) == pytest.approx([np.average(v, weights=counts) for v in values])
    assert list(found) == ["all", "part"]


def test_predictions_are_scaled_by_medians_of_what_is_said():
    true = np.full((1, 4, 4), 10.0)
    predicted = np.full((1, 4, 4), 2.0)
    predicted[0, 0] = 1.0
    part = np.zeros((1, 4, 4), bool)
    part[0, 0] = True
    by_all = depth_errors(predicted, true, {"part": part})
    assert by_all["part"]["abs_rel"] == pytest.approx(0.5) and by_all["all"]["abs_rel"] == pytest.approx(0.125)
    by_part = depth_errors(predicted, true, {"part": part}, scaled_on=part)
    assert by_part["part"]["abs_rel"] == 0 and by_part["all"]["abs_rel"] == pytest.approx(0.75)
    true[0, 1] = np.inf  # the sky is not judged
    assert depth_errors(predicted, true)["all"]["abs_rel"] == pytest.approx(4 / 12 * 0.5)
    crop = np.zeros((4, 4), bool)
    crop[2:] = True
    assert depth_errors(predicted, true, judged=crop)["all"]["abs_rel"] == 0
    with pytest.raises(BadInput, match="frame 0 has no pixel"):
        depth_errors(predicted, np.full((1, 4, 4), np.inf))
    with pytest.raises(BadInput, match="of one shape"):
        depth_errors(predicted, true[0])


def test_the_crop_is_that_of_garg():
    inside = garg_crop((375, 1242))
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (153, 370, 44, 1196)


def test_a_mirrored_scene_costs_the_same(scenes):
    batch = tensors(scenes)
    batch[3] = batch[3] @ pose(x=0.2)  # off the middle, so that motion must be mirrored too
    batch[2] = batch[2].clone()
    batch[2][:, 0, 2] += 3
    disparities = [0.02 + 0.1 * drawn(4, 1, H // 2**k, W // 2**k, seed=k) for k in range(4)]
    trusted = torch.from_numpy(~scenes.moving)
    plain = OutlierMaskedLoss().losses(disparities, *batch, trusted)
    turned = OutlierMaskedLoss().losses([d.flip(3) for d in disparities], *_mirrored(*batch, trusted))
    torch.testing.assert_close(turned, plain, rtol=1e-3, atol=1e-5)


def test_a_network_learns_depth_from_video():
    still = triplets([drawn_drive(3, (H, W), oncoming=0, seed=5)])
    net, loss = DepthNet(4, seed=0), OutlierMaskedLoss(least=1.0)
    state = torch.random.get_rng_state()
    plain = {"mirrored": False, "coloured": False}
    history = fit_depth(net, loss, tensors(still), epochs=25, learning_rate=3e-3, **plain)
    assert torch.equal(torch.random.get_rng_state(), state) and not net.training
    assert set(history[0]) == {"photometric", "smoothness", "kept"} and 0.1 < history[-1]["kept"] < 0.8
    assert history[-1]["photometric"] < 0.7 * history[0]["photometric"]
    with torch.no_grad():
        depth = depth_of(net(torch.from_numpy(still.targets))[0], 1.0)[:, 0].numpy()
    flat = depth_errors(np.ones_like(depth), still.depths)["all"]["abs_rel"]
    assert depth_errors(depth, still.depths)["all"]["abs_rel"] < 0.7 * flat


def test_training_is_set_by_its_seed_and_slows_down_at_the_end(scenes, monkeypatch):
    loss, batch = OutlierMaskedLoss(least=1.0), [x[:1] for x in tensors(scenes)]

    def trained(**settings):
        net = DepthNet(2, seed=0)
        history = fit_depth(net, loss, batch, epochs=4, learning_rate=1e-3, **settings)
        return history, torch.cat([weight.detach().flatten() for weight in net.parameters()])

    history, weights = trained()
    assert trained()[0] == history and torch.equal(trained()[1], weights)
    for other in ({"seed": 4}, {"mirrored": False}, {"coloured": False}):
        assert not torch.equal(trained(**other)[1], weights)
    monkeypatch.setattr("farout.image._monodepth_net.DROPS", ())
    steady, moved = trained()
    assert steady == history and not torch.equal(moved, weights)  # only the last of four steps is smaller


def test_networks_begin_far_away_and_refuse_odd_sizes():
    disparities = DepthNet(4, first=0.05, seed=0)(drawn(2, 3, H, W))
    assert [float(d.detach().mean()) for d in disparities] == pytest.approx([0.05] * 4, abs=0.02)
    with pytest.raises(BadInput, match="multiples of 16"):
        DepthNet(4)(drawn(1, 3, 24, 32))
    with pytest.raises(BadInput, match="of one length"):
        fit_depth(DepthNet(4), OutlierMaskedLoss(), [drawn(2, 3, H, W), drawn(1, 2, 3, H, W)])


def test_a_drive_is_what_its_geometry_says():
    drive = drawn_drive(3, (64, 128), oncoming=1, seed=3)
    K = drive.intrinsics
    assert K[0, 0] == FOCAL * 128 and np.isinf(drive.depths[:, 0]).any()
    bottom = (64 - 0.5 - K[1, 2]) / K[1, 1]  # the road at the lowest pixels
    near = drive.depths[0, -1]
    assert np.median(near) == pytest.approx(HEIGHT / bottom, rel=1e-5) and near.max() <= HEIGHT / bottom * (1 + 1e-5)
    assert drive.images.min() >= 0 and drive.images.max() <= 1 and drive.images.dtype == np.float32
    step = drive.poses[1, 2, 3]
    assert 0.5 <= step <= 0.9 and drive.poses[2, 2, 3] == pytest.approx(2 * step)
    before, after = (drive.depths[t][drive.moving[t]].min() for t in (0, 2))
    assert 2 * (step + 0.4) - 1e-3 <= before - after <= 2 * (step + 0.9) + 1e-3  # it comes at 0.4 to 0.9 m a frame
    same = drawn_drive(3, (64, 128), oncoming=1, seed=3)
    assert np.array_equal(same.images, drive.images)
    assert not drawn_drive(2, (16, 32), oncoming=0).moving.any()


def test_depth_explains_what_a_moved_camera_sees():
    """Also for a camera that turns: warping by exact depth gives the frame, but where something is hidden."""
    path = np.tile(np.eye(4), (2, 1, 1))
    turn = 0.03
    path[1, :3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    path[1, :3, 3] = [0.1, -0.05, 0.3]
    drive = drawn_drive(2, (64, 128), oncoming=0, path=path, seed=1)
    T = torch.from_numpy(np.linalg.inv(drive.poses[1]) @ drive.poses[0]).float()[None]
    depth = torch.from_numpy(drive.depths[:1])[None].clamp(max=1e4)
    first, second = torch.from_numpy(drive.images).split(1)
    seen, inside = warped(second, depth, torch.from_numpy(drive.intrinsics).float()[None], T)
    off = (seen - first).abs().mean(1)[inside]
    assert float(off.median()) < 0.01 < float((second - first).abs().mean(1).median())


def test_triplets_lie_between_their_neighbours():
    drive = drawn_drive(4, (16, 32), seed=2)
    found = triplets([drive])
    assert np.array_equal(found.targets, drive.images[1:3])
    assert np.array_equal(found.sources[1], drive.images[[1, 3]])
    step = drive.poses[1, 2, 3]
    np.testing.assert_allclose(found.poses[:, :, 2, 3], [[step, -step]] * 2, rtol=1e-6)


def test_drives_that_cannot_be_are_named():
    with pytest.raises(BadInput, match="a frame and a pixel"):
        drawn_drive(0)
    with pytest.raises(BadInput, match=r"\(3, 4, 4\), and not \(2, 4, 4\)"):
        drawn_drive(3, path=np.tile(np.eye(4), (2, 1, 1)))
    with pytest.raises(BadInput, match="three frames"):
        triplets([drawn_drive(2, (8, 16))])
    with pytest.raises(UnknownName, match="path of a camera"):
        camera_path("desk", 3)


@pytest.mark.skipif("FAROUT_DATA" not in os.environ, reason="needs the paths of real cameras below FAROUT_DATA")
def test_a_real_camera_moves_by_rigid_steps():
    try:
        path = camera_path("rpy", 20, every=0.2, start=1.0)
    except DataMissing:
        pytest.skip("the paths of real cameras are not here")
    np.testing.assert_allclose(path[0], np.eye(4), atol=1e-12)
    turns = path[:, :3, :3]
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-9)
    assert np.linalg.det(turns) == pytest.approx(np.ones(20)) and np.abs(turns[1:] - np.eye(3)).max() > 0.02
    assert drawn_drive(2, (16, 32), path=path[:2]).images.shape == (2, 3, 16, 32)
    with pytest.raises(BadInput, match="seconds"):
        camera_path("xyz", 10_000)
