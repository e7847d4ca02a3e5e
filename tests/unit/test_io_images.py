"""Images of any kind become bytes of red, green and blue, and what cannot be read is named."""

from __future__ import annotations

import numpy as np
import pytest

from farout.errors import BadInput
from farout.io.images import read_images

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def only(source, **more):
    found = read_images(source, **more)
    assert len(found) == 1 and found.arrays[0].dtype == np.uint8 and found.arrays[0].shape[2] == 3
    return found.arrays[0], found.notes


def saved(folder, image, name="a.png", **more):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **more)
    return path


def test_colours_and_shades_are_what_was_stored(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif", "a.PPM"):
        assert (only(saved(tmp_path, PIXELS, name))[0] == PIXELS).all()
    assert (only(saved(tmp_path, GREY))[0] == GREY[..., None]).all()
    black = GREY > 127
    assert (only(saved(tmp_path, Image.fromarray(black)))[0] == 255 * black[..., None]).all()


def test_palettes_are_looked_up(tmp_path):
    four = PIXELS[:2, :2].reshape(4, 3)
    codes = RNG.integers(0, 4, (12, 20), dtype=np.uint8)
    image = Image.fromarray(codes).convert("P")
    image.putdata(codes.ravel())
    image.putpalette(four.ravel().tolist())
    assert (only(saved(tmp_path, image))[0] == four[codes]).all()
    found, notes = only(saved(tmp_path, image, transparency=2))
    assert (found == np.where((codes == 2)[..., None], 255, four[codes])).all()
    assert notes == ("1 image is transparent in parts, and laid over white",)


def test_transparent_parts_show_white(tmp_path):
    alpha = RNG.integers(0, 256, (12, 20, 1), dtype=np.uint8)
    over = np.round(PIXELS * (alpha / 255) + 255 * (1 - alpha / 255))
    both = np.concatenate([PIXELS, alpha], 2)
    for source in (saved(tmp_path, both), both):
        found, notes = only(source)
        assert abs(found - over).max() <= 1 and "laid over white" in notes[0]
    grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[..., 0])])
    assert abs(only(saved(tmp_path, grey))[0][..., 0] - np.round(over[..., 0])).max() <= 1
    both[..., 3] = 255
    found, notes = only(saved(tmp_path, both))
    assert (found == PIXELS).all() and notes == ()


def test_sixteen_bits_become_eight(tmp_path):
    deep = np.array([[0, 128, 129, 257, 9], [65535, 65406, 65407, 1000, 9]], np.uint16)
    for source in (saved(tmp_path, deep), deep[None]):
        found, notes = only(source)
        assert found[..., 0].tolist() == [[0, 0, 1, 1, 0], [255, 254, 255, 4, 0]]
        assert notes == ("1 image is of 16 bits, and divided by 257",)


def test_other_colours_and_turned_cameras(tmp_path):
    flat = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    path = saved(tmp_path, Image.fromarray(flat).convert("CMYK"), "a.jpg", quality=100, subsampling=0)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert abs(only(path)[0].astype(int) - flat).max() <= 3
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned by a quarter
    assert (only(saved(tmp_path, PIXELS, exif=turned))[0] == np.rot90(PIXELS, -1)).all()


def test_of_several_frames_the_first(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), shade, np.uint8)) for shade in (10, 200)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    found, notes = only(path)
    assert (found == 10).all() and notes == ("1 image is of several frames, of which the first was taken",)


def test_floats_of_a_file_have_no_scale(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "a.tif")
    with pytest.raises(BadInput, match=r"'a.tif' cannot be read as an image \(it holds floats"):
        read_images(path)
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), 70_000, np.int32)), "b.tif")
    with pytest.raises(BadInput, match="32 bits"):
        read_images(path)


def test_folders_are_read_in_order_and_sub_folders_are_classes(tmp_path):
    for name, shade in (("b/2.png", 3), ("a/x/9.png", 1), ("a/10.jpg", 0), ("b/1.bmp", 2), ("b/.hidden.png", 9)):
        saved(tmp_path, np.full((8, 8), 60 * shade % 256, np.uint8), name)
    (tmp_path / "b" / "notes.txt").write_text("none")
    (tmp_path / ".cache").mkdir()
    saved(tmp_path, GREY, ".cache/1.png")
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    done = []
    found = read_images(tmp_path, threads=3, progress=done.append)
    assert found.names == ["a/10.jpg", "a/x/9.png", "b/1.bmp", "b/2.png"]
    assert [int(x[0, 0, 0]) for x in found.arrays] == [0, 60, 120, 180]
    assert found.labels.tolist() == [0, 0, 1, 1] and found.classes == ("a", "b")
    assert found.notes == ("1 files of the folder are no images and were passed over: 1 .txt",)
    assert done == sorted(done) and done[-1] == 1
    saved(tmp_path, GREY, "loose.png")
    found = read_images(tmp_path)
    assert found.labels is None and "1 image is beside the 2 sub-folders" in found.notes[1]
    assert read_images(tmp_path / "a").labels is None


