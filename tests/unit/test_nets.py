"""Small networks: parameter counts, the published weights, heads that are replaced, augmentations."""

from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from farout.data import DataMissing  # noqa: E402
from farout.data.images import image_set, resnet20_cifar10, to_tensor  # noqa: E402
from farout.errors import BadInput, MissingExtra  # noqa: E402
from farout.kit.augment import crop_and_flip, two_views  # noqa: E402
from farout.kit.fitting import predict  # noqa: E402
from farout.kit.nets import PatchTransformer, ResNet18, ResNetCIFAR, SmallCNN, mlp  # noqa: E402
from farout.kit.training import seeded  # noqa: E402

NETS = {
    "mlp": (lambda **how: mlp([12, 8, 6, 5], **how), (12,)),
    "cnn": (lambda **how: SmallCNN(5, width=4, **how), (3, 16, 16)),
    "resnet20": (lambda **how: ResNetCIFAR(5, width=4, **how), (3, 32, 32)),
    "resnet18": (lambda **how: ResNet18(5, width=4, **how), (3, 32, 32)),
    "transformer": (lambda **how: PatchTransformer(5, size=16, width=8, depth=2, heads=2, **how), (3, 16, 16)),
}


def size(net):
    return sum(weight.numel() for weight in net.parameters())


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_its_head_on_its_features_and_takes_another_head(name):
    make, shape = NETS[name]
    net = make(seed=0).eval()
    x = images(4, *shape)
    assert net.features(x).shape == (4, net.width) and net.linear.in_features == net.width
    assert torch.equal(net(x), net.linear(net.features(x)))
    net.linear = nn.Linear(net.width, 2, bias=False)
    assert torch.equal(net(x), net.features(x) @ net.linear.weight.T) and net(x).shape == (4, 2)


@pytest.mark.parametrize("name", NETS)
def test_a_seed_is_a_start_and_without_one_the_callers_generator_draws(name):
    def first(net):
        return torch.cat([weight.flatten() for weight in net.parameters()])

    make, _ = NETS[name]
    torch.manual_seed(3)
    after = torch.rand(1)
    torch.manual_seed(3)
    one = first(make(seed=7))
    assert torch.rand(1) == after  # the caller's draws are not disturbed
    assert torch.equal(one, first(make(seed=7))) and not torch.equal(one, first(make(seed=8)))
    with seeded(7):
        assert torch.equal(one, first(make()))


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_weight(name):
    make, shape = NETS[name]
    net = make(seed=0)
    F.cross_entropy(net(images(8, *shape)), torch.arange(8) % 5).backward()
    silent = [where for where, weight in net.named_parameters() if not weight.grad.abs().sum() > 0]
    assert not silent


