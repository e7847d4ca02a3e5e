"""Saved states: what goes in comes out, and a damaged or hostile file runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import farout
from farout.cards import find
from farout.errors import BadInput
from farout.io.state import FORMAT, read_state, saved, write_state
from farout.table import ECOD


class Bomb:
    """Unpickling it makes a directory: the trace that something was run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@saved("a word of this test")
@dataclass
class Point:
    x: float
    tags: tuple[str, ...]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5, alphabet="abc") | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(plain)
def test_plain_values_come_back_as_they_were(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("state") / "s"
    write_state(path, tree)
    again = read_state(path)
    assert repr(again) == repr(tree)  # repr tells NaN, -0.0, tuples and lists apart


def test_arrays_dataclasses_and_estimators_come_back_as_they_were(tmp_path):
    from sklearn.linear_model import LinearRegression

    X = np.random.default_rng(0).normal(size=(20, 2))
    model = LinearRegression().fit(X, X @ [1.0, 2.0])
    arrays = [
        X,
        X.T,
        np.array([np.nan, -np.inf]),
        np.arange(3, dtype=np.uint8),
        np.array(["a", "bc"]),
        np.zeros((0, 4)),
    ]
    write_state(tmp_path / "s", {"arrays": arrays, "p": Point(1.5, ("a",)), "m": model, "f": np.float32(0.5)})
    again = read_state(tmp_path / "s")
    for one, other in zip(arrays, again["arrays"]):
        assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert again["p"] == Point(1.5, ("a",)) and again["f"] == 0.5
    assert np.array_equal(again["m"].predict(X), model.predict(X))
    names = np.array([["a", "b"]], dtype=object)
    write_state(tmp_path / "s", names)
    assert read_state(tmp_path / "s").tolist() == names.tolist()


def test_what_cannot_be_saved_is_refused_and_the_old_file_stays(tmp_path):
    write_state(tmp_path / "s", 1)
    with pytest.raises(TypeError, match="'Bomb' cannot be saved"):
        write_state(tmp_path / "s", [np.zeros(5), Bomb(tmp_path / "boom")])
    assert read_state(tmp_path / "s") == 1 and os.listdir(tmp_path) == ["s"]


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "ecod.farout"
    ECOD().fit(np.random.default_rng(0).normal(size=(200, 2))).save(path)
    return path


def rewritten(path, change=None, **members):
    """Write the zip again with a changed header and with other or further members."""
    with zipfile.ZipFile(path) as bundle:
        old = {name: bundle.read(name) for name in bundle.namelist()}
    header = json.loads(old["farout.json"])
    if change:
        change(header)
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in {**old, "farout.json": json.dumps(header).encode(), **members}.items():
            bundle.writestr(name, data)


def refused(path, match="cannot be read as a saved detector"):
    with pytest.raises(BadInput, match=match) as caught:
        farout.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "no.farout", "no saved detector at .*no.farout")
    refused(tmp_path, "no saved detector")


def test_files_cut_anywhere_are_refused(state):
    whole = state.read_bytes()
    for length in [0, 1, 4, 30, 100, *range(200, len(whole), 613), len(whole) - 1]:
        state.write_bytes(whole[:length])
        refused(state)


def test_files_with_a_changed_byte_are_refused_or_read_as_a_detector(state):
    whole, r = state.read_bytes(), np.random.default_rng(0)
    refusals = 0
    for at in r.choice(len(whole), 300, replace=False):
        data = bytearray(whole)
        data[at] ^= 1 << int(r.integers(8))
        state.write_bytes(bytes(data))
        try:
            farout.load(state)
        except BadInput:
            refusals += 1
    assert refusals > 200  # the zip's checksums see nearly all of them


def test_a_newer_format_asks_for_an_upgrade(state):
    rewritten(state, lambda header: header.update(format=FORMAT + 1, farout="9.9"))
    refused(state, rf"saved by farout 9.9 in format {FORMAT + 1}, .* up to {FORMAT}: upgrade farout")