def test_links_to_folders_are_followed(tmp_path):
    saved(tmp_path, GREY, "elsewhere/1.png")
    saved(tmp_path, GREY, "here/own/1.png")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    assert read_images(tmp_path / "here").classes == ("linked", "own")


def test_a_broken_image_among_many_is_named_and_may_be_left_out(tmp_path):
    for place in range(40):
        saved(tmp_path, PIXELS, f"{'ab'[place % 2]}/{place:02}.png")
    whole = (tmp_path / "b" / "07.png").read_bytes()
    (tmp_path / "b" / "07.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"'b/07.png' cannot be read as an image \(.*truncated.*\); mend or remove it"):
        read_images(tmp_path)
    (tmp_path / "a" / "02.png").write_bytes(b"")
    (tmp_path / "b" / "39.png").write_text("no image")
    match = r"'a/02.png' .*no known format.*; so are 2 more of 40: 'b/07.png', 'b/39.png'; .*--skip-broken"
    with pytest.raises(BadInput, match=match):
        read_images(tmp_path)
    found = read_images(tmp_path, skip_broken=True)
    assert len(found) == 37 == len(found.names) == len(found.labels)
    assert [found.classes[label] for label in found.labels] == [name[0] for name in found.names]
    assert found.notes == ("3 of 40 images are broken and left out: 'a/02.png', 'b/07.png', 'b/39.png'",)
    with pytest.raises(BadInput, match=r"a/02\.png' cannot be read"):
        read_images([tmp_path / "a" / "02.png"], skip_broken=True)


def test_a_size_that_is_enough(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 320).round().astype(np.uint8)[None], 160, 0)
    for name in ("a.png", "a.jpg"):
        found, _ = only(saved(tmp_path, ramp, name), size=40)
        assert found.shape == (40, 80, 3)
        assert abs(found[20, :, 0] - ramp[0].reshape(80, 4).mean(1)).max() < 3
    assert only(ramp, size=(40, 160))[0].shape == (80, 160, 3)
    assert only(ramp, size=(200, 100))[0].shape == (160, 320, 3)  # small enough as it is
    with pytest.raises(BadInput, match="1 pixel at least, not 0"):
        read_images(ramp, size=0)


def test_arrays_and_lists(tmp_path):
    many = RNG.integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    for source in (many, many.transpose(0, 3, 1, 2), list(many), [Image.fromarray(x) for x in many], many / 255):
        found = read_images(source)
        assert (np.stack(found.arrays) == many).all() and found.names == list("01234")
    assert "channels first" in read_images(many.transpose(0, 3, 1, 2)).notes[0]
    assert (np.stack(read_images(many[..., 0]).arrays) == many[..., :1]).all()
    mixed = read_images([saved(tmp_path, PIXELS), many[0], GREY])
    assert [x.shape for x in mixed.arrays] == [(12, 20, 3), (8, 9, 3), (12, 20, 3)]
    assert mixed.names[1:] == ["1", "2"]
    np.savez(tmp_path / "a.npz", images=many, labels=[4, 2, 2, 9, 4])
    found = read_images(tmp_path / "a.npz")
    assert found.classes == ("2", "4", "9") and found.labels.tolist() == [1, 0, 0, 2, 1]
    np.save(tmp_path / "b.npy", many[..., 0])
    assert read_images(tmp_path / "b.npy").arrays[4][3, 4].tolist() == [int(many[4, 3, 4, 0])] * 3
    assert (only(PIXELS)[0] == PIXELS).all()


def test_threads_change_nothing(tmp_path):
    for place in range(12):
        saved(tmp_path, np.roll(PIXELS, place, 0), f"{place:02}.png")
    one, many = (np.stack(read_images(tmp_path, threads=count).arrays) for count in (1, 6))
    assert (one == many).all()


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 4, 4)), b=np.zeros((2, 4, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for source, match in [
        (tmp_path / "empty", "no image in the folder .*: it is empty"),
        (tmp_path / "texts", "it holds 1 .txt"),
        (tmp_path / "none", "no file or folder"),
        ([], "there are no images"),
        ([tmp_path / "gone.png"], "there is no such file"),
        (np.zeros((0, 4, 5), np.uint8), "there are no images"),
        (tmp_path / "two.npz", "no array 'images' and not just one"),
        (tmp_path / "objects.npy", "without pickle"),
        (np.zeros((2, 5, 5, 7), np.uint8), r"shape \(2, 5, 5, 7\)"),
        (np.full((1, 4, 4), 3.0), "from 0 to 1, and not from 3 to 3"),
        (np.zeros((1, 4, 4), np.int64), "not int64"),
        ([7], "not int"),
        (7, "a folder, files or an array, and not int"),
    ]:
        with pytest.raises(BadInput, match=match):
            read_images(source)
