from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image._defects import (  # noqa: E402
    KINDS,
    cut_paste,
    drawn_defect,
    drawn_defects,
    noise_blob,
    scratch,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def image(dtype=torch.uint8, side=48):
    bytes_CHW = torch.randint(256, (3, side, side + 8), generator=seeded(9), dtype=torch.uint8)
    return bytes_CHW if dtype == torch.uint8 else bytes_CHW.to(dtype) / 255


@pytest.mark.parametrize("draw", KINDS.values())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_mask_is_where_pixels_have_changed(draw, dtype):
    x = image(dtype)
    kept = x.clone()
    for seed in range(20):
        changed, mask = draw(x, seeded(seed), 0.7)
        assert changed.dtype == dtype and changed.shape == x.shape and mask.shape == x.shape[1:]
        assert torch.equal((changed != x).any(0), mask)
        assert torch.equal(x, kept)
        assert 0 < int(mask.sum()) < 0.25 * mask.numel()
        assert float(changed.min()) >= 0 and float(changed.max()) <= (255 if dtype == torch.uint8 else 1)


@pytest.mark.parametrize("draw", KINDS.values())
def test_strength_is_how_far_pixels_move(draw):
    x = image(torch.float64)
    whole, mask = draw(x, seeded(3), 1.0)
    half, half_mask = draw(x, seeded(3), 0.5)
    none, no_mask = draw(x, seeded(3), 0.0)
    assert torch.allclose(half - x, 0.5 * (whole - x), atol=1e-12)
    assert torch.equal(mask, half_mask)
    assert torch.equal(none, x) and not no_mask.any()


@pytest.mark.parametrize("draw", KINDS.values())
def test_a_seed_is_a_defect(draw):
    x = image()
    one, two, other = (draw(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[1], other[1])


def test_pasted_pixels_come_from_one_rectangle_of_the_image():
    x = torch.arange(40 * 50, dtype=torch.float64).reshape(1, 40, 50) / 2000  # every pixel has its own value
    changed, mask = cut_paste(x, seeded(5))
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    assert mask.sum() == len(rows) * len(columns)  # a rectangle, whole
    assert 40 / 16 <= len(rows) <= 10 and 50 / 16 <= len(columns) <= 13
    source = (changed[0][mask] * 2000).round().long() - (x[0][mask] * 2000).round().long()
    assert len(source.unique()) == 1 and source[0] != 0  # all moved by one step


def test_noise_is_grey_and_fills_one_blob():
    from scipy.ndimage import label

    changed, mask = noise_blob(torch.zeros(3, 64, 64), seeded(1))
    assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
    assert label(mask.numpy())[1] == 1
    assert float(changed[0][mask].std()) > 0.2


def test_scratches_are_thin_and_long():
    from scipy.ndimage import distance_transform_edt

    shades = set()
    for seed in range(20):
        changed, mask = scratch(torch.full((3, 128, 128), 0.5), seeded(seed))
        shades |= set(changed[:, mask].unique().tolist())
        assert distance_transform_edt(mask.numpy()).max() <= 3
    assert shades == {0.0, 1.0}
    lengths = [int(scratch(torch.full((1, 256, 256), 0.5), seeded(seed))[1].sum()) for seed in range(20)]
    assert sum(lengths) / 20 > 40


def test_kinds_are_all_drawn_and_can_be_chosen():
    x = image()
    assert torch.equal(drawn_defect(x, seeded(1), kinds=["scratch"])[1].any(), torch.tensor(True))
    drawn = {float((drawn_defect(x, seeded(seed))[0] != x).float().mean()) for seed in range(10)}
    assert len(drawn) > 5
    with pytest.raises(UnknownName, match="scratch"):
        drawn_defect(x, seeded(), kinds=["dent"])
    with pytest.raises(UnknownName):
        drawn_defect(x, seeded(), kinds=[])


def test_defects_without_a_trace_are_drawn_again():
    even = torch.full((3, 32, 32), 0.25)
    for seed in range(20):
        assert drawn_defect(even, seeded(seed))[1].any()
    assert not drawn_defect(even, seeded(), kinds=["cut-paste"])[1].any()  # nothing else to draw: left as it is
    assert not drawn_defect(even, seeded(), strength=0.0)[1].any()


def test_batches_are_the_images_one_by_one():
    x = torch.stack([image(), image().flip(1)])
    changed, masks = drawn_defects(x, seeded(4), 0.8)
    generator = seeded(4)
    for i in range(2):
        one, mask = drawn_defect(x[i], generator, 0.8)
        assert torch.equal(changed[i], one) and torch.equal(masks[i], mask)


@pytest.mark.parametrize("draw", KINDS.values())
def test_bad_input(draw):
    with pytest.raises(BadInput, match="between 0 and 1"):
        draw(image(), seeded(), 1.5)
    with pytest.raises(BadInput, match="channels, height, width"):
        draw(image()[0], seeded())
    with pytest.raises(BadInput, match="int64"):
        draw(image().long(), seeded())
