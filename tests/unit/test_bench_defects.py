"""The benchmark of defects on drawn images with a toy detector: numbers, splits, cells, files and the command."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from farout.bench import defects as suite  # noqa: E402
from farout.bench._defect_cells import Images, alarm_threshold, f1, scored  # noqa: E402
from farout.bench.defects import defects, summary  # noqa: E402
from farout.bench.pixels import aupro, pixel_ap, pixel_auroc  # noqa: E402
from farout.cards import Card  # noqa: E402
from farout.data.defects import defect_set  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.image._detector import ImageDetector, map_like  # noqa: E402


class Mean(torch.nn.Module):
    def __init__(self, maps):
        super().__init__()
        self.maps = maps
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x_BCHW):
        map_BHW = (x_BCHW - self.mean).square().mean(1)
        return map_BHW.amax((1, 2)), map_BHW if self.maps else None


class Toy(ImageDetector):
    """Squared distance of a pixel to the mean training image."""

    fits = 0
    seen: tuple = ()

    def __init__(self, *, maps=True, steps=1000, size=16, batch_size=8, device="cpu", random_state=0):
        self.maps, self.steps, self.size, self.batch_size = maps, steps, size, batch_size
        self.device, self.random_state = device, random_state

    def fit(self, X, y=None, progress=None):
        Toy.fits += 1
        Toy.seen = tuple(X)
        return super().fit(X, y, progress)

    def _net(self):
        return Mean(self.maps)

    def _learn(self, net, x_BCHW, progress):
        net.mean = (x_BCHW.float() / 255).mean(0)
        progress(1.0)


class Broken(Toy):
    def _learn(self, net, x_BCHW, progress):
        raise ValueError("no\nway")


def stored(folder, seed=0, masks=True, train=20):
    """Noise; a bright square is a defect, a faint one a defect of another kind."""
    rng = np.random.default_rng(seed)

    def save(path, x):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.astype(np.uint8)).save(path)

    for i in range(train):
        save(folder / f"train/good/{i:02}.png", rng.integers(90, 130, (24, 20)))
    for i in range(9):
        save(folder / f"test/good/{i}.png", rng.integers(90, 130, (24, 20)))
    for kind, value, count in (("bright", 250, 8), ("faint", 138, 3)):
        for i in range(count):
            x, mask = rng.integers(90, 130, (24, 20)), np.zeros((24, 20), bool)
            top, left = rng.integers(2, 12, 2)
            mask[top : top + 6, left : left + 5] = True
            x[mask] = value
            save(folder / f"test/{kind}/{i}.png", x)
            if masks:
                save(folder / f"ground_truth/{kind}/{i}_mask.png", 255 * mask)
    return folder


@pytest.fixture
def place(tmp_path):
    return stored(tmp_path / "drawn")


def test_a_row_is_what_the_metrics_say(place):
    table = defects({"toy": lambda seed: Toy(random_state=seed)}, [str(place)], (3,))
    (row,) = table.to_dicts()
    found = defect_set(place)
    train, calibration = Images(found, None, 0.8).train(3)
    assert len(train) == row["fitted"] == 16 and len(calibration) == 4
    assert sorted(train + calibration) == sorted(found.train)
    detector = Toy().fit(train)
    scores, maps = detector.scores_and_maps(found.test)
    assert row["auroc"] == pytest.approx(roc_auc_score(found.labels, scores))
    threshold = detector.outlier_score(calibration).max()  # four images are too few for a rate of 5 %
    assert row["f1"] == pytest.approx(f1_score(found.labels, scores > threshold))
    masks = [found.mask(i) for i in found.marked]
    scaled = [map_like(maps[i], (24, 20)) for i in found.marked]
    numbers = [function(masks, scaled) for function in (pixel_auroc, pixel_ap, aupro)]
    assert [row["pixel_auroc"], row["pixel_ap"], row["aupro"]] == pytest.approx(numbers)
    assert row["auroc"] > 0.7 and row["aupro"] > 0.5
    assert row["images_per_second"] > 0 and row["fit_seconds"] > 0
    assert (row["set"], row["method"], row["seed"], row["tested"], row["defective"]) == ("drawn", "toy", 3, 20, 11)
    assert row["error"] is None


def test_the_threshold_keeps_its_rate_on_new_images():
    draw = np.random.default_rng(0)
    for n in (19, 39, 100):
        flagged = [np.mean(draw.normal(size=200) > alarm_threshold(draw.normal(size=n))) for _ in range(1500)]
        assert np.mean(flagged) == pytest.approx(int(0.05 * (n + 1) + 1e-9) / (n + 1), abs=0.005)
    assert alarm_threshold(np.array([3.0, 1.0])) == 3.0
    labels, scores = np.array([0, 1, 1]), np.array([1.0, 1.0, 2.0])
    assert f1(labels, scores, 1.0) == f1_score(labels, scores > 1.0)


def test_numbers_without_masks_or_maps_are_null(tmp_path, place):
    table = defects({"toy": lambda seed: Toy(maps=False)}, [defect_set(place)], (0,))
    assert table["aupro"].null_count() == 1 and table["auroc"].null_count() == 0
    bare = stored(tmp_path / "bare", masks=False)
    table = defects({"toy": lambda seed: Toy()}, [bare], (0,))
    assert table["pixel_auroc"].null_count() == table["pixel_ap"].null_count() == 1


def test_images_that_are_not_marked_count_for_images_alone(place):
    before = defects({"toy": lambda seed: Toy()}, [place], (0,))
    (place / "ground_truth/bright/0_mask.png").unlink()
    after = defects({"toy": lambda seed: Toy()}, [place], (0,))
    assert before["auroc"][0] == after["auroc"][0] and before["pixel_ap"][0] != after["pixel_ap"][0]


def test_at_most_so_many_images_spread_over_kinds(place):
    images = Images(defect_set(place), 10, 0.5)
    kinds = [images.found.kinds[i] for i in images.tested]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"good": 5, "bright": 2, "faint": 3}
    train, calibration = images.train(0)
    assert len(train) == len(calibration) == 5 and not set(train) & set(calibration)
    assert images.train(0) == (train, calibration) != images.train(1)
    many = Images(defect_set(place), 18, 0.5)
    kinds = [many.found.kinds[i] for i in many.tested]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"good": 9, "bright": 6, "faint": 3}
    assert len(Images(defect_set(place), 100, 0.5).tested) == 20


def test_each_seed_fits_on_its_own_images(place):
    seen = []
    for seed in (0, 1):
        defects({"toy": lambda seed: Toy()}, [place], (seed,))
        seen.append(Toy.seen)
    assert seen[0] != seen[1]


def test_finished_cells_are_not_done_again(tmp_path, place):
    methods = {"toy": lambda seed: Toy(random_state=seed)}
    first = defects(methods, [place], (0, 1), out=tmp_path / "cells")
    done = Toy.fits
    again = defects(methods, [place], (0, 1, 2), out=tmp_path / "cells")
    assert Toy.fits == done + 1 and again[:2].equals(first)
    defects({"toy": lambda seed: Toy(size=8, random_state=seed)}, [place], (0,), out=tmp_path / "cells")
    defects(methods, [place], (0,), most=12, out=tmp_path / "cells")
    defects(methods, [place], (0,), share=0.7, out=tmp_path / "cells")
    assert Toy.fits == done + 4


def test_a_method_that_fails_is_named(place):
    methods = {"broken": lambda seed: Broken(), "toy": lambda seed: Toy()}
    with pytest.raises(BadInput, match="'broken' failed on 'drawn', seed 0: no"):
        defects(methods, [place], (0,))
    table = defects(methods, [place], (0,), go_on=True)
    assert table["error"].to_list() == ["ValueError: no", None] and table["auroc"].null_count() == 1
    assert summary(table)["method"].to_list() == ["toy", "broken"]


def test_means_are_over_seeds_and_then_over_sets():
    rows = [("a", "m", 0, 0.5, 0.1), ("a", "m", 1, 0.7, 0.3), ("b", "m", 0, 1.0, None)]
    table = pl.DataFrame(rows, schema=["set", "method", "seed", "auroc", "aupro"], orient="row")
    table = table.with_columns(pl.lit(0.0).alias(name) for name in suite.SCHEMA if name not in table.columns)
    (row,) = summary(table).to_dicts()
    assert row["auroc"] == pytest.approx(0.8) and row["aupro"] == pytest.approx(0.2)
    assert (row["sets"], row["sets with masks"]) == (2, 1)


def test_what_cannot_be_run_is_refused(place):
    methods = {"toy": lambda seed: Toy()}
    with pytest.raises(BadInput, match="one set at least"):
        defects(methods, [])
    with pytest.raises(BadInput, match="each set once"):
        defects(methods, [place, place])
    with pytest.raises(BadInput, match="'share'"):
        defects(methods, [place], share=1.0)
    with pytest.raises(UnknownName, match="magnetic_tile"):
        defects(methods, ["magnetic_tiles"])
    with pytest.raises(UnknownName, match="budget"):
        suite.main(budget="large")
    with pytest.raises(UnknownName, match="detector of images"):
        suite.detectors(["ecod"])


def test_the_command_prints_a_table_and_writes_files(tmp_path, place, monkeypatch):
    from farout.cli import app

    stored(tmp_path / "several/one", 1), stored(tmp_path / "several/two", 2)
    card = Card("Toy", "image", "toy", "Toy", __name__, takes=("image",))
    monkeypatch.setattr(Card, "load", lambda self: Toy)
    monkeypatch.setattr(suite, "find", lambda name: card)
    monkeypatch.setattr(suite, "list_cards", lambda room, kind: [card])
    out = tmp_path / "out"
    words = ["--methods", "toy,toy:maps=false:steps=7", "--sets", f"{place},{tmp_path / 'several'}", "-o", str(out)]
    result = CliRunner().invoke(app, ["bench", "defects", *words])
    assert result.exit_code == 0, result.output
    assert "AUPRO@0.3" in result.output and "toy:maps=false:steps=7" in result.output
    table = pl.read_parquet(out / "defects.parquet")
    assert table["set"].unique(maintain_order=True).to_list() == ["drawn", "one", "two"]
    assert table.equals(pl.read_csv(out / "defects.csv", schema=table.schema))
    page = Path(out / "defects.html").read_text(encoding="utf-8")
    assert "AUPRO@0.3 by set" in page and "toy:maps=false:steps=7" in page
    assert json.loads((out / "settings.json").read_text())["seeds"] == [0]


def test_parameters_are_said_after_colons_and_short_trainings_are_cut(monkeypatch):
    card = Card("Toy", "image", "toy", "Toy", __name__, takes=("image",))
    monkeypatch.setattr(Card, "load", lambda self: Toy)
    monkeypatch.setattr(suite, "find", lambda name: card)
    made = suite.detectors(["toy", "toy:steps=700:size=32"], "cpu", short=True)
    assert made["toy"](4).get_params()["steps"] == suite.SHORT["steps"] and made["toy"](4).random_state == 4
    assert made["toy:steps=700:size=32"](0).steps == 700 and made["toy:steps=700:size=32"](0).size == 32
    assert suite.detectors(["toy"])["toy"](0).steps == 1000
    with pytest.raises(BadInput, match="'toy' has no parameter 'pace'"):
        suite.detectors(["toy:pace=1"])


def test_scores_come_with_maps_or_without(place):
    paths = defect_set(place).train
    scores, maps = scored(Toy(batch_size=7).fit(paths), paths)
    assert scores.shape == (20,) and maps.shape == (20, 16, 16)
    assert scored(Toy(maps=False).fit(paths), paths)[1] is None