def test_sizes_are_the_published_ones():
    # He et al. 2016, table 6, give 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
    for depth, count in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)):
        n = (depth - 2) // 6
        stages = 2 * 9 * 16 * 16 * n + sum(9 * c * (c // 2) + 9 * c * c * (2 * n - 1) for c in (32, 64))
        norms = 2 * (16 + 2 * n * (16 + 32 + 64))
        assert 9 * 3 * 16 + stages + norms + 650 == count == size(ResNetCIFAR(10, depth=depth))
    assert size(ResNet18(10)) == 11_173_962
    assert size(mlp([12, 8, 6, 5])) == 13 * 8 + 9 * 6 + 7 * 5
    assert size(SmallCNN(10)) == 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 129 * 10
    w = 128  # a patch, places, blocks of 12 w^2 + 13 w, a norm and a head
    assert size(PatchTransformer(10)) == 49 * w + 64 * w + 4 * (12 * w * w + 13 * w) + 2 * w + 10 * (w + 1)


def test_convolutions_start_with_the_spread_of_he():
    for net in (SmallCNN(10, seed=0), ResNetCIFAR(seed=0), ResNet18(10, width=16, seed=0)):
        for part in (part for part in net.modules() if isinstance(part, nn.Conv2d)):
            heard = part.out_channels * part.kernel_size[0] ** 2  # outputs that read a pixel, were there no strides
            spread = part.weight.std().item() * (heard / 2) ** 0.5
            assert spread == pytest.approx(1, abs=4 / part.weight.numel() ** 0.5)


def test_shortcuts_of_option_a_skip_pixels_and_pad_channels_on_both_sides():
    block = ResNetCIFAR(width=4, seed=0).layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # all that is left is the shortcut
    x = images(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2]) and not y[:, :2].any() and not y[:, 6:].any()
    plain = ResNetCIFAR(width=4, seed=0).layer1[1].eval()
    nn.init.zeros_(plain.bn2.weight)
    assert torch.equal(plain(x), x)


def test_attention_of_patches_is_softmax_of_scaled_products():
    block = PatchTransformer(2, size=8, width=6, heads=2, depth=1, seed=0).double().blocks[0]
    x = images(2, 4, 6).double()
    read = F.layer_norm(x, (6,))
    q, k, v = (read @ block.qkv.weight.T + block.qkv.bias).split(6, -1)
    mixed = torch.zeros_like(x)
    for head in (slice(0, 3), slice(3, 6)):
        mixed[..., head] = torch.softmax(q[..., head] @ k[..., head].mT / 3**0.5, -1) @ v[..., head]
    y = x + mixed @ block.out.weight.T + block.out.bias
    expected = y + block.mlp(F.layer_norm(y, (6,)))
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_a_transformer_knows_places_of_patches():
    net = PatchTransformer(3, size=8, patch=4, width=8, depth=1, heads=2, seed=0).eval()
    x = images(1, 3, 8, 8)
    swapped = x.flip(-1)[..., [3, 2, 1, 0, 7, 6, 5, 4]]  # left and right patches change places, each as it was
    assert torch.equal(net.patches(swapped), net.patches(x).flip(-1))
    assert not torch.allclose(net(swapped), net(x), atol=1e-3)
    nn.init.zeros_(net.places)
    assert torch.allclose(net(swapped), net(x), atol=1e-5)


def test_published_weights_fit_and_classify():
    try:
        test, weights = image_set("cifar10-test", rows=1_000), resnet20_cifar10()
    except (DataMissing, MissingExtra) as error:
        pytest.skip(str(error))
    net = ResNetCIFAR()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=True)
    right = predict(net, to_tensor(test.images)).argmax(1).numpy() == test.labels
    assert right.mean() == pytest.approx(0.804, abs=0.003)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mlp([3]), r"'sizes' is \[3\]"),
        (lambda: ResNetCIFAR(depth=18), "not 18"),
        (lambda: ResNetCIFAR(depth=2), "not 2"),
        (lambda: PatchTransformer(2, size=30), "'size' .* multiple of 4; it is 30"),
        (lambda: PatchTransformer(2, width=10), "'width' .* multiple of 4; it is 10"),
    ],
)
def test_shapes_that_cannot_be_are_named(make, says):
    with pytest.raises(BadInput, match=says):
        make()


