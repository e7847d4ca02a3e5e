"""Images with levels: how folders are read, painted defects, scores and the command."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from farout.bench import defects as suite  # noqa: E402
from farout.bench import image_levels, mad_bench  # noqa: E402
from farout.bench.image_levels import STRENGTHS, GradedImages, graded_images, painted, scored_images  # noqa: E402
from farout.bench.levels import multilevel_report, rises_to  # noqa: E402
from farout.bench.metrics import auroc  # noqa: E402
from farout.cards import Card  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.data.defects import defect_set  # noqa: E402
from farout.errors import BadInput  # noqa: E402
from farout.image._detector import ImageDetector  # noqa: E402


class Farthest(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x_BCHW):
        map_BHW = (x_BCHW - self.mean).square().mean(1)
        return map_BHW.mean((1, 2)), map_BHW


class Toy(ImageDetector):
    """Mean squared distance to the mean training image."""

    def __init__(self, *, size=16, batch_size=8, device="cpu"):
        self.size, self.batch_size, self.device = size, batch_size, device

    def _net(self):
        return Farthest()

    def _learn(self, net, x_BCHW, progress):
        net.mean = (x_BCHW.float() / 255).mean(0)


class Drawing(Toy):
    def __init__(self, *, size=16, batch_size=8, device="cpu", random_state=0):
        super().__init__(size=size, batch_size=batch_size, device=device)
        self.random_state = random_state


class Broken(Toy):
    def _learn(self, net, x_BCHW, progress):
        raise ValueError("no way")


def save(folder, n, level=0.0, seed=0):
    """Grey noise with a square that is brighter the higher the level is."""
    rng = np.random.default_rng([seed, int(10 * level), n])
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        x = rng.integers(90, 110, (20, 18))
        x[4:9, 5:10] += int(25 * level)
        Image.fromarray(x.astype(np.uint8)).save(folder / f"{i:02}.png")


@pytest.fixture
def toys(monkeypatch):
    kinds = {"toy": Toy, "drawing": Drawing, "broken": Broken}
    cards = {name: Card(name, "image", name, kind.__name__, __name__, takes=("image",)) for name, kind in kinds.items()}
    monkeypatch.setattr(Card, "load", lambda self: kinds[self.name])
    monkeypatch.setattr(suite, "find", lambda name: cards[name])
    monkeypatch.setattr(suite, "list_cards", lambda room, kind: list(cards.values()))


@pytest.mark.parametrize("names", [("level_0", "level_1", "Level-2.5"), ("0", "1", "2.5"), ("good", "level1", "2.5")])
def test_levels_are_the_names_of_folders(tmp_path, names):
    for name, n in zip(names, (7, 3, 2)):
        save(tmp_path / name, n)
    found = graded_images(tmp_path)
    assert len(found.train) == 4 and found.severity.tolist() == [0] * 3 + [1] * 3 + [2.5] * 2
    assert {path.parent.name for path in found.train} == {names[0]} and not set(found.train) & set(found.test)
    assert [path.parent.name for path in found.test] == [names[0]] * 3 + [names[1]] * 3 + [names[2]] * 2


@pytest.mark.parametrize("inner", ["", "good", "level_0", "0"])
def test_a_split_is_kept_where_there_is_one(tmp_path, inner):
    save(tmp_path / "train" / inner, 6)
    for level in (0, 1, 10):
        save(tmp_path / f"test/level_{level}", 2)
    found = graded_images(tmp_path)
    assert len(found.train) == 6 and found.severity.tolist() == [0, 0, 1, 1, 10, 10]


def test_folders_without_levels_are_refused(tmp_path):
    save(tmp_path / "good", 2), save(tmp_path / "scratch", 2)
    with pytest.raises(BadInput, match="it holds good, scratch"):
        graded_images(tmp_path)
    with pytest.raises(BadInput, match="there is no folder"):
        graded_images(tmp_path / "none")


def test_images_are_cut_evenly_by_level():
    whole = GradedImages("x", list(range(10)), list(range(100, 130)), np.repeat([0.0, 1, 2], [20, 6, 4]))
    cut = whole.cut(4, 5)
    assert cut.train == [0, 2, 5, 7] and cut.severity.tolist() == [0] * 5 + [1] * 5 + [2] * 4
    assert cut.test[:5] == [100, 104, 108, 112, 116] and whole.cut(None, None).test == whole.test


def defects_folder(folder):
    save(folder / "train/good", 6), save(folder / "test/good", 6), save(folder / "test/bad", 2, 3)
    return folder


def test_one_patch_is_painted_at_every_strength(tmp_path):
    found = painted(defects_folder(tmp_path / "tiles"), seed=3)
    assert found.name == "painted/tiles" and found.severity.tolist() == [0] * 3 + [1.0, 2, 3, 4, 5] * 3
    normal = sorted((tmp_path / "tiles/test/good").iterdir())
    assert found.test[:3] == normal[0::2]
    plain = np.asarray(Image.open(normal[1]).convert("RGB")).astype(int)
    changes = [np.abs(np.asarray(x).astype(int) - plain) for x in found.test[3:8]]
    masks = [(change > 0).any(-1) for change in changes]
    for smaller, larger in pairwise(masks):
        assert not (smaller & ~larger).any()
    means = np.array([change.mean() for change in changes])
    np.testing.assert_allclose(means / means[-1], STRENGTHS, atol=0.03)
    assert (painted(tmp_path / "tiles", seed=3).test[4] == found.test[4]).all()
    assert (painted(tmp_path / "tiles", seed=4).test[4] != found.test[4]).any()


def test_scores_are_those_of_a_detector_fitted_to_the_normal_images(tmp_path, toys):
    for level in range(4):
        save(tmp_path / f"level_{level}", 12, level)
    graded = graded_images(tmp_path)
    found = list(scored_images([tmp_path], ["toy", "drawing"], (0, 1), "full", device="cpu"))
    assert [(one.model, one.seed) for one in found] == [("toy", 0), ("drawing", 0), ("drawing", 1)]
    np.testing.assert_array_equal(found[0].score, Toy().fit(graded.train).outlier_score(graded.test))
    np.testing.assert_array_equal(found[0].severity, graded.severity)
    assert multilevel_report(found[0].severity, found[0].score).everything.c_index == 1
    problems = []
    assert not list(scored_images([graded], ["broken"], device="cpu", problems=problems))
    assert problems == [f"broken on {graded.name}, seed 0: ValueError: no way"]
    with pytest.raises(ValueError, match="no way"):
        list(scored_images([graded], ["broken"], device="cpu"))


def test_a_score_rises_up_to_a_level():
    rng = np.random.default_rng(0)
    severity = np.repeat([0.0, 1, 2, 3, 4], 200)
    open_ended = severity * 3 + rng.normal(size=1000)
    assert rises_to(severity, open_ended) == 4
    assert rises_to(severity, np.minimum(open_ended, 4.5 + 0.01 * rng.normal(size=1000))) == 2
    assert rises_to(severity, rng.normal(size=1000)) == 0
    assert rises_to(severity, np.exp(open_ended)) == 4 and rises_to([0, 1], [1, 0]) == 0
    steps = [auroc([0] * 200 + [1] * 200, open_ended[200 * k : 200 * k + 400]) for k in range(4)]
    assert rises_to(severity, open_ended, least=max(steps) + 1e-9) == 0


def test_the_command_grades_images(tmp_path, toys):
    from farout.cli import app

    for level in range(4):
        save(tmp_path / f"cells/level_{level}", 12, level)
    defects_folder(tmp_path / "tiles")
    images = f"{tmp_path / 'cells'},painted/{tmp_path / 'tiles'}"
    words = ["bench", "mad_bench", "--images", images, "--methods", "toy,broken", "--device", "cpu"]
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "broken on cells, seed 0: ValueError: no way" in result.output
    table = pl.read_parquet(tmp_path / "out/mad_bench.parquet")
    assert table["domain"].to_list() == ["cells", "painted/tiles"]
    (row, other) = table.to_dicts()
    assert row["c_index"] == row["auroc_1"] == 1 and row["rises_to"] == 3 and row["normal"] == 6
    assert other["levels"] == 5 and other["samples"] == 18
    assert "rises to level" in (tmp_path / "out/page.html").read_text(encoding="utf-8")
    with pytest.raises(BadInput, match="one after the other"):
        mad_bench.main(images=[tmp_path / "cells"], sets=["defect/cardio"], out=tmp_path / "out")


def test_solar_cells_have_four_levels():
    try:
        found = graded_images(image_levels.SOLAR)
    except DataMissing:
        pytest.skip("the solar cells are not here; set FAROUT_DATA")
    levels, counts = np.unique(found.severity, return_counts=True)
    assert levels.tolist() == [0, 1, 2, 3] and counts.tolist() == [140, 56, 24, 313] and len(found.train) == 400
    assert ((found.severity == 0) == (defect_set("solar_mono").labels == 0)).all()
