"""``farout fit`` and ``farout score`` on images, as a user meets them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

import farout  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.data.defects import defect_set  # noqa: E402
from farout.data.pretrained import pretrained  # noqa: E402
from farout.errors import FaroutError  # noqa: E402
from farout.image import ImageDetector  # noqa: E402
from farout.image.patchcore import PatchCore  # noqa: E402

try:
    pretrained("efficientnet-lite0")
except FaroutError as error:
    pytest.skip(f"the default backbone is not here: {error}", allow_module_level=True)


def drawn(n, seed, spot=False):
    rng = np.random.default_rng(seed)
    at = np.arange(72)
    waves = 40 * np.sin(at / 5)[:, None, None] + 30 * np.cos(at / 7)[None, :, None] + np.array([100, 120, 130])
    images = np.clip(waves + rng.normal(0, 9, (n, 72, 72, 3)), 0, 255).astype(np.uint8)
    if spot:
        images[:, 20:40, 30:50] = [250, 20, 20]
    return images


def stored(folder, images, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images, start):
        Image.fromarray(image).save(folder / f"{place:03}.png")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Normal images, six of which the last two have a spot and the others are known to be usual, and a detector."""
    folder = tmp_path_factory.mktemp("line")
    stored(folder / "good", drawn(20, 0))
    stored(folder / "new", drawn(20, 0)[:4])
    stored(folder / "new", drawn(2, 2, spot=True), 4)
    done = called(folder, "fit", "good", "-o", "det", "--size", 64, "--set", "coreset=0.1")
    assert done.returncode == 0, done.stderr
    (folder / "fit.txt").write_text(done.stderr)
    return folder


def called(cwd, *words):
    return subprocess.run(
        [sys.executable, "-m", "farout", *map(str, words)], cwd=cwd, capture_output=True, timeout=170, text=True
    )


