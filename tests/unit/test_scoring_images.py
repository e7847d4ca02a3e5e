"""Images, scored from beginning to end: the same numbers as by hand, bad files, maps, and what a user is told."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from farout.bench.metrics import auroc  # noqa: E402
from farout.bench.pixels import pixel_ap, pixel_auroc  # noqa: E402
from farout.data.defects import defect_set  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image import ImageDetector, map_like  # noqa: E402
from farout.report import _heat  # noqa: E402
from farout.report import images as report  # noqa: E402
from farout.scoring import _image_maps, _image_pass  # noqa: E402
from farout.scoring._image_maps import MapWriter  # noqa: E402
from farout.scoring._image_pixels import PixelCounts  # noqa: E402
from farout.scoring._image_source import holds_images, to_learn, to_score  # noqa: E402
from farout.scoring._image_words import sizes  # noqa: E402
from farout.scoring.images import fit_images, maps_beside, score_images  # noqa: E402
from pages import Reader  # noqa: E402

HOSTILE = "<script>alert(1)</script> & 'x'"


class Mean(ImageDetector):
    """How far the pixels of an image are from the mean of the normal images."""

    def __init__(self, *, maps=True, size=16, batch_size=4, device="cpu", random_state=0):
        self.maps, self.size, self.batch_size, self.device = maps, size, batch_size, device
        self.random_state = random_state

    def _net(self):
        class Net(torch.nn.Module):
            def __init__(self, maps):
                super().__init__()
                self.maps = maps
                self.register_buffer("mean", torch.zeros(1))

            def forward(self, x_BCHW):
                map_BHW = (x_BCHW - self.mean).abs().mean(1)
                return map_BHW.amax((1, 2)), map_BHW if self.maps else None

        return Net(self.maps)

    def _learn(self, net, x_BCHW, progress):
        net.mean = (x_BCHW.float() / 255).mean(0)


def drawn(n, seed=0, height=20, width=32, size=None):
    rng = np.random.default_rng(seed)
    shape = (n, height, width, 3) if size is None else (n, size, size, 3)
    return rng.integers(90, 130, shape, dtype=np.uint8)


def stored(folder, images, ending="png", **more):
    folder.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images):
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
            folder / f"{place:03}.{ending}", **more
        )
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("images") / "good", drawn(40))


@pytest.fixture(scope="module")
def alarm(good):
    return fit_images(good, Mean())


def marked(n, seed=5, height=20, width=32):
    """Images with a bright patch at x 16 to 24 and y 5 to 10, and masks of it."""
    images = drawn(n, seed, height, width)
    masks = np.zeros((n, height, width), bool)
    images[:, 5:10, 16:24] = 255
    masks[:, 5:10, 16:24] = True
    return images, masks


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A folder in the layout of MVTec AD: 30 and 8 normal images, 5 marked ones, 2 without a mask."""
    folder = tmp_path_factory.mktemp("sets") / "tiles"
    stored(folder / "train" / "good", drawn(30))
    stored(folder / "test" / "good", drawn(8, seed=1))
    images, masks = marked(5)
    stored(folder / "test" / "patch", images)
    stored(folder / "test" / "loose", marked(2, seed=6)[0])
    truth = folder / "ground_truth" / "patch"
    truth.mkdir(parents=True)
    for place, mask in enumerate(masks):
        Image.fromarray(mask).save(truth / f"{place:03}_mask.png")
    return folder


def test_numbers_are_those_of_the_parts(good, alarm):
    files = sorted(good.iterdir())
    order = np.random.RandomState(0).permutation(40)
    by_hand = Mean().fit([files[place] for place in sorted(order[12:])])
    held = by_hand.outlier_score([files[place] for place in order[:12]])
    np.testing.assert_array_equal(alarm.calibration_scores_, np.sort(held))
    assert alarm.images_["learned"] == 28 and alarm.rate == pytest.approx(1 / 13)
    new = [*drawn(9, seed=3), *marked(2)[0]]
    result = score_images(new, saved=alarm)
    scores = by_hand.outlier_score(new)
    np.testing.assert_array_equal(result.scores, scores)
    np.testing.assert_allclose(result.p_values, [(1 + (held >= score).sum()) / 13 for score in scores])
    np.testing.assert_array_equal(result.alarms, scores > held.max())
    assert result.threshold == held.max() and result.calibrated
    assert result.alarms[-2:].all() and result.order[0] in (9, 10)
    np.testing.assert_array_equal(result.kept[9], by_hand.score_maps(new)[9])


