"""Data sets by name: where they are looked for, and what they hold."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import urllib.request

import numpy as np
import polars as pl
import pytest

from farout import data
from farout.data import DataMissing, _find
from farout.errors import BadInput, UnknownName


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """An empty data folder and an empty cache, and no network."""

    def refuse(url, timeout):
        raise OSError("no network")

    monkeypatch.setenv("FAROUT_DATA", str(tmp_path / "local"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "local", tmp_path / "cache" / "farout"


def offer(monkeypatch, contents, sha256):
    """Let one file be downloadable, and return the list of what was asked for."""
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return io.BytesIO(contents)

    monkeypatch.setitem(_find.REMOTE, "set.bin", ("https://example.org/set.bin", sha256))
    monkeypatch.setattr(urllib.request, "urlopen", serve)
    return asked


def test_the_local_folder_comes_before_the_cache(folders):
    for folder in reversed(folders):
        folder.mkdir(parents=True)
        (folder / "set.bin").write_bytes(b"1")
        assert data.find("set.bin") == folder / "set.bin"


def test_a_download_is_checked_kept_and_not_repeated(folders, monkeypatch):
    asked = offer(monkeypatch, b"contents", hashlib.sha256(b"contents").hexdigest())
    assert data.find("set.bin").read_bytes() == b"contents"
    assert data.find("set.bin") == folders[1] / "set.bin"
    assert asked == ["https://example.org/set.bin"]


def test_a_download_with_another_checksum_is_refused_and_not_kept(folders, monkeypatch):
    offer(monkeypatch, b"tampered", hashlib.sha256(b"contents").hexdigest())
    with pytest.raises(BadInput, match=r"'set.bin' has SHA-256 .* nothing was kept") as caught:
        data.find("set.bin")
    assert not isinstance(caught.value, DataMissing)
    assert not folders[1].exists()


def test_what_is_nowhere_says_where_it_was_looked_for(folders):
    with pytest.raises(DataMissing, match=f"'a/b.npz'; looked in '{folders[0]}' and '{folders[1]}'; set FAROUT_DATA"):
        data.find("a/b.npz")
    with pytest.raises(DataMissing, match=r"download from https://.*/6_cardio.npz failed \(no network\)"):
        data.load("adbench/cardio")


@pytest.mark.parametrize("name", ["../secret", "/etc/hosts", "a/../../b"])
def test_names_stay_below_the_data_folder(name):
    with pytest.raises(BadInput, match="leads out of the data folder"):
        data.find(name)


def test_names_are_listed_and_near_ones_offered():
    listed = data.names()
    assert len(listed) == len(set(listed)) == 3 + 39 + 2 + len(data.macrodata_names())
    assert data.names("ADBENCH/") == data.adbench_names()
    assert data.adbench_names()[-1] == "adbench/yeast"
    with pytest.raises(UnknownName, match="no data set is called 'adbench/cardo'; nearest: 'adbench/cardio'"):
        data.load("adbench/cardo")


def test_an_archive_is_loaded_from_the_folder_in_any_case_of_its_name(folders):
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([[0], [1], [0]])
    (folders[0] / "tabular" / "adbench").mkdir(parents=True)
    np.savez(folders[0] / "tabular" / "adbench" / "1_ALOI.npz", X=x, y=y)
    loaded = data.load("ADBench/aloi")
    assert loaded.name == "adbench/ALOI"
    assert np.asarray(loaded.X).tolist() == x.tolist()
    assert loaded.y.tolist() == [0, 1, 0]
    assert loaded.y.dtype == np.int8
    assert loaded.columns == ("x0", "x1")


def test_what_tells_the_attack_is_no_feature(folders):
    (folders[0] / "events" / "nsl_kdd").mkdir(parents=True)
    frame = pl.DataFrame({"flag": ["S0", "SF"], "attack": ["a", "b"], "difficulty": [1, 2], "family": ["c", "d"]})
    frame = frame.with_columns(pl.all().exclude("difficulty").cast(pl.Categorical), anomaly=pl.Series([1, 0]))
    frame.write_parquet(folders[0] / "events" / "nsl_kdd" / "test.parquet")
    loaded = data.load("nsl_kdd/test")
    assert isinstance(loaded.X, pl.DataFrame)
    assert loaded.X.to_dict(as_series=False) == {"flag": ["S0", "SF"]}
    assert loaded.y.tolist() == [1, 0]


def test_sets_of_scikit_learn():
    cancer, wine, digits = (data.load(name) for name in ("breast_cancer", "wine", "digits"))
    assert (cancer.X.shape, cancer.y.sum(), cancer.columns[0]) == ((569, 30), 212, "mean radius")
    # Malignant tumours are the larger ones; with the labels turned around this would fail.
    assert isinstance(cancer.X, pl.DataFrame)
    radius = cancer.X["mean radius"].to_numpy()
    assert radius[cancer.y == 1].mean() > radius[cancer.y == 0].mean()
    assert np.bincount(wine.y).tolist() == [59, 71, 48]
    assert (digits.X.shape, digits.X.max(), len(set(digits.y.tolist()))) == ((1797, 64), 16, 10)


@pytest.mark.parametrize(
    ("name", "shape", "anomalies"),
    [
        ("adbench/cardio", (1831, 21), 176),
        ("adbench/thyroid", (3772, 6), 93),
        ("nsl_kdd/train", (25192, 41), 11743),
        ("nsl_kdd/test", (22544, 41), 12833),
    ],
)
def test_real_sets_have_their_published_counts(name, shape, anomalies, monkeypatch):
    monkeypatch.setattr(_find, "REMOTE", {})
    try:
        loaded = data.load(name)
    except DataMissing as error:
        pytest.skip(str(error))
    assert loaded.X.shape == shape
    assert loaded.y.sum() == anomalies


def test_real_files_have_the_checksums_on_record(monkeypatch):
    name = "tabular/adbench/6_cardio.npz"
    sha256 = _find.REMOTE[name][1]
    monkeypatch.setattr(_find, "REMOTE", {})
    try:
        path = data.find(name)
    except DataMissing as error:
        pytest.skip(str(error))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def test_importing_the_module_loads_nothing_heavy():
    script = "import sys, farout.data; print({'sklearn', 'scipy', 'pandas', 'pyarrow'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