def test_crops_are_shifts_and_flips_of_the_image_with_zeros_around():
    x = images(64, 2, 6, 5) + 1
    y = crop_and_flip(x, torch.Generator().manual_seed(0), pad=2)
    seen = set()
    for before, after in zip(x, y):
        around, found = F.pad(before, (2, 2, 2, 2)), []
        for top, left, mirrored in product(range(5), range(5), (False, True)):
            part = around[:, top : top + 6, left : left + 5]
            if torch.equal(after, part.flip(-1) if mirrored else part):
                found.append((top, left, mirrored))
        assert len(found) == 1
        seen.add(found[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert 10 < sum(mirrored for _, _, mirrored in seen) < 0.8 * len(seen)


def test_crops_without_room_are_the_image_or_its_mirror():
    x = images(200, 3, 4, 4)
    y = crop_and_flip(x, torch.Generator().manual_seed(0), pad=0)
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert ((y == x).flatten(1).all(1) ^ mirrored).all() and 70 < mirrored.sum() < 130


def test_views_are_repeatable_independent_pictures_of_0_to_1():
    x = images(32, 3, 12, 12)
    a, b = two_views(x, torch.Generator().manual_seed(1))
    again, _ = two_views(x, torch.Generator().manual_seed(1))
    assert torch.equal(a, again) and not torch.isclose(a, b).flatten(1).all(1).any()
    for view in (a, b):
        assert view.shape == x.shape and view.min() >= 0 and view.max() <= 1 + 1e-6
    many, _ = two_views(images(1_000, 3, 4, 4), torch.Generator().manual_seed(0))
    grey = (many.amax(1) - many.amin(1)).flatten(1).amax(1) < 1e-6
    assert grey.float().mean() == pytest.approx(0.2, abs=0.04)


def test_views_show_upright_parts_of_the_area_that_is_asked_for():
    # Red tells the column and green the row, so that a view tells which part of the image it shows.
    place = (torch.arange(64) + 0.5) / 64
    x = torch.stack([place.expand(64, 64), place[:, None].expand(64, 64), torch.zeros(64, 64)])
    views, _ = two_views(x.expand(200, 3, 64, 64), torch.Generator().manual_seed(0), least_area=0.3, strength=0.0)
    coloured = views[(views[:, 0] - views[:, 2]).flatten(1).amax(1) > 1e-3]
    assert len(coloured) == pytest.approx(160, abs=20)  # one in five is grey
    red, green = coloured[:, 0], coloured[:, 1]
    assert torch.allclose(red, red[:, :1].expand_as(red), atol=1e-4)
    assert torch.allclose(green, green[:, :, :1].expand_as(green), atol=1e-4)
    width, height = (red[:, 0, 42] - red[:, 0, 21]) * 64 / 21, (green[:, 42, 0] - green[:, 21, 0]) * 64 / 21
    area, mirrored = width.abs() * height, width < 0
    assert height.min() > 0 and 0.3 < mirrored.float().mean() < 0.7
    # A part that is wider or higher than the image is cut, to no less than 1 / sqrt(4/3) of its area.
    assert 0.3 * 0.85 < area.min() < 0.36 and 0.94 < area.max() <= 1.001
    assert (width.abs() / height).amax() <= 4 / 3 + 0.01 and (width.abs() / height).amin() >= 3 / 4 - 0.01
    assert red.min() >= 0.5 / 64 - 1e-6 and red.max() <= 63.5 / 64 + 1e-6


def test_colours_change_as_hsv_says():
    import colorsys

    from farout.kit.augment import _turned

    x = images(1, 3, 5, 5)
    x[0, :, 0, 0] = 0.4  # grey has no hue
    x[0, :, 0, 1] = torch.tensor([0.9, 0.9, 0.1])  # two channels are the greatest
    for turn in (0.0, 0.1, -0.3):
        y = _turned(x, torch.tensor([turn]))
        for row in range(5):
            for column in range(5):
                hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
                assert y[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_colours_are_blended_with_black_with_their_mean_and_with_grey():
    from farout.kit.augment import _jitter, _turned

    x = 0.3 + 0.4 * images(6, 3, 5, 5)  # far enough from the ends that little is cut
    y = _jitter(x, torch.Generator().manual_seed(2), 0.3)
    draws = 2 * torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) - 1
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for image, found, (brightness, contrast, saturation, hue) in zip(x, y, draws.T.tolist()):
        bright = (1 + 0.24 * brightness) * image
        level = (luma * bright).sum(0).mean()
        apart = level + (1 + 0.24 * contrast) * (bright - level)
        grey = (luma * apart).sum(0)
        strong = (grey + (1 + 0.24 * saturation) * (apart - grey)).clamp(0, 1)
        assert torch.allclose(found, _turned(strong[None], torch.tensor([0.06 * hue]))[0], atol=1e-5)


def test_strength_bounds_what_becomes_of_brightness():
    grey = torch.full((400, 3, 2, 2), 0.5)
    y, _ = two_views(grey, torch.Generator().manual_seed(0), strength=0.5)
    shades = y[:, 0, 0, 0]
    assert shades.min() >= 0.3 - 1e-5 and shades.max() <= 0.7 + 1e-5 and shades.std() > 0.08
    assert np.mean(np.isclose(shades.numpy(), 0.5, atol=1e-6)) == pytest.approx(0.2, abs=0.06)  # chance 0.8


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: two_views(images(2, 1, 4, 4), torch.Generator()), r"\(2, 1, 4, 4\)"),
        (lambda: two_views(images(2, 3, 4, 4), torch.Generator(), least_area=0), "'least_area'"),
    ],
)
def test_views_that_cannot_be_are_named(act, says):
    with pytest.raises(BadInput, match=says):
        act()