def test_a_method_and_normal_images_do_in_one_call_what_two_do(good, alarm):
    new = drawn(5, seed=3)
    one = score_images(new, Mean(), fit_on=good)
    np.testing.assert_array_equal(one.p_values, score_images(new, saved=alarm).p_values)
    assert {"fit", "decode", "model", "maps", "in all"} == set(one.settings["seconds"])
    assert score_images(new, Mean(), fit_on=good, seed=4).threshold != one.threshold


def test_few_images_get_the_rate_that_they_allow(alarm):
    few = fit_images(drawn(10), Mean())
    assert few.rate == 1 / 4 and len(few.calibration_scores_) == 3
    note = few.images_["notes"][0]
    assert "of 10 normal images 3 are held out" in note and "1 of 4 normal images may ring (rate 0.25)" in note
    assert note in score_images(drawn(2), saved=few).notes
    many = fit_images(drawn(340, size=4), Mean(size=4))
    assert many.rate == 0.01 and not many.images_["few"]
    with pytest.raises(
        BadInput, match=r"a rate of 0.05 takes 19 normal images .* of 40 12 are: give more, or a rate of"
    ):
        fit_images(drawn(40), Mean(), rate=0.05)
    with pytest.raises(BadInput, match=r"set on 12 normal images, which allow a rate of 0.077 at least, and not 0.01"):
        score_images(drawn(2), saved=alarm, rate=0.01)
    with pytest.raises(BadInput, match="between 0 and 1, not 2"):
        fit_images(drawn(40), Mean(), rate=2)
    half = score_images(drawn(2), saved=alarm, rate=0.5)
    assert half.rate == 0.5 and half.threshold == alarm.calibration_scores_[12 - 6]


def test_too_few_to_learn_from(tmp_path):
    for n in (1, 5):
        with pytest.raises(BadInput, match=f"'Mean' learns from 5 .* one more sets the line; 'few{n}' holds {n}: give"):
            fit_images(stored(tmp_path / f"few{n}", drawn(n)), Mean())
    assert len(fit_images(drawn(6), Mean()).calibration_scores_) == 1
    with pytest.raises(BadInput, match="between 0 and 1, not 1"):
        fit_images(drawn(40), Mean(), calibration=1)


def test_identical_images_are_said_to_be_such(good):
    same = np.repeat(drawn(1), 20, axis=0)
    alarm = fit_images(same, Mean())
    assert any("score alike, as copies of one image do" in note for note in alarm.images_["notes"])
    result = score_images([*same[:2], *marked(1)[0]], saved=alarm)
    assert result.p_values[:2].tolist() == [1.0, 1.0] and result.alarms.tolist() == [False, False, True]
    assert not any("alike" in note for note in fit_images(good, Mean()).images_["notes"])