@pytest.fixture
def call(monkeypatch, capfd, here):
    """Run the program in this process, in the folder of the images."""
    old = signal.getsignal(signal.SIGTERM)

    def main(*words, cwd=here):
        from farout.cli import main

        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["farout", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(words, end.value.code, out, err)

    yield main
    signal.signal(signal.SIGTERM, old)


def refused(done, match, code=1):
    assert done.returncode == code and done.stdout == "", done.stderr
    assert match in done.stderr, done.stderr
    if code == 1:
        assert done.stderr.startswith("farout: ") and done.stderr.count("\n") == 1


def test_fit_says_what_it_did_and_loads_again(here):
    said = (here / "fit.txt").read_text()
    assert "note: of 20 normal images 6 are held out to set the line" in said
    assert "to 14 images; 6 others set the line" in said and "wrote det, det.farout.json" in said
    settings = json.loads((here / "det.farout.json").read_text("utf-8"))
    assert settings["method"] == "patchcore" and settings["parameters"]["size"] == 64 and settings["learned"] == 14
    alarm = farout.load(here / "det")
    assert isinstance(alarm, farout.Alarm) and isinstance(alarm.detector_, ImageDetector)
    assert isinstance(alarm.detector_, PatchCore) and alarm.rate == pytest.approx(1 / 7)
    assert settings["threshold"] == -alarm.offset_
    assert alarm.predict(here / "new").tolist() == [1, 1, 1, 1, -1, -1]
    assert alarm.score_maps(here / "new").shape == (6, 64, 64)


def test_score_with_a_saved_detector(here, call, tmp_path):
    done = call("score", here / "new", "--with", here / "det", "-o", "p.html", "-o", "t.csv", "--top", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PatchCore: 6 images, 2 above the line (*). p-values against held-out normal images")
    assert "004.png: hottest at x" in done.stdout
    assert "wrote 6 heat maps to" in done.stderr and "note: of 20 normal images 6" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.farout.json", "p.html", "p.maps", "t.csv"]
    assert sorted(path.name for path in (tmp_path / "p.maps").iterdir()) == [f"00{place}.png" for place in range(6)]
    frame = pl.read_csv(tmp_path / "t.csv")
    np.testing.assert_allclose(frame["score"], farout.load(here / "det").outlier_score(here / "new"), rtol=1e-6)
    spots = frame.filter(pl.col("alarm"))
    assert spots["name"].to_list() == ["004.png", "005.png"]
    box = np.array(spots.select("left", "top", "right", "bottom").row(0))
    assert (box[:2] < [50, 40]).all() and (box[2:] > [30, 20]).all()
    settings = json.loads((tmp_path / "p.farout.json").read_text("utf-8"))
    assert settings["command"][:2] == ["farout", "score"] and settings["images"] == 6


def test_without_outputs_they_lie_beside_you(here, call, tmp_path):
    done = call("score", here / "new", "--with", here / "det", "--maps", "alarms", "-q", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    names = ["new.farout.html", "new.farout.json", "new.farout.parquet", "new.maps"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "new.maps").iterdir()) == ["004.png", "005.png"]
    done = call("score", here / "new" / "005.png", "--with", here / "det", "-o", "-", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.splitlines()[1].startswith("0,005.png,")


def test_fit_and_score_at_once(here, call, tmp_path):
    done = call(
        "score", here / "new", "-m", "padim", "--fit-on", here / "good", "--size", 64, "--set", "dimensions=20",
        "-o", "t.parquet", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PaDiM: 6 images, ")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []  # no page, no heat maps
    assert pl.read_parquet(tmp_path / "t.parquet")["alarm"].to_list()[4:] == [True, True]


def test_an_onnx_graph_of_the_detector(here, call, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    done = call(
        "fit", here / "good", "-m", "gaussian_ad", "--size", 64, "-o", "det", "--export", "det.onnx", cwd=tmp_path
    )
    assert done.returncode == 0 and "wrote det, det.onnx, det.farout.json" in done.stderr, done.stderr
    line = json.loads((tmp_path / "det.farout.json").read_text("utf-8"))["threshold"]
    session = runtime.InferenceSession(tmp_path / "det.onnx", providers=["CPUExecutionProvider"])
    x = np.stack([np.asarray(Image.open(path).resize((64, 64), 2)) for path in sorted((here / "new").iterdir())])
    score = session.run(["score"], {"images": np.moveaxis(x, 3, 1).astype(np.float32) / 255})[0]
    assert (score > line).tolist()[4:] == [True, True]
    np.testing.assert_allclose(farout.load(tmp_path / "det").outlier_score(here / "new"), score, rtol=1e-3)


def test_broken_files(here, call, tmp_path):
    shutil.copytree(here / "new", tmp_path / "new")
    (tmp_path / "new" / "001.png").write_bytes(b"broken")
    refused(
        call("score", "new", "--with", here / "det", cwd=tmp_path), "'001.png' (it is of no known format, or empty)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    done = call("score", "new", "--with", here / "det", "--skip-broken", "-o", "t.csv", cwd=tmp_path)
    assert done.returncode == 0 and "note: 1 of 6 images are broken and left out: '001.png'" in done.stderr
    assert len(pl.read_csv(tmp_path / "t.csv")) == 5
    shutil.copytree(here / "good", tmp_path / "good")
    (tmp_path / "good" / "003.png").write_bytes(b"broken")
    fit = ("fit", "good", "-o", "det", "--size", 64, "--set", "coreset=0.1")
    refused(call(*fit, cwd=tmp_path), "'003.png'")
    assert not (tmp_path / "det").exists()
    done = call(*fit, "--skip-broken", cwd=tmp_path)
    assert done.returncode == 0 and "1 of 20 images are broken" in done.stderr


REFUSED = {
    "nothing to learn from": (["score", "new"], "no normal images to learn from beside 'new'"),
    "a method of tables": (["score", "new", "-m", "ecod", "--fit-on", "good"], "'ecod' does not score images"),
    "a method of models": (["score", "new", "-m", "deep_knn"], "say which one with --model"),
    "options of tables": (["score", "new", "--with", "det", "--kind", "a=date"], "--kind belongs to tables"),
    "several of them": (
        ["fit", "good", "-o", "x", "--engine", "dask", "--as", "csv"],
        "--engine, --as belong to tables",
    ),
    "with and size": (["score", "new", "--with", "det", "--size", "64"], "--size have no place beside it"),
    "rate": (
        ["score", "new", "--with", "det", "--rate", "0.01"],
        "6 normal images, which allow a rate of 0.14 at least",
    ),
    "rate of a fit": (["fit", "good", "-o", "x", "--rate", "0.01"], "a rate of 0.01 takes 99 normal images"),
    "maps of a table": (["score", "new", "--with", "det", "-o", "t.csv", "--maps", "all"], "--maps are written beside"),
    "unknown maps": (["score", "new", "--with", "det", "--maps", "al"], "no choice of heat maps is called 'al'"),
    "parameter": (["fit", "good", "-o", "x", "--set", "colour=1"], "colour"),
    "folder of the output": (["fit", "good", "-o", "no/x"], "there is no folder 'no'"),
    "folder of the page": (["score", "new", "--with", "det", "-o", "no/p.html"], "there is no folder 'no'"),
    "ending": (["score", "new", "--with", "det", "-o", "p.xlsx"], "p.xlsx"),
    "no images": (["score", "empty", "--with", "det"], "there is no image in the folder 'empty': it is empty"),
    "no folder": (["score", "newer", "--with", "det"], "there is no file or folder 'newer'"),
    "no detector": (["score", "new", "--with", "dot"], "there is no saved detector at 'dot'"),
    "too few": (["fit", "few", "-o", "x"], "'few' holds 3: give more"),
    "images of a table": (["score", "t.csv", "--skip-broken"], "--skip-broken, --size and --maps belong to images"),
    "size of a table": (["fit", "t.csv", "-o", "x", "--size", "9"], "belong to images"),
    "a detector of tables": (["score", "new", "--with", "rows"], "does not score images"),
    "a model and size": (["score", "new", "--model", "m", "--size", "9"], "without a --model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case, here, call):
    words, match = REFUSED[case]
    (here / "empty").mkdir(exist_ok=True)
    if not (here / "rows").exists():
        stored(here / "few", drawn(3, 0))
        pl.DataFrame({"a": np.arange(30.0), "b": np.arange(30.0) ** 2}).write_csv(here / "t.csv")
        farout.fit(np.random.default_rng(0).normal(size=(40, 2)), "ecod", rate=0.1).save(here / "rows")
    before = sorted(here.iterdir())
    refused(call(*words), match)
    assert sorted(here.iterdir()) == before


def test_fit_without_an_output_is_wrong_usage(call):
    refused(call("fit", "good"), "say where to write the detector", code=2)


def test_the_wafer_method_takes_no_images(call):
    refused(call("fit", "good", "-m", "wafer_openset", "-o", "x"), "does not score images")


def test_tables_are_scored_as_before(here, call, tmp_path):
    rng = np.random.default_rng(0)
    pl.DataFrame(rng.normal(size=(200, 2)), schema=["a", "b"]).write_csv(tmp_path / "rows.csv")
    done = call("fit", "rows.csv", "-o", "saved", cwd=tmp_path)
    refused(done, "a rate of 0.01 needs at least 99 normal rows")
    done = call("fit", "rows.csv", "-o", "saved", "--rate", "0.05", cwd=tmp_path)
    assert done.returncode == 0 and "calibrated on 60 held-out rows" in done.stderr
    done = call("score", "rows.csv", "--with", "saved", "-o", "t.csv", cwd=tmp_path)
    assert done.returncode == 0 and "200 rows" in done.stdout


def test_a_named_set_brings_all(call, tmp_path):
    try:
        defect_set("cookie")
    except DataMissing as error:
        pytest.skip(str(error))
    done = call("fit", "cookie", "-o", "det", "--size", 64, cwd=tmp_path)
    assert done.returncode == 0 and "to 22 images; 9 others" in done.stderr, done.stderr
    done = call("score", "cookie", "--with", "det", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("PatchCore: 54 images"), done.stderr
    assert "8 defective images have no mask" in done.stderr
    quality = json.loads(Path(tmp_path / "cookie.farout.json").read_text("utf-8"))["quality"]
    assert quality["AUROC"] > 0.9 and quality["pixel AUROC"] > 0.8