def test_other_files_are_told_apart(tmp_path):
    path = tmp_path / "s"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("hello.txt", "hi")
    refused(path, "a zip file, but not a detector")
    path.write_text("a,b\n1,2\n")
    refused(path)


def test_unknown_words_are_refused(state):
    rewritten(state, lambda header: header.update(tree={"object": "subprocess.Popen", "state": {}}))
    refused(state, "unknown kind of object, 'subprocess.Popen'")
    rewritten(state, lambda header: header.update(tree={"call": "os.system"}))
    refused(state, r"unknown entry with keys \['call'\]")
    rewritten(state, lambda header: header.update(tree={"object": "profile", "state": {"no": 1}}))
    refused(state)


@pytest.mark.parametrize("name", ["knn", "default", "pair_surprise"])
def test_a_fresh_process_reads_what_another_one_saved(name, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 5, (80, 3)).astype(str) if name == "pair_surprise" else rng.normal(size=(80, 3))
    detector = find(name).load()().fit(X)
    detector.save(tmp_path / "saved")
    np.save(tmp_path / "X.npy", X)
    code = f"import farout, numpy as np; d = farout.load({str(tmp_path / 'saved')!r}); "
    code += f"np.save({str(tmp_path / 'scores.npy')!r}, d.outlier_score(np.load({str(tmp_path / 'X.npy')!r})))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert np.load(tmp_path / "scores.npy") == pytest.approx(detector.outlier_score(X))


@pytest.mark.parametrize(
    "header", ["[1]", "null", "7", '{"format": "x"}', "{}", "{", "[" * 100_000, '{"tree": {"array": 1e999}}']
)
def test_broken_headers_are_refused(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "s", "w") as bundle:
        bundle.writestr("farout.json", header)
    refused(tmp_path / "s")


def test_a_raw_pickle_is_not_run(tmp_path):
    path, mark = tmp_path / "ecod.farout", tmp_path / "boom"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    refused(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it would have


def test_a_pickle_in_an_array_is_not_run(state, tmp_path):
    mark, buffer = tmp_path / "boom", io.BytesIO()
    np.save(buffer, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    rewritten(state, lambda header: header.update(tree={"array": 1}), **{"arrays/1.npy": buffer.getvalue()})
    refused(state)
    rewritten(state, **{"arrays/1.npy": pickle.dumps(Bomb(mark))})
    refused(state)
    assert not mark.exists()


@pytest.mark.parametrize("how", ["a type of its own", "a pickle for the model", "a member named as one"])
def test_a_hostile_model_is_not_run(state, tmp_path, how):
    from skops.io import dumps

    mark = tmp_path / "boom"
    if how == "a type of its own":
        data = dumps(Bomb(mark))
    elif how == "a pickle for the model":
        data = pickle.dumps(Bomb(mark))
    else:
        schema = {
            "__class__": "mkdir",
            "__module__": "os",
            "__loader__": "FunctionNode",
            "content": "os.mkdir",
            "__id__": 1,
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as bundle:
            bundle.writestr("schema.json", json.dumps(schema | {"protocol": 2, "_skops_version": "0.13"}))
        data = buffer.getvalue()
    rewritten(state, lambda header: header.update(tree={"detector": {"model": 1}}), **{"models/1.skops": data})
    refused(state, ".")
    assert not mark.exists()


def test_members_that_lead_out_of_the_archive_are_not_written(state, tmp_path):
    rewritten(state, **{"../escaped": b"x", "/escaped": b"x", "arrays/../../escaped2": b"x"})
    before = sorted(p.name for p in tmp_path.parent.iterdir())
    assert farout.load(state).outlier_score([[0.0, 0.0]]).shape == (1,)
    assert sorted(p.name for p in tmp_path.parent.iterdir()) == before
    rewritten(state, lambda header: header.update(tree={"array": "../../escaped"}))
    refused(state)


def test_an_array_that_claims_to_be_huge_is_refused(state):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    rewritten(state, **{"arrays/1.npy": buffer.getvalue()})
    refused(state)