def test_broken_files_are_named_or_left_out(tmp_path, alarm):
    folder = stored(tmp_path / "line", [*drawn(6, seed=2), *marked(1)[0]])
    (folder / "002.png").write_bytes(b"no image")
    whole = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(whole[: len(whole) // 2])
    (folder / "005.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"'002.png' \(it is of no known format, or empty\) .*--skip-broken"):
        score_images(folder, saved=alarm)
    result = score_images(folder, saved=alarm, skip_broken=True, maps=tmp_path / "maps")
    assert result.images.names == ["000.png", "001.png", "003.png", "006.png"]
    assert result.alarms.tolist() == [False, False, False, True]
    assert result.settings["left out"] == ["002.png", "004.png", "005.png"]
    assert any(note.startswith("3 of 7 images are broken and left out: '002.png'") for note in result.notes)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == result.images.names
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadInput, match="none of the 7 images can be read"):
        score_images(folder, saved=alarm, skip_broken=True)


def test_broken_training_images(tmp_path):
    folder = stored(tmp_path / "line", drawn(12, seed=2))
    (folder / "007.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"'007.png' .*cannot be read"):
        fit_images(folder, Mean())
    alarm = fit_images(folder, Mean(), skip_broken=True)
    assert alarm.images_["learned"] + len(alarm.calibration_scores_) == 11
    assert any("1 of 12 images are broken and left out: '007.png'" in note for note in alarm.images_["notes"])


def test_files_of_every_kind(tmp_path, alarm):
    folder = tmp_path / "kinds"
    folder.mkdir()
    base = drawn(1, seed=3)[0]
    plain = Image.fromarray(base)
    Image.fromarray(base[..., 0].astype(np.uint16) * 257).save(folder / "a16.png")
    plain.quantize(200).save(folder / "b_palette.png")
    plain.convert("RGBA").save(folder / "c_alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    plain.save(folder / "d_turned.jpg", exif=turned, quality=95)
    plain.convert("CMYK").save(folder / "e_cmyk.jpg", quality=95)
    Image.fromarray(base[:1, :1]).save(folder / "f_dot.png")
    Image.new("RGB", (5000, 4000), (110, 110, 110)).save(folder / "g_large.jpg")
    plain.convert("LA").save(folder / "h_grey_alpha.png")
    result = score_images(folder, saved=alarm)
    assert len(result.scores) == 8 and np.isfinite(result.scores).all()
    assert result.shapes == [(20, 32)] * 3 + [(32, 20), (20, 32), (1, 1), (4000, 5000), (20, 32)]
    np.testing.assert_allclose(result.scores[[1, 2, 4]], score_images([base], saved=alarm).scores[0], atol=2e-3)
    said = " ".join(result.notes)
    assert "1 image is of 16 bits" in said
    assert "4 sizes, from 1 x 1 to 5,000 x 4,000, and are scaled to 16 x 16: defects smaller than about 625 pix" in said
    assert "2 of 8 images are squeezed to a square" not in said and "squeezed to a square" in said
    assert "1 image is enlarged more than 4 times" in said
    result.save(tmp_path / "page.html")
    assert Image.open(tmp_path / "page.maps" / "g_large.png").size == (1024, 819)
    assert Image.open(tmp_path / "page.maps" / "d_turned.png").size == (20, 32)
    assert Image.open(tmp_path / "page.maps" / "f_dot.png").size == (1, 1)
    assert (tmp_path / "page.html").stat().st_size < 300_000


def test_scaling_is_said_only_where_it_matters():
    assert sizes([(16, 16)] * 3, 16) == [] and sizes([(18, 18)], 16) == []
    assert "about 4 pixels" in sizes([(32, 32)], 16)[0]
    assert "2 of 3 images are squeezed" in sizes([(16, 16), (16, 32), (8, 16)], 32)[0]
    other = sizes([(64, 64)], 64, {"shape": (16.0, 16.0)})
    assert len(other) == 1 and "mostly of 64 x 64, and those that were learned from of 16 x 16" in other[0]
    assert sizes([(20, 20)], 64, {"shape": (16.0, 16.0)}) == []


def test_a_set_of_defects_is_learned_scored_and_measured(layout):
    result = score_images(layout, Mean())
    assert result.settings["learned from"] == 21 and len(result.scores) == 15 and result.name == "tiles"
    assert result.kinds == ["good"] * 8 + ["loose"] * 2 + ["patch"] * 5
    assert result.images.names[8:11] == ["loose/000.png", "loose/001.png", "patch/000.png"]
    known = np.array([kind != "good" for kind in result.kinds])
    assert result.quality["AUROC"] == pytest.approx(auroc(known, result.scores))
    assert result.quality["outliers that ring"] == 1.0 and result.quality["hottest pixel is marked"] == 1.0
    found = defect_set(layout)
    masks = [found.mask(place, (20, 32)) for place in found.marked]
    maps = [map_like(result.kept[place], (20, 32)) for place in found.marked]
    assert result.quality["pixel AUROC"] == pytest.approx(pixel_auroc(masks, maps), abs=1e-4)
    assert result.quality["pixel average precision"] == pytest.approx(pixel_ap(masks, maps), abs=2e-3)
    assert "2 defective images have no mask and count only as a whole" in result.notes
    frame = result.frame()
    assert frame.columns == [
        "row", "name", "score", "p_value", "alarm", "kind", "height", "width", "left", "top", "right", "bottom",
        "seconds",
    ]  # fmt: skip
    box = frame.filter(pl.col("kind") == "patch").select("left", "top", "right", "bottom").row(0)
    assert np.abs(np.array(box) - [16, 5, 24, 10]).max() <= 2
    assert result.words(8) == f"loose/000.png: hottest at x {box[0]} to {box[2]}, y {box[1]} to {box[3]} of 32 x 20"


def test_fit_takes_the_training_images_of_a_set(layout):
    alarm = fit_images(layout, Mean())
    assert alarm.images_["learned"] == 21 and alarm.images_["name"] == "tiles"
    np.testing.assert_array_equal(
        alarm.calibration_scores_, fit_images(layout / "train" / "good", Mean()).calibration_scores_
    )
    result = score_images(layout / "test" / "patch", saved=alarm)
    assert result.kinds is None and result.alarms.all() and not result.quality


def test_a_folder_of_good_and_other_images_is_cut_in_two(tmp_path):
    stored(tmp_path / "two" / "good", drawn(20))
    stored(tmp_path / "two" / "broken", marked(3)[0])
    result = score_images(tmp_path / "two", Mean())
    assert result.kinds.count("good") == 10 and result.kinds.count("broken") == 3
    assert "every second normal image is there to learn from" in " ".join(result.notes)
    assert result.quality["AUROC"] == 1.0 and "pixel AUROC" not in result.quality


def test_a_set_without_defects_is_scored_and_not_measured(tmp_path):
    stored(tmp_path / "set" / "train" / "good", drawn(12))
    stored(tmp_path / "set" / "test" / "good", drawn(4, seed=1))
    result = score_images(tmp_path / "set", Mean())
    assert result.quality == {} and "there is no defective image to test on" in " ".join(result.notes)
    result.save(tmp_path / "page.html")
    stored(tmp_path / "only" / "train", drawn(12))
    stored(tmp_path / "only" / "test" / "scratch", marked(3)[0])
    result = score_images(tmp_path / "only", Mean())
    assert result.quality == {} and "there is no normal image to test on" in " ".join(result.notes)
    result.save(tmp_path / "page.html")
    assert "Of 3 defective images 3 ring." in " ".join(Reader((tmp_path / "page.html").read_text("utf-8")).text.split())


def test_masks_of_another_size_are_scaled_to(layout, tmp_path):
    images, masks = marked(4)
    stored(tmp_path / "set" / "train" / "good", drawn(20))
    stored(tmp_path / "set" / "test" / "good", drawn(4, seed=1))
    stored(tmp_path / "set" / "test" / "patch", images)
    truth = tmp_path / "set" / "ground_truth" / "patch"
    truth.mkdir(parents=True)
    for place, mask in enumerate(masks):
        Image.fromarray(mask).resize((64, 40)).save(truth / f"{place:03}.png")
    result = score_images(tmp_path / "set", Mean())
    assert "4 masks have another size than their images" in " ".join(result.notes)
    assert result.quality["pixel AUROC"] > 0.95 and result.quality["hottest pixel is marked"] == 1.0


def test_what_is_no_source_is_refused(tmp_path, good, alarm):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no image in the folder .*it is empty"):
        score_images(tmp_path / "empty", saved=alarm)
    with pytest.raises(BadInput, match="no image in the folder"):
        fit_images(tmp_path / "empty", Mean())
    with pytest.raises(BadInput, match="there is no file or folder 'nowhere'"):
        score_images("nowhere", saved=alarm)
    with pytest.raises(BadInput, match="no normal images to learn from beside 'good': give some"):
        score_images(good)
    with pytest.raises(BadInput, match=r"'ecod' does not score images \(table, detector\); .*'patchcore'"):
        fit_images(good, "ecod")
    with pytest.raises(UnknownName, match="colour"):
        fit_images(good, "patchcore", parameters={"colour": 3})
    with pytest.raises(UnknownName, match="no choice of heat maps is called 'some'"):
        score_images(good, saved=alarm, which="some")
    from farout.table import ECOD

    with pytest.raises(BadInput, match="'ECOD' does not score images"):
        score_images(good, saved=ECOD().fit(np.eye(5)))
    with pytest.raises(BadInput, match="'Mean' does not score images"):
        score_images(good, saved=Mean())


def test_sub_folders_without_a_good_one(tmp_path, alarm):
    stored(tmp_path / "shifts" / "early", drawn(8))
    stored(tmp_path / "shifts" / "late", drawn(8, seed=1))
    found = to_learn(tmp_path / "shifts")
    assert len(found.images) == 16 and "2 sub-folders are taken as normal ('early', 'late')" in found.notes[0]
    assert to_score(tmp_path / "shifts").kinds is None


def test_what_holds_images(tmp_path, good):
    assert holds_images(good) and holds_images(str(good / "000.png")) and holds_images("magnetic_tile")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert not holds_images(tmp_path) and not holds_images(tmp_path / "rows.csv") and not holds_images("-")
    stored(tmp_path / "deep" / "er", drawn(2))
    assert holds_images(tmp_path) and not holds_images(np.zeros((3, 3)))


def test_names_are_paths_below_what_images_have_in_common(tmp_path, alarm):
    stored(tmp_path / "a", drawn(2))
    stored(tmp_path / "b", drawn(1))
    paths = [tmp_path / "a" / "001.png", str(tmp_path / "b" / "000.png")]
    assert score_images(paths, saved=alarm).images.names == ["a/001.png", "b/000.png"]
    assert score_images(paths[:1], saved=alarm).images.names == ["001.png"]
    assert score_images(drawn(3), saved=alarm).images.names == ["0", "1", "2"]


def test_a_detector_without_an_alarm_gives_ranks(good):
    detector = Mean().fit(good)
    result = score_images([*drawn(3), *marked(1)[0]], saved=detector)
    assert not result.calibrated and result.threshold is None and result.held is None
    assert result.p_values[3] == 0.25 and sorted(result.p_values) == [0.25, 0.5, 0.75, 1.0]


def test_a_detector_without_maps(good, tmp_path):
    alarm = fit_images(good, Mean(maps=False))
    result = score_images([*drawn(3), *marked(1)[0]], saved=alarm, maps=tmp_path / "maps")
    assert result.boxes is None and not result.kept and result.words(3) == "3" and "left" not in result.frame().columns
    assert not list(tmp_path.iterdir())
    result.save(tmp_path / "page.html")
    seen = Reader((tmp_path / "page.html").read_text("utf-8"))
    assert "does not say where in them" in seen.text and not (tmp_path / "page.maps").exists()
    assert (
        len(
            [
                1
                for tag, attrs in seen.tags
                if attrs.get("class", "").startswith("shot ") or attrs.get("class") == "shot"
            ]
        )
        == 4
    )


def test_only_maps_that_a_page_shows_are_kept(layout, monkeypatch, tmp_path):
    monkeypatch.setattr(_image_pass, "SHOWN", 3)
    monkeypatch.setattr(_image_pass, "MISSED", 2)
    alarm = fit_images(layout, Mean())
    result = score_images(layout, saved=alarm)
    known = result.order[result.known[result.order]]
    assert set(result.kept) == set(result.order[:3].tolist()) | set(known[-2:].tolist())
    result.save(tmp_path / "page.html")
    said = " ".join(Reader((tmp_path / "page.html").read_text("utf-8")).text.split())
    assert "The last 2 are the defects with the lowest scores. 10 in between are left out" in said
    many = score_images(drawn(40, seed=9), saved=alarm)
    assert set(many.kept) == set(many.order[:3].tolist()) and len(many.boxes) == 40


def test_heat_maps_are_written_while_it_goes(tmp_path, alarm):
    images = [*drawn(5, seed=2), *marked(2)[0]]
    result = score_images(images, saved=alarm, maps=tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"{place}.png" for place in range(7)]
    hot = np.asarray(Image.open(tmp_path / "all" / "6.png").convert("RGB")).astype(int)
    assert hot.shape == (20, 32, 3)
    assert np.ptp(hot[7, 20]) > 80  # in colour where it is odd
    assert np.ptp(hot[15, 3]) < 30  # and grey elsewhere
    result = score_images(images, saved=alarm, maps=tmp_path / "alarms", which="alarms")
    assert sorted(path.name for path in (tmp_path / "alarms").iterdir()) == ["5.png", "6.png"]
    assert "heat maps were written of the 2 images above the line" in result.notes
    score_images(images, saved=alarm, maps=tmp_path / "none", which="none")
    assert not (tmp_path / "none").exists()
    monkey = [one.name for one in tmp_path.iterdir() if one.name.startswith(".")]
    assert not monkey


def test_maps_are_written_all_or_none(tmp_path, alarm, monkeypatch):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "0.png").write_bytes(b"as it was")
    held = threading.Event()

    def fails(image, map_HW, heat, box):
        if held.is_set():
            raise OSError(28, "No space left on device")
        held.set()
        return image

    monkeypatch.setattr(_image_maps, "overlaid", fails)
    with pytest.raises(BadInput, match=r"cannot write heat maps .*No space left"):
        score_images(drawn(5), saved=alarm, maps=tmp_path / "maps")
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]
    assert (tmp_path / "maps" / "0.png").read_bytes() == b"as it was"
    with pytest.raises(BadInput, match="there is no folder"):
        score_images(drawn(5), saved=alarm, maps=tmp_path / "no" / "maps")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="it is a file"):
        score_images(drawn(5), saved=alarm, maps=tmp_path / "file")


def test_an_interrupted_run_leaves_nothing(tmp_path, alarm):
    class Interrupted(Mean):
        def stream(self, batches):
            yield from list(super().stream(batches))[:1]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_images(drawn(9), saved=Interrupted().fit(drawn(9)), maps=tmp_path / "maps")
    assert not list(tmp_path.iterdir())


def test_maps_of_like_names_do_not_meet(tmp_path):
    writer = MapWriter(tmp_path / "maps")
    names = ["a.png", "a.jpg", "a", "A.bmp", "../../b.png", "/c/d.png", "v1.2", "..\\e.png"]
    paths = [writer._path(name) for name in names]
    assert paths == ["a.png", "a.jpg.png", "a-2.png", "A.bmp.png", "b.png", "c/d.png", "v1.2.png", "e.png"]
    assert maps_beside("out/x.farout.html").name == "x.maps"


def test_pixels_are_counted_as_the_benchmarks_do():
    rng = np.random.default_rng(0)
    for unit in (1.0, 1e-6, 1e5, -3.0):
        maps = [unit * rng.normal(size=shape).astype(np.float32) for shape in ((9, 7), (20, 30), (5, 5))]
        maps[1][:10] = 0.0  # ties
        masks = [rng.random(one.shape) < 0.2 for one in maps[:2]] + [np.zeros((5, 5), bool)]
        counts = PixelCounts(unit)
        for map_HW, mask in zip(maps, masks):
            counts.add(map_HW, mask)
        quality = counts.quality()
        assert quality["pixel AUROC"] == pytest.approx(pixel_auroc(masks, maps), abs=2e-3)
        assert quality["pixel average precision"] == pytest.approx(pixel_ap(masks, maps), abs=1e-2)
        assert counts.defects == 2
    assert PixelCounts(1.0).quality() == {}


def test_where_it_is_hottest():
    map_HW = np.zeros((8, 8), np.float32)
    map_HW[2:4, 5:7] = 1.0
    map_HW[7, 0] = 0.9  # hot too, and elsewhere
    assert _heat.hottest(map_HW, (8, 8)) == (5, 2, 7, 4)
    assert _heat.hottest(map_HW, (80, 4)) == (2, 20, 4, 40)
    assert _heat.hottest(np.ones((8, 8)), (10, 20)) == (0, 0, 20, 10)


def test_colour_begins_where_normal_images_end():
    heat = _heat.heat_of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 5.0, 0.5)
    assert heat == (3.0, 5.0)
    strong = _heat.strength(np.array([[0.0, 3.0, 5.0, 7.0, 1e9]]), heat)[0]
    np.testing.assert_allclose(strong, [0, 0, 0.5, 0.75, 1])
    colours = _heat.tinted(strong)
    assert colours[:, 3].tolist()[:2] == [0, 0] and (np.diff(colours[:, 3].astype(int)) >= 0).all()
    assert colours[4].tolist() == [255, 240, 110, 191]
    assert _heat.heat_png(np.zeros((4, 4)), heat, 64) == ""
    low, high = _heat.heat_of(np.zeros(4), 0.0, 0.0)
    assert low == 0 < high
    picture = Image.open(io.BytesIO(base64.b64decode(_heat.heat_png(np.eye(300) * 900, heat, 64).split(",")[1])))
    assert picture.size == (64, 64)
    seen = np.asarray(picture.convert("RGBA"))
    assert (seen[0, 63] == [110, 0, 120, 0]).all() and seen[5, 5, 3] > 100


def test_tables_and_their_formats(tmp_path, alarm):
    result = score_images(drawn(3), saved=alarm)
    for ending in ("parquet", "csv", "json", "feather"):
        result.save(tmp_path / f"t.{ending}")
    assert pl.read_parquet(tmp_path / "t.parquet").equals(result.frame())
    assert [row["name"] for row in json.loads((tmp_path / "t.json").read_text("utf-8"))] == ["0", "1", "2"]
    with pytest.raises(BadInput, match="xlsx"):
        result.save(tmp_path / "t.xlsx")
    assert json.loads(json.dumps(result.settings, default=str))["images"] == 3
    assert result.settings["versions"]["torch"] == torch.__version__
    assert result.top(1)["row"][0] == result.order[0] and len(result.lines(2)) == 2


def read(result, path):
    result.save(path)
    return Reader(path.read_text("utf-8"))


def test_the_page_shows_all_and_loads_nothing(layout, tmp_path):
    result = score_images(layout, Mean(), name=HOSTILE)
    seen = read(result, tmp_path / "page.html")
    shots = [attrs for tag, attrs in seen.tags if "shot" in attrs.get("class", "").split()]
    assert [one["id"] for one in shots] == [f"image-{row}" for row in result.order]
    assert sum("rang" in one["class"].split() for one in shots) == result.alarms.sum()
    dots = [attrs for tag, attrs in seen.tags if tag == "a" and attrs.get("href", "").startswith("#image-")]
    assert {one["href"][1:] for one in dots} == {one["id"] for one in shots}
    links = [attrs["href"] for tag, attrs in seen.tags if tag == "a" and attrs.get("href", "").startswith("page.maps/")]
    assert len(links) == 15 and all((tmp_path / link).is_file() for link in links)
    pictures = [attrs["src"] for tag, attrs in seen.tags if tag == "img"]
    assert all(re.match(r"data:image/(jpeg|png);base64,", one) for one in pictures)
    assert sum(attrs.get("class") == "heat" for tag, attrs in seen.tags) >= 7  # the defective ones
    policy = next(attrs["content"] for tag, attrs in seen.tags if attrs.get("http-equiv"))
    running = [text for _, text in seen.scripts]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert len(running) == 1 and re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert HOSTILE in seen.text and "<script>alert" not in (tmp_path / "page.html").read_text("utf-8")
    text = " ".join(seen.text.split())
    assert "Of 7 defective images 7 ring, of 8 normal ones" in text and "alarm line" in text
    assert "Mean learned from 21 normal images" in text and "images a second" in text
    assert "2 defective images have no mask" in text and "Pixel AUROC" in text


def test_names_of_images_are_text_in_the_page(tmp_path, alarm):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.fromarray(drawn(1)[0]).save(folder / "<b>&amp; #1 {{ 7 * 7 }}.png")
    seen = read(score_images(folder, saved=alarm), tmp_path / "page.html")
    assert "<b>&amp; #1 {{ 7 * 7 }}.png" in seen.text and "b" not in {tag for tag, attrs in seen.tags if not attrs}
    link = next(attrs["href"] for tag, attrs in seen.tags if "page.maps" in attrs.get("href", ""))
    assert "#" not in link and "%23" in link


def test_a_page_of_many_images_stays_small(tmp_path, alarm, monkeypatch):
    monkeypatch.setattr(report, "BYTES", 20_000)
    result = score_images(drawn(30, seed=4), saved=alarm)
    seen = read(result, tmp_path / "page.html")
    shots = [attrs for tag, attrs in seen.tags if "shot" in attrs.get("class", "").split()]
    assert 3 < len(shots) < 30
    assert f"{30 - len(shots)} that score lower are left out" in " ".join(seen.text.split())
    dots = [attrs for tag, attrs in seen.tags if tag == "i" and "score" in attrs.get("title", "")]
    assert len(dots) == 30 - len(shots) + 12  # those without a picture, and those that set the line


def test_maps_written_by_the_run_are_linked_to(tmp_path, alarm):
    result = score_images(drawn(3), saved=alarm, maps=tmp_path / "elsewhere")
    (tmp_path / "pages").mkdir()
    seen = read(result, tmp_path / "pages" / "page.html")
    links = [attrs["href"] for tag, attrs in seen.tags if ".png" in attrs.get("href", "")]
    assert sorted(links) == [f"../elsewhere/{place}.png" for place in range(3)]
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["page.html"]


def test_progress_is_told(good):
    told = []
    score_images(drawn(9), Mean(), fit_on=good, progress=lambda what, done: told.append((what, done)))
    assert {"learning", "setting the line", "scoring"} == {what for what, _ in told}
    assert all(0 <= done <= 1 for _, done in told) and told[-1] == ("scoring", 1.0)
